"""Masking: hidden patches, their distance to visible ones, what decoder masking drops, and their weights in
the loss.

MAE section 3 and Figure 6 (sampling); Efficient MAE Eq. 1 (P2Dist), section 4.2 (beta), Eq. 2 (weights
d**-gamma).
"""

from __future__ import annotations

from typing import NamedTuple

import ipywidgets as widgets
import numpy as np
import torch

from replicate.difficulty import p2dist
from replicate.explore import images
from replicate.explore.panel import choice, real, whole
from replicate.losses.flatten import Weighting
from replicate.masking import sample_mask
from replicate.report.patch_maps import P2DIST, faded, p2dist_map
from replicate.report.style import HEATMAP, OURS, REFERENCE, WIDTH, Figure, new

SIDE, PATCH = 224, 16
GRID = (SIDE // PATCH, SIDE // PATCH)
NO_BETA = 120.0


class Masked(NamedTuple):
    """One image's patches, each (rows, columns).

    mask       1 = hidden
    distance   P2Dist in pixels
    decoded    1 = the decoder predicts it
    weight     in the loss
    """

    mask: np.ndarray
    distance: np.ndarray
    decoded: np.ndarray
    weight: np.ndarray


def controls() -> dict[str, widgets.Widget]:
    return {
        "sampling": choice(["random", "block", "grid"], "random", "sampling"),
        "mask_ratio": real(0.05, 0.95, 0.05, 0.75, "mask ratio"),
        "beta": real(8.0, NO_BETA, 1.0, 26.0, "beta (pixels)", 0),
        "gamma": real(0.0, 2.0, 0.1, 0.6, "gamma", 1),
        "image": choice(list(images.PHOTOGRAPHS), "chelsea", "photograph"),
        "seed": whole(0, 20, 0, "mask number"),
    }


def masked(sampling: str, mask_ratio: float, beta: float, gamma: float, seed: int) -> Masked:
    """One mask of 14 x 14 patches and what follows from it."""
    noise = torch.rand(1, GRID[0] * GRID[1], generator=torch.Generator().manual_seed(seed))
    mask = sample_mask(sampling, noise, mask_ratio, GRID).mask
    distance = p2dist(mask, GRID, PATCH)
    decoded = (distance <= beta).float() * mask
    weight = Weighting(gamma)(distance, decoded)
    return Masked(*(value[0].view(GRID).numpy() for value in (mask, distance, decoded, weight)))


def draw(sampling: str, mask_ratio: float, beta: float, gamma: float, image: str, seed: int) -> Figure:
    """What the encoder sees; P2Dist, dropped patches crossed; weights in the loss; a histogram of P2Dist."""
    found = masked(sampling, mask_ratio, beta, gamma, seed)
    figure, ((seen, distance), (weight, histogram)) = new(2, 2, width=WIDTH * 1.3, height=WIDTH * 1.05)
    hidden = torch.from_numpy(found.mask).flatten()
    seen.imshow(faded(images.square(image, SIDE), hidden, GRID).clip(0, 1))
    visible = int((found.mask == 0).sum())
    seen.set(title=f"{visible} visible of {found.mask.size} patches", xticks=[], yticks=[])
    p2dist_map(found.distance, beta, distance)
    relative = np.where(found.decoded > 0, found.weight * found.decoded.sum(), np.nan)
    figure.colorbar(weight.imshow(relative, cmap=HEATMAP), ax=weight, label="weight, mean 1")
    weight.set(title=f"weights in the loss, d^-{gamma:g}", xticks=[], yticks=[])
    _histogram(histogram, found, beta)
    return figure


def caption(sampling: str, mask_ratio: float, beta: float, gamma: float, image: str, seed: int) -> str:
    """What the picture shows, in words and numbers."""
    found = masked(sampling, mask_ratio, beta, gamma, seed)
    hidden, decoded = found.mask > 0, found.decoded > 0
    relative = found.weight[decoded] * decoded.sum()
    weights = (
        f"weights run from {relative.min():.2f} to {relative.max():.2f}" if decoded.any() else "no weights"
    )
    return (
        f"{sampling} sampling hides {hidden.sum()} of {hidden.size} patches; the encoder reads "
        f"{(~hidden).sum()}. Mean P2Dist: {found.distance[hidden].mean():.1f} pixels. Within beta "
        f"{beta:g} the decoder predicts {decoded.sum()} and drops {hidden.sum() - decoded.sum()}; {weights}."
    )


def _histogram(axes, found: Masked, beta: float) -> None:
    hidden = found.distance[found.mask > 0]
    axes.hist(hidden, bins=np.arange(0, max(hidden.max(), beta) + 6, 4), color=OURS)
    axes.axvline(beta, color=REFERENCE, linestyle="--", label=f"beta {beta:g}")
    dropped = int((found.mask - found.decoded).sum())
    title = f"{dropped} dropped: decoder reads {found.mask.size - dropped} tokens"
    axes.set(xlabel=P2DIST, ylabel="masked patches", title=title)
    axes.legend()

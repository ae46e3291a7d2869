"""Where a finished pre-training errs, patch by patch, on validation images (Efficient MAE Figures 3 and 4)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from replicate.difficulty import p2dist
from replicate.errors import UserError
from replicate.intervals import spearman
from replicate.loaders.pixels import normalise
from replicate.losses.reconstruction import per_unit_error
from replicate.masking import random_masking
from replicate.report.reconstruct import load_model, sample_images

if TYPE_CHECKING:
    from replicate.report.book import Book

PATCH = 16
COVER = 0.25  # how much of the picture shows through a masked patch


def loss_maps(book: Book, runs: list[str], mask_ratio: float, images: int = 4, seed: int = 0) -> list[dict[str, Any]]:
    """Masked image, error and P2Dist of every masked patch, for some validation images through the first of `runs` that has finished.

    A dictionary an image: `image` (H, W, 3) in 0..1 with masked patches faded, `error` and `p2dist` (rows, columns), NaN where
    visible, P2Dist in pixels of a patch of 16; `correlation`, Spearman's, between the two. Empty when no run's weights are here.
    """
    run = next((name for name in runs if name in book.results and _weights(book, name, seed).exists()), None)
    if run is None:
        return []
    resolved = book.params.resolve(run, book.results.budget)
    model, target = load_model(resolved, _weights(book, run, seed))
    raw = sample_images(book.root / book.params.data_folder(resolved.dataset, book.results.budget), resolved.image_size, images)
    noise = torch.rand(len(raw), model.num_patches, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        found = model(normalise(raw), noise, mask_ratio)
        error = per_unit_error(found.pred, target(raw))
    distance = p2dist(found.mask, found.grid, PATCH)
    return [_map(raw[k], found.mask[k], error[k], distance[k], found.grid) for k in range(len(raw))]


def _map(raw: torch.Tensor, mask: torch.Tensor, error: torch.Tensor, distance: torch.Tensor, grid: tuple[int, int]) -> dict[str, Any]:
    hidden = mask > 0
    maps = {name: value.where(hidden, torch.nan).view(grid).numpy() for name, value in (("error", error), ("p2dist", distance))}
    correlation = spearman(distance[hidden].numpy(), error[hidden].numpy())
    return {"image": faded(raw, mask, grid), **maps, "correlation": correlation}


def faded(raw: torch.Tensor, mask: torch.Tensor, grid: tuple[int, int]) -> np.ndarray:
    """uint8 image (3, H, W) -> (H, W, 3) in 0..1, its masked patches faded towards blue."""
    rows, columns = grid
    height, width = raw.shape[1] // rows, raw.shape[2] // columns
    hidden = np.kron(mask.view(grid).numpy(), np.ones((height, width)))[..., None]
    picture = raw.permute(1, 2, 0).numpy() / 255
    return picture * (1 - hidden) + hidden * (COVER * picture + (1 - COVER) * np.array([0.35, 0.55, 0.85]))


def examples(book: Book, mask_ratio: float = 0.85, count: int = 4, seed: int = 0) -> list[dict[str, Any]]:
    """`count` masked patches of one validation image from easy to hard: the paper's 14 x 14 patches at 224 pixels (Figure 4).

    Each is a dictionary: `image` (224, 224, 3) with masked patches faded, `row`, `column` of the patch, its `p2dist` in pixels.
    Empty when the budget's images have not been written.
    """
    side = 224 // PATCH
    try:
        raw = sample_images(book.root / book.params.data_folder("full", book.results.budget), 224, 2)[0]
    except (UserError, FileNotFoundError):
        return []
    mask = random_masking(torch.rand(1, side**2, generator=torch.Generator().manual_seed(seed)), mask_ratio).mask
    distance = p2dist(mask, (side, side), PATCH)[0]
    ranked = distance.argsort()[int((mask == 0).sum()) :]
    chosen = ranked[torch.linspace(0, len(ranked) - 1, count).round().long()].tolist()
    picture = faded(raw, mask[0], (side, side))
    return [{"image": picture, "row": k // side, "column": k % side, "p2dist": float(distance[k])} for k in chosen]


def _weights(book: Book, run: str, seed: int):
    return book.root / book.params.results_folder(run, book.results.budget) / "weights" / f"seed{seed}.safetensors"

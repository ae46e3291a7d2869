"""Efficient MAE's figures: ratio sweep, patches and errors by P2Dist, loss maps, examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch

from replicate.difficulty import p2dist
from replicate.errors import UserError
from replicate.intervals import spearman
from replicate.loaders.pixels import normalise
from replicate.losses.reconstruction import per_unit_error
from replicate.masking import random_masking
from replicate.papers.efficient_mae import PATCH, SIDE
from replicate.report.figures import ACCURACY, new, reach, series
from replicate.report.patch_maps import P2DIST, faded
from replicate.report.reconstruct import load_model, mask_noise, sample_images
from replicate.report.style import HEATMAP, PALETTE, WIDTH, Figure

if TYPE_CHECKING:
    from replicate.report.book import Book


def ratio_sweep(table: pd.DataFrame) -> Figure:
    """Figure 1: accuracy against the mask ratio, printed and ours, and ViT-L's multiply-adds.

    `table` is `efficient_mae.ratio_sweep`. Printed multiply-adds are crosses over the computed ones.
    """
    figure, axes = new(1, 3, width=WIDTH * 1.9)
    paper, ours, cost = axes[0]
    for index, (method, rows) in enumerate(table.groupby("method", sort=False)):
        style = series(index)
        paper.plot(rows["mask_ratio"], rows["top1"], label=method, **style)
        done = rows.dropna(subset=["ours"])
        bars = reach(done, "low", "high")
        ours.errorbar(done["mask_ratio"], done["ours"], yerr=bars, label=method, capsize=3, **style)
        cost.plot(rows["mask_ratio"], rows["multiply_adds"], label=method, **style)
        label = None if index else "printed"
        cost.plot(rows["mask_ratio"], rows["gflops"], "x", color="black", markersize=8, label=label)
    for axis, title in ((paper, "paper"), (ours, "ours"), (cost, "cost of a forward pass")):
        axis.set(xlabel="mask ratio", ylabel=ACCURACY, title=title)
        axis.set_xticks(sorted(table["mask_ratio"].unique()))
    cost.set(ylabel="multiply-adds, ViT-L (G)")
    cost.legend()
    return figure


def difficulty(counts: pd.DataFrame, errors: Mapping[str, pd.DataFrame]) -> Figure:
    """Figure 2: how many masked patches lie at each P2Dist (a line a mask ratio), and their error."""
    figure, axes = new(1, 2, width=WIDTH * 1.5)
    upper, lower = axes[0]
    for index, (ratio, count) in enumerate(counts.items()):
        upper.plot(count.index, count, color=PALETTE[index], label=f"mask ratio {ratio:g}")
    width = counts.index[1] - counts.index[0]
    upper.set(
        xlabel=P2DIST, ylabel=f"masked patches of 196, by {width:g} pixels", title="patches", xlim=(0, 70)
    )
    upper.legend()
    for index, (label, curve) in enumerate(errors.items()):
        colour = PALETTE[(index + 3) % len(PALETTE)]
        ends = (curve[end].fillna(curve["value"]) for end in ("low", "high"))
        lower.plot(curve.index, curve["value"], color=colour, marker=series(index)["marker"], label=label)
        lower.fill_between(curve.index, *ends, color=colour, alpha=0.2)
    title = "error, ours" if errors else "error, ours: no run has finished"
    lower.set(xlabel=P2DIST, ylabel="error of a patch", title=title)
    if errors:
        lower.legend()
    return figure


def loss_map_panels(maps: Sequence[Mapping[str, Any]]) -> Figure | None:
    """Figure 3: a row an image: what is visible, the error of masked patches, their P2Dist."""
    if not maps:
        return None
    figure, axes = new(len(maps), 3, width=5.4, height=1.75 * len(maps) + 0.3)
    for line, found in zip(axes, maps, strict=True):
        line[0].imshow(found["image"].clip(0, 1))
        line[1].imshow(found["error"], cmap=HEATMAP)
        line[2].imshow(found["p2dist"], cmap=HEATMAP)
        line[1].set_title(f"rank correlation {found['correlation']:.2f}", loc="center", fontsize="small")
    for axis, title in zip(axes[-1], ("masked", "error", "P2Dist"), strict=True):
        axis.set_xlabel(title)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    return figure


def p2dist_examples(examples: Sequence[Mapping[str, Any]]) -> Figure | None:
    """Figure 4: one masked image a panel, and a cross on the patch with the P2Dist above it."""
    if not examples:
        return None
    figure, axes = new(1, len(examples), width=2.2 * len(examples), height=2.5)
    for axis, found in zip(axes[0], examples, strict=True):
        patch = PATCH * found["image"].shape[0] / 224
        place = [(found[key] + 0.5) * patch for key in ("column", "row")]
        axis.imshow(found["image"].clip(0, 1))
        axis.plot(*place, "+", color="#D55E00", markersize=13, markeredgewidth=3)
        axis.set_title(f"P2Dist {found['p2dist']:.1f}", loc="center")
        axis.set(xticks=[], yticks=[])
    return figure


def loss_maps(
    book: Book, runs: list[str], mask_ratio: float, images: int = 4, seed: int = 0
) -> list[dict[str, Any]]:
    """Validation images through the first of `runs` whose weights are here; empty without any.

    `image` (H, W, 3) in 0..1 with masked patches faded; `error` and `p2dist` (rows, columns), NaN where
    visible, P2Dist in pixels of a 16-pixel patch; `correlation`, Spearman's, between the two.
    """
    run = next((name for name in runs if name in book.results and book.weights(name, seed).exists()), None)
    if run is None:
        return []
    resolved = book.params.resolve(run, book.results.budget)
    model, target = load_model(resolved, book.weights(run, seed))
    raw = sample_images(book.images(resolved.dataset), resolved.image_size, images)
    with torch.no_grad():
        found = model(normalise(raw), mask_noise(model, len(raw), seed), mask_ratio)
        error = per_unit_error(found.pred, target(raw))
    distance = p2dist(found.mask, found.grid, PATCH)
    return [_map(raw[k], found.mask[k], error[k], distance[k], found.grid) for k in range(len(raw))]


def _map(raw, mask, error, distance, grid: tuple[int, int]) -> dict[str, Any]:
    hidden = mask > 0
    named = {"error": error, "p2dist": distance}
    maps = {name: value.where(hidden, torch.nan).view(grid).numpy() for name, value in named.items()}
    correlation = spearman(distance[hidden].numpy(), error[hidden].numpy())
    return {"image": faded(raw, mask, grid), "correlation": correlation} | maps


def examples(book: Book, mask_ratio: float = 0.85, count: int = 4, seed: int = 0) -> list[dict[str, Any]]:
    """`count` masked patches of one validation image from easy to hard (Figure 4).

    Each is a dictionary: `image` (224, 224, 3) with masked patches faded, `row` and `column` of the patch,
    its `p2dist` in pixels. Empty when the budget's images have not been written.
    """
    try:
        raw = sample_images(book.images("full"), SIDE * PATCH, 2)[0]
    except (UserError, FileNotFoundError):
        return []
    mask = random_masking(
        torch.rand(1, SIDE**2, generator=torch.Generator().manual_seed(seed)), mask_ratio
    ).mask
    distance = p2dist(mask, (SIDE, SIDE), PATCH)[0]
    ranked = distance.argsort()[int((mask == 0).sum()) :]
    chosen = ranked[torch.linspace(0, len(ranked) - 1, count).round().long()].tolist()
    picture = faded(raw, mask[0], (SIDE, SIDE))
    return [dict(image=picture, row=k // SIDE, column=k % SIDE, p2dist=float(distance[k])) for k in chosen]

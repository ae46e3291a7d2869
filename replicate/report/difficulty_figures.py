"""Efficient MAE's figures: the ratio sweep, patches and errors by P2Dist, loss maps, and P2Dist drawn on an image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from replicate.report.figures import ACCURACY, new
from replicate.report.style import HEATMAP, MARKERS, PALETTE, WIDTH, Figure

PIXELS = "P2Dist (pixels of a 16-pixel patch)"


def ratio_sweep(table: pd.DataFrame) -> Figure:
    """Figure 1: accuracy against the mask ratio as printed and as measured here, and the multiply-adds of ViT-L.

    `table` is what `replicate.report.difficulty.ratio_sweep` gives. Printed multiply-adds are drawn as crosses over the computed ones.
    """
    figure, axes = new(1, 3, width=WIDTH * 1.9)
    paper, ours, cost = axes[0]
    for index, (method, rows) in enumerate(table.groupby("method", sort=False)):
        style = {"color": PALETTE[index], "marker": MARKERS[index]}
        paper.plot(rows["mask_ratio"], rows["top1"], label=method, **style)
        reach = np.nan_to_num(np.array([rows["ours"] - rows["low"], rows["high"] - rows["ours"]], dtype=float))
        done = rows["ours"].notna().to_numpy()
        ours.errorbar(rows["mask_ratio"][done], rows["ours"][done], yerr=reach[:, done], label=method, capsize=3, **style)
        cost.plot(rows["mask_ratio"], rows["multiply_adds"], label=method, **style)
        cost.plot(rows["mask_ratio"], rows["gflops"], "x", color="black", markersize=8, label=None if index else "printed")
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
    upper.set(xlabel=PIXELS, ylabel=f"masked patches of 196, by {counts.index[1] - counts.index[0]:g} pixels", title="patches")
    upper.set_xlim(0, 70)
    upper.legend()
    for index, (label, curve) in enumerate(errors.items()):
        colour = PALETTE[(index + 3) % len(PALETTE)]
        lower.plot(curve.index, curve["value"], color=colour, marker=MARKERS[index], label=label)
        lower.fill_between(curve.index, curve["low"].fillna(curve["value"]), curve["high"].fillna(curve["value"]), color=colour, alpha=0.2)
    lower.set(xlabel=PIXELS, ylabel="error of a patch", title="error, ours" + ("" if errors else ": no run has finished"))
    if errors:
        lower.legend()
    return figure


def loss_maps(maps: Sequence[Mapping[str, Any]]) -> Figure | None:
    """Figure 3: a row an image: what is visible, the error of every masked patch, its P2Dist. None when there is nothing to draw."""
    if not maps:
        return None
    figure, axes = new(len(maps), 3, width=5.4, height=1.75 * len(maps) + 0.3)
    for (seen, error, distance), found in zip(axes, maps, strict=True):
        seen.imshow(found["image"].clip(0, 1))
        error.imshow(found["error"], cmap=HEATMAP)
        distance.imshow(found["p2dist"], cmap=HEATMAP)
        error.set_title(f"rank correlation {found['correlation']:.2f}", loc="center", fontsize="small")
        for axis in (seen, error, distance):
            axis.set(xticks=[], yticks=[])
    for axis, title in zip(axes[-1], ("masked", "error", "P2Dist"), strict=True):
        axis.set_xlabel(title)
    return figure


def p2dist_examples(examples: Sequence[Mapping[str, Any]]) -> Figure | None:
    """Figure 4: one masked image a panel, its masked patches blue, and a cross on the patch whose P2Dist stands above it."""
    if not examples:
        return None
    figure, axes = new(1, len(examples), width=2.2 * len(examples), height=2.5)
    for axis, found in zip(axes[0], examples, strict=True):
        height = found["image"].shape[0]
        patch = 16 * height / 224
        axis.imshow(found["image"].clip(0, 1))
        axis.plot((found["column"] + 0.5) * patch, (found["row"] + 0.5) * patch, "+", color="#D55E00", markersize=13, markeredgewidth=3)
        axis.set_title(f"P2Dist {found['p2dist']:.1f}", loc="center")
        axis.set(xticks=[], yticks=[])
    return figure

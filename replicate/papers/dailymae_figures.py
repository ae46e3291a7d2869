"""DailyMAE's figures: minutes of an epoch, the probe against time, speed by image size, crops, run times."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pandas as pd

from replicate.report.figures import new, one, series
from replicate.report.quantities import Reader
from replicate.report.style import MARKERS, OURS, PALETTE, PAPER, REFERENCE, WIDTH, Figure
from replicate.schedules import perceptual


def epoch_minutes(table: pd.DataFrame) -> Figure:
    """Figure 1: minutes of an epoch of ImageNet-1k, ours as bars and the printed ones as diamonds."""
    figure, axis = one(height=1.0 + 0.4 * max(1, len(table)))
    axis.barh(range(len(table)), table["minutes"], color=OURS, height=0.6, label="ours")
    axis.plot(table["minutes, printed"], range(len(table)), "D", color=PAPER, label="printed, their machine")
    axis.set_yticks(range(len(table)), table.index)
    axis.invert_yaxis()
    title = "" if table["minutes"].notna().any() else "nothing was measured"
    axis.set(xlabel="minutes to load an epoch of ImageNet-1k", title=title)
    axis.legend()
    return figure


def probe_curves(probes: Mapping[str, Mapping[str, pd.DataFrame]]) -> Figure:
    """Figure 2: the online probe against the index of the curves, a panel for each way to probe."""
    figure, axes = new(1, len(probes), width=WIDTH * 1.5)
    for axis, (probe, curves) in zip(axes[0], probes.items(), strict=True):
        for index, (label, curve) in enumerate(curves.items()):
            axis.plot(curve.index, curve.iloc[:, 0], label=label, **series(index))
        axis.set(ylabel="online probe (%)", title=probe if curves else f"{probe}: no run has finished")
        if curves:
            axis.set_xlabel(curve.index.name)
            axis.legend()
    return figure


def by_image_size(reader: Reader, sizes: tuple[str, ...] = ("256", "500", "1000", "none")) -> Figure:
    """Figure 3c: images per second by the longest stored side, crop decode against whole images."""
    figure, axis = one()
    for index, (kind, label) in enumerate((("full_decode", "whole image"), ("crop_decode", "crop decode"))):
        rates = {size: reader.value(f"loader_{kind}_{size}_90/images_per_second") for size in sizes}
        points = {size: rate for size, rate in rates.items() if not math.isnan(rate)}
        axis.plot(list(points), list(points.values()), label=label, **series(index))
    axis.set(xlabel="longest stored side (pixels)", ylabel="images per second", title="ours, quality 90")
    axis.set_ylim(bottom=0)
    axis.legend()
    return figure


def crop_views(sizes: tuple[int, ...] = (160, 192, 224), low: float = 0.28) -> Figure:
    """Figure 4 in numbers: an object's share in a crop and its apparent size, by the largest crop."""
    figure, axes = new(1, 2, width=WIDTH * 1.5)
    highs = np.linspace(0.4, 1.0, 61)
    ratio, apparent = axes[0]
    ratio.plot(highs, [perceptual.perceptual_ratio(low, high) for high in highs], color=OURS)
    ratio.set(ylabel="share of the object in view", title="perceptual ratio, Eq. 2")
    for index, size in enumerate(sizes):
        true, stated = (
            [function(size, low, high) for high in highs]
            for function in (perceptual.expected_apparent_size, perceptual.apparent_size)
        )
        apparent.plot(highs, true, color=PALETTE[index], label=f"{size} px, true")
        apparent.plot(highs, stated, "--", color=PALETTE[index], label=f"{size} px, Eq. 1")
    apparent.set(ylabel="pixels", title="apparent size")
    apparent.legend(fontsize="small", ncols=2)
    for axis in axes[0]:
        axis.set_xlabel("largest relative side of a crop")
    return figure


def run_times(table: pd.DataFrame) -> Figure:
    """Table 11's run times as shares of fixed 224's: printed, by multiply-adds, by measured steps."""
    figure, axis = one()
    drawn = (("printed time", PAPER), ("multiply-adds", PALETTE[2]), ("steps of ViT-B", OURS))
    for index, (column, colour) in enumerate(drawn):
        values = [float(text.split()[0]) if text else np.nan for text in table[column]]
        axis.plot(range(len(table)), values, MARKERS[index], color=colour, label=column)
    axis.set_xticks(range(len(table)), table.index)
    axis.set(xlabel="scheme", ylabel="% of the fixed 224-pixel run")
    axis.axhline(100, color=REFERENCE, linewidth=0.8)
    axis.legend()
    return figure

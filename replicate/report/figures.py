"""Drawing functions: each takes data and returns a Figure. The paper's numbers stand beside ours, and ours carry their intervals.

A figure is made without pyplot, so that drawing many in one process keeps none of them alive; it shows itself in a notebook.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from replicate import intervals
from replicate.intervals import Curve
from replicate.report.quantities import NotRun, Reader
from replicate.report.style import (
    HEATMAP,
    HEIGHT,
    MARKERS,
    OURS,
    PALETTE,
    PAPER,
    REFERENCE,
    WIDTH,
    Figure,
    set_theme,
)

ACCURACY = "top-1 accuracy (%)"


def new(rows: int = 1, columns: int = 1, width: float = WIDTH, height: float = HEIGHT, **options: Any) -> tuple[Figure, np.ndarray]:
    """An empty figure with the theme and its axes (rows, columns)."""
    set_theme()
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def curve(axes: Axes, data: Curve, label: str, index: int = 0) -> None:
    """One sweep with the 95 % interval of every point, and a tick on the axis for each."""
    points = [intervals.mean(list(point.values())) for point in data.values]
    reach = [point.half_width if point.has_interval else 0.0 for point in points]
    axes.errorbar(data.x, [p.value for p in points], yerr=reach, label=label, color=PALETTE[index], marker=MARKERS[index], capsize=3)


def llrd_curve(reader: Reader, sweeps: Mapping[str, str], published: Mapping[str, tuple[float, float]] | None = None) -> Figure:
    """Fine-tuning accuracy against layer-wise learning-rate decay (MAE Are Secretly Efficient Learners, Figures 2a and 3).

    sweeps     legend -> sweep; one that has not finished is left out and named below the title
    published  legend -> (best LLRD, its gain over 0.65 in points) as the paper prints them; drawn in a panel beside ours as gains
    """
    figure, axes = new(1, 2 if published else 1, width=WIDTH * (1.5 if published else 1.0))
    left, missing = axes[0, 0], []
    for index, (label, sweep) in enumerate(sweeps.items()):
        try:
            data = reader.curve(sweep)
        except NotRun:
            missing.append(label)
            continue
        curve(left, data, label, index)
        best = intervals.argmax(data)
        left.axvline(best.value, color=PALETTE[index], linestyle=":", linewidth=1)
    left.set(
        xlabel="layer-wise learning-rate decay",
        ylabel=ACCURACY,
        title="ours" + f" (not run: {', '.join(missing)})" * bool(missing),
    )
    if left.get_legend_handles_labels()[0]:
        left.legend()
    if published:
        gains(axes[0, 1], reader, sweeps, {label: gain for label, (_, gain) in published.items()})
    return figure


def gains(axes: Axes, reader: Reader, sweeps: Mapping[str, str], published: Mapping[str, float], default: float = 0.65) -> None:
    """What the best point of each sweep gains over the default LLRD: the paper's gain beside ours, ours with its interval."""
    for place, (label, sweep) in enumerate(sweeps.items()):
        if label in published:
            axes.bar(place - 0.2, published[label], 0.38, color=PAPER, label="paper" if not place else None)
        try:
            found = reader.estimate({"minus": [{"best": sweep}, reader.points(sweep)[default]]})
        except NotRun:
            continue
        reach = found.half_width if found.has_interval else 0.0
        axes.bar(place + 0.2, found.value, 0.38, yerr=reach, capsize=3, color=OURS, label="ours" if not place else None)
    axes.axhline(0, color=REFERENCE, linewidth=0.8)
    axes.set_xticks(range(len(sweeps)), [label.replace(", ", "\n") for label in sweeps])
    axes.set(ylabel="gain over the default (points)", title=f"best LLRD against {default:g}")
    axes.legend()


def sweep_panels(
    reader: Reader, sweeps: Mapping[str, str], xlabel: str, references: Mapping[str, Mapping[str, str]] | None = None, log: bool = False
) -> Figure:
    """A panel for each sweep, ours with intervals (MAE, Figures 5, 7 and 9).

    sweeps       panel's title -> sweep; one that has not finished is an empty panel that says so
    references   panel's title -> {legend: run}, drawn as horizontal lines
    log          places on the axis grow by factors (epochs)
    """
    figure, axes = new(1, len(sweeps), width=WIDTH * (0.75 + 0.55 * (len(sweeps) - 1)))
    for axis, (title, sweep) in zip(axes[0], sweeps.items(), strict=True):
        axis.set(title=title, xlabel=xlabel, ylabel=ACCURACY)
        try:
            data = reader.curve(sweep, least=2)
        except NotRun:
            axis.set(title=f"{title}: not run", xticks=[], yticks=[])
            continue
        curve(axis, data, "ours")
        if log:
            axis.set_xscale("log", base=2)
            axis.set_xticks(data.x, [f"{x:g}" for x in data.x])
            axis.minorticks_off()
        for legend, run in (references or {}).get(title, {}).items():
            if run in reader.results:
                axis.axhline(reader.estimate(run).value, color=REFERENCE, linestyle="--", linewidth=1, label=legend)
                axis.legend()
    return figure


def ablation(table: pd.DataFrame) -> Figure:
    """One panel of an ablation table: fine-tuning above, linear probing below; the paper on the left, ours on the right (MAE, Table 1).

    `table` is what `replicate.report.tables.cells` gives, restricted to the panel, with a `label` each. The paper stands alone where
    nothing of ours has been run.
    """
    sides = ("paper", "ours") if table["ours"].notna().any() else ("paper",)
    metrics = [(column, name) for column, name in (("ft_top1", "fine-tuning"), ("lin_top1", "linear probing")) if (table["column"] == column).any()]
    figure, axes = new(len(metrics), len(sides), width=WIDTH * (1.3 if len(sides) > 1 else 0.75), height=2.5 * len(metrics))
    for line, (column, name) in zip(axes, metrics, strict=True):
        part = table[table["column"] == column]
        places = np.arange(len(part))
        reach = np.nan_to_num(np.array([part["ours"] - part["ours_low"], part["ours_high"] - part["ours"]], dtype=float))
        line[0].plot(places, part["value"], color=PAPER, marker="s", linestyle=":")
        if len(sides) > 1:
            line[1].errorbar(places, part["ours"], yerr=reach, color=OURS, marker="o", linestyle=":", capsize=3)
        for axis, side in zip(line, sides, strict=True):
            axis.set_xticks(places, [label.replace("_", "\n") for label in part["label"]], fontsize="small")
            axis.set(title=f"{name}, {side}", ylabel="top-1 (%)", xlim=(-0.5, len(part) - 0.5))
    return figure


def comparison(table: pd.DataFrame, xlabel: str, ylabel: str = ACCURACY) -> Figure:
    """One column of a table, the paper's numbers on the left and ours with their intervals on the right.

    `table` is what `replicate.report.tables.cells` gives, restricted to the numbers to draw, with a `label` each. Absolute values
    differ between scales, so the two are never drawn on one axis. The paper stands alone where nothing of ours has been run.
    """
    sides = ("paper", "ours") if table["ours"].notna().any() else ("paper",)
    figure, axes = new(1, len(sides), width=WIDTH * (1.3 if len(sides) > 1 else 0.75))
    places = np.arange(len(table))
    axes[0, 0].plot(places, table["value"], color=PAPER, marker="s")
    reach = np.nan_to_num(np.array([table["ours"] - table["ours_low"], table["ours_high"] - table["ours"]], dtype=float))
    if len(sides) > 1:
        axes[0, 1].errorbar(places, table["ours"], yerr=reach, color=OURS, marker="o", capsize=3)
    for axis, title in zip(axes[0], sides, strict=True):
        axis.set_xticks(places, table["label"])
        axis.set(title=title, xlabel=xlabel, ylabel=ylabel)
        axis.margins(x=0.25, y=0.2)
    return figure


def cost_bars(costs: pd.DataFrame) -> Figure:
    """Cost of each recipe relative to the cheapest, on a logarithmic axis (MAE Are Secretly Efficient Learners, Table 4).

    `costs` is indexed by recipe; each column is one way to count (the paper's hours, multiply-adds, our time).
    """
    figure, axes = new(height=0.9 + 0.75 * len(costs))
    width = 0.8 / len(costs.columns)
    for index, (name, column) in enumerate(costs.items()):
        places = np.arange(len(costs)) + (index - (len(costs.columns) - 1) / 2) * width
        bars = axes[0, 0].barh(places, column, width, color=PALETTE[index], label=name)
        texts = ["" if math.isnan(value) else f" {value:.1f}" for value in column]
        axes[0, 0].bar_label(bars, texts, fontsize="small")
    axes[0, 0].set_yticks(range(len(costs)), costs.index)
    axes[0, 0].invert_yaxis()
    axes[0, 0].set(xscale="log", xlabel="pre-training cost relative to the cheapest recipe")
    axes[0, 0].margins(x=0.15)
    axes[0, 0].legend(loc="best")
    return figure


def loss_curves(histories: Mapping[str, pd.DataFrame], metric: str = "loss", ylabel: str = "training loss") -> Figure:
    """A metric over the epochs of several runs: a line for the mean of the seeds, a band from the lowest to the highest.

    Epochs are drawn as fractions of each run, so that runs of different length can be compared.
    """
    figure, axes = new()
    for index, (name, history) in enumerate(histories.items()):
        if metric not in history or history.empty:
            continue
        table = history.dropna(subset=[metric]).pivot(index="epoch", columns="seed", values=metric)
        place = (table.index + 1) / (history["epoch"].max() + 1)
        colour = PALETTE[index % len(PALETTE)]
        axes[0, 0].plot(place, table.mean(axis=1), color=colour, label=f"{name} ({len(place)} epochs)")
        axes[0, 0].fill_between(place, table.min(axis=1), table.max(axis=1), color=colour, alpha=0.2, linewidth=0)
    axes[0, 0].set(xlabel="fraction of the run", ylabel=ylabel)
    if axes[0, 0].get_legend_handles_labels()[0]:
        axes[0, 0].legend()
    return figure


def reconstructions(rows: Sequence[Mapping[str, np.ndarray]], across: int = 1) -> Figure:
    """A grid of images, one row an image and one column a view: masked, prediction, pasted over what was visible, original.

    Each row maps a view's title to an image (H, W, 3) with values in 0..1; `across` rows stand side by side.
    """
    names = list(rows[0])
    lines = math.ceil(len(rows) / across)
    figure, axes = new(lines, len(names) * across, width=1.6 * len(names) * across, height=1.6 * lines + 0.3)
    for axis in axes.flat:
        axis.set_axis_off()
    for place, row in enumerate(rows):
        line = axes[place // across][place % across * len(names) :]
        for axis, name in zip(line[: len(names)], names, strict=True):
            axis.imshow(np.clip(row[name], 0, 1))
    for axis, name in zip(axes[0], names * across, strict=True):
        axis.set_title(name, loc="center", fontsize="small")
    return figure


def p2dist_map(distance: np.ndarray, beta: float | None = None, axes: Axes | None = None) -> Figure:
    """P2Dist of every patch (rows, columns) in pixels, visible patches (0) left white; patches beyond `beta` are crossed out."""
    figure, grid = (axes.figure, np.array([[axes]])) if axes is not None else new(width=HEIGHT * 1.2, height=HEIGHT)
    axis = grid[0, 0]
    image = axis.imshow(np.where(distance > 0, distance, np.nan), cmap=HEATMAP)
    figure.colorbar(image, ax=axis, label="P2Dist (pixels)")
    if beta is not None:
        rows, columns = np.nonzero(distance > beta)
        axis.scatter(columns, rows, marker="x", color="white", s=14, linewidths=1)
        axis.set_title(f"decoded {int(((distance > 0) & (distance <= beta)).sum())} of {int((distance > 0).sum())} masked patches")
    axis.set(xticks=[], yticks=[])
    return figure

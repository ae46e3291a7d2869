"""Drawing functions that several papers share: each takes data and returns a Figure.

The paper's numbers stand beside ours, and ours carry their intervals. Figures are made without pyplot, so
that drawing many in one process keeps none of them alive.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from replicate.report.quantities import NotRun, Reader
from replicate.report.style import HEIGHT, MARKERS, OURS, PALETTE, PAPER, WIDTH, Figure, new, one

ACCURACY = "top-1 accuracy (%)"


def curve(axes: Axes, reader: Reader, sweep: Any, label: str, index: int = 0, least: int = 3) -> list[float]:
    """One sweep with the 95 % interval of every point; returns their places on the axis.

    Raises NotRun for fewer than `least` points.
    """
    places = reader.curve(sweep, least=least).x
    points = [reader.estimate(f"{reader.points(sweep)[x]}/{reader.metric}") for x in places]
    reach = [point.half_width if point.has_interval else 0.0 for point in points]
    axes.errorbar(places, [one.value for one in points], yerr=reach, label=label, capsize=3, **series(index))
    return list(places)


def series(index: int) -> dict[str, str]:
    """Colour and marker of the curve with this number."""
    return {"color": PALETTE[index % len(PALETTE)], "marker": MARKERS[index % len(MARKERS)]}


def reach(table: pd.DataFrame, low: str = "ours_low", high: str = "ours_high") -> np.ndarray:
    """Lower and upper lengths (2, N) of the error bars of `ours`, 0 where there is no interval."""
    return np.nan_to_num(np.array([table["ours"] - table[low], table[high] - table["ours"]], dtype=float))


def beside(table: pd.DataFrame, rows: int = 1, height: float = HEIGHT) -> tuple[Figure, np.ndarray]:
    """An empty figure (rows, 2) for the paper and ours; (rows, 1) where nothing of ours has been run."""
    columns = 2 if table["ours"].notna().any() else 1
    return new(rows, columns, width=WIDTH * (1.3 if columns > 1 else 0.75), height=height)


def draw_beside(axes: np.ndarray, table: pd.DataFrame, ticks: Sequence[str], **options: Any) -> None:
    """The paper's `value` on the first axes, `ours` with intervals on the second: scales differ."""
    places = np.arange(len(table))
    axes[0].plot(places, table["value"], color=PAPER, marker="s", **options)
    if len(axes) > 1:
        style = {"color": OURS, "marker": "o", "capsize": 3, **options}
        axes[1].errorbar(places, table["ours"], yerr=reach(table), **style)
    for axis, title in zip(axes, ("paper", "ours"), strict=False):
        axis.set(title=title)
        axis.set_xticks(places, ticks)


def sweep_curves(
    reader: Reader,
    sweeps: Mapping[str, str | Mapping[float, str]],
    xlabel: str,
    ylabel: str = ACCURACY,
    logarithmic: bool = False,
    least: int = 3,
) -> Figure | None:
    """Several sweeps, legend -> sweep; the title names those with fewer than `least` points.

    None where none can be drawn.
    """
    figure, axes = one()
    missing = draw_sweeps(axes, reader, sweeps, least)
    if len(missing) == len(sweeps):
        return None
    axes.set(xlabel=xlabel, ylabel=ylabel)
    if logarithmic:
        axes.set_xscale("log")
    axes.legend()
    return figure


def draw_sweeps(axes: Axes, reader: Reader, sweeps: Mapping[str, Any], least: int = 3) -> list[str]:
    """Draw the sweeps that have run and name the others in the title; returns the legends of the others."""
    missing = []
    for index, (label, sweep) in enumerate(sweeps.items()):
        try:
            curve(axes, reader, sweep, label, index, least)
        except NotRun:
            missing.append(label)
    axes.set_title("ours" + f" (not run: {', '.join(missing)})" * bool(missing))
    return missing


def loss_curves(
    histories: Mapping[str, pd.DataFrame], metric: str = "loss", ylabel: str = "training loss"
) -> Figure:
    """A metric over the epochs of several runs: mean of the seeds, and a band from lowest to highest.

    Epochs are drawn as fractions of each run, so that runs of different length can be compared.
    """
    figure, axes = one()
    for index, (name, history) in enumerate(histories.items()):
        if metric not in history or history.empty:
            continue
        table = history.dropna(subset=[metric]).pivot(index="epoch", columns="seed", values=metric)
        place = (table.index + 1) / (history["epoch"].max() + 1)
        colour = PALETTE[index % len(PALETTE)]
        axes.plot(place, table.mean(axis=1), color=colour, label=f"{name} ({len(place)} epochs)")
        axes.fill_between(place, table.min(axis=1), table.max(axis=1), color=colour, alpha=0.2, linewidth=0)
    axes.set(xlabel="fraction of the run", ylabel=ylabel)
    if axes.get_legend_handles_labels()[0]:
        axes.legend()
    return figure


def reconstructions(rows: Sequence[Mapping[str, np.ndarray]], across: int = 1) -> Figure:
    """A grid of images, one row an image and one column a view: masked, prediction, original.

    Each row maps a view's title to an image (H, W, 3) with values in 0..1; `across` rows stand side by side.
    """
    names = list(rows[0])
    lines = math.ceil(len(rows) / across)
    figure, axes = new(lines, len(names) * across, width=1.6 * len(names) * across, height=1.6 * lines + 0.3)
    for axis in axes.flat:
        axis.set_axis_off()
    for place, row in enumerate(rows):
        begin = place % across * len(names)
        for axis, name in zip(axes[place // across][begin : begin + len(names)], names, strict=True):
            axis.imshow(np.clip(row[name], 0, 1))
    for axis, name in zip(axes[0], names * across, strict=True):
        axis.set_title(name, loc="center", fontsize="small")
    return figure

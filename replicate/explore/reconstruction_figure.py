"""The picture of one image through a model: its views, and where the error is (Efficient MAE Figures 2 and
3).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes

from replicate.intervals import spearman
from replicate.report.reconstruct import ORIGINAL
from replicate.report.style import HEATMAP, OURS, PAPER, Figure, new

OPACITY = 0.7


def reconstruction_figure(
    views: Mapping[str, np.ndarray], mask: np.ndarray, error: np.ndarray, p2dist: np.ndarray
) -> Figure:
    """Views of one image above; below, error and P2Dist of every masked patch, and one against the other."""
    figure, axes = new(2, len(views), width=2.1 * len(views), height=4.9)
    for axis, (title, view) in zip(axes[0], views.items(), strict=True):
        _image(axis, view, title)
    original = views[ORIGINAL]
    _overlay(axes[1][0], original, error, "error of a masked patch")
    _overlay(axes[1][1], original, p2dist, "its P2Dist")
    _error_by_distance(axes[1][2], p2dist[mask], error[mask])
    for axis in axes[1][3:]:
        axis.set_axis_off()
    return figure


def _overlay(axis: Axes, original: np.ndarray, values: np.ndarray, title: str) -> None:
    """A value a patch over the image in grey; visible patches stay clear."""
    axis.imshow(original.mean(axis=2), cmap="gray", vmin=0, vmax=1)
    height, width = original.shape[:2]
    axis.imshow(values, cmap=HEATMAP, alpha=OPACITY, extent=(-0.5, width - 0.5, height - 0.5, -0.5))
    axis.set_title(title, loc="center", fontsize="small")
    axis.set(xticks=[], yticks=[])


def _image(axis: Axes, values: np.ndarray, title: str) -> None:
    axis.imshow(values)
    axis.set_title(title, loc="center", fontsize="small")
    axis.set(xticks=[], yticks=[])


def _error_by_distance(axis: Axes, distance: np.ndarray, error: np.ndarray) -> None:
    """A dot a patch, a diamond the mean over 10 pixels of distance, the rank correlation in the title."""
    axis.scatter(distance, error, s=9, alpha=0.5, color=OURS)
    bins = np.digitize(distance, np.arange(10, 100, 10))
    for number in np.unique(bins):
        axis.plot(distance[bins == number].mean(), error[bins == number].mean(), "D", color=PAPER)
    axis.set(xlabel="P2Dist (pixels)", ylabel="error")
    if len(distance) > 2 and np.ptp(distance) > 0:
        axis.set_title(f"rank correlation {spearman(distance, error):.2f}", loc="center", fontsize="small")

"""Two recipes side by side: two finished runs fill in the same image under the same mask."""

from __future__ import annotations

import ipywidgets as widgets
import numpy as np

from replicate.errors import UserError
from replicate.explore.loaded import choices
from replicate.explore.panel import PHOTOGRAPH, choice, real, whole
from replicate.explore.pretrained import Reconstruction
from replicate.explore.reconstruction import reconstructed
from replicate.explore.runs import Choice, finished
from replicate.report.reconstruct import ORIGINAL
from replicate.report.style import HEATMAP, Figure, new


def controls() -> dict[str, widgets.Widget]:
    runs = finished()
    options = [(found.label, found) for found in runs]
    beside = next((found for found in runs[1:] if found.trained and found.budget == runs[0].budget), runs[-1])
    return {
        "left": choice(options, runs[0], "first run"),
        "right": choice(options, beside, "second run"),
        "mask_ratio": real(0.05, 0.95, 0.05, 0.75, "mask ratio"),
        "image": choice(choices(), 0, PHOTOGRAPH),
        "seed": whole(0, 20, 0, "mask number"),
    }


def pair(
    left: Choice, right: Choice, mask_ratio: float, image: str | int, seed: int
) -> list[tuple[Choice, Reconstruction]]:
    """Both reconstructions. Raises UserError for runs on other grids, which share no mask."""
    found = [(run, reconstructed(run, mask_ratio, image, seed)) for run in (left, right)]
    grids = [one.mask.shape for _, one in found]
    if grids[0] != grids[1]:
        first, second = (f"{run.label} on {'x'.join(map(str, one.mask.shape))}" for run, one in found)
        raise UserError(f"{first} and {second} patches share no mask: choose two runs of one budget")
    return found


def draw(left: Choice, right: Choice, mask_ratio: float, image: str | int, seed: int) -> Figure:
    """A row a run: its views without the original, and its error on one scale; the original first."""
    found = pair(left, right, mask_ratio, image, seed)
    columns = max(len(one.views) for _, one in found) + 1
    figure, axes = new(2, columns, width=2.1 * columns, height=4.9)
    highest = max(np.nanmax(one.error) for _, one in found)
    for line, (run, one) in zip(axes, found, strict=True):
        views = {ORIGINAL: one.views[ORIGINAL]} | one.views
        for axis, (title, view) in zip(line, views.items(), strict=False):
            axis.imshow(view)
            axis.set_title(title, loc="center", fontsize="small")
        line[-1].imshow(one.error, cmap=HEATMAP, vmin=0, vmax=highest)
        line[-1].set_title("error of a masked patch", loc="center", fontsize="small")
        line[0].set_ylabel(run.label)
        for number, axis in enumerate(line):
            axis.set(xticks=[], yticks=[])
            if len(views) <= number < columns - 1:
                axis.set_axis_off()
    return figure


def caption(left: Choice, right: Choice, mask_ratio: float, image: str | int, seed: int) -> str:
    """Both runs' loss and rank correlation."""
    found = pair(left, right, mask_ratio, image, seed)
    return " ".join(f"{run.label}: {one.summary}" for run, one in found)

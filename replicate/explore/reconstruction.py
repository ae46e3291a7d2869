"""Reconstruction: a finished run, an image and a mask ratio; what is masked, predicted and true, and where
the error is.

MAE Figures 2 to 4, Efficient MAE Figures 2 and 3; runs that predict HOG show glyphs (FastMIM Figures 10 and
11).
"""

from __future__ import annotations

from functools import lru_cache

import ipywidgets as widgets

from replicate.explore.loaded import choices, image_for, model_of
from replicate.explore.panel import PHOTOGRAPH, choice, real, whole
from replicate.explore.pretrained import Reconstruction, reconstruct
from replicate.explore.runs import Choice, finished
from replicate.explore.runs import show_too as show_too
from replicate.report.root import repository
from replicate.report.style import Figure


def controls() -> dict[str, widgets.Widget]:
    runs = finished()
    return {
        "run": choice([(found.label, found) for found in runs], runs[0], "run"),
        "mask_ratio": real(0.05, 0.95, 0.05, 0.75, "mask ratio"),
        "image": choice(choices(), 0, PHOTOGRAPH),
        "seed": whole(0, 20, 0, "mask number"),
    }


@lru_cache(maxsize=8)
def reconstructed(run: Choice, mask_ratio: float, image: str | int, seed: int) -> Reconstruction:
    """An image through a run's model."""
    return reconstruct(model_of(run, repository()), image_for(run, image), mask_ratio, seed)


def draw(run: Choice, mask_ratio: float, image: str | int, seed: int) -> Figure:
    return reconstructed(run, mask_ratio, image, seed).figure()


def caption(run: Choice, mask_ratio: float, image: str | int, seed: int) -> str:
    """Loss and rank correlation in a sentence."""
    return f"{run.label}: {reconstructed(run, mask_ratio, image, seed).summary}"

"""Reconstruction: a finished run, an image and a mask ratio; what is masked, predicted and true, and where
the error is.

MAE Figures 2 to 4, Efficient MAE Figures 2 and 3; runs that predict HOG show glyphs (FastMIM Figures 10 and
11).
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import ipywidgets as widgets
import torch

from replicate.config import Params, load
from replicate.explore import images
from replicate.explore.panel import choice, real, whole
from replicate.explore.pretrained import DRAWN, Pretrained, load_model, random_model, reconstruct
from replicate.report.book import repository
from replicate.report.reconstruct import sample_images
from replicate.report.style import Figure

UNTRAINED = ("light_75", "smoke")


class Choice(NamedTuple):
    """A run at a budget, trained or not."""

    run: str
    budget: str
    trained: bool

    @property
    def label(self) -> str:
        return f"{'' if self.trained else 'random weights, '}{self.run} ({self.budget})"


@lru_cache(maxsize=1)
def parameters(root: Path) -> Params:
    """The configuration of a repository, read once."""
    return load(root / "params.yaml")


def finished(root: Path | None = None) -> list[Choice]:
    """Every finished pre-training whose target can be drawn, at any budget, and last an untrained model."""
    root = root or repository()
    params = parameters(root)
    drawn = [name for name, run in params.pretrain_runs.items() if run.target in DRAWN]
    weights = Path("weights", "seed0.safetensors")
    return [
        *(
            Choice(name, budget, True)
            for budget in params.budgets
            for name in drawn
            if (root / params.results_folder(name, budget) / weights).exists()
        ),
        Choice(*UNTRAINED, False),
    ]


def controls() -> dict[str, widgets.Widget]:
    runs = finished()
    return {
        "run": choice([(found.label, found) for found in runs], runs[0], "run"),
        "mask_ratio": real(0.05, 0.95, 0.05, 0.75, "mask ratio"),
        "image": whole(0, images.PICTURES - 1, 0, "image"),
        "seed": whole(0, 20, 0, "mask number"),
    }


@lru_cache(maxsize=4)
def model_of(chosen: Choice, root: Path) -> Pretrained:
    if chosen.trained:
        return load_model(chosen.run, budget=chosen.budget, root=root)
    return random_model(parameters(root).resolve(chosen.run, chosen.budget))


@lru_cache(maxsize=4)
def validation(chosen: Choice, root: Path) -> torch.Tensor | None:
    """Images of the run's own validation set; None where it has not been written."""
    params = parameters(root)
    run = params.resolve(chosen.run, chosen.budget)
    folder = root / params.data_folder(run.dataset, chosen.budget)
    written = (folder / "val.beton").exists()
    return sample_images(folder, run.image_size, images.PICTURES) if written else None


def draw(run: Choice, mask_ratio: float, image: int, seed: int) -> Figure:
    root = repository()
    model, stored = model_of(run, root), validation(run, root)
    if stored is None:
        raw = images.picture(image, model.run.image_size)
    else:
        raw = stored[min(image, len(stored) - 1)]
    return reconstruct(model, raw, mask_ratio, seed).figure()

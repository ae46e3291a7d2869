"""Reconstruction: a finished run, an image and a ratio; what is masked, predicted and true, and where the error lies.

MAE Figures 2 to 4, Efficient MAE Figures 2 and 3. Runs of HOG are drawn as glyphs (FastMIM Figures 10 and 11).
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import ipywidgets as widgets
import numpy as np
import torch

from replicate import targets
from replicate.config import Params, PretrainRun, load
from replicate.difficulty import p2dist
from replicate.explore import images
from replicate.explore.panel import choice, real, whole
from replicate.intervals import spearman
from replicate.loaders.pixels import normalise
from replicate.losses.reconstruction import per_unit_error
from replicate.patches import unpatchify
from replicate.report.book import repository
from replicate.report.figures import new
from replicate.report.reconstruct import (
    HOG,
    HOG_PREDICTED,
    MASKED,
    ORIGINAL,
    PATCH,
    hog_glyphs,
    load_model,
    sample_images,
    views,
)
from replicate.report.style import HEATMAP, OURS, PAPER, Figure

UNTRAINED = ("light_75", "smoke")
PICTURES = ("pixel", "hog")


@dataclass(frozen=True)
class Choice:
    """A run at a budget with the weights of its first seed; None where nothing is trained."""

    run: str
    budget: str
    weights: Path | None

    @property
    def label(self) -> str:
        return f"{self.run} ({self.budget})" if self.weights else f"random weights, {self.run} ({self.budget})"


@lru_cache(maxsize=1)
def parameters(root: Path) -> Params:
    """`params.yaml` of a repository, read once."""
    return load(root / "params.yaml")


def finished(root: Path | None = None) -> list[Choice]:
    """Every finished pre-training whose target can be drawn, at any budget, and last a model that has not been trained."""
    root = root or repository()
    params = parameters(root)
    found = []
    for budget in params.budgets:
        for name, run in params.pretrain_runs.items():
            path = root / params.results_folder(name, budget) / "weights" / "seed0.safetensors"
            if run.target in PICTURES and path.exists():
                found.append(Choice(name, budget, path))
    return [*found, Choice(*UNTRAINED, None)]


def controls() -> dict[str, widgets.Widget]:
    runs = finished()
    return {
        "run": choice([(found.label, found) for found in runs], runs[0], "run"),
        "mask_ratio": real(0.05, 0.95, 0.05, 0.75, "mask ratio"),
        "image": whole(0, images.PICTURES - 1, 0, "image"),
        "seed": whole(0, 20, 0, "mask number"),
    }


@lru_cache(maxsize=4)
def model_of(chosen: Choice, root: Path) -> tuple[torch.nn.Module, torch.nn.Module, PretrainRun]:
    """(model for evaluation, target module, resolved run)."""
    run = parameters(root).resolve(chosen.run, chosen.budget)
    if chosen.weights is not None:
        return (*load_model(run, chosen.weights), run)
    target = targets.build(run.target, run.patch_size, **run.target_options)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = importlib.import_module(f"replicate.models.{run.method}").build(run, target.dim, False)
    return model.eval(), target, run


@lru_cache(maxsize=4)
def validation(chosen: Choice, root: Path) -> torch.Tensor | None:
    """Images of the run's own validation set, or None where it has not been written."""
    params = parameters(root)
    run = params.resolve(chosen.run, chosen.budget)
    folder = root / params.data_folder(run.dataset, chosen.budget)
    return sample_images(folder, run.image_size, images.PICTURES) if (folder / "val.beton").exists() else None


def draw(run: Choice, mask_ratio: float, image: int, seed: int) -> Figure:
    """Views of one image above, and below the error of every masked patch, its P2Dist, and one against the other."""
    root = repository()
    model, target, resolved = model_of(run, root)
    stored = validation(run, root)
    raw = images.picture(image, resolved.image_size) if stored is None else stored[min(image, len(stored) - 1)]
    noise = torch.rand(1, model.num_patches, generator=torch.Generator().manual_seed(seed))
    shown, found = (views if resolved.target == "pixel" else _glyphs)(model, target, resolved, raw[None], noise, mask_ratio)
    figure, axes = new(2, len(shown[0]), width=2.1 * len(shown[0]), height=4.9)
    for axis, (title, view) in zip(axes[0], shown[0].items(), strict=True):
        axis.imshow(view)
        axis.set_title(title, loc="center", fontsize="small")
        axis.set(xticks=[], yticks=[])
    error = per_unit_error(found.pred, target(raw[None]), resolved.loss_norm)[0]
    _errors(axes[1], found.mask[0], error, p2dist(found.mask, found.grid, PATCH)[0], found.grid)
    return figure


def _glyphs(model, target, run, batch, noise, mask_ratio):
    """The views of a run that predicts HOG: as `replicate.report.reconstruct.views` gives them for pixels."""
    with torch.no_grad():
        found = model(normalise(batch), noise, mask_ratio)
    hidden = unpatchify(found.mask[..., None].expand(-1, -1, run.patch_size**2), run.patch_size, found.grid, channels=1)
    original = batch.float() / 255
    cells = {HOG_PREDICTED: found.pred, HOG: target(batch)}
    glyphs = {title: hog_glyphs(target.to_dense(units, found.grid)).expand(-1, 3, -1, -1) for title, units in cells.items()}
    shown = {MASKED: original * (1 - hidden) + 0.5 * hidden, **glyphs, ORIGINAL: original}
    return [{title: view[0].permute(1, 2, 0).clamp(0, 1).numpy() for title, view in shown.items()}], found


def _errors(axes, mask: torch.Tensor, error: torch.Tensor, distance: torch.Tensor, grid: tuple[int, int]) -> None:
    hidden = mask > 0
    for axis, values, title in ((axes[0], error, "error of a masked patch"), (axes[1], distance, "its P2Dist")):
        axis.imshow(values.where(hidden, torch.nan).view(grid).numpy(), cmap=HEATMAP)
        axis.set(xticks=[], yticks=[])
        axis.set_title(title, loc="center", fontsize="small")
    for axis in axes[3:]:
        axis.set_axis_off()
    far, wrong = distance[hidden].numpy(), error[hidden].numpy()
    axes[2].scatter(far, wrong, s=9, alpha=0.5, color=OURS)
    for value in np.unique(np.digitize(far, EDGES)):
        here = np.digitize(far, EDGES) == value
        axes[2].plot(far[here].mean(), wrong[here].mean(), "D", color=PAPER)
    axes[2].set(xlabel="P2Dist (pixels)", ylabel="error")
    if len(far) > 2 and np.ptp(far) > 0:
        axes[2].set_title(f"rank correlation {spearman(far, wrong):.2f}", loc="center", fontsize="small")


EDGES = np.arange(10, 100, 10)

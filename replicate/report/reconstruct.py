"""Predictions of a finished pre-training as images (MAE, Figures 2, 3 and 10)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from replicate import targets
from replicate.errors import UserError
from replicate.loaders import EVALUATION, open_loader
from replicate.loaders.pixels import denormalise, normalise
from replicate.models.build import build_pretraining_model
from replicate.models.weights import load_weights
from replicate.patches import unpatchify

if TYPE_CHECKING:
    from replicate.config import Params, PretrainRun
    from replicate.models.prediction import Prediction

MASKED, PREDICTED, PASTED, ORIGINAL = "masked", "prediction", "visible and predicted", "original"
BORROWED = "prediction, true\nmean and contrast"
STATED = "prediction as it is,\nall patches alike"
PASTED_BORROWED = "visible and predicted,\ntrue mean and contrast"
HOG, HOG_PREDICTED = "HOG", "HOG prediction"
PATCH = 16  # pixels of a patch in which P2Dist is given


def reconstruct(
    params: Params,
    name: str,
    *,
    budget: str | None = None,
    images: int = 4,
    mask_ratio: float | None = None,
    seed: int = 0,
    root: Path = Path(),
) -> list[dict[str, np.ndarray]]:
    """Validation images through a finished pre-training: an image's views, title -> (H, W, 3) in 0..1.

    Views: masked, prediction, visible patches with predicted ones between them, original. A run that predicts
    normalised pixels never sees a patch's mean and contrast. It gets two predictions: `STATED` draws every
    patch with the mean and contrast of an average pixel, `BORROWED` with those of the original's patch. The
    masks depend on `seed` alone, so that several runs can be compared on the same ones. Raises UserError when
    the weights are missing or the target is not pixels.
    """
    run = params.resolve(name, budget)
    if run.target != "pixel":
        raise UserError(
            f"run {name} predicts {run.target}, which is no picture; choose a run whose target is pixel"
        )
    weights = root / params.results_folder(name, budget) / "weights" / f"seed{seed}.safetensors"
    model, target = load_model(run, weights)
    batch = sample_images(root / params.data_folder(run.dataset, budget), run.image_size, images)
    ratio = run.mask_ratio if mask_ratio is None else mask_ratio
    return views(model, target, run, batch, mask_noise(model, len(batch), seed), ratio)[0]


def views(
    model: nn.Module, target: nn.Module, run: PretrainRun, batch: Tensor, noise: Tensor, mask_ratio: float
) -> tuple[list[dict[str, np.ndarray]], Prediction]:
    """Views of uint8 images (N, 3, S, S) through a model that predicts pixels, and the prediction."""
    with torch.no_grad():
        found = model(normalise(batch), noise, mask_ratio)
        stated, pixels = (
            denormalise(unpatchify(pred, run.patch_size, found.grid)).float() / 255
            for pred in (found.pred, target.unnormalise(found.pred, batch))
        )
    hidden = found.mask[..., None].expand(-1, -1, run.patch_size**2)
    hidden = unpatchify(hidden, run.patch_size, found.grid, channels=1)
    original = batch.float() / 255
    visible = original * (1 - hidden)
    pasted = visible + pixels * hidden
    borrowed = {STATED: stated, BORROWED: pixels, PASTED_BORROWED: pasted}
    predicted = borrowed if target.norm_pix else {PREDICTED: pixels, PASTED: pasted}
    shown = {MASKED: visible + 0.5 * hidden, **predicted, ORIGINAL: original}
    shown = {title: view.permute(0, 2, 3, 1).clamp(0, 1).numpy() for title, view in shown.items()}
    return [{title: view[k] for title, view in shown.items()} for k in range(len(batch))], found


def mask_noise(model: nn.Module, count: int, seed: int = 0) -> Tensor:
    """The noise (count, L) that decides the masks of a seed."""
    return torch.rand(count, model.num_patches, generator=torch.Generator().manual_seed(seed))


def load_model(run: PretrainRun, weights: Path) -> tuple[nn.Module, nn.Module]:
    """A finished pre-training's model, for evaluation, and its target module.

    Raises UserError when `weights` cannot be read.
    """
    target = targets.build(run.target, run.patch_size, **run.target_options)
    model = build_pretraining_model(run, target.dim)
    model.load_state_dict(load_weights(weights))
    return model.eval(), target


def sample_images(folder: Path, image_size: int, count: int) -> Tensor:
    """`count` validation images (count, 3, S, S) uint8, spread evenly; fewer if some are damaged."""
    options = {
        "batch_size": 256,
        "image_size": image_size,
        "augmentation": EVALUATION,
        "seed": 0,
        "train": False,
        "on_error": "skip",
    }
    with open_loader("auto", folder / "val.beton", **options) as loader:
        wanted = np.linspace(0, loader.num_images - 1, count).round()
        return torch.cat(
            [batch.images[torch.from_numpy(np.isin(batch.index, wanted))] for batch in loader.epoch(0)]
        )

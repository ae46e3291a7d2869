"""Pictures of what a finished run reconstructs (MAE Figures 2 to 4, 6 and 10; MAE Are Secretly Efficient Learners, Figure 1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

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
    """Some validation images through a finished pre-training: a dictionary an image, from a view's title to (H, W, 3) in 0..1.

    Views: masked, prediction, visible patches with predicted ones between them, original. A run that predicts normalised pixels
    was never told a patch's mean and contrast. It gets two predictions: `STATED` as the model makes it, every patch drawn with the
    mean and contrast of an average pixel, and `BORROWED` with those of the original's patch, as the titles say. The masks depend on
    `seed` alone, so that several runs can be compared on the same ones. Raises UserError when the run's weights are not there or
    its target is not pixels.
    """
    run = params.resolve(name, budget)
    if run.target != "pixel":
        raise UserError(f"run {name} predicts {run.target}, which is no picture; choose a run whose target is pixel")
    model, target = load_model(run, root / params.results_folder(name, budget) / "weights" / f"seed{seed}.safetensors")
    batch = sample_images(root / params.data_folder(run.dataset, budget), run.image_size, images)
    noise = torch.rand(len(batch), model.num_patches, generator=torch.Generator().manual_seed(seed))
    return views(model, target, run, batch, noise, run.mask_ratio if mask_ratio is None else mask_ratio)[0]


def views(
    model: torch.nn.Module, target: torch.nn.Module, run: PretrainRun, batch: torch.Tensor, noise: torch.Tensor, mask_ratio: float
) -> tuple[list[dict[str, np.ndarray]], Prediction]:
    """What `reconstruct` shows of uint8 images (N, 3, S, S) through a model that predicts pixels, and the prediction itself."""
    with torch.no_grad():
        found = model(normalise(batch), noise, mask_ratio)
        stated, pixels = (_picture(pred, run.patch_size, found.grid) for pred in (found.pred, target.unnormalise(found.pred, batch)))
    hidden = unpatchify(found.mask[..., None].expand(-1, -1, run.patch_size**2), run.patch_size, found.grid, channels=1)
    original = batch.float() / 255
    visible = original * (1 - hidden)
    pasted = visible + pixels * hidden
    borrowed = {STATED: stated, BORROWED: pixels, PASTED_BORROWED: pasted}
    predicted = borrowed if target.norm_pix else {PREDICTED: pixels, PASTED: pasted}
    shown = {MASKED: visible + 0.5 * hidden, **predicted, ORIGINAL: original}
    return [{title: view[k].permute(1, 2, 0).clamp(0, 1).numpy() for title, view in shown.items()} for k in range(len(batch))], found


def at_ratios(params: Params, name: str, ratios: Sequence[float], **options: Any) -> list[dict[str, np.ndarray]]:
    """Images through one run at several mask ratios, trained on or not (MAE, Figure 4): the original, then masked and predicted for each.

    `options` are those of `reconstruct`.
    """
    found = {f"{ratio:.0%}": reconstruct(params, name, mask_ratio=ratio, **options) for ratio in ratios}
    return _joined(found)


def side_by_side(params: Params, runs: Mapping[str, str], **options: Any) -> list[dict[str, np.ndarray]]:
    """The same images through several runs, each under its own mask (MAE, Figure 6): the original, then masked and predicted for each.

    `runs` maps titles to names; `options` are those of `reconstruct`.
    """
    return _joined({label: reconstruct(params, run, **options) for label, run in runs.items()})


def _joined(found: Mapping[str, Sequence[Mapping[str, np.ndarray]]]) -> list[dict[str, np.ndarray]]:
    """Rows of several reconstructions of the same images as rows of one, each view under the title of its own."""
    rows = []
    for image in zip(*found.values(), strict=True):
        row = {ORIGINAL: image[0][ORIGINAL]}
        for label, views in zip(found, image, strict=True):
            predicted = next(title for title in (PREDICTED, BORROWED) if title in views)
            row |= {f"{label},\n{title}": views[title] for title in (MASKED, predicted)}
        rows.append(row)
    return rows


def _picture(patches: torch.Tensor, patch_size: int, grid: tuple[int, int]) -> torch.Tensor:
    """Patches (N, L, D) of the normalised space as images (N, 3, H, W) in 0..1."""
    return denormalise(unpatchify(patches, patch_size, grid)).float() / 255


def load_model(run: PretrainRun, weights: Path) -> tuple[torch.nn.Module, torch.nn.Module]:
    """A finished pre-training's model, for evaluation, and its target module.

    Raises UserError when `weights` cannot be read.
    """
    target = targets.build(run.target, run.patch_size, **run.target_options)
    model = build_pretraining_model(run, target.dim)
    model.load_state_dict(load_weights(weights))
    return model.eval(), target


def sample_images(folder: Path, image_size: int, count: int) -> torch.Tensor:
    """`count` validation images (count, 3, S, S) uint8, spread evenly over the classes; fewer if some are damaged."""
    options = {"batch_size": 256, "image_size": image_size, "augmentation": EVALUATION, "seed": 0, "train": False, "on_error": "skip"}
    with open_loader("auto", folder / "val.beton", **options) as loader:
        wanted = np.linspace(0, loader.num_images - 1, count).round()
        return torch.cat([batch.images[torch.from_numpy(np.isin(batch.index, wanted))] for batch in loader.epoch(0)])

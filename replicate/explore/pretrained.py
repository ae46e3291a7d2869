"""Pre-trained models in a notebook: `from replicate import load_model, reconstruct`."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from replicate import losses, targets
from replicate.config import PretrainRun, load
from replicate.difficulty import p2dist
from replicate.errors import UserError
from replicate.explore import images
from replicate.explore.runs import DRAWN, trained_weights
from replicate.fetch.weights import is_weights, weights_file
from replicate.intervals import spearman
from replicate.loaders.pixels import normalise
from replicate.losses.reconstruction import per_unit_error, reconstruction_loss
from replicate.models.build import build_pretraining_model
from replicate.models.loading import without_prefixes
from replicate.models.weights import load_weights, read_released, sizes_of
from replicate.patches import pair, unpatchify
from replicate.report.glyphs import hog_glyphs
from replicate.report.reconstruct import HOG, HOG_PREDICTED, MASKED, ORIGINAL
from replicate.report.reconstruct import views as pixel_views
from replicate.report.root import repository

if TYPE_CHECKING:
    import numpy as np

    from replicate.models.prediction import Prediction
    from replicate.report.style import Figure

NO_STATE_TO_MEASURE = 512
"""Vocabulary of a model of tokens that has no weights."""


class Pretrained(nn.Module):
    """A run's model in evaluation mode, with the target and the loss that it was trained on.

    run       the run through a budget's lens
    weights   the file that they were read from; None: random weights
    target    None for discrete tokens, whose tokenizer is a model of its own

    Raises UserError for weights of another model.
    """

    def __init__(
        self, run: PretrainRun, state: dict[str, Tensor] | None = None, weights: Path | None = None
    ) -> None:
        super().__init__()
        self.run, self.weights = run, weights
        options = {"patch_size": run.patch_size, "difficulty": run.difficulty, **run.weighting_options}
        self.weighting = losses.build_weighting(run.weighting, **options)
        tokens = run.target == "token"
        self.target = None if tokens else targets.build(run.target, run.patch_size, **run.target_options)
        dim = _predicted(run, state) if tokens else self.target.dim
        self.model = build_pretraining_model(run, dim, self.weighting.needs_difficulty)
        if state is not None:
            try:
                self.model.load_state_dict(without_prefixes(state, self.model.state_dict()))
            except RuntimeError as error:
                raise UserError(
                    f"{weights}: does not fit the run's model: {str(error).splitlines()[-1].strip()}"
                ) from None
        self.eval()

    @torch.no_grad()
    def forward(
        self, raw: Tensor, mask_ratio: float | None = None, noise: Tensor | None = None
    ) -> Prediction:
        """uint8 images (N, 3, S, S) -> Prediction. noise (N, L), uniform on [0, 1), decides the mask; None
        draws it.
        """
        ratio = self.run.mask_ratio if mask_ratio is None else mask_ratio
        return self.model(normalise(raw), noise, ratio)

    @torch.no_grad()
    def loss(self, prediction: Prediction, raw: Tensor) -> Tensor:
        """The run's reconstruction loss, with its weighting at the end of training."""
        weights = self.weighting(prediction.difficulty, prediction.scored, 1.0)
        target = self.target(raw)
        return reconstruction_loss(prediction.pred, target, prediction.scored, weights, self.run.loss_norm)

    @torch.no_grad()
    def errors(self, prediction: Prediction, raw: Tensor) -> Tensor:
        """The error of every patch, (N, L)."""
        return per_unit_error(prediction.pred, self.target(raw), self.run.loss_norm)


def _predicted(run: PretrainRun, state: dict[str, Tensor] | None) -> int:
    """Values that a model of tokens predicts for a patch, read off its weights."""
    if state is None:
        return NO_STATE_TO_MEASURE
    found = (len(tensor) for name, tensor in state.items() if name.endswith("decoder_pred.bias"))
    rows = next(found, NO_STATE_TO_MEASURE)
    return rows // build_pretraining_model(run, 1).decoder_pred.out_features


def load_model(
    name: str | Path,
    weights: str | Path | None = None,
    *,
    budget: str | None = None,
    seed: int = 0,
    norm_pix: bool = True,
    root: Path | None = None,
) -> Pretrained:
    """A pre-trained model by the name of its run, or a released checkpoint of MAE by its name or file.

    name: a pre-training of papers/*/runs.yaml, or weights of the reference or of transformers' ViTMAE:
    "hf:facebook/vit-mae-base", "timm:MODEL.TAG", an address, or a file (.pth, .pt, .bin, .safetensors).
    weights: others for a run's model, named likewise, or a checkpoint kept of it. None: what the run has
    trained at `budget` (default: the active one) for `seed`, or what comes with the project in `weights/`.
    A run without either gets random weights, with a warning.
    norm_pix: whether a released checkpoint predicts normalised pixels, as all but the `mae_visualize` files
    do.

    Raises UserError for an unknown run or a file that is no model's weights.
    """
    if is_weights(str(name)):
        return _released(weights_file(name), norm_pix)
    root = root or repository()
    params = load(root / "params.yaml")
    run = params.resolve(str(name), budget)
    if not isinstance(run, PretrainRun):
        raise UserError(f"{name} is no pre-training; it starts from {params.upstream_of(str(name))}")
    path = weights_file(weights) if weights else trained_weights(params, str(name), budget, seed, root)
    if path:
        return Pretrained(run, load_weights(path), path)
    missing = f"{params.results_folder(str(name), budget)} holds no weights of seed {seed}, and no box does"
    advice = f"train it by `python -m replicate pretrain {name}`"
    warnings.warn(f"{missing}: {name} gets random weights; {advice}", stacklevel=2)
    return random_model(run, seed)


def random_model(run: PretrainRun, seed: int = 0) -> Pretrained:
    """A run's model as it is before training."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Pretrained(run)


def _released(path: Path, norm_pix: bool) -> Pretrained:
    state = read_released(path)
    sizes = sizes_of(state, str(path))
    height, width = pair(sizes["image_size"])
    if height != width:
        raise UserError(f"{path} is for images of {height}x{width}; a run's images are square")
    vit = {key: sizes[key] for key in ("patch_size", "embed_dim", "depth", "num_heads")}
    run = PretrainRun.model_construct(
        backbone="vit",
        backbone_kwargs=vit,
        image_size=height,
        mask_ratio=0.75,
        decoder_depth=sizes["decoder_depth"],
        decoder_width=sizes["decoder_embed_dim"],
        target_options={"norm_pix": norm_pix},
    )
    return Pretrained(run, state, path)


def reconstruct(
    model: Pretrained, image: Any, mask_ratio: float | None = None, seed: int = 0
) -> Reconstruction:
    """Mask an image and predict what is hidden.

    image: a file, a PIL image, uint8 (H, W, 3), uint8 (3, S, S) of the model's size as a tensor, or the name
    of a scikit-image photograph ("astronaut", "chelsea", "coffee", "rocket"). Others are cut to their central
    square. mask_ratio: the run's own unless given. `seed` decides the mask. Raises UserError for a run whose
    target is no picture.
    """
    if model.run.target not in DRAWN:
        wanted = f"choose a run whose target is {' or '.join(DRAWN)}"
        raise UserError(f"target {model.run.target} is no picture; {wanted}")
    raw = (image if isinstance(image, Tensor) else images.square(image, model.run.image_size))[None]
    noise = torch.rand(1, model.model.num_patches, generator=torch.Generator().manual_seed(seed))
    ratio = model.run.mask_ratio if mask_ratio is None else mask_ratio
    views = pixel_views if model.run.target == "pixel" else _hog_views
    (shown,), found = views(model.model, model.target, model.run, raw, noise, ratio)
    masked = found.mask[0] > 0
    distance = p2dist(found.mask, found.grid, REFERENCE_PATCH)[0].where(masked, torch.nan)
    error = model.errors(found, raw)[0].where(masked, torch.nan)
    maps = (value.view(found.grid).numpy() for value in (masked, error, distance))
    return Reconstruction(float(model.loss(found, raw)), *maps, shown)


REFERENCE_PATCH = 16
"""P2Dist is in pixels of a patch of 16, so that models of any patch size compare."""


@dataclass(frozen=True)
class Reconstruction:
    """One image through a model; a cell that ends with it shows its picture.

    loss     the run's reconstruction loss
    mask     (rows, columns) bool, true for masked patches
    error    (rows, columns) error of masked patches, NaN where visible
    p2dist   (rows, columns) distance to visible pixels (Efficient MAE, Eq. 1), in pixels of a patch of 16
    views    title -> image (H, W, 3) in 0..1: masked, prediction, original, ...
    """

    loss: float
    mask: np.ndarray
    error: np.ndarray
    p2dist: np.ndarray
    views: dict[str, np.ndarray]

    @property
    def summary(self) -> str:
        """Loss, and the rank correlation of error and P2Dist over the masked patches, in a sentence."""
        text = f"loss {self.loss:.3f} on {int(self.mask.sum())} of {self.mask.size} patches"
        error, distance = self.error[self.mask], self.p2dist[self.mask]
        if len(error) > 2 and distance.min() < distance.max():
            text += f"; rank correlation of error and P2Dist {spearman(distance, error):.2f}"
        return f"{text}."

    def figure(self) -> Figure:
        """The views above; below, error and P2Dist of masked patches, and one against the other."""
        from replicate.explore.reconstruction_figure import reconstruction_figure

        return reconstruction_figure(self.views, self.mask, self.error, self.p2dist)

    def show(self) -> None:
        """Display the picture in a notebook."""
        from IPython.display import display

        display(self.figure())

    def save(self, path: str | Path) -> None:
        """Write the picture; the suffix chooses the format, such as .png or .pdf."""
        self.figure().savefig(path)

    def _repr_png_(self) -> Any:
        return self.figure()._repr_png_()


def _hog_views(
    model: nn.Module, target: nn.Module, run: PretrainRun, raw: Tensor, noise: Tensor, mask_ratio: float
) -> tuple[list[dict[str, np.ndarray]], Prediction]:
    """What `pixel_views` gives for pixels, for a model that predicts HOG: its glyphs (FastMIM Figures 10 and
    11).
    """
    with torch.no_grad():
        found = model(normalise(raw), noise, mask_ratio)
    hidden = found.mask[..., None].expand(-1, -1, run.patch_size**2)
    hidden = unpatchify(hidden, run.patch_size, found.grid, channels=1)
    original = raw.float() / 255
    cells = {HOG_PREDICTED: found.pred, HOG: target(raw)}
    glyphs = {
        title: hog_glyphs(target.to_dense(one, found.grid)).expand(-1, 3, -1, -1)
        for title, one in cells.items()
    }
    views = {MASKED: original * (1 - hidden) + 0.5 * hidden, **glyphs, ORIGINAL: original}
    shown = {title: view.permute(0, 2, 3, 1).clamp(0, 1).numpy() for title, view in views.items()}
    return [{title: view[k] for title, view in shown.items()} for k in range(len(raw))], found

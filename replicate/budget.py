"""A budget is a lens: it maps a run's published numbers to what the machine at hand affords, uniformly and visibly.

| budget key                            | what it maps                                                                        |
|---------------------------------------|-------------------------------------------------------------------------------------|
| `image_scale`, `patch_scale`          | pixels of the image, of the patch; P2Dist thresholds follow the patch               |
| `backbones`                           | width and heads of each named backbone; depth stays the paper's unless `max_depth`  |
| `decoder_width_scale`                 | decoder width (heads follow: one for each 32 channels, as in the papers), and a     |
|                                       | tokenizer's width and vocabulary, which the decoder predicts                        |
| `pretrain_epochs`, `evaluate_epochs`  | epochs, never below 1; warm-up keeps its fraction                                   |
| `pretrain_epochs_power`               | below 1 draws 50 and 1,600 epochs together: `pretrain_epochs` x epochs ^ power      |
| `batch_scale`, `max_batch`            | batch; the learning rate follows the linear scaling rule from the result            |
| `pretrain_lr`, `evaluate_lr`          | base learning rate: short runs of narrow models take larger steps                   |
| `head_std`                            | spread of fine-tuning's first head weights: 2e-5 costs a short run its first epochs |
| `probe_epochs`, `probe_lr`            | the same for linear probing: LARS moves a weight by lr / 1000 of its size a step,   |
|                                       | so that few steps need a rate that no other recipe would survive                    |
| `scratch_lr`                          | the same for supervised training from random weights at one rate for all layers     |
| `ema`                                 | decay of the moving average of weights, which then spans as much of a short run     |
| `regularisation: light`               | mixup, cutmix, RandAugment, erasing and drop path off; milder crops                 |

Mask ratio, LLRD, warm-up fraction and stage fractions carry the science and are never mapped.
"""

from __future__ import annotations

from typing import Any

from replicate.errors import UserError
from replicate.models.vit import vit_backbone
from replicate.params import Budget, EvaluateRun, Params, PretrainRun, Stage, TokenizerRun

LIGHT_CROP_SCALE = (0.35, 1.0)
DECODER_HEAD_WIDTH = 32
PIXELS = ("beta", "start", "end", "interval")
"""Options of the weightings that are P2Dist values, in pixels at the paper's patch size."""
UNITLESS = ("neighbours_3x3",)
"""Difficulty metrics that count patches: their thresholds are no pixels."""


def resolve(params: Params, name: str, budget: Budget) -> PretrainRun | EvaluateRun | TokenizerRun:
    """The run called `name` through the lens. Raises UserError for an unknown run."""
    run = params.run(name)
    if isinstance(run, TokenizerRun):
        return resolve_tokenizer(run, budget)
    if isinstance(run, PretrainRun):
        return resolve_pretrain(run, budget)
    source = params.run(run.pretrain_name)
    return resolve_evaluate(run, source, budget)


def resolve_pretrain(run: PretrainRun, budget: Budget) -> PretrainRun:
    kwargs = backbone_kwargs(run.backbone, run.backbone_kwargs, budget)
    distance = 1.0 if run.difficulty in UNITLESS else budget.patch_scale
    return run.model_copy(
        update=_optimisation(run, budget, _pretrain_epochs(run, budget), budget.pretrain_lr, kwargs["patch_size"])
        | {
            "backbone_kwargs": kwargs,
            "decoder_width": _decoder_width(run.decoder_width, budget),
            "decoder_depth": min(run.decoder_depth, budget.max_depth or run.decoder_depth),
            "decoder_beta": run.decoder_beta and run.decoder_beta * distance,
            "weighting_options": {key: value * distance if key in PIXELS else value for key, value in run.weighting_options.items()},
        }
    )


def resolve_evaluate(run: EvaluateRun, source: PretrainRun, budget: Budget) -> EvaluateRun:
    kwargs = backbone_kwargs(source.backbone, source.backbone_kwargs, budget)
    update = _optimisation(run, budget, *_evaluate_factors(run, source, budget), kwargs["patch_size"])
    if budget.head_std is not None:
        update["head_std"] = budget.head_std
    if run.tuned_blocks is not None and budget.max_depth:
        update["tuned_blocks"] = min(run.tuned_blocks, float(kwargs["depth"]))
    if run.ema is not None and budget.ema is not None:
        update["ema"] = budget.ema
    if budget.regularisation == "light":
        update |= {"mixup": 0.0, "cutmix": 0.0, "auto_augment": None, "random_erasing": 0.0, "drop_path": 0.0}
        update["crop_scale"] = (max(run.crop_scale[0], LIGHT_CROP_SCALE[0]), run.crop_scale[1])
    return run.model_copy(update=update)


def resolve_tokenizer(run: TokenizerRun, budget: Budget) -> TokenizerRun:
    """Patch and schedule as for pre-training; width and vocabulary as the decoder's width, for the decoder predicts the tokens."""
    patch = max(1, round(run.patch_size * budget.patch_scale))
    sizes = {key: max(2, round(getattr(run, key) * budget.decoder_width_scale)) for key in ("vocabulary", "width")}
    update = _optimisation(run, budget, _pretrain_epochs(run, budget), budget.pretrain_lr, patch)
    return run.model_copy(update=update | {"patch_size": patch} | sizes)


def backbone_kwargs(name: str, explicit: dict[str, Any], budget: Budget) -> dict[str, Any]:
    """Width, depth, heads and patch of a ViT: by its name or the numbers that the run states, then as the budget maps them."""
    kwargs = dict(vit_backbone(name, **explicit).kwargs)
    kwargs["patch_size"] = max(1, round(kwargs["patch_size"] * budget.patch_scale))
    kwargs |= budget.backbones.get(name.rsplit("_patch", 1)[0], {})
    if budget.max_depth:
        kwargs["depth"] = min(kwargs["depth"], budget.max_depth)
    return dict(vit_backbone(name, **kwargs).kwargs)


def scaled_image_size(pixels: int, budget: Budget, patch_size: int) -> int:
    """The image size in the budget's pixels: scaled, then the nearest multiple of the patch where scaling made it uneven."""
    if budget.image_scale == 1.0:
        return pixels
    return max(1, round(pixels * budget.image_scale / patch_size)) * patch_size


def check_geometry(params: Params) -> None:
    """Raise UserError for a run whose patch does not divide its image size, as written or at the active budget."""
    for name, run in params.pretrain_runs.items():
        for view in (run, params.resolve(name)):
            patch = vit_backbone(view.backbone, **view.backbone_kwargs).kwargs["patch_size"]
            sizes = [view.image_size, *(stage.image_size for stage in view.stages if stage.image_size)]
            for size in sizes:
                if size % patch:
                    raise UserError(
                        f"params.yaml: pretrain.{name}.image_size = {size}: the patch of {patch} pixels does not divide it; "
                        f"{size // patch * patch} and {(size // patch + 1) * patch} would fit"
                    )


def _pretrain_epochs(run: PretrainRun | TokenizerRun, budget: Budget) -> float:
    return budget.pretrain_epochs * run.epochs**budget.pretrain_epochs_power


def _evaluate_factors(run: EvaluateRun, source: PretrainRun, budget: Budget) -> tuple[float, float]:
    """Epochs of an evaluation, and what the budget multiplies its base learning rate by."""
    if run.protocol == "linear":
        return (budget.probe_epochs or budget.evaluate_epochs) * run.epochs, budget.probe_lr or budget.evaluate_lr
    from_scratch = source.epochs == 0 and run.layer_decay == 1.0
    return budget.evaluate_epochs * run.epochs, (from_scratch and budget.scratch_lr) or budget.evaluate_lr


def _optimisation(run, budget: Budget, epochs: float, lr_factor: float, patch_size: int) -> dict[str, Any]:
    epochs = max(1, round(epochs)) if run.epochs else 0
    return {
        "image_size": scaled_image_size(run.image_size, budget, patch_size),
        "epochs": epochs,
        "warmup_epochs": run.warmup_epochs / run.epochs * epochs if run.epochs else 0.0,
        "batch_size": _batch(run.batch_size, budget),
        "base_lr": run.base_lr * lr_factor,
        "stages": tuple(_stage(stage, budget, patch_size) for stage in run.stages),
    }


def _stage(stage: Stage, budget: Budget, patch_size: int) -> Stage:
    return stage.model_copy(
        update={
            "image_size": stage.image_size and scaled_image_size(stage.image_size, budget, patch_size),
            "batch_size": stage.batch_size and _batch(stage.batch_size, budget),
        }
    )


def _batch(batch: int, budget: Budget) -> int:
    return max(1, min(round(batch * budget.batch_scale), budget.max_batch or batch))


def _decoder_width(width: int, budget: Budget) -> int:
    if budget.decoder_width_scale == 1.0:
        return width
    return max(1, round(width * budget.decoder_width_scale / DECODER_HEAD_WIDTH)) * DECODER_HEAD_WIDTH

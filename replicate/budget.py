"""A budget is a lens: it maps a run's published numbers to what the machine at hand affords, uniformly and visibly.

| budget key                            | what it maps                                                                        |
|---------------------------------------|-------------------------------------------------------------------------------------|
| `image_scale`, `patch_scale`          | pixels of the image, of the patch; P2Dist thresholds and HOG cells follow the patch |
|                                       | (and the size and caps of a data set that states its images' size)                  |
| `backbones`                           | width and heads of each named backbone; depth stays the paper's unless `max_depth`  |
| `hierarchy_width`, `hierarchy_depth`  | width and heads of Swin, PVT and the like; at most so many blocks a stage           |
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
|                                       | (`keep_view` runs, which are about crops and colours, keep those)                   |

Mask ratio, LLRD, warm-up fraction and stage fractions carry the science and are never mapped.
"""

from __future__ import annotations

import importlib
from typing import Any

from replicate.errors import UserError
from replicate.models.vit import is_plain_vit, vit_backbone
from replicate.params import Budget, Dataset, Encoding, EvaluateRun, Params, PretrainRun, ScoreRun, Stage, TokenizerRun

LIGHT_CROP_SCALE = (0.35, 1.0)
DECODER_HEAD_WIDTH = 32
PIXELS = ("beta", "start", "end", "interval")
"""Options of the weightings that are P2Dist values, in pixels at the paper's patch size."""
UNITLESS = ("neighbours_3x3",)
"""Difficulty metrics that count patches: their thresholds are no pixels."""
HOG_CELL = 8
FIRST_PATCHES = (1, 2, 4)
UNITS_ACROSS = 2  # of an image that is masked in units: with one there would be nothing left to see


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
    scaled = run.model_copy(update={"backbone_kwargs": kwargs})
    mask_unit = run.mask_unit and _mask_unit(run, scaled)
    grain = max(scaled.stride or 1, mask_unit or 1)
    least = grain * UNITS_ACROSS if run.method == "mim" else 0
    distance = 1.0 if run.difficulty in UNITLESS else budget.patch_scale
    return run.model_copy(
        update=_optimisation(run, budget, _pretrain_epochs(run, budget), budget.pretrain_lr, grain, least)
        | {
            "backbone_kwargs": kwargs,
            "mask_unit": mask_unit,
            "drop_blocks": _dropped(run, kwargs),
            "target_options": run.target_options | _hog_cell(run, budget),
            "decoder_width": _decoder_width(run.decoder_width, budget),
            "decoder_depth": min(run.decoder_depth, budget.max_depth or run.decoder_depth),
            "decoder_beta": run.decoder_beta and run.decoder_beta * distance,
            "weighting_options": {key: value * distance if key in PIXELS else value for key, value in run.weighting_options.items()},
        }
    )


def resolve_evaluate(run: EvaluateRun, source: PretrainRun, budget: Budget) -> EvaluateRun:
    kwargs = backbone_kwargs(source.backbone, source.backbone_kwargs, budget)
    stride = source.model_copy(update={"backbone_kwargs": kwargs}).stride or source.mask_unit
    update = _optimisation(run, budget, *_evaluate_factors(run, source, budget), stride)
    if budget.head_std is not None:
        update["head_std"] = budget.head_std
    if run.tuned_blocks is not None and budget.max_depth:
        update["tuned_blocks"] = min(run.tuned_blocks, float(kwargs["depth"]))
    if run.ema is not None and budget.ema is not None:
        update["ema"] = budget.ema
    if isinstance(run, ScoreRun):
        update["encoding"] = run.encoding and _scaled_encoding(run.encoding, budget)
    if budget.regularisation == "light" and run.keep_view:
        update |= {"mixup": 0.0, "cutmix": 0.0, "random_erasing": 0.0, "drop_path": 0.0}
    elif budget.regularisation == "light":
        update |= {"mixup": 0.0, "cutmix": 0.0, "auto_augment": None, "random_erasing": 0.0, "drop_path": 0.0}
        update["crop_scale"] = _light_crop(run.crop_scale)
        update["stages"] = tuple(_light_stage(stage) for stage in update["stages"])
    return run.model_copy(update=update)


def resolve_tokenizer(run: TokenizerRun, budget: Budget) -> TokenizerRun:
    """Patch and schedule as for pre-training; width and vocabulary as the decoder's width, for the decoder predicts the tokens."""
    patch = max(1, round(run.patch_size * budget.patch_scale))
    sizes = {key: max(2, round(getattr(run, key) * budget.decoder_width_scale)) for key in ("vocabulary", "width")}
    update = _optimisation(run, budget, _pretrain_epochs(run, budget), budget.pretrain_lr, patch)
    return run.model_copy(update=update | {"patch_size": patch} | sizes)


def scaled_dataset(dataset: Dataset, budget: Budget) -> Dataset:
    """A data set that states its images' size in the paper's pixels, in the budget's; any other as it is."""
    if "image_size" not in dataset.model_fields_set or budget.image_scale == 1.0:
        return dataset
    caps = {split: _scaled_encoding(getattr(dataset, split), budget) for split in ("train", "val")}
    return Dataset(**dataset.model_dump(exclude_unset=True) | caps | {"image_size": max(1, round(dataset.image_size * budget.image_scale))})


def _scaled_encoding(encoding: Encoding, budget: Budget) -> Encoding:
    cap = encoding.resolution and max(1, round(encoding.resolution * budget.image_scale))
    return Encoding(**encoding.model_dump(exclude_unset=True) | {"resolution": cap})


def backbone_kwargs(name: str, explicit: dict[str, Any], budget: Budget) -> dict[str, Any]:
    """A backbone's numbers, by its name or as the run states them, then as the budget maps them: of a ViT its width, depth, heads and patch."""
    if not is_plain_vit(name, explicit):
        return _hierarchy_kwargs(name, explicit, budget)
    kwargs = dict(vit_backbone(name, **explicit).kwargs)
    kwargs["patch_size"] = max(1, round(kwargs["patch_size"] * budget.patch_scale))
    kwargs |= budget.backbones.get(name.rsplit("_patch", 1)[0], {})
    if budget.max_depth:
        kwargs["depth"] = min(kwargs["depth"], budget.max_depth)
    return dict(vit_backbone(name, **kwargs).kwargs)


def _hierarchy_kwargs(name: str, explicit: dict[str, Any], budget: Budget) -> dict[str, Any]:
    """Widths, depths, heads and first patch of a hierarchy; the patch shrinks with the image, so that every stage keeps the paper's grid.

    A timm model that is none of FastMIM's keeps the arguments that the run states.
    """
    names = importlib.import_module("replicate.models.backbones.names")  # a run of a plain ViT must not depend on that file
    if not names.is_hierarchy(name):
        return dict(explicit)
    stated = names.hierarchy(name, **explicit)
    patch = stated.patch_size * budget.image_scale
    numbers = {
        "width_scale": explicit.get("width_scale", 1.0) * budget.hierarchy_width,
        "depths": tuple(map(min, stated.depths, budget.hierarchy_depth or stated.depths)),
        "patch_size": min(FIRST_PATCHES, key=lambda size: abs(size - patch)),
    }
    mapped = names.hierarchy(name, **(explicit | numbers))
    heads = {"heads": mapped.heads} if mapped.heads else {}
    own = {key: value for key, value in explicit.items() if key in mapped.options}
    return {"dims": mapped.dims, "depths": mapped.depths, **heads, "patch_size": mapped.patch_size, **own}


def _mask_unit(stated: PretrainRun, scaled: PretrainRun) -> int:
    """The mask unit keeps its size in tokens."""
    return max(1, round(stated.mask_unit * scaled.stride / stated.stride)) if stated.stride else stated.mask_unit


def _dropped(run: PretrainRun, kwargs: dict[str, Any]) -> int | tuple[int, ...]:
    """Blocks that pre-training leaves out: the paper's share of a stage that the budget has made shallower, one or more, never its last."""
    if not run.drop_blocks:
        return run.drop_blocks
    stated = backbone_kwargs(run.backbone, run.backbone_kwargs, Budget())
    if "depth" in kwargs:
        return _share(run.drop_blocks, kwargs["depth"], stated["depth"])
    if isinstance(run.drop_blocks, int):
        return _share(run.drop_blocks, kwargs["depths"][-1], stated["depths"][-1])
    return tuple(_share(*stage) for stage in zip(run.drop_blocks, kwargs["depths"], stated["depths"], strict=True))


def _share(dropped: int, ours: int, theirs: int) -> int:
    if ours >= theirs or not dropped:
        return dropped
    return min(max(1, round(dropped * ours / theirs)), ours - 1)


def _hog_cell(run: PretrainRun, budget: Budget) -> dict[str, int]:
    if run.target != "hog" or budget.patch_scale == 1.0:
        return {}
    return {"cell": max(1, round(run.target_options.get("cell", HOG_CELL) * budget.patch_scale))}


def scaled_image_size(pixels: int, budget: Budget, grain: int, least: int = 0) -> int:
    """The image size in the budget's pixels: scaled, then the nearest multiple of `grain` (a patch, a mask unit), `least` or more."""
    if budget.image_scale == 1.0:
        return pixels
    return max(least, max(1, round(pixels * budget.image_scale / grain)) * grain)


def check_geometry(params: Params) -> None:
    """Raise UserError for a run whose patch does not divide its image size or a stage's, as written or at the active budget."""
    checked = set()
    for name, run in (params.pretrain_runs | params.evaluate_runs).items():
        owner = run.pretrain_name if isinstance(run, EvaluateRun) else name
        source = params.pretrain_runs[owner]
        model = (source.method, source.backbone, source.backbone_kwargs, source.mask_unit)
        geometry = str((owner == name, model, run.image_size, run.stages))
        if geometry not in checked:
            checked.add(geometry)
            _check_sizes(name, run, source)
            _check_sizes(name, params.resolve(name), params.resolve(owner))


def _check_sizes(name: str, run: PretrainRun | EvaluateRun, source: PretrainRun) -> None:
    """`source` is the pre-training that an evaluation starts from, whose mask unit does not concern it, or the run itself."""
    kind, units = ("evaluate", 1) if isinstance(run, EvaluateRun) else ("pretrain", source.mask_unit or 1)
    patch = max(source.stride or 1, units)
    for size in (run.image_size, *(stage.image_size for stage in run.stages if stage.image_size)):
        if size % patch:
            raise UserError(
                f"params.yaml: {kind}.{name}.image_size = {size}: the patch of {patch} pixels does not divide it; "
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


def _optimisation(run, budget: Budget, epochs: float, lr_factor: float, grain: int, least: int = 0) -> dict[str, Any]:
    epochs = max(1, round(epochs)) if run.epochs else 0
    return {
        "image_size": scaled_image_size(run.image_size, budget, grain, least),
        "epochs": epochs,
        "warmup_epochs": run.warmup_epochs / run.epochs * epochs if run.epochs else 0.0,
        "batch_size": _batch(run.batch_size, budget),
        "base_lr": run.base_lr * lr_factor,
        "stages": tuple(_stage(stage, budget, grain, least) for stage in run.stages),
    }


def _stage(stage: Stage, budget: Budget, grain: int, least: int) -> Stage:
    return stage.model_copy(
        update={
            "image_size": stage.image_size and scaled_image_size(stage.image_size, budget, grain, least),
            "batch_size": stage.batch_size and _batch(stage.batch_size, budget),
        }
    )


def _light_crop(scale: tuple[float, float]) -> tuple[float, float]:
    return (min(max(scale[0], LIGHT_CROP_SCALE[0]), scale[1]), scale[1])


def _light_stage(stage: Stage) -> Stage:
    """A stage of a run without automatic augmentation, its crops no smaller than the run's."""
    return stage.model_copy(update={"auto_augment": None, "crop_scale": stage.crop_scale and _light_crop(stage.crop_scale)})


def _batch(batch: int, budget: Budget) -> int:
    return max(1, min(round(batch * budget.batch_scale), budget.max_batch or batch))


def _decoder_width(width: int, budget: Budget) -> int:
    if budget.decoder_width_scale == 1.0:
        return width
    return max(1, round(width * budget.decoder_width_scale / DECODER_HEAD_WIDTH)) * DECODER_HEAD_WIDTH

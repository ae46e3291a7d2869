"""A budget is a lens: it maps a run's published numbers to what the machine at hand affords, uniformly and
visibly.

Mask ratio, layer decay, warm-up fraction and stage fractions carry the science, so no lens maps them.
At the `paper` budget the lens is the identity.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator

from replicate.config.backbones import is_plain_vit, stride_of, vit_backbone
from replicate.config.datasets import Dataset, Encoding
from replicate.config.dense import DenseRun
from replicate.config.dense_lens import DenseLens, resolve_dense
from replicate.config.hierarchies import hierarchy, is_hierarchy
from replicate.config.runs import EvaluateRun, PretrainRun, Run, ScoreRun, Stage, TokenizerRun
from replicate.config.schema import Count, Positive, Ratio, Strict, first_fault
from replicate.errors import UserError

LIGHT_CROP_SCALE = (0.35, 1.0)
DECODER_HEAD_WIDTH = 32
P2DIST_OPTIONS = ("beta", "start", "end", "interval")
"""Options of the weightings in pixels of P2Dist, at the paper's patch size."""
COUNTED = ("neighbours_3x3",)
"""Difficulty metrics that count patches: their thresholds are not in pixels."""
HOG_CELL = 8
FIRST_PATCHES = (1, 2, 4)
UNITS_ACROSS = 2
"""Mask units along a side that an image must keep: with one, nothing would stay visible."""


MODEL_KEYS = (
    "image_scale",
    "patch_scale",
    "backbones",
    "decoder_width_scale",
    "decoder_depth_power",
    "max_depth",
    "scratch_lr",
    "scratch_layer_decay",
)
"""Keys of a budget that do not apply to a run that starts from released weights."""


class Budget(Strict):
    """What each number of a budget maps.

    boxed                                take pre-trainings from `weights/<budget>/` where their recipe is the
                                         same (`replicate.config.box`)
    interpolation                        how crops are resized, where it is not the paper's way
    image_scale, patch_scale             pixels of the image, of the patch; P2Dist thresholds and HOG cells
                                         follow the patch; size and caps of a data set that states its image
                                         size
    backbones                            width and heads of each named ViT; depth stays the paper's unless
                                         `max_depth`
    hierarchy_width, hierarchy_depth     width and heads of Swin, PVT and the like; at most so many blocks a
                                         stage
    decoder_width_scale                  decoder width, one head for each 32 channels; a tokenizer's width and
                                         vocabulary
    decoder_depth_power                  decoder depth ** power, rounded: at 2/3 the depths 1, 2, 4, 8, 12 of
                                         MAE's Table 1a become 1, 2, 3, 4, 5
    pretrain_epochs, evaluate_epochs     factor of the epochs, never below 1 epoch; warm-up keeps its fraction
    pretrain_epochs_power                below 1 draws 50 and 1,600 epochs together: pretrain_epochs x epochs
                                         ** power
    batch_scale, max_batch               batch; the learning rate follows by the linear scaling rule
    pretrain_lr, evaluate_lr             factor of the base learning rate: short runs of narrow models take
                                         larger steps
    head_std                             spread of fine-tuning's first head weights: 2e-5 costs a short run
                                         its first epochs
    probe_epochs, probe_lr               the same for linear probes: LARS needs a high rate to get anywhere in
                                         few steps
    scratch_lr                           the same for supervised training from random weights at one rate for
                                         all layers
    scratch_layer_decay                  layer decay of fine-tuning from random weights: below 1 it starves
                                         their first layers
    labels_per_class                     most labelled images a class for fine-tuning, linear probes and k-NN;
                                         epochs count passes over those, and pre-training keeps all images
    ema                                  decay of the moving average of the weights
    regularisation: light                no mixup, cutmix, RandAugment, erasing and drop path; milder crops
                                         (`keep_view` runs, which are about crops and colours, keep those)
    dense                                sizes, lengths and channels of detection and segmentation
    data                                 settings of every data set that does not state its own
    datasets                             settings of single data sets by name, above `data`; one with another
                                         source takes no counts of classes and images from `data`
    """

    seeds: Count = 1
    boxed: bool = False
    precision: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    loader: Literal["auto", "ffcv", "beton", "folder"] = "auto"
    interpolation: Literal["area", "bicubic"] | None = None
    image_scale: Positive = 1.0
    patch_scale: Positive = 1.0
    backbones: dict[str, dict[str, Any]] = {}
    decoder_width_scale: Positive = 1.0
    decoder_depth_power: Annotated[float, Field(gt=0, le=1)] = 1.0
    max_depth: Count | None = None
    hierarchy_width: Positive = 1.0
    hierarchy_depth: tuple[Count, Count, Count, Count] | None = None
    pretrain_epochs: Positive = 1.0
    pretrain_epochs_power: Annotated[float, Field(gt=0, le=1)] = 1.0
    evaluate_epochs: Positive = 1.0
    batch_scale: Positive = 1.0
    max_batch: Count | None = None
    pretrain_lr: Positive = 1.0
    evaluate_lr: Positive = 1.0
    head_std: Positive | None = None
    probe_epochs: Positive | None = None
    probe_lr: Positive | None = None
    scratch_lr: Positive | None = None
    scratch_layer_decay: Annotated[float, Field(gt=0, le=1)] | None = None
    labels_per_class: Count | None = None
    ema: Ratio | None = None
    regularisation: Literal["paper", "light"] = "paper"
    dense: DenseLens = DenseLens()
    data: dict[str, Any] = {}
    datasets: dict[str, dict[str, Any]] = {}

    @field_validator("data")
    @classmethod
    def _check_data(cls, stated: dict[str, Any]) -> dict[str, Any]:
        try:
            Dataset.model_validate(stated)
        except ValidationError as error:
            raise ValueError(first_fault(error, Dataset.model_fields)) from None
        return stated

    @field_validator("datasets")
    @classmethod
    def _check_datasets(cls, stated: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        return {name: cls._check_data(one) for name, one in stated.items()}


def resolve(run: Run, source: PretrainRun | None, budget: Budget) -> Run:
    """A run through the lens; `source` is the pre-training that an evaluation starts from."""
    if isinstance(run, TokenizerRun):
        return resolve_tokenizer(run, budget)
    if getattr(source or run, "weights", None):
        budget = _model_as_stated(budget)
    return (
        resolve_pretrain(run, budget)
        if isinstance(run, PretrainRun)
        else resolve_evaluate(run, source, budget)
    )


def _model_as_stated(budget: Budget) -> Budget:
    """The budget without what scales a model or its images: released weights fit one model only."""
    return budget.model_copy(update={key: Budget.model_fields[key].get_default() for key in MODEL_KEYS})


def resolve_pretrain(run: PretrainRun, budget: Budget) -> PretrainRun:
    kwargs = backbone_kwargs(run.backbone, run.backbone_kwargs, budget)
    stride = stride_of(run.backbone, kwargs)
    mask_unit = run.mask_unit and _mask_unit(run, stride)
    grain = max(stride or 1, mask_unit or 1)
    least = grain * UNITS_ACROSS if run.method == "mim" else 0
    pixels = 1.0 if run.difficulty in COUNTED else budget.patch_scale
    weighting = {k: v * pixels if k in P2DIST_OPTIONS else v for k, v in run.weighting_options.items()}
    return run.model_copy(
        update=_optimisation(run, budget, _pretrain_epochs(run, budget), budget.pretrain_lr, grain, least)
        | {
            "backbone_kwargs": kwargs,
            "mask_unit": mask_unit,
            "drop_blocks": _dropped(run, kwargs),
            "target_options": run.target_options | _hog_cell(run, budget),
            "decoder_width": _decoder_width(run.decoder_width, budget),
            "decoder_depth": _decoder_depth(run.decoder_depth, budget),
            "decoder_beta": run.decoder_beta and run.decoder_beta * pixels,
            "weighting_options": weighting,
        }
    )


def resolve_evaluate(run: EvaluateRun, source: PretrainRun, budget: Budget) -> EvaluateRun:
    kwargs = backbone_kwargs(source.backbone, source.backbone_kwargs, budget)
    grain = stride_of(source.backbone, kwargs) or source.mask_unit
    if isinstance(run, DenseRun):
        return _resolve_dense(run, source, budget, grain, kwargs)
    update = _optimisation(run, budget, *_evaluate_factors(run, source, budget), grain)
    if budget.head_std is not None:
        update["head_std"] = budget.head_std
    if budget.labels_per_class is not None and run.learns_labels:
        update["labels_per_class"] = min(run.labels_per_class or math.inf, budget.labels_per_class)
    if budget.scratch_layer_decay is not None and source.epochs == 0 and run.protocol == "finetune":
        update["layer_decay"] = budget.scratch_layer_decay
    if run.tuned_blocks is not None and budget.max_depth:
        update["tuned_blocks"] = min(run.tuned_blocks, float(kwargs["depth"]))
    if run.ema is not None and budget.ema is not None:
        update["ema"] = budget.ema
    if isinstance(run, ScoreRun):
        update["encoding"] = run.encoding and _scaled_encoding(run.encoding, budget)
    if budget.regularisation == "light":
        update |= {"mixup": 0.0, "cutmix": 0.0, "random_erasing": 0.0, "drop_path": 0.0}
        if not run.keep_view:
            update |= {"auto_augment": None, "crop_scale": _light_crop(run.crop_scale)}
            update["stages"] = tuple(_light_stage(stage) for stage in update["stages"])
    return run.model_copy(update=update)


def _resolve_dense(
    run: DenseRun, source: PretrainRun, budget: Budget, grain: int, kwargs: dict[str, Any]
) -> DenseRun:
    stated = backbone_kwargs(source.backbone, source.backbone_kwargs, Budget())
    depths = (kwargs["depth"], stated["depth"]) if "depth" in kwargs else None
    strides = grain, stride_of(source.backbone, stated) or grain
    update = resolve_dense(run, budget.dense, strides, depths)
    if budget.regularisation == "light":
        update["drop_path"] = 0.0
    if budget.scratch_layer_decay is not None and source.epochs == 0 and not run.classifier:
        update["layer_decay"] = budget.scratch_layer_decay
    return run.model_copy(update=update)


def resolve_tokenizer(run: TokenizerRun, budget: Budget) -> TokenizerRun:
    """Patch and schedule as for pre-training; width and vocabulary as the width of the decoder that predicts
    them.
    """
    patch = max(1, round(run.patch_size * budget.patch_scale))
    scale = budget.decoder_width_scale
    sizes = {key: max(2, round(getattr(run, key) * scale)) for key in ("vocabulary", "width")}
    update = _optimisation(run, budget, _pretrain_epochs(run, budget), budget.pretrain_lr, patch)
    return run.model_copy(update=update | {"patch_size": patch} | sizes)


def scaled_dataset(dataset: Dataset, budget: Budget) -> Dataset:
    """A data set that states its image size in the paper's pixels, in the budget's; any other as it is."""
    if "image_size" not in dataset.model_fields_set or budget.image_scale == 1.0:
        return dataset
    caps = {split: _scaled_encoding(getattr(dataset, split), budget) for split in ("train", "val")}
    size = {"image_size": max(1, round(dataset.image_size * budget.image_scale))}
    return Dataset(**dataset.model_dump(exclude_unset=True) | caps | size)


def _scaled_encoding(encoding: Encoding, budget: Budget) -> Encoding:
    cap = encoding.resolution and max(1, round(encoding.resolution * budget.image_scale))
    return Encoding(**encoding.model_dump(exclude_unset=True) | {"resolution": cap})


def backbone_kwargs(name: str, explicit: dict[str, Any], budget: Budget) -> dict[str, Any]:
    """A backbone's numbers as the run states them, or by its name, then as the budget maps them.

    A timm model that is none of FastMIM's keeps the arguments that the run states.
    """
    if is_plain_vit(name, explicit):
        return _vit_kwargs(name, explicit, budget)
    return _hierarchy_kwargs(name, explicit, budget) if is_hierarchy(name) else dict(explicit)


def _vit_kwargs(name: str, explicit: dict[str, Any], budget: Budget) -> dict[str, Any]:
    kwargs = dict(vit_backbone(name, **explicit).kwargs)
    kwargs["patch_size"] = max(1, round(kwargs["patch_size"] * budget.patch_scale))
    kwargs |= budget.backbones.get(name.rsplit("_patch", 1)[0], {})
    if budget.max_depth:
        kwargs["depth"] = min(kwargs["depth"], budget.max_depth)
    return dict(vit_backbone(name, **kwargs).kwargs)


def _hierarchy_kwargs(name: str, explicit: dict[str, Any], budget: Budget) -> dict[str, Any]:
    """The first patch shrinks with the image, so that every stage keeps the paper's grid."""
    stated = hierarchy(name, **explicit)
    patch = stated.patch_size * budget.image_scale
    numbers = {
        "width_scale": explicit.get("width_scale", 1.0) * budget.hierarchy_width,
        "depths": tuple(map(min, stated.depths, budget.hierarchy_depth or stated.depths)),
        "patch_size": min(FIRST_PATCHES, key=lambda size: abs(size - patch)),
    }
    mapped = hierarchy(name, **(explicit | numbers))
    heads = {"heads": mapped.heads} if mapped.heads else {}
    own = {key: value for key, value in explicit.items() if key in mapped.options}
    return {"dims": mapped.dims, "depths": mapped.depths, **heads, "patch_size": mapped.patch_size, **own}


def _mask_unit(run: PretrainRun, stride: int | None) -> int:
    """The mask unit keeps its size in tokens."""
    return max(1, round(run.mask_unit * stride / run.stride)) if stride else run.mask_unit


def _dropped(run: PretrainRun, kwargs: dict[str, Any]) -> int | tuple[int, ...]:
    """Blocks that pre-training leaves out: the paper's share of a shallower stage, at least one, never its
    last.
    """
    if not run.drop_blocks:
        return run.drop_blocks
    stated = backbone_kwargs(run.backbone, run.backbone_kwargs, Budget())
    if "depth" in kwargs:
        return _share(run.drop_blocks, kwargs["depth"], stated["depth"])
    if isinstance(run.drop_blocks, int):
        return _share(run.drop_blocks, kwargs["depths"][-1], stated["depths"][-1])
    return tuple(map(_share, run.drop_blocks, kwargs["depths"], stated["depths"]))


def _share(dropped: int, ours: int, theirs: int) -> int:
    if ours >= theirs or not dropped:
        return dropped
    return min(max(1, round(dropped * ours / theirs)), ours - 1)


def _hog_cell(run: PretrainRun, budget: Budget) -> dict[str, int]:
    if run.target != "hog" or budget.patch_scale == 1.0:
        return {}
    return {"cell": max(1, round(run.target_options.get("cell", HOG_CELL) * budget.patch_scale))}


def scaled_image_size(pixels: int, budget: Budget, grain: int, least: int = 0) -> int:
    """The image size in the budget's pixels: the nearest multiple of `grain` (a patch, a mask unit), at least
    `least`.
    """
    if budget.image_scale == 1.0:
        return pixels
    return max(least, max(1, round(pixels * budget.image_scale / grain)) * grain)


def check_sizes(name: str, run: PretrainRun | EvaluateRun, source: PretrainRun) -> None:
    """Raise UserError for an image size that the patch does not divide; `source` is the run's own
    pre-training.

    An evaluation has no mask, so that the mask unit does not concern it.
    """
    patch = max(source.stride or 1, 1 if isinstance(run, EvaluateRun) else source.mask_unit or 1)
    for size in (run.image_size, *(stage.image_size for stage in run.stages if stage.image_size)):
        if size % patch:
            fitting = f"{size // patch * patch} and {(size // patch + 1) * patch} would fit"
            raise UserError(
                f"papers/{run.paper}/runs.yaml: {name}.image_size = {size}: "
                f"the patch of {patch} pixels does not divide it; {fitting}"
            )


def _pretrain_epochs(run: PretrainRun | TokenizerRun, budget: Budget) -> float:
    return budget.pretrain_epochs * run.epochs**budget.pretrain_epochs_power


def _evaluate_factors(run: EvaluateRun, source: PretrainRun, budget: Budget) -> tuple[float, float]:
    """Epochs of an evaluation, and the factor of its base learning rate."""
    if run.protocol == "linear":
        return (
            budget.probe_epochs or budget.evaluate_epochs
        ) * run.epochs, budget.probe_lr or budget.evaluate_lr
    from_scratch = source.epochs == 0 and run.layer_decay == 1.0
    return budget.evaluate_epochs * run.epochs, (from_scratch and budget.scratch_lr) or budget.evaluate_lr


def _optimisation(
    run: Run, budget: Budget, epochs: float, lr_factor: float, grain: int, least: int = 0
) -> dict[str, Any]:
    epochs = max(1, round(epochs)) if run.epochs else 0
    return {
        "image_size": scaled_image_size(run.image_size, budget, grain, least),
        "epochs": epochs,
        "warmup_epochs": run.warmup_epochs / run.epochs * epochs if run.epochs else 0.0,
        "batch_size": _batch(run.batch_size, budget),
        "base_lr": run.base_lr * lr_factor,
        "interpolation": budget.interpolation or run.interpolation,
        "stages": tuple(_stage(stage, budget, grain, least) for stage in run.stages),
    }


def _stage(stage: Stage, budget: Budget, grain: int, least: int) -> Stage:
    size = stage.image_size and scaled_image_size(stage.image_size, budget, grain, least)
    batch = stage.batch_size and _batch(stage.batch_size, budget)
    return stage.model_copy(update={"image_size": size, "batch_size": batch})


def _light_crop(scale: tuple[float, float]) -> tuple[float, float]:
    return (min(max(scale[0], LIGHT_CROP_SCALE[0]), scale[1]), scale[1])


def _light_stage(stage: Stage) -> Stage:
    """A stage of a run without automatic augmentation, its crops no smaller than the run's."""
    crop = stage.crop_scale and _light_crop(stage.crop_scale)
    return stage.model_copy(update={"auto_augment": None, "crop_scale": crop})


def _batch(batch: int, budget: Budget) -> int:
    return max(1, min(round(batch * budget.batch_scale), budget.max_batch or batch))


def _decoder_width(width: int, budget: Budget) -> int:
    if budget.decoder_width_scale == 1.0:
        return width
    return max(1, round(width * budget.decoder_width_scale / DECODER_HEAD_WIDTH)) * DECODER_HEAD_WIDTH


def _decoder_depth(depth: int, budget: Budget) -> int:
    depth = round(depth**budget.decoder_depth_power) if depth else 0
    return min(depth, budget.max_depth or depth)

"""Runs in their papers' own numbers: pre-trainings, evaluations of what they learnt, tokenizers, searches."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from replicate.config.backbones import stride_of
from replicate.config.datasets import Encoding
from replicate.config.schema import (
    AutoAugment,
    Betas,
    Count,
    CropScale,
    Difficulty,
    Fraction,
    NonNegative,
    Positive,
    Ratio,
    Strict,
)
from replicate.config.stages import expand
from replicate.errors import UserError


class Stage(Strict):
    """One stretch of a run at its own resolution, mask ratio or batch (FastMIM-P; DailyMAE Tables 8 and 10).

    `until` is the fraction of the run's epochs at which the stage ends: a shorter run keeps the proportions.
    """

    until: Annotated[float, Field(gt=0.0, le=1.0)]
    image_size: Count | None = None
    mask_ratio: Ratio | None = None
    batch_size: Count | None = None
    crop_scale: CropScale | None = None
    auto_augment: AutoAugment | None = None


class Optimisation(Strict):
    """What every training run states: optimiser, schedule, batch, and the view of the images.

    `loader` reads the training images where the run is about that; None leaves it to the budget.
    `stages` are listed one by one, or named (`replicate.config.stages.expand`).
    """

    paper: str
    dataset: str = "full"
    image_size: Count = 224
    epochs: Annotated[int, Field(ge=0)]
    warmup_epochs: NonNegative
    batch_size: Count
    base_lr: Positive
    min_lr: NonNegative = 0.0
    weight_decay: NonNegative
    betas: Betas
    clip_grad: Positive | None = None
    crop: Literal["random_resized", "fixed", "center", "none"] = "random_resized"
    crop_scale: CropScale
    color_jitter: NonNegative = 0.0
    flip: bool = True
    interpolation: Literal["area", "bicubic"] = "area"
    loader: Literal["ffcv", "beton", "folder"] | None = None
    stages: tuple[Stage, ...] = ()

    @field_validator("stages", mode="before")
    @classmethod
    def _expand_named_schedule(cls, stated: Any) -> Any:
        return expand(stated) if isinstance(stated, dict) else stated

    @model_validator(mode="after")
    def _check_schedule(self):
        ends = [stage.until for stage in self.stages]
        if ends and (ends != sorted(set(ends)) or ends[-1] != 1.0):
            raise ValueError(
                f"stages must end at rising fractions of the run, the last at 1.0; they end at {ends}"
            )
        if self.warmup_epochs > self.epochs > 0:
            raise ValueError(
                f"warmup_epochs {self.warmup_epochs} is longer than the run's {self.epochs} epochs"
            )
        return self

    @property
    def peak_lr(self) -> float:
        """Linear scaling rule: base_lr * batch / 256 (MAE, appendix A.1)."""
        return self.base_lr * self.batch_size / 256


class PretrainRun(Optimisation):
    """One pre-training: mask x target x weighting x objective x decoder x backbone x schedule.

    method         mae: an encoder of visible patches; crossmae: the same with a decoder of cross-attention;
                   mim: any backbone on masked images (FastMIM)
    prediction_ratio   of crossmae: share of all patches that are predicted; None: every masked patch
    last_features_only   of crossmae: decode the encoder's output alone, not weighted sums of all feature maps
    tokenizer      for target `token`: the tokenizer run that makes the tokens (MAE Table 1d)
    teacher        for objective `distillation`: a fine-tuning that keeps its weights (FastMIM Table 9)
    online_probe   trains a linear classifier beside it, on features that it cannot change
    weights        start of what follows, instead of training: released weights of this model, by name
                   (`replicate.fetch.weights`); needs epochs 0. No budget changes such a model.
    """

    method: Literal["mae", "crossmae", "mim"] = "mae"
    backbone: str
    backbone_kwargs: dict[str, Any] = {}
    drop_blocks: Annotated[int, Field(ge=0)] | tuple[Annotated[int, Field(ge=0)], ...] = 0
    mask: Literal["random", "block", "grid"] = "random"
    mask_ratio: Ratio
    mask_unit: Count | None = None
    mask_space: Literal["image", "patch"] = "image"
    mask_token: Literal["learned", "zero"] = "learned"
    mask_tokens_in_encoder: bool = False
    decoder_depth: Annotated[int, Field(ge=0, le=32)]
    decoder_width: Count
    decoder_beta: Positive | None = None
    prediction_ratio: Positive | None = None
    last_features_only: bool = False
    difficulty: Difficulty = "p2dist"
    target: str = "pixel"
    target_options: dict[str, Any] = {}
    tokenizer: str | None = None
    teacher: str | None = None
    loss_norm: Literal["mse", "l1", "l2"] = "mse"
    score_all: bool = False
    weighting: str = "uniform"
    weighting_options: dict[str, Any] = {}
    objective: Literal["reconstruction", "supmae", "distillation"] = "reconstruction"
    online_probe: bool = False
    weights: str | None = None

    @model_validator(mode="after")
    def _check_method(self):
        if self.method != "mim" and (self.drop_blocks or self.mask_unit or self.mask_space != "image"):
            raise ValueError("drop_blocks, mask_unit and mask_space belong to method mim")
        if self.method != "mae" and self.mask_tokens_in_encoder:
            raise ValueError("mask_tokens_in_encoder belongs to method mae")
        if self.weights and (self.method != "mae" or self.epochs or self.mask_tokens_in_encoder):
            raise ValueError("weights need method mae with epochs 0, and no mask tokens in the encoder")
        if self.method != "mae" and self.decoder_beta:
            method = self.method
            raise ValueError(
                f"decoder_beta drops tokens of MAE's decoder; method {method} decodes all of them"
            )
        return self

    @model_validator(mode="after")
    def _check_crossmae(self):
        predicted = self.prediction_ratio
        if self.method != "crossmae" and (predicted or self.last_features_only):
            raise ValueError("prediction_ratio and last_features_only belong to method crossmae")
        if self.method == "crossmae" and self.score_all:
            raise ValueError("score_all needs predictions of visible patches; crossmae decodes masked ones")
        if predicted and predicted > self.mask_ratio:
            raise ValueError(f"prediction_ratio {predicted} exceeds mask_ratio {self.mask_ratio}")
        return self

    @model_validator(mode="after")
    def _check_options_have_effect(self):
        if self.difficulty != "p2dist" and self.weighting == "uniform" and not self.decoder_beta:
            wanted = "state decoder_beta, or a weighting other than uniform"
            raise ValueError(f"difficulty {self.difficulty} has no effect; {wanted}")
        for option, key, value in (
            ("tokenizer", "target", "token"),
            ("teacher", "objective", "distillation"),
        ):
            if (getattr(self, key) == value) != bool(getattr(self, option)):
                raise ValueError(f"{key} {value} alone needs a {option}; {key} is {getattr(self, key)}")
        return self

    @property
    def stride(self) -> int | None:
        """Pixels between the encoder's last tokens; None for a timm model that is not built yet."""
        return stride_of(self.backbone, self.backbone_kwargs)

    @property
    def patch_size(self) -> int:
        """Pixels a side of what is predicted and scored together: a patch, or the smaller of mask unit and
        token.
        """
        sizes = [size for size in (self.stride, self.mask_unit) if size]
        if not sizes:
            raise UserError(
                f"backbone {self.backbone!r}: state mask_unit, the pixels a side that are masked together"
            )
        return min(sizes)


class TokenizerRun(Optimisation):
    """A tokenizer whose tokens the target `token` predicts (MAE Table 1d): trained here, or read from `file`.

    All seeds of the runs that predict its tokens share it, as the papers share DALL-E's.
    """

    patch_size: Count = 16
    vocabulary: Annotated[int, Field(ge=2)]
    width: Count
    depth: Annotated[int, Field(ge=0)]
    code_width: Count
    file: str | None = None


class EvaluateRun(Optimisation):
    """One evaluation of a pre-training's weights: end-to-end or partial fine-tuning, linear probe, or k-NN.

    labels_per_class   training images with a label in each class, the same for all seeds; None: all
    keep_view      a budget with light regularisation leaves the run's crops and augmentation alone
    pos_embed_antialias   filter while position embeddings are resampled to the run's image size, as timm and
                          DailyMAE do; MAE's and FastMIM's code does not
    keep_weights   keep the fine-tuned weights, for runs that distil or score this classifier
    """

    pretrain: str
    protocol: Literal["finetune", "linear", "knn", "invariance", "score"] = "finetune"
    tuned_blocks: NonNegative | None = None
    head_std: Positive = 2.0e-5
    layer_decay: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    labels_per_class: Count | None = None
    drop_path: Ratio = 0.0
    label_smoothing: Ratio = 0.0
    mixup: NonNegative = 0.0
    cutmix: NonNegative = 0.0
    auto_augment: AutoAugment | None = None
    random_erasing: Fraction = 0.0
    ema: Ratio | None = None
    pos_embed_antialias: bool = True
    keep_view: bool = False
    keep_weights: bool = False

    @model_validator(mode="after")
    def _check_protocol(self):
        tuned = {"tuned_blocks": None, "layer_decay": 1.0, "drop_path": 0.0}
        stated = [name for name, off in tuned.items() if getattr(self, name) != off]
        if self.protocol == "linear" and stated:
            raise ValueError(
                f"{', '.join(stated)}: a linear probe tunes no block of the encoder; protocol finetune does"
            )
        if self.labels_per_class and not self.learns_labels:
            raise ValueError(f"labels_per_class: protocol {self.protocol} learns from no label")
        if (self.protocol == "score") != isinstance(self, ScoreRun):
            raise ValueError("protocol score needs a classifier, and no other protocol takes one")
        return self

    @property
    def learns_labels(self) -> bool:
        """Whether the protocol learns from labelled training images."""
        return self.protocol in ("finetune", "linear", "knn")


class ScoreRun(EvaluateRun):
    """A fine-tuned classifier on recompressed validation images (DailyMAE Tables 5 and 6); nothing is
    trained.

    classifier   a fine-tuning that keeps its weights
    encoding     caps, encodes and decodes each validation image before the centre crop; None: images as they
                 came
    codec        turbo: FFCV's way (OpenCV's area resize, libjpeg's fast DCT); pillow: an image folder's
                 (bicubic resize, accurate DCT)
    dct          decodes what turbo encoded by another DCT than FFCV's
    """

    classifier: str
    encoding: Encoding | None = None
    codec: Literal["pillow", "turbo"] = "pillow"
    dct: Literal["fast", "accurate"] | None = None

    @model_validator(mode="after")
    def _check_dct(self):
        if self.dct and (self.codec != "turbo" or self.encoding is None):
            raise ValueError(
                "dct needs codec turbo and an encoding; Pillow always decodes by the accurate DCT"
            )
        return self


class Search(EvaluateRun):
    """A search for the best layer-wise lr decay: fine-tune at each of `layer_decays` on a subset, apply to
    `full`.
    """

    layer_decays: tuple[Annotated[float, Field(gt=0.0, le=1.0)], ...]
    full: str = "full"

    @model_validator(mode="after")
    def _check_search(self):
        if len(self.layer_decays) < 3 or list(self.layer_decays) != sorted(set(self.layer_decays)):
            given = list(self.layer_decays)
            raise ValueError(f"layer_decays must be three or more rising values; they are {given}")
        if self.dataset == self.full:
            raise ValueError(f"dataset is the full set '{self.full}' itself; name a smaller one to search on")
        return self

    def point(self, layer_decay: float, dataset: str) -> EvaluateRun:
        """The fine-tuning at one value on one data set, equal to a run that states the same."""
        stated = self.model_dump(exclude={"layer_decays", "full"})
        return EvaluateRun(**stated | {"layer_decay": layer_decay, "dataset": dataset})


Run = PretrainRun | EvaluateRun | TokenizerRun


def upstream_of(run: Run) -> str | None:
    """The run whose weights `run` needs: a classifier to score, a pre-training, a teacher, a tokenizer."""
    names = (getattr(run, key, None) for key in ("classifier", "pretrain", "teacher", "tokenizer"))
    return next((name for name in names if name), None)

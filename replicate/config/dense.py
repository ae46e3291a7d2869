"""Runs of dense transfer in their papers' numbers: detection (COCO) and segmentation (ADE20K).

Both are evaluations of a pre-training: they start from its weights, or from those of a fine-tuned classifier.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from replicate.config.runs import EvaluateRun
from replicate.config.schema import Count, CropScale, Fraction, NonNegative, Positive

OF_CLASSIFICATION = (
    *("tuned_blocks", "labels_per_class", "label_smoothing", "mixup", "cutmix", "auto_augment"),
    *("random_erasing", "ema", "keep_weights", "stages"),
)


class DenseRun(EvaluateRun):
    """What detection and segmentation state alike. The length is `epochs`, or `iterations` with epochs 0.

    base_lr            the peak rate itself, at the run's batch: dense recipes print no rate per 256 images
    classifier         starts from this fine-tuning, which keeps its weights, in place of the pre-training's
    decay              cosine, or linear (power 1), to `min_lr`; or a tenth at each share of `steps`
    warmup_iterations  in place of warmup_epochs
    head_width         channels of the pyramid and of the heads
    window             tokens a side of attention windows: of a ViT in detection, of Swin in both; None: the
                       pre-training's own rule
    """

    crop_scale: CropScale = (1.0, 1.0)
    epochs: Annotated[int, Field(ge=0)] = 0
    iterations: Count | None = None
    warmup_epochs: NonNegative = 0.0
    warmup_iterations: Annotated[int, Field(ge=0)] = 0
    weight_decay: NonNegative
    decay: Literal["cosine", "linear", "step"] = "cosine"
    steps: tuple[Fraction, ...] = ()
    classifier: str | None = None
    head_width: Count = 256
    window: Count | None = None

    @model_validator(mode="after")
    def _check_dense(self):
        if bool(self.epochs) == bool(self.iterations):
            raise ValueError("state epochs, or iterations with epochs 0")
        if (self.decay == "step") != bool(self.steps):
            raise ValueError("steps belong to decay step, which needs them")
        if list(self.steps) != sorted(self.steps):
            raise ValueError(f"steps must rise; they are {list(self.steps)}")
        defaults = EvaluateRun.model_fields
        idle = [name for name in OF_CLASSIFICATION if getattr(self, name) != defaults[name].default]
        if idle:
            raise ValueError(f"{', '.join(idle)}: protocol {self.protocol} has no such option")
        return self

    @property
    def peak_lr(self) -> float:
        return self.base_lr

    def total_steps(self, images: int) -> int:
        """Optimiser steps of the run on so many training images, at least one."""
        return self.iterations or max(1, round(self.epochs * images / self.batch_size))

    def warmup_steps(self, images: int) -> float:
        return self.warmup_iterations or self.warmup_epochs * images / self.batch_size


class SegmentRun(DenseRun):
    """Semantic segmentation: UperNet on four maps of the encoder, or a frozen probe of its patches.

    taps             blocks of a ViT, counted from 0, whose tokens the decoder takes
    relative_bias    a ViT's attention gets BEiT's relative position bias, zero at first (MAE, A.4)
    layer_scale      first value of a scale after each branch of a ViT's block; None: no scale
    pools            bins a side of the pyramid pooling
    auxiliary        weight of the loss of a convolutional head on the map `auxiliary_tap`; its channels are
                     `auxiliary_width`
    stride           pixels between windows of the sliding test; windows are of `image_size`
    scale            the range of the random scale; the image's short side is `image_size` at 1
    most_of_a_class  a crop with more of one class is drawn again
    test_scales      scales over which the test averages
    """

    protocol: Literal["segment", "dense_knn", "dense_linear"] = "segment"
    image_size: Count = 512
    head_width: Count = 768
    taps: tuple[int, ...] = (3, 5, 7, 11)
    relative_bias: bool = True
    layer_scale: Positive | None = None
    pools: tuple[Count, ...] = (1, 2, 3, 6)
    dropout: Fraction = 0.1
    auxiliary: NonNegative = 0.4
    auxiliary_tap: int = 2
    auxiliary_width: Count = 256
    stride: Count = 341
    scale: tuple[Positive, Positive] = (0.5, 2.0)
    most_of_a_class: Fraction = 0.75
    test_scales: tuple[Positive, ...] = (1.0,)

    @model_validator(mode="after")
    def _check_taps(self):
        if len(self.taps) != 4 or list(self.taps) != sorted(set(self.taps)):
            raise ValueError(f"taps must be four rising numbers of blocks; they are {list(self.taps)}")
        if self.stride > self.image_size:
            raise ValueError(f"stride {self.stride} leaves gaps between windows of {self.image_size} pixels")
        if not 0 <= self.auxiliary_tap < 4:
            raise ValueError(f"auxiliary_tap {self.auxiliary_tap} is none of the four maps, 0 to 3")
        return self


class DetectRun(DenseRun):
    """Mask R-CNN: boxes and instance masks.

    neck           taps_fpn: four taps of a ViT, upsampled and pooled (Li et al. 2021); simple_fpn: ViTDet's
                   pyramid from the last map; fpn: the maps of a hierarchy
    window         as above; in a ViT the last block of each quarter has none
    norm           of pyramid and heads: bn, or ln
    fc_width       channels of the box head's linear layer
    proposals      (before NMS in training, before NMS in testing, after NMS)
    rpn_batch, roi_batch   anchors and regions of an image that are scored
    jitter         range of the random scale of large-scale jitter
    copy_paste     paste objects of another image (Ghiasi et al. 2021)
    test_size      pixels of the short side in testing; the long side is capped
    """

    protocol: Literal["detect"] = "detect"
    image_size: Count = 1024
    neck: Literal["taps_fpn", "simple_fpn", "fpn"] = "taps_fpn"
    window: Count | None = 16
    norm: Literal["bn", "ln"] = "bn"
    fc_width: Count = 1024
    proposals: tuple[Count, Count, Count] = (2000, 1000, 1000)
    rpn_batch: Count = 256
    roi_batch: Count = 512
    jitter: tuple[Positive, Positive] = (0.1, 2.0)
    copy_paste: bool = False
    test_size: Count = 1024


PROTOCOLS: dict[str, type[DenseRun]] = {
    "detect": DetectRun,
    "segment": SegmentRun,
    "dense_knn": SegmentRun,
    "dense_linear": SegmentRun,
}


def model_of(stated: dict[str, Any]) -> type[EvaluateRun] | None:
    """The class of a dense run as its room states it; None for any other protocol."""
    return PROTOCOLS.get(stated.get("protocol", ""))

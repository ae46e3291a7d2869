"""How a budget maps dense transfer: sizes, lengths, channels, counts (`dense` in `budgets.yaml`)."""

from __future__ import annotations

import math
from typing import Any

from replicate.config.dense import DenseRun, DetectRun, SegmentRun
from replicate.config.schema import Count, Positive, Strict

COCO_IMAGES = 118_287
"""Images of COCO's train2017: warm-ups in iterations become a share of an epoch by it."""
CHANNELS = 8
"""Channels are a multiple of it, as group norms need."""


class DenseLens(Strict):
    """What each number of a dense run becomes.

    detect_scale, segment_scale    pixels of the images; the stride of the sliding test follows
    detect_epochs, segment_length  factor of the epochs, and of the iterations
    detect_lr, segment_lr          factor of the learning rate
    detect_width, segment_width    factor of all channels of pyramids and heads
    max_batch                      largest batch
    proposals                      factor of proposals and of scored anchors and regions
    """

    detect_scale: Positive = 1.0
    segment_scale: Positive = 1.0
    detect_epochs: Positive = 1.0
    segment_length: Positive = 1.0
    detect_lr: Positive = 1.0
    segment_lr: Positive = 1.0
    detect_width: Positive = 1.0
    segment_width: Positive = 1.0
    max_batch: Count | None = None
    proposals: Positive = 1.0


def resolve_dense(
    run: DenseRun, lens: DenseLens, strides: tuple[int, int], depths: tuple[int, int] | None
) -> dict[str, Any]:
    """The settings that change. Strides of the encoder, and blocks of a ViT, are ours and the paper's."""
    found = _shared(run, lens)
    detect = isinstance(run, DetectRun)
    size = _pixels(run.image_size, lens.detect_scale if detect else lens.segment_scale, strides[0])
    found["image_size"] = size
    if run.window is not None and size != run.image_size:
        share = size / strides[0] / (run.image_size / strides[1])
        found["window"] = max(2, round(run.window * share))
    own = _detect(run, lens, strides[0]) if detect else _segment(run, lens, size, depths)
    return found | own


def _shared(run: DenseRun, lens: DenseLens) -> dict[str, Any]:
    detect = isinstance(run, DetectRun)
    length, lr = (lens.detect_epochs, lens.detect_lr) if detect else (lens.segment_length, lens.segment_lr)
    found = {
        "base_lr": run.base_lr * lr,
        "batch_size": min(run.batch_size, lens.max_batch or run.batch_size),
        "head_width": _channels(run.head_width, lens.detect_width if detect else lens.segment_width),
    }
    if length == 1.0:
        return found
    if run.iterations:
        iterations = max(1, round(run.iterations * length))
        warmup = round(run.warmup_iterations / run.iterations * iterations)
        return found | {"iterations": iterations, "warmup_iterations": warmup}
    epochs = max(1, round(run.epochs * length))
    warmup = run.warmup_iterations * run.batch_size / COCO_IMAGES or run.warmup_epochs
    return found | {"epochs": epochs, "warmup_epochs": warmup / run.epochs * epochs, "warmup_iterations": 0}


def _detect(run: DetectRun, lens: DenseLens, grain: int) -> dict[str, Any]:
    return {
        "test_size": _pixels(run.test_size, lens.detect_scale, grain),
        "fc_width": _channels(run.fc_width, lens.detect_width),
        "proposals": tuple(_count(number, lens.proposals) for number in run.proposals),
        "rpn_batch": _count(run.rpn_batch, lens.proposals),
        "roi_batch": _count(run.roi_batch, lens.proposals),
    }


def _segment(run: SegmentRun, lens: DenseLens, size: int, depths: tuple[int, int] | None) -> dict[str, Any]:
    found: dict[str, Any] = {
        "stride": max(1, run.stride * size // run.image_size),
        "auxiliary_width": _channels(run.auxiliary_width, lens.segment_width),
    }
    if depths is not None and depths[0] != depths[1]:
        ours, theirs = depths
        found["taps"] = tuple(max(0, math.ceil((tap + 1) * ours / theirs) - 1) for tap in run.taps)
    return found


def _pixels(size: int, scale: float, grain: int) -> int:
    return size if scale == 1.0 else max(1, round(size * scale / grain)) * grain


def _channels(channels: int, factor: float) -> int:
    return channels if factor == 1.0 else max(1, round(channels * factor / CHANNELS)) * CHANNELS


def _count(number: int, scale: float) -> int:
    return max(1, round(number * scale))

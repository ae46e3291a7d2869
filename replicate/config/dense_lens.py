"""How a budget maps dense transfer: sizes, lengths, channels, counts (`dense` in `budgets.yaml`)."""

from __future__ import annotations

import math
from typing import Any

from replicate.config.dense import DenseRun, DetectRun, SegmentRun
from replicate.config.schema import Count, Positive, Strict

COCO_IMAGES = 118_287
"""Images of COCO's train2017: warm-ups in iterations become a share of an epoch by it."""
PAPER_GRID = 64
"""Patches a side of a detector's image in the papers, 1024 / 16: windows keep their share of it."""
CHANNELS = 8
"""Channels are a multiple of it, as group norms need."""


class DenseLens(Strict):
    """What each number of a dense run becomes.

    detect_scale, segment_scale    pixels of the images; the stride of the sliding test follows
    detect_epochs, segment_length  factor of the epochs, and of the iterations
    detect_lr, segment_lr          factor of the learning rate
    width                          factor of all channels of pyramids and heads
    max_batch                      largest batch
    proposals                      factor of proposals and of scored anchors and regions
    """

    detect_scale: Positive = 1.0
    segment_scale: Positive = 1.0
    detect_epochs: Positive = 1.0
    segment_length: Positive = 1.0
    detect_lr: Positive = 1.0
    segment_lr: Positive = 1.0
    width: Positive = 1.0
    max_batch: Count | None = None
    proposals: Positive = 1.0


def resolve_dense(
    run: DenseRun, lens: DenseLens, grain: int, depth: tuple[int, int] | None
) -> dict[str, Any]:
    """The settings that change; `grain` pixels divide an image, `depth` counts blocks here and there."""
    found = _shared(run, lens)
    if isinstance(run, DetectRun):
        return found | _detect(run, lens, grain)
    return found | _segment(run, lens, grain, depth)


def _shared(run: DenseRun, lens: DenseLens) -> dict[str, Any]:
    detect = isinstance(run, DetectRun)
    length, lr = (lens.detect_epochs, lens.detect_lr) if detect else (lens.segment_length, lens.segment_lr)
    found = {
        "base_lr": run.base_lr * lr,
        "batch_size": min(run.batch_size, lens.max_batch or run.batch_size),
        "head_width": _channels(run.head_width, lens),
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
    size = _pixels(run.image_size, lens.detect_scale, grain)
    return {
        "image_size": size,
        "test_size": _pixels(run.test_size, lens.detect_scale, grain),
        "window": run.window if size == run.image_size else _window(run.window, size // grain),
        "fc_width": _channels(run.fc_width, lens),
        "proposals": tuple(_count(number, lens.proposals) for number in run.proposals),
        "rpn_batch": _count(run.rpn_batch, lens.proposals),
        "roi_batch": _count(run.roi_batch, lens.proposals),
    }


def _segment(run: SegmentRun, lens: DenseLens, grain: int, depth: tuple[int, int] | None) -> dict[str, Any]:
    size = _pixels(run.image_size, lens.segment_scale, grain)
    found: dict[str, Any] = {
        "image_size": size,
        "stride": max(1, run.stride * size // run.image_size),
        "auxiliary_width": _channels(run.auxiliary_width, lens),
    }
    if depth is not None and depth[0] != depth[1]:
        ours, theirs = depth
        found["taps"] = tuple(max(0, math.ceil((tap + 1) * ours / theirs) - 1) for tap in run.taps)
    return found


def _window(tokens: int, grid: int) -> int:
    return max(2, round(tokens * grid / PAPER_GRID))


def _pixels(size: int, scale: float, grain: int) -> int:
    return size if scale == 1.0 else max(1, round(size * scale / grain)) * grain


def _channels(channels: int, lens: DenseLens) -> int:
    return channels if lens.width == 1.0 else max(1, round(channels * lens.width / CHANNELS)) * CHANNELS


def _count(number: int, scale: float) -> int:
    return max(1, round(number * scale))

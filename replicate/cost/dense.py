"""Costs of detection and segmentation, counted on the meta device: encoder, pyramid and heads."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from replicate.config import Optimisation
from replicate.cost.counted import Count, count
from replicate.cost.image_cost import ImageCost
from replicate.cost.shapes import shapes_only

if TYPE_CHECKING:
    from replicate.config import DenseRun, DetectRun, PretrainRun, SegmentRun

UNSHAPED = {"pretrain", "classifier", "iterations", "warmup_iterations", "layer_decay", "decay", "steps"}
"""What a dense run states beyond its optimisation and does not change the cost of an image."""
_known: dict[tuple[str, str, int], tuple[Count, float]] = {}
POSITIVE = 0.25
"""Share of the sampled regions that are objects at most; only those get a mask."""
DETECTIONS = 100
"""Objects of an image that a detector keeps, and so masks that it predicts in testing."""
ASPECT = 4 / 3
"""Of the image that the sliding test is counted on."""


def dense_cost(run: DenseRun, source: PretrainRun, classes: int, bytes_per_value: int) -> ImageCost:
    """One training image, and one test image, of a resolved run on `source`'s backbone."""
    shape = run.model_dump_json(exclude=set(Optimisation.model_fields) - {"image_size"} | UNSHAPED)
    key = shape, source.model_dump_json(include={"backbone", "backbone_kwargs"}), classes
    if key not in _known:
        _known[key] = (_detector if run.protocol == "detect" else _segmenter)(run, source, classes)
    trained, tested = _known[key]
    cost = trained.as_cost(bytes_per_value)
    return ImageCost(cost.macs, tested, cost.parameters, cost.trainable, cost.activations, cost.calls)


def _segmenter(run: SegmentRun, source: PretrainRun, classes: int) -> tuple[Count, float]:
    from replicate.transfer.crops import LONGEST, scale_to
    from replicate.transfer.segmentation import build_model, window_places

    with shapes_only():
        model = build_model(source, run, classes)
    trained = count(_training(model), run.image_size, model)
    window = count(model.eval(), run.image_size, model)
    size, windows = run.image_size, 0
    for scale in run.test_scales:
        height, width = scale_to((size, round(ASPECT * size)), size * scale, LONGEST * size * scale)
        windows += len(window_places(max(height, size), max(width, size), size, run.stride))
    return trained, windows * window.macs


def _detector(run: DetectRun, source: PretrainRun, classes: int) -> tuple[Count, float]:
    from replicate.transfer.detection import build_model

    with shapes_only():
        model = build_model(source, run, classes)
    _training(model)
    image = count(model, run.image_size, lambda images: _maps(model, images))
    positive = round(POSITIVE * run.roi_batch)
    heads = [
        _heads(model, *numbers) for numbers in ((run.roi_batch, positive), (run.proposals[2], DETECTIONS))
    ]
    trained = Count(
        image.macs + heads[0].macs,
        image.activations + heads[0].activations,
        image.parameters,
        image.trainable,
        image.attentions,
    )
    return trained, image.macs + heads[1].macs


def _maps(model: nn.Module, images: torch.Tensor) -> object:
    return model.rpn.head(list(model.backbone(images).values()))


def _heads(model: nn.Module, boxes: int, masks: int) -> Count:
    """The heads on so many regions."""
    heads, width = model.roi_heads, model.backbone.out_channels

    def forward(_: torch.Tensor) -> object:
        seven, fourteen = (
            torch.empty(number, width, side, side, device="meta", requires_grad=True)
            for number, side in ((boxes, 7), (masks, 14))
        )
        return heads.box_predictor(heads.box_head(seven)), heads.mask_predictor(heads.mask_head(fourteen))

    return count(heads, 1, forward)


def _training(model: nn.Module) -> nn.Module:
    """Training mode, but for batch norm, which refuses one value a channel."""
    model.train()
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.eval()
    return model

"""Masks within boxes, as a detector predicts them, drawn into whole images; and their run lengths."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

THRESHOLD = 0.5


def draw(masks: Tensor, boxes: Tensor, shape: tuple[int, int]) -> Tensor:
    """Probabilities (n, M, M) within boxes (n, 4) -> masks bool (n, H, W), true above a half.

    A detector learns from masks that torchvision's `project_masks_on_boxes` samples. There, pixel j lies at j
    and not at j + .5. Here each pixel reads the mask where that projection put it, so that drawing what was
    projected gives the mask back. torchvision's own step rounds boxes to whole pixels, which costs small
    objects much of their overlap.
    """
    drawn = torch.zeros(len(masks), *shape, dtype=torch.bool, device=masks.device)
    bins = masks.shape[-1]
    for number, (mask, box) in enumerate(zip(masks, boxes.tolist(), strict=True)):
        spans = [_pixels(*box[axis::2], length) for axis, length in ((1, shape[0]), (0, shape[1]))]
        (top, bottom), (left, right) = spans
        if top >= bottom or left >= right:
            continue
        rows = _weights(top, bottom, box[1], box[3], bins).to(mask)
        columns = _weights(left, right, box[0], box[2], bins).to(mask)
        drawn[number, top:bottom, left:right] = rows @ mask @ columns.T > THRESHOLD
    return drawn


def _pixels(low: float, high: float, length: int) -> tuple[int, int]:
    """First pixel, and the one after the last, whose centres lie within low..high."""
    return max(0, int(np.ceil(low - 0.5))), min(length, int(np.ceil(high - 0.5)))


def _weights(first: int, last: int, low: float, high: float, bins: int) -> Tensor:
    """Linear interpolation of `bins` values at the pixels first..last, (last - first, bins)."""
    at = (torch.arange(first, last, dtype=torch.float64) - low) * (bins / max(high - low, 1e-6)) - 0.5
    at = at.clamp(0, bins - 1)
    below = at.floor().long()
    weights = torch.zeros(len(at), bins, dtype=torch.float64)
    weights.scatter_add_(1, below[:, None], (1 - (at - below))[:, None])
    weights.scatter_add_(1, (below + 1).clamp(max=bins - 1)[:, None], (at - below)[:, None])
    return weights


def run_lengths(masks: Tensor) -> list[dict[str, Any]]:
    """COCO's compressed run lengths of masks bool (n, H, W), as JSON holds them."""
    from pycocotools import mask as coco

    packed = [coco.encode(np.asfortranarray(mask)) for mask in masks.cpu().numpy().astype(np.uint8)]
    return [entry | {"counts": entry["counts"].decode("ascii")} for entry in packed]

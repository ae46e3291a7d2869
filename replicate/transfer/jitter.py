"""Large-scale jitter and copy-paste (Ghiasi et al. 2021): an image and its objects as one training sample.

A scale is drawn from 0.1 to 2.0 of what fits the square; the result is cropped at random, or padded at its
right and lower edges, and mirrored at random. Every random number comes from the generator that is passed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

import replicate.compat  # noqa: F401
from replicate.transfer.coco import Objects
from replicate.transfer.crops import PADDING

from torchvision import tv_tensors  # isort: skip  (after replicate.compat)
from torchvision.transforms.v2 import functional as v2  # isort: skip

if TYPE_CHECKING:
    from replicate.config.dense import DetectRun

LEAST_SIDE = 1.0
"""Boxes below a pixel are left out."""


@dataclass(frozen=True)
class Sample:
    """image uint8 (3, S, S); labels int64 (n,) from 1; masks bool (n, S, S), each with a pixel at least."""

    image: Tensor
    labels: Tensor
    masks: Tensor

    def target(self) -> dict[str, Tensor]:
        """What torchvision's detectors take: boxes x1, y1, x2, y2 around the masks' pixels, labels, masks."""
        boxes = boxes_around(self.masks)
        return {"boxes": boxes, "labels": self.labels, "masks": self.masks.to(torch.uint8)}


def boxes_around(masks: Tensor) -> Tensor:
    """Boxes (n, 4) that masks (n, H, W) fill from edge to edge; every mask has a pixel at least."""
    if not len(masks):
        return torch.zeros(0, 4)
    spans = []
    for along in (masks.any(1), masks.any(2)):  # columns, rows
        along = along.to(torch.uint8)
        spans.append((along.argmax(1), along.shape[1] - along.flip(1).argmax(1)))
    return torch.stack([spans[0][0], spans[1][0], spans[0][1], spans[1][1]], 1).float()


def jitter(pixels: np.ndarray, objects: Objects, run: DetectRun, rng: np.random.Generator) -> Sample:
    """uint8 (H, W, 3) and its objects, at a random scale and place in a square of `image_size`."""
    size, (height, width) = run.image_size, pixels.shape[:2]
    scale = size / max(height, width) * rng.uniform(*run.jitter)
    region = [min(side, max(1, round(size / scale))) for side in (height, width)]
    top, left = (
        int(rng.integers(side - part + 1)) for side, part in zip((height, width), region, strict=True)
    )
    resized = [min(size, max(1, round(part * scale))) for part in region]
    mirrored = rng.random() < 0.5
    image = tv_tensors.Image(torch.from_numpy(pixels.transpose(2, 0, 1).copy()))
    masks = tv_tensors.Mask(torch.from_numpy(objects.masks))
    image = v2.resized_crop(image, top, left, *region, resized, antialias=True)
    masks = _resized_masks(masks, top, left, region, resized)
    if mirrored:
        image, masks = v2.horizontal_flip(image), v2.horizontal_flip(masks)
    beyond = [0, 0, size - resized[1], size - resized[0]]
    image, masks = v2.pad(image, beyond, fill=list(PADDING)), v2.pad(masks, beyond)
    kept = masks.flatten(1).any(1) if len(masks) else torch.zeros(0, dtype=torch.bool)
    labels = torch.from_numpy(objects.labels)
    return Sample(image.as_subclass(Tensor), labels[kept], masks.as_subclass(Tensor)[kept])


def _resized_masks(
    masks: tv_tensors.Mask, top: int, left: int, region: list[int], resized: list[int]
) -> tv_tensors.Mask:
    if not len(masks):
        return tv_tensors.Mask(torch.zeros(0, *resized, dtype=torch.bool))
    return v2.resized_crop(masks, top, left, *region, resized)


def paste(below: Sample, above: Sample, rng: np.random.Generator) -> Sample:
    """Objects of `above`, each with probability a half, pasted over `below`; what they hide is gone."""
    chosen = torch.from_numpy(rng.random(len(above.labels)) < 0.5)
    if not chosen.any():
        return below
    masks = above.masks[chosen]
    covered = masks.any(0)
    image = torch.where(covered, above.image, below.image)
    visible = below.masks & ~covered
    kept = visible.flatten(1).any(1) if len(visible) else chosen[:0]
    labels = torch.cat([below.labels[kept], above.labels[chosen]])
    return Sample(image, labels, torch.cat([visible[kept], masks]))

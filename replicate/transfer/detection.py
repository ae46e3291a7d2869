"""Detection as a task: its model, its training samples, its loss and its score."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from replicate.transfer import detector
from replicate.transfer.coco import CocoImages
from replicate.transfer.detector import Detector
from replicate.transfer.jitter import jitter, paste
from replicate.transfer.masks import draw, run_lengths
from replicate.transfer.precision import average_precision
from replicate.transfer.sampling import averaged

from torchvision.transforms.v2 import functional as v2  # isort: skip  (after replicate.compat)

if TYPE_CHECKING:
    from replicate.config import PretrainRun
    from replicate.config.dense import DetectRun
    from replicate.trainers.context import RunContext

Target = dict[str, Tensor]
IMAGES_AT_ONCE = 8


def build_model(pretrained: PretrainRun, run: DetectRun, num_classes: int) -> Detector:
    """The untrained detector; see `replicate.transfer.detector`."""
    return detector.build_detector(pretrained, run, num_classes)


def load_encoder(context: RunContext, model: Detector, state: dict[str, Tensor], path: str) -> None:
    """Load a pre-training's or a classifier's encoder. Raises UserError for another model's."""
    antialias = context.run.pos_embed_antialias
    detector.load_encoder(model, context.upstream_run, state, path, antialias)


class DetectionTask(nn.Module):
    """Mask R-CNN with its five losses, summed with equal weights as published.

    parts, whole   micro-batches of a step, and the samples behind each loss in all of them (None: one part)
    """

    parts, whole = 1, None

    def __init__(self, model: Detector, run: DetectRun) -> None:
        super().__init__()
        self.model, self.run = model, run

    def forward(self, images: Tensor, targets: list[Target]) -> tuple[Tensor, dict[str, Tensor]]:
        """uint8 (n, 3, S, S) and a target each -> the loss, and its parts by name."""
        losses, held = self._losses(images, targets)
        losses = averaged(losses, held, self.whole, self.parts)
        return torch.stack(list(losses.values())).sum(), {k: loss.detach() for k, loss in losses.items()}

    @torch.no_grad()
    def samples(self, images: Tensor, targets: list[Target]) -> Tensor:
        """How many anchors or regions each loss is a mean of, (5,)."""
        return self._losses(images, targets)[1]

    def _losses(self, images: Tensor, targets: list[Target]) -> tuple[dict[str, Tensor], Tensor]:
        losses, counts = self.model(list(images.float() / 255), targets), self.model.sampled()
        return losses, torch.tensor([float(counts[name]) for name in losses], device=images.device)

    def parameter_groups(self) -> list[dict[str, Any]]:
        return self.model.parameter_groups(self.run.weight_decay, self.run.layer_decay)


def build_task(context: RunContext, model: Detector) -> DetectionTask:
    return DetectionTask(model, context.run)


@dataclass(frozen=True)
class TrainImages:
    """Training images that have an object, jittered; with another's objects pasted if the run says so."""

    images: CocoImages
    run: DetectRun

    def __len__(self) -> int:
        return len(self.images)

    def item(self, index: int, rng: np.random.Generator) -> tuple[Tensor, Target]:
        """uint8 (3, S, S) and its target; all chance comes from `rng`."""
        sample = jitter(self.images.pixels(index), self.images.objects(index), self.run, rng)
        if self.run.copy_paste:
            other = int(rng.integers(len(self)))
            above = jitter(self.images.pixels(other), self.images.objects(other), self.run, rng)
            sample = paste(sample, above, rng)
        return sample.image, sample.target()


def train_data(context: RunContext) -> TrainImages:
    return TrainImages(_images(context, "train", "drop"), context.run)


def _images(context: RunContext, split: str, empty: str) -> CocoImages:
    stated = context.manifest.splits[split]
    return CocoImages(stated["image_folder"], stated["annotations"], empty)


def score(model: Detector, context: RunContext) -> dict[str, float]:
    """AP, AP50 and AP75 of boxes and of masks over the validation images, in percent."""
    return evaluate(model, _images(context, "val", "keep"))


def evaluate(model: Detector, images: CocoImages) -> dict[str, float]:
    """`average_precision` of the model's detections."""
    found = []
    for start in range(0, len(images), IMAGES_AT_ONCE):
        numbers = range(start, min(start + IMAGES_AT_ONCE, len(images)))
        detections = detect(model, [images.pixels(number) for number in numbers])
        for number, detection in zip(numbers, detections, strict=True):
            found += _entries(detection, images.images[number]["id"], images.category_ids)
    return average_precision(images.content, found)


def _entries(detection: Target, image_id: int, category_ids: list[int]) -> list[dict[str, Any]]:
    corners = detection["boxes"].double()
    boxes = torch.cat([corners[:, :2], corners[:, 2:] - corners[:, :2]], 1).tolist()
    parts = zip(
        detection["labels"].tolist(),
        detection["scores"].tolist(),
        boxes,
        run_lengths(detection["masks"]),
        strict=True,
    )
    return [
        {
            "image_id": image_id,
            "category_id": category_ids[label - 1],
            "score": certainty,
            "bbox": box,
            "segmentation": mask,
        }
        for label, certainty, box, mask in parts
    ]


@torch.no_grad()
def detect(model: Detector, images: list[np.ndarray]) -> list[Target]:
    """What the model finds in images, uint8 (H, W, 3), in their own pixels, on the CPU.

    For each image: boxes (n, 4) as x1, y1, x2, y2, labels int64 (n,) from 1, scores (n,), masks bool
    (n, H, W). The best scores come first. The short side becomes `test_size`, but the long side at most
    `image_size`; the rest of the square is padding.
    """
    device, training = next(model.parameters()).device, model.training
    resized = [_fitted(pixels, model).to(device) for pixels in images]
    try:
        found = model.eval()(resized)
    finally:
        model.train(training)
    return [
        _in_own_pixels({name: part.cpu() for name, part in one.items()}, small.shape[-2:], pixels.shape[:2])
        for one, small, pixels in zip(found, resized, images, strict=True)
    ]


def _fitted(pixels: np.ndarray, model: Detector) -> Tensor:
    """float (3, h, w) in 0..1, resized for the test."""
    height, width = pixels.shape[:2]
    scale = min(model.test_size / min(height, width), model.image_size / max(height, width))
    size = [min(model.image_size, max(1, round(side * scale))) for side in (height, width)]
    image = torch.from_numpy(pixels.transpose(2, 0, 1).copy())
    return v2.resize_image(image, size, antialias=True).float() / 255


def _in_own_pixels(found: Target, resized: tuple[int, int], shape: tuple[int, int]) -> Target:
    scales = torch.tensor([shape[1] / resized[1], shape[0] / resized[0]]).repeat(2)
    boxes = found["boxes"].float() * scales
    masks = draw(found["masks"][:, 0].float(), boxes, shape)
    return {"boxes": boxes, "labels": found["labels"], "scores": found["scores"].float(), "masks": masks}

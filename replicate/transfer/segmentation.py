"""Semantic segmentation with UperNet (MAE Table 5, Efficient MAE Table 10, FastMIM Table 6)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from replicate.config.backbones import is_plain_vit
from replicate.loaders.pixels import normalise
from replicate.schedules.layer_decay import decayed_groups
from replicate.trainers.session import seed_everything
from replicate.transfer.ade import IGNORED, MaskImages
from replicate.transfer.crops import LONGEST, PADDING, resize, scale_to, training_crop
from replicate.transfer.data import masked_images
from replicate.transfer.overlap import Overlap
from replicate.transfer.taps import build_taps
from replicate.transfer.train import fit, keep_weights, start_weights
from replicate.transfer.upernet import Segmenter, resized

if TYPE_CHECKING:
    from replicate.config import PretrainRun, SegmentRun
    from replicate.trainers.checkpoints import Checkpoints
    from replicate.trainers.context import RunContext
    from replicate.trainers.session import Session

WINDOWS_AT_ONCE = 8


def train_seed(context: RunContext, seed: int, checkpoints: Checkpoints) -> dict[str, Any]:
    """Fine-tune one seed from the same seed's encoder and score it: mean IoU, mean and pixel accuracy."""
    seed_everything(seed)
    model = build_model(context.upstream_run, context.run, context.num_classes)
    state, path = start_weights(context, seed)
    model.taps.load(state, path, context.run.pos_embed_antialias)
    task = SegmentTask(model.to(context.session.device), context.run)
    history = fit(context, seed, checkpoints, task, TrainCrops.of(context))
    keep_weights(context, seed, checkpoints, model)
    scores = score(model, context)
    return {"results": scores | {"loss": history[-1]["loss"]}, "history": history}


def build_model(source: PretrainRun, run: SegmentRun, classes: int) -> Segmenter:
    """The segmenter on a pre-training's backbone, untrained."""
    return Segmenter(
        build_taps(source, run),
        classes,
        run.head_width,
        run.pools,
        run.dropout,
        run.auxiliary_width if run.auxiliary else None,
        run.auxiliary_tap,
        plain=is_plain_vit(source.backbone, source.backbone_kwargs),
    )


class SegmentTask(nn.Module):
    """The loss of a batch: cross-entropy of the head, and of the auxiliary head by its weight."""

    def __init__(self, model: Segmenter, run: SegmentRun) -> None:
        super().__init__()
        self.model, self.run = model, run

    def forward(self, images: Tensor, targets: list[dict[str, Tensor]]) -> tuple[Tensor, dict[str, Tensor]]:
        masks = torch.stack([target["mask"] for target in targets])
        scores, auxiliary = self.model(normalise(images))
        loss = cross_entropy(scores, masks)
        if auxiliary is None:
            return loss, {}
        beside = cross_entropy(auxiliary, masks)
        return loss + self.run.auxiliary * beside, {"head_loss": loss, "auxiliary_loss": beside}

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Layer-wise decay in the encoder; pyramid and heads learn at the full rate."""
        run, model = self.run, self.model
        groups = model.taps.parameter_groups(run.weight_decay, run.layer_decay)
        heads = nn.ModuleList(part for name, part in model.named_children() if name != "taps")
        return groups + decayed_groups(heads, run.weight_decay, 1.0)


def cross_entropy(scores: Tensor, masks: Tensor) -> Tensor:
    """The mean over all pixels, where unlabelled ones count as zero, as mmsegmentation averages.

    scores (N, classes, H, W), masks (N, H, W) of classes or `IGNORED`.
    """
    found = nn.functional.cross_entropy(scores, masks.long(), ignore_index=IGNORED, reduction="none")
    return found.mean()


@dataclass(frozen=True)
class TrainCrops:
    """Training images as augmented crops."""

    images: MaskImages
    run: SegmentRun

    @classmethod
    def of(cls, context: RunContext) -> TrainCrops:
        return cls(masked_images(context.manifest, "train"), context.run)

    def __len__(self) -> int:
        return len(self.images)

    def item(self, index: int, rng: np.random.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """uint8 (3, S, S), and its "mask" uint8 (S, S)."""
        run = self.run
        image, mask = training_crop(
            *self.images.pair(index), run.image_size, run.scale, run.most_of_a_class, rng, run.flip
        )
        return torch.from_numpy(image).permute(2, 0, 1).contiguous(), {"mask": torch.from_numpy(mask)}


@torch.no_grad()
def score(model: nn.Module, context: RunContext) -> dict[str, float]:
    """miou, macc and aacc in percent over the validation images, at their own size, each counted once."""
    model.eval()
    session, images = context.session, masked_images(context.manifest, "val")
    found = Overlap(context.num_classes)
    for index in range(session.rank, len(images), session.world_size):
        image, mask = images.pair(index)
        found.add(predict(model, image, context.run, session).argmax(0), torch.from_numpy(mask))
    return found.percent(session)


@torch.no_grad()
def predict(model: nn.Module, image: np.ndarray, run: SegmentRun, session: Session) -> Tensor:
    """Class probabilities (classes, H, W) of an image (H, W, 3), averaged over the run's test scales."""
    total = None
    for scale in run.test_scales:
        short = run.image_size * scale
        seen = resize(image, scale_to(image.shape[:2], short, LONGEST * short))
        scores = slide(model, seen, run.image_size, run.stride, session)
        found = resized(scores[None], image.shape[:2])[0].softmax(0)
        total = found if total is None else total + found
    return total / len(run.test_scales)


def slide(model: nn.Module, image: np.ndarray, size: int, stride: int, session: Session) -> Tensor:
    """Scores (classes, H, W) from windows of `size`, averaged where they overlap.

    An image smaller than a window is padded with the colour that normalises to zero.
    """
    height, width = image.shape[:2]
    padded = np.empty((max(height, size), max(width, size), 3), np.uint8)
    padded[:] = PADDING
    padded[:height, :width] = image
    pixels = torch.from_numpy(padded).permute(2, 0, 1)
    boxes = window_places(padded.shape[0], padded.shape[1], size, stride)
    total, times = None, pixels.new_zeros(padded.shape[:2], dtype=torch.float32)
    for start in range(0, len(boxes), WINDOWS_AT_ONCE):
        chosen = boxes[start : start + WINDOWS_AT_ONCE]
        windows = torch.stack([pixels[:, top : top + size, left : left + size] for top, left in chosen])
        with session.autocast():
            scores = model(normalise(windows.to(session.device)))[0].float().cpu()
        if total is None:
            total = scores.new_zeros(scores.shape[1], *padded.shape[:2])
        for (top, left), found in zip(chosen, scores, strict=True):
            total[:, top : top + size, left : left + size] += found
            times[top : top + size, left : left + size] += 1
    return (total / times)[:, :height, :width]


def window_places(height: int, width: int, size: int, stride: int) -> list[tuple[int, int]]:
    """Upper left corners of windows; the last of a row or column is moved in to end at the border."""
    tops, lefts = (
        [min(number * stride, side - size) for number in range(-(-(side - size) // stride) + 1)]
        for side in (height, width)
    )
    return [(top, left) for top in tops for left in lefts]

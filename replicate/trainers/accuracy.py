"""Scoring a classifier on the validation images."""

from __future__ import annotations

import torch
from torch import nn

from replicate.loaders.pixels import normalise
from replicate.trainers.context import RunContext
from replicate.trainers.images import validation_loader
from replicate.trainers.sharding import gathered


@torch.no_grad()
def accuracy(model: nn.Module, context: RunContext, image_size: int) -> dict[str, float]:
    """Top-1 and top-5 accuracy in percent over every validation image, counted once each, whatever the number of processes."""
    model.eval()
    right1 = right5 = count = 0
    with gathered(model), validation_loader(context, image_size) as loader:
        for images, labels, _ in loader.epoch(0):
            labels = labels.to(context.session.device)
            with context.session.autocast():
                logits = model(normalise(images.to(context.session.device)))
            ranked = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
            right1, right5, count = right1 + int(ranked[:, 0].sum()), right5 + int(ranked.sum()), count + len(labels)
    right1, right5, count = context.session.all_reduce_sum(right1, right5, count)
    return {"top1": 100.0 * right1 / count, "top5": 100.0 * right5 / count}

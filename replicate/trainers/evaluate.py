"""Evaluation of pre-trained weights: `python -m replicate evaluate RUN`. A protocol's name is the name of its file."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import nn

from replicate.errors import UserError
from replicate.loaders.pixels import normalise
from replicate.trainers.pretrain import validation_loader
from replicate.trainers.seeds import RunContext, train_seeds


def evaluate(context: RunContext) -> dict[str, Any]:
    """Evaluate every seed of a run from the same seed's pre-trained weights and write its folder: history.csv, metrics.json.

    Raises UserError when the weights are not there.
    """
    for seed in range(context.seeds):
        path = context.upstream_weights(seed)
        if not path.exists():
            raise UserError(f"run {context.name} starts from {path}, which is not there; run `python -m replicate pretrain {context.upstream.name}`")
    protocol = importlib.import_module(f"replicate.trainers.{context.run.protocol}")
    return train_seeds(context, protocol.evaluate_seed)


@torch.no_grad()
def accuracy(model: nn.Module, context: RunContext, image_size: int) -> dict[str, float]:
    """Top-1 and top-5 accuracy in percent over every validation image, counted once each, whatever the number of processes."""
    model.eval()
    right1 = right5 = count = 0
    with validation_loader(context, image_size) as loader:
        for images, labels, _ in loader.epoch(0):
            labels = labels.to(context.session.device)
            with context.session.autocast():
                logits = model(normalise(images.to(context.session.device)))
            ranked = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
            right1, right5, count = right1 + int(ranked[:, 0].sum()), right5 + int(ranked.sum()), count + len(labels)
    right1, right5, count = context.session.sum_over_ranks(right1, right5, count)
    return {"top1": 100.0 * right1 / count, "top5": 100.0 * right5 / count}

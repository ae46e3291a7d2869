"""Top-1 and top-5 accuracy, counted in one place."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from replicate.errors import UserError
from replicate.loaders.pixels import normalise
from replicate.trainers.images import validation_loader
from replicate.trainers.sharding import gathered

if TYPE_CHECKING:
    from replicate.trainers.context import RunContext
    from replicate.trainers.session import Session


class TopK:
    """Counts right answers, image by image, over all processes."""

    def __init__(self) -> None:
        self.right1 = self.right5 = self.count = 0

    def add(self, scores: Tensor, labels: Tensor) -> None:
        """scores (n, classes), labels (n,) on any device."""
        right = scores.topk(min(5, scores.shape[1]), dim=1).indices == labels.to(scores.device)[:, None]
        self.right1 += int(right[:, 0].sum())
        self.right5 += int(right.sum())
        self.count += len(labels)

    def percent(self, session: Session) -> dict[str, float]:
        """top1 and top5 in percent. Raises UserError when no image was counted."""
        right1, right5, count = session.all_reduce_sum(self.right1, self.right5, self.count)
        if not count:
            raise UserError("no validation image can be read, so there is no accuracy")
        return {"top1": 100.0 * right1 / count, "top5": 100.0 * right5 / count}


@torch.no_grad()
def accuracy(model: nn.Module, context: RunContext, image_size: int) -> dict[str, float]:
    """Top-1 and top-5 accuracy in percent over the validation images, each counted once."""
    model.eval()
    found = TopK()
    with gathered(model), validation_loader(context, image_size) as loader:
        for images, labels, _ in loader.epoch(0):
            with context.session.autocast():
                found.add(model(normalise(images.to(context.session.device))), labels)
    return found.percent(context.session)

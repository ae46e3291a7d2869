"""The online probe: a linear classifier that is trained beside a pre-training, on features that it cannot change (DailyMAE sec 5.3).

As the authors run it: BatchNorm without affine parameters and one linear layer on the mean patch token of the whole, unmasked image, before
the encoder's last norm; Adam at 1e-3 throughout. They report its running accuracy on the augmented TRAINING batches (`probe_train_top1`
here); the accuracy on the validation images (`probe_top1`) is reported as well, because the former sees each image before it is scored.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from replicate.loaders.pixels import normalise

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from replicate.trainers.session import Session

LEARNING_RATE = 1e-3
BETAS = (0.9, 0.999)


class OnlineProbe(nn.Module):
    """Called with uint8 images (n, 3, S, S) and labels (n,): the probe's own loss and what to log.

    The encoder is reached without gradient and without being registered, so that it has one owner.
    """

    def __init__(self, encoder: nn.Module, num_classes: int) -> None:
        super().__init__()
        self._encoder = (encoder,)
        self.head = nn.Sequential(nn.BatchNorm1d(encoder.embed_dim, affine=False, eps=1e-6), nn.Linear(encoder.embed_dim, num_classes))
        nn.init.normal_(self.head[1].weight, std=0.01)
        nn.init.zeros_(self.head[1].bias)

    def logits(self, images: Tensor) -> Tensor:
        """images (n, 3, S, S) uint8 -> (n, num_classes)."""
        with torch.no_grad(), _as_for_scoring(self._encoder[0]) as encoder:
            features = encoder.unmasked_features(normalise(images))
        return self.head(features.float())

    def forward(self, images: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        logits = self.logits(images).float()
        loss = F.cross_entropy(logits, labels)
        right = (logits.argmax(1) == labels).float().mean()
        return loss, {"probe_loss": loss.detach(), "probe_train_top1": 100 * right}

    def group(self) -> dict[str, Any]:
        """The probe's parameters as a group of the run's AdamW: without weight decay that is Adam, here at a rate of its own."""
        return {"params": list(self.parameters()), "weight_decay": 0.0, "lr": LEARNING_RATE, "fixed_lr": LEARNING_RATE, "betas": BETAS}


@contextmanager
def _as_for_scoring(module: nn.Module) -> Iterator[nn.Module]:
    """The module in evaluation mode: whole images must not enter the running statistics of an encoder's batch normalisation."""
    training = module.training
    module.eval()
    try:
        yield module
    finally:
        module.train(training)


@torch.no_grad()
def accuracy(probe: OnlineProbe, batches: Iterable[tuple[Tensor, Tensor, Tensor]], session: Session) -> dict[str, float]:
    """Top-1 accuracy in percent over batches of images, each counted once, whatever the number of processes."""
    right = count = 0
    with _as_for_scoring(probe):
        for images, labels, _ in batches:
            with session.autocast():
                found = probe.logits(images.to(session.device)).argmax(1)
            right, count = right + int((found == labels.to(session.device)).sum()), count + len(labels)
    right, count = session.all_reduce_sum(right, count)
    return {"probe_top1": 100.0 * right / count}

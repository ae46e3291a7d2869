"""The online probe: a linear classifier trained beside a pre-training, on its features (DailyMAE sec 5.3).

As in the authors' code: BatchNorm1d and one linear layer, both at torch's defaults, on the mean patch token
of the whole, unmasked image before the encoder's last norm; Adam at 1e-3. They report its running accuracy
on the augmented training batches (`probe_train_top1`). `probe_top1` is that on the validation images.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from replicate.loaders import Batch
from replicate.loaders.pixels import normalise
from replicate.trainers.accuracy import TopK
from replicate.trainers.session import Session

LEARNING_RATE = 1e-3


class OnlineProbe:
    """Collects the features of a step's images, then takes one step of its own on all of them.

    So its batch statistics are those of the whole global batch, and it changes neither the encoder's loss nor
    its gradient.
    """

    def __init__(self, encoder: nn.Module, num_classes: int, session: Session | None = None) -> None:
        self.encoder, self.session = encoder, session or Session(torch.device("cpu"), torch.float32)
        width, device = encoder.embed_dim, self.session.device
        self.head = nn.Sequential(nn.BatchNorm1d(width), nn.Linear(width, num_classes)).to(device)
        self.optimizer = torch.optim.Adam(self.head.parameters(), lr=LEARNING_RATE)
        self._seen: list[tuple[Tensor, Tensor]] = []

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """uint8 images (n, 3, S, S) -> float32 (n, embed_dim)."""
        with _scoring(self.encoder):
            return self.encoder.unmasked_features(normalise(images)).float()

    def see(self, images: Tensor, labels: Tensor) -> None:
        """Collect a micro-batch."""
        self._seen.append((self.features(images), labels))

    def step(self) -> dict[str, Tensor]:
        """Train on what was collected, over all processes; returns scalars to log."""
        nothing = torch.empty(0, self.encoder.embed_dim), torch.empty(0, dtype=torch.long)
        own = [torch.cat(parts) for parts in zip(*(self._seen or [nothing]), strict=True)]
        features, labels = (self.session.all_gather(part.to(self.session.device)) for part in own)
        self._seen.clear()
        logits = self.head(features)
        loss = F.cross_entropy(logits, labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        right = (logits.argmax(1) == labels).float().mean()
        return {"probe_loss": loss.detach(), "probe_train_top1": 100 * right}

    @torch.no_grad()
    def accuracy(self, batches: Iterable[Batch]) -> dict[str, float]:
        """`probe_top1`: top-1 accuracy in percent over the batches of all processes."""
        found = TopK()
        with _scoring(self.head):
            for images, labels, _ in batches:
                with self.session.autocast():
                    features = self.features(images.to(self.session.device))
                found.add(self.head(features), labels)
        return {"probe_top1": found.percent(self.session)["top1"]}

    def state(self) -> dict[str, nn.Module | torch.optim.Optimizer]:
        """What belongs to a checkpoint."""
        return {"probe": self.head, "probe_optimizer": self.optimizer}


@contextmanager
def _scoring(module: nn.Module) -> Iterator[None]:
    """Evaluation mode, so that whole images do not enter the running statistics of an encoder."""
    training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(training)

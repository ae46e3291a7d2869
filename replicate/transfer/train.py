"""The loop of dense transfer: the house's training loop over images with boxes or masks.

A task is an nn.Module: `model`, `parameter_groups()`, and `forward(images, targets) -> (loss, scalars)` on
uint8 images (n, 3, S, S) with one dictionary of tensors each. Data has a length and `item(index, rng)`.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from replicate.loaders.base import ahead
from replicate.models.weights import load_weights, save_weights
from replicate.schedules.lr import set_learning_rate
from replicate.trainers.batches import Place, accumulation, share_of
from replicate.trainers.loop import Trainer, adamw
from replicate.trainers.session import Session, seed_everything
from replicate.transfer.schedule import learning_rate

if TYPE_CHECKING:
    from replicate.config import DenseRun
    from replicate.schedules.stages import View
    from replicate.trainers.checkpoints import Checkpoints
    from replicate.trainers.context import RunContext

Target = dict[str, Tensor]
MOST_ROUNDS = 200
"""A run has so many rounds at most; each ends with a line of history and perhaps a checkpoint."""
_ORDER, _ITEM = 22, 23
"""Random streams of the images' order and of an image's augmentation."""


class DenseData(Protocol):
    """Training images. All chance of an item comes from the generator that it gets."""

    def __len__(self) -> int: ...

    def item(self, index: int, rng: np.random.Generator) -> tuple[Tensor, Target]:
        """uint8 (3, S, S) and what is known of it."""


class DenseBatch(NamedTuple):
    images: Tensor
    labels: list[Target]


@dataclass
class DenseLoader:
    """Batches by their place in an endless shuffled list: rounds, processes, restarts change nothing.

    steps, per_round   optimiser steps of the run, and of each round but perhaps the last
    batch_size         of all processes together
    """

    data: DenseData
    batch_size: int
    steps: int
    per_round: int
    seed: int
    session: Session
    on_error: str = "raise"
    num_skipped: int = 0
    _orders: dict[int, np.ndarray] = field(default_factory=dict, repr=False)

    @property
    def num_images(self) -> int:
        return len(self.data)

    @property
    def num_batches(self) -> int:
        return self.per_round

    @property
    def rounds(self) -> int:
        return math.ceil(self.steps / self.per_round)

    def epoch(self, number: int) -> Iterator[DenseBatch]:
        """This process's shares of a round's batches."""
        share = share_of(self.batch_size, self.session)
        first = self.session.rank * share
        steps = range(number * self.per_round, min((number + 1) * self.per_round, self.steps))
        places = [step * self.batch_size + first + one for step in steps for one in range(share)]
        held: list[tuple[Tensor, Target]] = []
        with contextlib.closing(ahead(self._item, places, max(1, self.session.workers))) as items:
            for item in items:
                held.append(item)
                if len(held) == share:
                    yield DenseBatch(torch.stack([image for image, _ in held]), [one for _, one in held])
                    held = []

    def _item(self, place: int) -> tuple[Tensor, Target]:
        lap, position = divmod(place, len(self.data))
        return self.data.item(int(self._order(lap)[position]), generator(self.seed, _ITEM, place))

    def _order(self, lap: int) -> np.ndarray:
        if lap not in self._orders:
            self._orders[lap] = generator(self.seed, _ORDER, lap).permutation(len(self.data))
            self._orders.pop(lap - 3, None)
        return self._orders[lap]


def generator(*parts: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(parts))


def loader_of(data: DenseData, run: DenseRun, seed: int, session: Session) -> DenseLoader:
    """A round is one pass over the data, or more where the run would have too many rounds."""
    steps = run.total_steps(len(data))
    per_round = max(1, len(data) // run.batch_size, math.ceil(steps / MOST_ROUNDS))
    return DenseLoader(data, run.batch_size, steps, min(per_round, steps), seed, session)


@dataclass
class DenseTrainer(Trainer):
    """The house's trainer with images of one size, targets of any form, and a rate by iterations."""

    def _set_up(self) -> None:
        super()._set_up()
        for module in self.task.modules():
            if type(module) is nn.Dropout2d:
                module.__class__ = BatchDropout2d

    def _restore_view(self, epochs: int) -> None:
        """Nothing of a dense run changes between rounds."""

    def _enter_stage(self, view: View) -> None:
        """As above."""

    def _count(self, batch: DenseBatch) -> int:
        return len(batch.labels) * self.session.world_size

    def _set_learning_rate(self, position: float, view: View) -> float:
        step = round(position * self.loader.per_round)
        lr = learning_rate(self.run, step, self.loader.steps, self.loader.num_images)
        set_learning_rate(self.optimizer, lr)
        return lr

    def _step(self, batch: DenseBatch, count: int, epoch: int, step: int, view: View) -> dict[str, Tensor]:
        logs: dict[str, Tensor] = {}
        held, parts = accumulation(self.run.batch_size, self.session)
        first = self.session.rank * held * parts
        places = [Place(first + part * held, held, self.run.batch_size) for part in range(parts)]

        def forward(function: Callable[..., Any], place: Place) -> Any:
            cut = slice(place.start - first, place.start - first + held)
            images = batch.images[cut].to(self.session.device, non_blocking=True)
            targets = [_on(self.session.device, one) for one in batch.labels[cut]]
            seed_everything(self.seed, epoch, step)
            with self.session.autocast(), place:
                return function(images, targets)

        if parts > 1 and hasattr(self.task, "samples"):
            # A mean over what all parts sample is known once all have sampled.
            self.task.parts = parts
            self.task.whole = sum(forward(self.task.samples, place) for place in places)
        for place in places:
            wait = place is not places[-1] and hasattr(self.stepped, "no_sync")
            with self.stepped.no_sync() if wait else contextlib.nullcontext():
                loss, extras = forward(self.stepped, place)
                self.scaler.scale(loss / parts).backward()
            for key, value in {"loss": loss, **extras}.items():
                logs[key] = logs.get(key, 0.0) + value.detach() / parts
        return logs | self._update()


class BatchDropout2d(nn.Dropout2d):
    """Drops channels for the whole global batch and takes the part of the images at hand."""

    def forward(self, maps: Tensor) -> Tensor:
        place = Place.current
        if place is None or place.images == place.total or not self.training or not self.p:
            return super().forward(maps)
        kept = maps.new_ones(place.total, maps.shape[1], 1, 1)
        drawn = nn.functional.dropout(kept, self.p)[place.start : place.start + len(maps)]
        return maps * drawn


def _on(device: torch.device, target: Target) -> Target:
    return {name: value.to(device, non_blocking=True) for name, value in target.items()}


def fit(
    context: RunContext, seed: int, checkpoints: Checkpoints, task: nn.Module, data: DenseData
) -> list[dict[str, float]]:
    """Train a task by its run's recipe; returns the history, a row a round."""
    session, loader = context.session, loader_of(data, context.run, seed, context.session)
    run = context.run.model_copy(update={"epochs": loader.rounds})
    optimizer = adamw(task.parameter_groups(), run, session.device)
    name = f"{context.name} seed {seed}"
    return DenseTrainer(task, optimizer, loader, run, session, checkpoints, seed, name).fit()


def start_weights(context: RunContext, seed: int) -> tuple[dict[str, Tensor], str]:
    """The seed's weights of the pre-training or classifier, and their path."""
    path = context.upstream_weights(seed)
    return load_weights(path), str(path)


def keep_weights(context: RunContext, seed: int, checkpoints: Checkpoints, model: nn.Module) -> None:
    """Keep the trained model for pictures of its predictions."""
    if context.session.is_main:
        save_weights(model.state_dict(), checkpoints.weights_path, {"run": f"{context.name}, seed {seed}"})

"""The training loop of every paper: set up, resume, then stage, steps, scores, checkpoint of each epoch."""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from replicate.errors import UserError
from replicate.loggers import Place, Sinks, open_sinks
from replicate.models.cpu import tune_for_cpu
from replicate.models.resized import Resized, carry_optimizer_state
from replicate.schedules.lr import set_learning_rate, warmup_cosine
from replicate.schedules.stages import View, view_at
from replicate.trainers.batches import (
    draw_for_whole_batches,
    least_images,
    micro_batches,
    refuse_unfit,
    share_of,
)
from replicate.trainers.checkpoints import Checkpoints
from replicate.trainers.session import Session, seed_everything
from replicate.trainers.sharding import is_sharded, load_sharded, whole_state

if TYPE_CHECKING:
    import numpy as np

    from replicate.config.runs import Optimisation
    from replicate.loaders import Batch
    from replicate.loaders.base import BaseLoader

CHECKPOINT_SHARE = 0.05  # of the time: training lasts 20 times as long as writing a checkpoint takes
LOG_SECONDS = 30  # between two lines of the log within an epoch
CHECK_EVERY = (
    20  # steps between two looks at the loss on an accelerator, where each look waits for the device
)


class Task(Protocol):
    """What is trained: an nn.Module whose forward gives the loss of a batch. `model` is its network."""

    model: nn.Module

    def forward(
        self, images: Tensor, labels: Tensor, index: Tensor, epoch: int, progress: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """images (n, 3, S, S) uint8, labels (n,), index (n,), progress in [0, 1) -> loss, scalars to log."""

    def set_view(self, view: View) -> Resized | None:
        """Adapt to a stage's image size and mask ratio; returns the learned tables of a new shape."""


@dataclass
class Trainer:
    """Trains one seed of a run; continues from the checkpoint of `checkpoints` when there is one.

    On a CPU a continued run equals an unbroken one bit for bit.

    after_step    called after every optimiser step; returns scalars to log, or None
    after_epoch   called with the epoch; returns scores for the history
    extra_state   what else belongs to the checkpoint: name -> object with state_dict and load_state_dict
    pictures      name -> uint8 (H, W, 3), for the loggers
    """

    task: nn.Module
    optimizer: torch.optim.Optimizer
    loader: BaseLoader
    run: Optimisation
    session: Session
    checkpoints: Checkpoints
    seed: int
    name: str
    after_step: Callable[[], dict[str, Tensor] | None] | None = None
    after_epoch: Callable[[int], dict[str, float]] | None = None
    extra_state: dict[str, Any] = field(default_factory=dict)
    pictures: Callable[[], dict[str, np.ndarray]] | None = None

    def fit(self) -> list[dict[str, float]]:
        """Train for `run.epochs` epochs; returns the history, one row an epoch.

        Raises UserError for a batch that cannot be split as asked, and when the loss stops being finite.
        """
        self._set_up()
        history = self._resume()
        self.stepped = self._distributed()
        saved_at, save_cost = time.monotonic(), 0.0
        with self._bar(len(history)) as self.bar, self._sinks(len(history)) as self.sinks:
            for epoch in range(len(history), self.run.epochs):
                view = view_at(self.run, epoch)
                self._enter_stage(view)
                row = self._train_epoch(epoch, view)
                if self.after_epoch:
                    row |= self.after_epoch(epoch)
                history.append(row)
                if self.session.is_main:
                    self.checkpoints.log(row)
                    self._show(row, epoch)
                best = self.session.keep_best and _is_best(history)
                last = epoch + 1 == self.run.epochs
                if best or last or self._due(epoch, time.monotonic() - saved_at, save_cost):
                    saved_at = time.monotonic()
                    self._save(history, best)
                    save_cost = time.monotonic() - saved_at
        return history

    # Set up

    def _set_up(self) -> None:
        refuse_unfit(self.task, self.run, self.session, self.name)
        draw_for_whole_batches(self.task, self.session)
        self.least = least_images(self.task)
        self.scaler = torch.amp.GradScaler(
            self.session.device.type, enabled=self.session.precision == torch.float16
        )
        self.parts = {
            "task": self.task,
            "optimizer": self.optimizer,
            "scaler": self.scaler,
            **self.extra_state,
        }
        if self.session.device.type == "cpu":
            tune_for_cpu(self.task.model)
        if self.session.channels_last:
            self.task.model.to(memory_format=torch.channels_last)

    def _distributed(self) -> nn.Module:
        if self.session.compile:
            self.task.model.compile()
        if self.session.world_size == 1 or is_sharded(self.task):
            return self.task
        devices = [self.session.device] if self.session.device.type == "cuda" else None
        return DistributedDataParallel(self.task, device_ids=devices)

    def _bar(self, done_epochs: int) -> tqdm:
        """A progress bar over the whole run's steps; without a terminal, a line every half minute."""
        quiet = not sys.stderr.isatty()
        return tqdm(
            total=self.run.epochs * self.loader.num_batches,
            initial=done_epochs * self.loader.num_batches,
            desc=self.name,
            unit="step",
            disable=not self.session.is_main,
            mininterval=30 if quiet else 0.5,
            maxinterval=60 if quiet else 10,
            dynamic_ncols=not quiet,
        )

    # Loggers

    def _sinks(self, done_epochs: int) -> contextlib.AbstractContextManager[Sinks]:
        """The loggers that the machine chose, in the first process alone."""
        chosen = self.session.loggers if self.session.is_main else ()
        place = Place(
            run=self.name.partition(" seed ")[0],
            seed=self.seed,
            key=self.checkpoints.folder.name,
            step=done_epochs * self.loader.num_batches,
            settings=self.run.model_dump(mode="json", exclude_defaults=True) if chosen else {},
        )
        return open_sinks(chosen, place)

    def _show(self, row: dict[str, float], epoch: int) -> None:
        """An epoch's row, and every `log_images` epochs and at the end its pictures."""
        step, every = (epoch + 1) * self.loader.num_batches, self.session.log_images
        self.sinks.log(row, step)
        due = every and ((epoch + 1) % every == 0 or epoch + 1 == self.run.epochs)
        if due and self.sinks and self.pictures and not is_sharded(self.task):
            for name, pixels in self.pictures().items():
                self.sinks.image(name, pixels, step)

    # Resume

    def _resume(self) -> list[dict[str, float]]:
        state = self.checkpoints.load_checkpoint(self.session.device)
        history = state["history"] if state else []
        if state:
            self._restore_view(len(history))
            if is_sharded(self.task):
                load_sharded(self.parts, state)
            else:
                for key, part in self.parts.items():
                    part.load_state_dict(state[key])
        if self.session.is_main:
            self.checkpoints.start_log(history)
        return history

    def _restore_view(self, epochs: int) -> None:
        """Bring the task to the stage of the last of `epochs` epochs."""
        self.task.set_view(view_at(self.run, epochs - 1))

    # An epoch

    def _enter_stage(self, view: View) -> None:
        self.loader.set_stage(
            image_size=view.image_size,
            scale=view.crop_scale,
            batch_size=share_of(view.batch_size, self.session),
            auto=view.auto_augment,
        )
        if resized := self.task.set_view(view):
            carry_optimizer_state(self.optimizer, resized)
            self.stepped = self._distributed()

    def _train_epoch(self, epoch: int, view: View) -> dict[str, float]:
        loader, session, steps = self.loader, self.session, self.loader.num_batches
        if not steps:
            images = f"{loader.num_images} images do not fill a batch of {view.batch_size}"
            raise UserError(f"run {self.name}: an epoch has no batch; {images}")
        sums: dict[str, Tensor | float] = {}
        images, taken, lr, skipped = 0, 0, 0.0, loader.num_skipped
        started = logged = time.monotonic()
        self.stepped.train()
        for step, batch in enumerate(loader.epoch(epoch)):
            lr = self._set_learning_rate(epoch + step / steps, view)
            count = self._count(batch)
            if count >= self.least:
                logs = self._step(batch, count, epoch, step, view)
                taken, images = taken + 1, images + count
                for key, value in logs.items():
                    sums[key] = sums.get(key, 0.0) + value
                if session.device.type == "cpu" or step % CHECK_EVERY == 0:
                    loss = self._finite(logs["loss"], epoch, step)
                    speed = f"{images / (time.monotonic() - started):.0f}"
                    self.bar.set_postfix(loss=f"{loss:.4f}", lr=f"{lr:.2e}", img_s=speed, refresh=False)
                if session.is_main and time.monotonic() - logged > LOG_SECONDS:
                    logged, loss = time.monotonic(), float(logs["loss"])
                    row = {
                        "epoch": epoch,
                        "step": step,
                        "steps": steps,
                        "loss": loss,
                        "lr": lr,
                        "images": images,
                    }
                    self.checkpoints.log(row)
                    self.sinks.log({"loss": loss, "lr": lr}, epoch * steps + step)
            self.bar.update()
        if not taken:
            raise UserError(f"run {self.name}: epoch {epoch} has no batch with {self.least} readable images")
        means = self._means(sums, taken)
        self._finite(means["loss"], epoch, steps - 1)
        seconds = time.monotonic() - started
        row = {"epoch": epoch, **means, "lr": lr, "seconds": seconds, "images": images}
        row |= {"images_per_second": images / seconds, "peak_memory_gib": session.peak_memory_bytes() / 2**30}
        left_out = loader.num_skipped - skipped
        return row | ({"skipped": left_out} if left_out else {})

    def _step(self, batch: Batch, count: int, epoch: int, step: int, view: View) -> dict[str, Tensor]:
        """One optimiser step on this process's share of a global batch of `count` images; returns its logs.

        Micro-batches add up their gradients, each weighted by its images.
        """
        session, logs = self.session, {}
        progress = (epoch + step / self.loader.num_batches) / self.run.epochs
        parts = micro_batches(batch, self.run, view.batch_size, session)
        for number, (part, place) in enumerate(parts):
            weight = place.images * session.world_size / count
            images = part.images.to(session.device, non_blocking=True)
            labels = part.labels.to(session.device, non_blocking=True)
            wait = number + 1 < len(parts) and hasattr(self.stepped, "no_sync")
            with self.stepped.no_sync() if wait else contextlib.nullcontext():
                seed_everything(self.seed, epoch, step)  # every part draws for the whole batch
                with session.autocast(), place:
                    loss, extras = self.stepped(images, labels, part.index, epoch, progress)
                self.scaler.scale(loss * weight).backward()
            for key, value in {"loss": loss, **extras}.items():
                logs[key] = logs.get(key, 0.0) + value.detach() * weight
        return logs | self._update()

    def _update(self) -> dict[str, Tensor]:
        """Take the optimiser's step; returns what it logs."""
        logs: dict[str, Tensor] = {}
        if self.run.clip_grad is not None:
            self.scaler.unscale_(self.optimizer)
            parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
            norm = nn.utils.clip_grad_norm_(parameters, self.run.clip_grad)
            logs["grad_norm"] = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.after_step:
            logs |= self.after_step() or {}
        return logs

    def _set_learning_rate(self, position: float, view: View) -> float:
        """Set the rate at a fractional epoch; its peak follows the stage's batch (linear scaling rule)."""
        run, peak = self.run, self.run.base_lr * view.batch_size / 256
        schedule = {"epochs": run.epochs, "warmup_epochs": run.warmup_epochs, "min_lr": run.min_lr}
        lr = warmup_cosine(position, peak=peak, **schedule)
        set_learning_rate(self.optimizer, lr)
        return lr

    def _count(self, batch: Batch) -> int:
        """Images of the global batch. Shares are equal unless damaged images are skipped."""
        if self.loader.on_error == "raise":
            return len(batch.labels) * self.session.world_size
        return int(self.session.all_reduce_sum(len(batch.labels))[0])

    def _means(self, sums: dict[str, Tensor], steps: int) -> dict[str, float]:
        """Means over the steps and processes."""
        summed = self.session.all_reduce_sum(*map(float, sums.values()))
        return {key: value / steps / self.session.world_size for key, value in zip(sums, summed, strict=True)}

    def _finite(self, loss: Tensor | float, epoch: int, step: int) -> float:
        loss = float(loss)
        if not math.isfinite(loss):
            place = f"the loss became {loss} in epoch {epoch}, step {step}; the last checkpoint is kept"
            advice = "lower base_lr, set clip_grad, or use precision float32"
            raise UserError(f"run {self.name}: {place}; {advice}")
        return loss

    # Checkpoints

    def _due(self, epoch: int, since: float, cost: float) -> bool:
        """Whether to write a checkpoint, by `machine.checkpoint_every` or else by what writing one costs.

        All processes take part in writing, so they follow the clock of the first.
        """
        if self.session.checkpoint_every:
            return (epoch + 1) % self.session.checkpoint_every == 0
        due = since > cost / CHECKPOINT_SHARE
        return bool(self.session.all_reduce_sum(float(due and self.session.is_main))[0])

    def _save(self, history: list[dict[str, float]], best: bool) -> None:
        state = whole_state(self.parts) if is_sharded(self.task) else None
        if self.session.is_main:
            state = state or {key: part.state_dict() for key, part in self.parts.items()}
            self.checkpoints.save_checkpoint(
                state | {"history": history}, self.session.keep_checkpoints, best
            )
        self.session.barrier()


def adamw(groups: list[dict[str, Any]], run: Optimisation, device: torch.device) -> torch.optim.AdamW:
    """AdamW by the run's recipe; the fused form takes a tenth off the step of a small model."""
    return torch.optim.AdamW(groups, lr=run.peak_lr, betas=run.betas, fused=device.type in ("cpu", "cuda"))


def _is_best(history: list[dict[str, float]]) -> bool:
    """Whether the last epoch has the highest accuracy so far, or the lowest loss where none is scored."""
    key, sign = ("top1", 1) if any("top1" in row for row in history) else ("loss", -1)
    scores = [sign * row[key] for row in history if key in row]
    return key in history[-1] and sign * history[-1][key] == max(scores)

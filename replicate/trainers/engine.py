"""The training loop, once for every paper: mixed precision, gradient accumulation, stages, checkpoints, a guard against NaN."""

from __future__ import annotations

import contextlib
import itertools
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from replicate.errors import UserError
from replicate.models.cpu import tune_for_cpu
from replicate.models.resized import Resized, carry_optimizer_state
from replicate.schedules.lr import set_learning_rate, warmup_cosine
from replicate.schedules.stages import View, view_at
from replicate.trainers.checkpoints import Checkpoints
from replicate.trainers.session import Session, seed_everything
from replicate.trainers.sharding import is_sharded, load_sharded, whole_state

if TYPE_CHECKING:
    from replicate.config import Optimisation
    from replicate.loaders import Batch
    from replicate.loaders.base import BaseLoader

CHECKPOINT_SHARE = 0.05  # of the time: a checkpoint is written once training has lasted 20 times as long as writing the last one took
LOG_SECONDS = 30  # between two lines of the log within an epoch
CHECK_EVERY = 20  # steps between two looks at the loss on an accelerator, where each look waits for the device


class Task(Protocol):
    """What is trained: an nn.Module whose forward takes a batch and gives the loss. `model` is its network."""

    model: nn.Module

    def forward(self, images: Tensor, labels: Tensor, index: Tensor, epoch: int, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        """images (n, 3, S, S) uint8, labels (n,), index (n,) sample numbers, progress in [0, 1) -> scalar loss, scalars to log."""

    def set_view(self, view: View) -> Resized | None:
        """Adapt to a stage's image size and mask ratio; returns the learned tables that changed their shape, with how to resample them."""


def fit(
    task: nn.Module,
    optimizer: torch.optim.Optimizer,
    loader: BaseLoader,
    run: Optimisation,
    session: Session,
    store: Checkpoints,
    *,
    seed: int,
    name: str,
    after_step: Callable[[], None] | None = None,
    after_epoch: Callable[[int], dict[str, float]] | None = None,
    extra_state: dict[str, Any] | None = None,
) -> list[dict[str, float]]:
    """Train `task` for `run.epochs` epochs and return its history, one row an epoch.

    Continues from the store's checkpoint when there is one; on a CPU the continued run equals an unbroken one bit for bit.
    `extra_state` maps names to objects with state_dict / load_state_dict that belong to the checkpoint (an EMA model, say).
    Raises UserError when the loss stops being finite, naming the step.
    """
    for batch_size in (run.batch_size, *(stage.batch_size or run.batch_size for stage in run.stages)):
        accumulation(batch_size, session)  # a stage that the processes cannot share is refused now, not when it comes
    scaler = torch.amp.GradScaler(session.device.type, enabled=session.precision == torch.float16)
    parts = {"task": task, "optimizer": optimizer, "scaler": scaler, **(extra_state or {})}
    history = _resume(store, parts, task, run, session)
    stepped = _parallel(task, session)
    if session.is_main:
        store.start_log(history)
    saved_at, save_cost = time.monotonic(), 0.0
    with _bar(run, loader, name, len(history), session) as bar:
        for epoch in range(len(history), run.epochs):
            view = view_at(run, epoch)
            batch_size = accumulation(view.batch_size, session)[0]
            loader.set_stage(image_size=view.image_size, scale=view.crop_scale, batch_size=batch_size, auto=view.auto_augment)
            if resized := task.set_view(view):
                carry_optimizer_state(optimizer, resized)
                stepped = _parallel(task, session)
            row = _train_epoch(stepped, optimizer, scaler, loader, run, view, session, epoch, seed, name, bar, after_step, store)
            history.append(row | (after_epoch(epoch) if after_epoch else {}))
            if session.is_main:
                store.log(history[-1])
            best = session.keep_best and _is_best(history)
            if best or epoch + 1 == run.epochs or _due(epoch, session, time.monotonic() - saved_at, save_cost):
                saved_at = time.monotonic()
                _save(store, parts, history, session, best)
                save_cost = time.monotonic() - saved_at
    return history


def _due(epoch: int, session: Session, since: float, cost: float) -> bool:
    """Whether a checkpoint is due: every so many epochs where the machine's settings say so, else by what writing one costs.

    Several processes decide by what the first one measured, since all of them take part in writing.
    """
    if session.checkpoint_every:
        return (epoch + 1) % session.checkpoint_every == 0
    due = since > cost / CHECKPOINT_SHARE
    return bool(session.all_reduce_sum(float(due and session.is_main))[0])


def _is_best(history: list[dict[str, float]]) -> bool:
    """Whether the last epoch has the highest accuracy so far, or the lowest loss where none is scored."""
    key, sign = ("top1", 1) if any("top1" in row for row in history) else ("loss", -1)
    scores = [sign * row[key] for row in history if key in row]
    return key in history[-1] and sign * history[-1][key] == max(scores)


def adamw(groups: list[dict[str, Any]], run: Optimisation, device: torch.device) -> torch.optim.AdamW:
    """AdamW by the run's recipe, in one pass over the parameters where the device has it: small models step a tenth faster."""
    return torch.optim.AdamW(groups, lr=run.peak_lr, betas=run.betas, fused=device.type in ("cpu", "cuda"))


def accumulation(batch_size: int, session: Session) -> tuple[int, int]:
    """(images a process holds at once, micro-batches that make one step) for a global batch.

    Raises UserError when the processes do not divide the batch evenly.
    """
    if batch_size % session.world_size:
        raise UserError(f"batch_size {batch_size} cannot be shared by {session.world_size} processes; use a divisor of it")
    share = batch_size // session.world_size
    steps = math.ceil(share / (session.micro_batch or share))
    while share % steps:
        steps += 1
    return share // steps, steps


def _train_epoch(stepped, optimizer, scaler, loader, run, view, session, epoch, seed, name, bar, after_step, store) -> dict[str, float]:
    """One epoch. Every micro-batch takes part in a step: the last step of an epoch averages over those that are left."""
    _, accumulate = accumulation(view.batch_size, session)
    steps = math.ceil(loader.num_batches / accumulate)
    peak = run.base_lr * view.batch_size / 256
    sums: dict[str, Tensor] = {}
    images, started, skipped = 0, time.monotonic(), getattr(loader, "num_skipped", 0)
    logged = started
    stepped.train()
    for step, group in enumerate(_groups(loader.epoch(epoch), accumulate)):
        position = epoch + step / steps
        lr = warmup_cosine(position, peak=peak, epochs=run.epochs, warmup_epochs=run.warmup_epochs, min_lr=run.min_lr)
        set_learning_rate(optimizer, lr)
        seed_everything(seed, epoch, step, session.rank)
        logs = _step(stepped, optimizer, scaler, group, run, session, epoch, position / run.epochs)
        if after_step:
            after_step()
        for key, value in logs.items():
            sums[key] = sums.get(key, 0.0) + value
        images += sum(len(batch.labels) for batch in group) * session.world_size
        if session.device.type == "cpu" or step % CHECK_EVERY == 0:
            _refuse_nan(logs["loss"], name, epoch, step)
            bar.set_postfix(loss=f"{float(logs['loss']):.4f}", lr=f"{lr:.2e}", img_s=f"{images / (time.monotonic() - started):.0f}", refresh=False)
        if session.is_main and time.monotonic() - logged > LOG_SECONDS:
            logged = time.monotonic()
            store.log({"epoch": epoch, "step": step, "steps": steps, "loss": float(logs["loss"]), "lr": lr, "images": images})
        bar.update()
    if not sums:
        raise UserError(f"run {name}: an epoch has no batch; {loader.num_images} images do not fill a batch of {view.batch_size}")
    means = {key: value / steps for key, value in zip(sums, session.all_reduce_sum(*map(float, sums.values())), strict=True)}
    means = {key: value / session.world_size for key, value in means.items()}
    _refuse_nan(means["loss"], name, epoch, steps - 1)
    seconds = time.monotonic() - started
    row = {"epoch": epoch, **means, "lr": lr, "seconds": seconds, "images": images}
    row |= {"images_per_second": images / seconds, "peak_memory_gib": session.peak_memory_bytes() / 2**30}
    left_out = getattr(loader, "num_skipped", 0) - skipped
    return row | ({"skipped": left_out} if left_out else {})


def _step(stepped, optimizer, scaler, group, run, session, epoch: int, progress: float) -> dict[str, Tensor]:
    """Forward and backward over the micro-batches of one step, each weighted by its images, then one optimiser step."""
    total = sum(len(batch.labels) for batch in group)
    logs: dict[str, Tensor] = {}
    for number, batch in enumerate(group):
        share = len(batch.labels) / total
        images, labels = (item.to(session.device, non_blocking=True) for item in (batch.images, batch.labels))
        last = number + 1 == len(group)
        with contextlib.nullcontext() if last or not hasattr(stepped, "no_sync") else stepped.no_sync():
            with session.autocast():
                loss, extras = stepped(images, labels, batch.index, epoch, progress)
            scaler.scale(loss * share).backward()
        for key, value in {"loss": loss, **extras}.items():
            logs[key] = logs.get(key, 0.0) + value.detach() * share
    if run.clip_grad is not None:
        scaler.unscale_(optimizer)
        norm = nn.utils.clip_grad_norm_([p for group in optimizer.param_groups if "fixed_lr" not in group for p in group["params"]], run.clip_grad)
        logs["grad_norm"] = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad(set_to_none=True)
    return logs


def _groups(batches: Iterable[Batch], size: int) -> Iterator[list[Batch]]:
    """The micro-batches of each step, without those whose images are all damaged and left out.

    A step that loses all its images takes those of the step before (at the start: after) it, because every process must
    take part in every step.
    """
    iterator = iter(batches)
    group: list[Batch] = []
    missed = 0
    while planned := list(itertools.islice(iterator, size)):
        group = [batch for batch in planned if len(batch.labels)] or group
        if not group:
            missed += 1
            continue
        yield from [group] * (1 + missed)
        missed = 0


def _refuse_nan(loss: Tensor | float, name: str, epoch: int, step: int) -> None:
    if not math.isfinite(float(loss)):
        raise UserError(
            f"run {name}: the loss became {float(loss)} in epoch {epoch}, step {step}; the last checkpoint is kept. "
            "Lower base_lr, set clip_grad, or use precision float32"
        )


def _parallel(task: nn.Module, session: Session) -> nn.Module:
    if session.channels_last:
        task.model.to(memory_format=torch.channels_last)
    if session.device.type == "cpu":
        tune_for_cpu(task.model)
    if session.compile:
        task.model.compile()
    if session.world_size == 1 or is_sharded(task):
        return task
    return DistributedDataParallel(task, device_ids=[session.device] if session.device.type == "cuda" else None)


def _resume(store: Checkpoints, parts: dict[str, Any], task: nn.Module, run: Optimisation, session: Session) -> list[dict[str, float]]:
    state = store.load_checkpoint(session.device)
    if state is None:
        return []
    task.set_view(view_at(run, len(state["history"]) - 1))
    if is_sharded(task):
        load_sharded(parts, state)
    else:
        for key, part in parts.items():
            part.load_state_dict(state[key])
    return state["history"]


def _save(store: Checkpoints, parts: dict[str, Any], history: list[dict[str, float]], session: Session, best: bool) -> None:
    state = whole_state(parts) if is_sharded(parts["task"]) else None
    if session.is_main:
        state = state or {key: part.state_dict() for key, part in parts.items()}
        store.save_checkpoint(state | {"history": history}, session.keep_checkpoints, best)
    session.barrier()


def _bar(run, loader, name: str, done_epochs: int, session: Session) -> tqdm:
    """A progress bar over the whole run's steps; without a terminal, a line every half minute."""
    steps = math.ceil(loader.num_batches / accumulation(run.batch_size, session)[1])
    quiet = not sys.stderr.isatty()
    return tqdm(
        total=run.epochs * steps,
        initial=done_epochs * steps,
        desc=name,
        unit="step",
        disable=not session.is_main,
        mininterval=30 if quiet else 0.5,
        maxinterval=60 if quiet else 10,
        dynamic_ncols=not quiet,
    )

"""A global batch on the machine at hand: shared by processes and split into micro-batches, with one result.

Batch statistics and random numbers of a step are those of the whole global batch. So the number of processes
and `machine.micro_batch` change a run's losses by rounding only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.distributed as dist
from timm.layers import DropPath
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

import replicate.compat  # noqa: F401
from replicate.errors import UserError
from replicate.loaders import Batch

if TYPE_CHECKING:
    from replicate.config.runs import Optimisation
    from replicate.trainers.session import Session


def share_of(batch_size: int, session: Session) -> int:
    """Images of a global batch that each process reads. Raises UserError when the shares would be unequal."""
    share, rest = divmod(batch_size, session.world_size)
    if rest:
        shared = f"batch_size {batch_size} cannot be shared by {session.world_size} processes"
        raise UserError(f"{shared}; use a divisor of it")
    return share


def accumulation(batch_size: int, session: Session, grain: int = 1) -> tuple[int, int]:
    """(images a process holds at once, micro-batches that make one step) for a global batch.

    The images held are a multiple of `grain` and at most `machine.micro_batch`. Raises UserError when no
    number is.
    """
    share = share_of(batch_size, session)
    if session.micro_batch is None or session.micro_batch >= share:
        return share, 1
    held = next((n for n in range(session.micro_batch, 0, -1) if share % n == 0 and n % grain == 0), None)
    if held is None:
        reason = f"mixup and cutmix pair images, and {share} images a process have no such even part"
        raise UserError(f"machine.micro_batch {session.micro_batch}: {reason}; set it to null")
    return held, share // held


def refuse_unfit(task: nn.Module, run: Optimisation, session: Session, name: str) -> None:
    """Raise UserError for a batch, of the run or a stage, that cannot be split without changing results."""
    for batch_size in dict.fromkeys(
        [run.batch_size, *(stage.batch_size or run.batch_size for stage in run.stages)]
    ):
        held, parts = accumulation(batch_size, session, 2 if mixes(run) else 1)
        if batch_size < least_images(task):
            needs = "batch normalisation needs 2 images a batch or more"
            raise UserError(f"run {name}: {needs}; batch_size is {batch_size}")
        if parts > 1 and normalises_batches(task):
            split = f"machine.micro_batch {session.micro_batch} splits the {held * parts} images a process"
            remedy = "set it to null for this run, or use more processes"
            raise UserError(f"run {name}: {split}, but batch normalisation needs them at once; {remedy}")
        if mixes(run) and held % 2 and session.world_size > 1:
            raise UserError(
                f"run {name}: mixup and cutmix pair images; {held} images a process are an odd number"
            )


def normalises_batches(task: nn.Module) -> bool:
    """Whether the loss depends on statistics of the batch."""
    task.train()
    return any(isinstance(module, _BatchNorm) and module.training for module in task.modules())


def least_images(task: nn.Module) -> int:
    """Images that a step needs: two where something, an online probe included, normalises over a batch."""
    return 2 if normalises_batches(task) or getattr(task, "probe", None) is not None else 1


def mixes(run: Optimisation) -> bool:
    return getattr(run, "mixup", 0.0) > 0 or getattr(run, "cutmix", 0.0) > 0


@dataclass(frozen=True)
class Place:
    """Where a micro-batch lies in its global batch; as a context, where the images of a forward pass lie."""

    start: int
    images: int
    total: int
    current: ClassVar[Place | None] = None

    def __enter__(self) -> None:
        Place.current = self

    def __exit__(self, *exception: object) -> None:
        Place.current = None


def micro_batches(
    batch: Batch, run: Optimisation, batch_size: int, session: Session
) -> list[tuple[Batch, Place]]:
    """The parts of this process's share of a global batch of `batch_size` images.

    Processes take part in every micro-batch of one another: where damaged images were skipped, a black image
    of weight 0 stands in.
    """
    held, parts = accumulation(batch_size, session, 2 if mixes(run) else 1)
    first, images = session.rank * held * parts, len(batch.labels)
    found = []
    for start in range(0, images, held):
        part = Batch(*(item[start : start + held] for item in batch))
        found.append((part, Place(first + start, len(part.labels), batch_size)))
    if session.world_size > 1:
        size = batch.images.shape[1:]
        black, label = torch.zeros(1, *size, dtype=torch.uint8), torch.zeros(1, dtype=torch.long)
        blank = Batch(black, label, torch.tensor([-1]))
        found += [(blank, Place(first, 0, batch_size))] * (parts - len(found))
    return found


def draw_for_whole_batches(task: nn.Module, session: Session) -> None:
    """Let a task's dropped paths and batch statistics be those of the whole global batch; in place."""
    for module in task.modules():
        if type(module) is DropPath:
            module.__class__ = BatchDropPath
        elif isinstance(module, _BatchNorm) and session.world_size > 1:
            module.__class__ = BatchNormOverProcesses


class BatchDropPath(DropPath):
    """timm's DropPath that draws for the whole global batch and takes the part of the images at hand."""

    def forward(self, x: Tensor) -> Tensor:
        place = Place.current
        if place is None or place.images == place.total or not self.training or self.drop_prob == 0.0:
            return super().forward(x)
        keep = 1 - self.drop_prob
        everyone = x.new_empty(place.total, *[1] * (x.ndim - 1)).bernoulli_(keep)
        drawn = everyone[place.start : place.start + len(x)]
        return x * (drawn / keep if keep > 0 and self.scale_by_keep else drawn)


class BatchNormOverProcesses(_BatchNorm):
    """Batch normalisation over all processes; `torch.nn.SyncBatchNorm` takes neither CPUs nor shards."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        with torch.autocast(x.device.type, enabled=False):
            values = x.to(torch.promote_types(x.dtype, torch.float32))
            dims, shape = [0, *range(2, x.ndim)], [1, -1, *[1] * (x.ndim - 2)]
            count = values.new_tensor(x.numel() / x.shape[1])
            dist.all_reduce(count)
            mean = _SumOverProcesses.apply(values.sum(dims)) / count.clamp(min=1)
            centred = values - mean.view(shape)
            variance = _SumOverProcesses.apply(centred.square().sum(dims)) / count.clamp(min=1)
            if self.track_running_stats and count > 1:
                self._remember(mean.detach(), variance.detach() * count / (count - 1))
            normed = centred * (variance + self.eps).rsqrt().view(shape)
            if self.affine:
                normed = normed * self.weight.view(shape) + self.bias.view(shape)
            return normed.to(x.dtype)

    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        self.num_batches_tracked.add_(1)
        momentum = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
        self.running_var.lerp_(variance.to(self.running_var.dtype), momentum)

    def _check_input_dim(self, x: Tensor) -> None:
        """Any number of dimensions from two on."""


class _SumOverProcesses(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:
        total = own.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone()
        dist.all_reduce(total)
        return total

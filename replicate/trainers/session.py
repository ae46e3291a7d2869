"""Where a run executes: device, precision, and this process's place among others started by torchrun."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.distributed as dist

from replicate.errors import UserError

if TYPE_CHECKING:
    from replicate.config import Machine

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Session:
    """Device, autocast precision, and rank among `world_size` processes; what `machine` of params.yaml says, and `loader`, how images are read."""

    device: torch.device
    precision: torch.dtype
    loader: str = "auto"
    workers: int = 2
    micro_batch: int | None = None
    compile: bool = False
    rank: int = 0
    world_size: int = 1
    shard: bool = False
    channels_last: bool = False
    checkpoint_every: int | None = None
    keep_checkpoints: int = 0
    keep_best: bool = False

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def autocast(self) -> contextlib.AbstractContextManager:
        return torch.autocast(self.device.type, dtype=self.precision, enabled=self.precision != torch.float32)

    def all_reduce_sum(self, *values: float) -> list[float]:
        """Each value summed over all processes, in float64."""
        if self.world_size == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return total.tolist()

    def barrier(self) -> None:
        if self.world_size > 1:
            dist.barrier()

    def describe(self) -> str:
        if self.device.type == "cuda":
            return f"{self.device} {torch.cuda.get_device_name(self.device)}"
        return str(self.device)

    def peak_memory_bytes(self) -> int:
        """Peak of the accelerator's allocations, or of this process's resident memory on a CPU."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


@contextlib.contextmanager
def open_session(machine: Machine, precision: str, loader: str = "auto"):
    """A Session for this process; joins the process group when torchrun started it, and leaves it at the end.

    Raises UserError for a device that this machine does not have.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    rank, local_rank = int(os.environ.get("RANK", "0")), int(os.environ.get("LOCAL_RANK", "0"))
    device = _device(machine.device, local_rank)
    if machine.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(machine.deterministic)
    if world_size > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Session(
            device,
            PRECISIONS[precision],
            loader,
            machine.workers,
            machine.micro_batch,
            machine.compile,
            rank,
            world_size,
            machine.shard and world_size > 1,
            machine.channels_last,
            machine.checkpoint_every,
            machine.keep_checkpoints,
            machine.keep_best,
        )
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _device(name: str, local_rank: int) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise UserError(f"machine.device = {name}: this torch sees no CUDA device; use auto or cpu")
        device = torch.device("cuda", device.index if device.index is not None else local_rank)
        torch.cuda.set_device(device)
    return device


def seed_everything(*parts: int) -> None:
    """Seed torch, numpy and Python from a tuple such as (seed, epoch, step, rank); zeros at its end change nothing.

    Called before every step, so that what is random inside a step (drop path, mixup) depends on the step and the process alone and a
    resumed run repeats an unbroken one bit for bit without any generator's state being stored.
    """
    state = np.random.SeedSequence(parts).generate_state(1)[0]
    torch.manual_seed(int(state))
    np.random.seed(int(state))
    random.seed(int(state))

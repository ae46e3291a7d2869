"""Where a run executes: device, precision, and this process's place among those that torchrun started."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from replicate.errors import UserError

if TYPE_CHECKING:
    from replicate.config import Machine

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


TORCHRUN = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
FROM_MACHINE = (
    *("workers", "micro_batch", "compile", "channels_last"),
    *("checkpoint_every", "keep_checkpoints", "keep_best", "loggers", "log_images"),
)


@dataclass(frozen=True)
class Session:
    """Device, autocast precision, this process's rank among `world_size`, and the settings of `machine`.

    loader   the kind of loader that reads images (`replicate.loaders`)
    shard    share out parameters, gradients and optimiser state (FSDP2)
    """

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
    loggers: tuple[str, ...] = ()
    log_images: int | None = None

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

    def all_gather(self, rows: Tensor) -> Tensor:
        """The rows (n, ...) of all processes in order of rank; n may differ."""
        if self.world_size == 1:
            return rows
        mine = [len(rows) * (rank == self.rank) for rank in range(self.world_size)]
        counts = [int(count) for count in self.all_reduce_sum(*mine)]
        padded = rows.new_zeros(max(counts), *rows.shape[1:])
        padded[: len(rows)] = rows
        found = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(found, padded)
        return torch.cat([part[:count] for part, count in zip(found, counts, strict=True)])

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
def open_session(machine: Machine, precision: str, loader: str = "auto") -> Iterator[Session]:
    """A Session for this process; joins the process group when torchrun started it, and leaves it at the end.

    Raises UserError for a device that this machine does not have, and for half of torchrun's environment.
    """
    rank, local_rank, world_size = _place()
    device = _device(machine.device, local_rank)
    if machine.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(machine.deterministic)
    if world_size > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    settings = {name: getattr(machine, name) for name in FROM_MACHINE}
    place = {"rank": rank, "world_size": world_size, "shard": machine.shard and world_size > 1}
    try:
        yield Session(device, PRECISIONS[precision], loader, **settings, **place)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _place() -> tuple[int, int, int]:
    """(rank, rank on this host, processes) as torchrun sets them; (0, 0, 1) without it."""
    stated = {name: os.environ.get(name, "") for name in TORCHRUN}
    if stated["WORLD_SIZE"] in ("", "1"):
        return 0, 0, 1
    wrong = [
        name for name, value in stated.items() if not value or (name != "MASTER_ADDR" and not value.isdigit())
    ]
    if wrong:
        given = f"WORLD_SIZE is {stated['WORLD_SIZE']!r}, but {', '.join(wrong)} is missing or not a number"
        raise UserError(f"{given}; start several processes with torchrun, or unset WORLD_SIZE")
    return int(stated["RANK"]), int(stated["LOCAL_RANK"]), int(stated["WORLD_SIZE"])


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
    """Seed torch, numpy and Python from a tuple such as (seed, epoch, step); zeros at its end change nothing.

    The loop calls it before every step. So random numbers depend on the step alone, and a resumed run repeats
    an unbroken one bit for bit without storing the state of a generator.
    """
    state = int(np.random.SeedSequence(parts).generate_state(1)[0])
    torch.default_generator.manual_seed(state)  # torch.manual_seed spends a hundred times as long on a CPU
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(state)
    np.random.seed(state)
    random.seed(state)

"""Models without their numbers: built and run on the meta device, where tensors are shapes and nothing else."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

FILLS = {"normal_", "trunc_normal_", "uniform_", "xavier_uniform_", "zeros_", "ones_", "zero_", "fill_", "erfinv_", "mul_", "add_", "clamp_", "copy_"}
"""What initialises a parameter in place. It would change no shape, and yet cost half of the time that building a model takes."""


class _Unfilled(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        if getattr(func, "__name__", "") in FILLS and args and args[0].is_meta:
            return args[0]
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def shapes_only() -> Iterator[None]:
    """Modules made within it have parameters of the right shapes that hold nothing and are not initialised."""
    with torch.device("meta"), _Unfilled():
        yield


class MultiplyAdds(TorchDispatchMode):
    """Counts the multiply-adds of matrix products, convolutions and attention that run within it, as `torch.utils.flop_counter` does.

    That counter also knows which module each belongs to, and takes twice as long.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        count = flop_registry.get(func._overloadpacket)
        if count is not None:
            self.total += count(*args, **kwargs, out_val=output) // 2
        return output

"""Models without their numbers: built and run on the meta device, where tensors are shapes and nothing else."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

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

    On the meta device torch works out most operators' results in Python, step by step. A network repeats itself, so each result is worked out once
    for its shapes; operators that return views or change their arguments are left alone.
    """

    _known: ClassVar[dict[Any, tuple[int, Any]]] = {}

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        key = (func, _described(args), _described(tuple(kwargs.items()))) if _is_fresh(func) else None
        if key not in self._known:
            output = func(*args, **kwargs)
            count = flop_registry.get(func._overloadpacket)
            macs = 0 if count is None else count(*args, **kwargs, out_val=output) // 2
            if key is not None:
                self._known[key] = macs, _described(output)
            self.total += macs
            return output
        macs, described = self._known[key]
        self.total += macs
        return _remade(described)


@dataclass(frozen=True)
class _Shape:
    size: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device


@functools.cache
def _is_fresh(func: Any) -> bool:
    """Whether an operator's results are new tensors and its arguments stay as they were."""
    return all(value.alias_info is None for value in (*func._schema.arguments, *func._schema.returns))


def _described(value: Any) -> Any:
    """A value with every tensor replaced by its shape, and lists by tuples."""
    if isinstance(value, torch.Tensor):
        return _Shape(tuple(value.shape), value.stride(), value.dtype, value.device)
    return tuple(map(_described, value)) if isinstance(value, list | tuple) else (type(value), value)


def _remade(described: Any) -> Any:
    if isinstance(described, _Shape):
        return torch.empty_strided(described.size, described.stride, dtype=described.dtype, device=described.device)
    kind, *rest = described
    return rest[0] if isinstance(kind, type) else tuple(map(_remade, described))

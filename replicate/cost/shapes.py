"""Models on the meta device: built and run with shapes alone."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any, ClassVar, NamedTuple

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

DISTRIBUTIONS = {"normal_", "trunc_normal_", "uniform_", "xavier_uniform_", "erfinv_"}
FILLS = DISTRIBUTIONS | {"zeros_", "ones_", "zero_", "fill_", "mul_", "add_", "clamp_", "copy_"}
"""Functions that initialise a parameter in place: no shape changes, and half of the building time goes."""


class _SkipFills(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if getattr(func, "__name__", "") in FILLS and args and args[0].is_meta:
            return args[0]
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def shapes_only() -> Iterator[None]:
    """Modules made within have parameters on the meta device, without initialisation."""
    with torch.device("meta"), _SkipFills():
        yield


class MultiplyAdds(TorchDispatchMode):
    """Counts multiply-adds of matrix products, convolutions and attention by `torch.utils.flop_counter`.

    Meta tensors are slow: torch computes most output shapes in Python. Networks repeat their layers, so each
    operator runs once for given shapes and its result is remembered, unless it returns views or changes its
    arguments.
    """

    _known: ClassVar[dict[Any, tuple[int, Any]]] = {}

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        key = (func, _shapes(args), _shapes(tuple(kwargs.items()))) if _returns_new_tensors(func) else None
        if key in self._known:
            macs, shapes = self._known[key]
            self.total += macs
            return _empty(shapes)
        output = func(*args, **kwargs)
        count = flop_registry.get(func._overloadpacket)
        macs = 0 if count is None else count(*args, **kwargs, out_val=output) // 2
        if key is not None:
            self._known[key] = macs, _shapes(output)
        self.total += macs
        return output


class _Shape(NamedTuple):
    size: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device


@functools.cache
def _returns_new_tensors(func: Any) -> bool:
    return all(value.alias_info is None for value in (*func._schema.arguments, *func._schema.returns))


def _shapes(value: Any) -> Any:
    """A hashable value with a `_Shape` for every tensor and a tuple for every list."""
    if isinstance(value, torch.Tensor):
        return _Shape(tuple(value.shape), value.stride(), value.dtype, value.device)
    return tuple(map(_shapes, value)) if isinstance(value, list | tuple) else (type(value), value)


def _empty(shapes: Any) -> Any:
    """The value that `_shapes` described, with empty tensors."""
    if isinstance(shapes, _Shape):
        return torch.empty_strided(shapes.size, shapes.stride, dtype=shapes.dtype, device=shapes.device)
    first, *rest = shapes
    return rest[0] if isinstance(first, type) else tuple(map(_empty, shapes))

"""Learned tables that depend on the resolution: position embeddings and relative position biases.

A change of resolution keeps every parameter object and gives it new data, so that an optimiser goes on with what it holds;
`replicate.models.resized` brings over what the optimiser remembers of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from replicate.errors import UserError
from replicate.models.resized import Resized


def resample_grid(table: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Bicubic resampling of a (rows * columns, ...) table to another grid; an equal grid is the identity."""
    if tuple(old) == tuple(new):
        return table
    image = table.reshape(1, *old, -1).permute(0, 3, 1, 2).float()
    image = F.interpolate(image, size=tuple(new), mode="bicubic", antialias=True)
    return image.permute(0, 2, 3, 1).reshape(new[0] * new[1], *table.shape[1:]).to(table.dtype)


def resample_window_bias(table: Tensor, old_window: tuple[int, int], new_window: tuple[int, int]) -> Tensor:
    """Swin's ((2 h - 1) (2 w - 1), heads) relative position table for another window (FastMIM A.3.2: bicubic)."""
    spans = [tuple(2 * side - 1 for side in window) for window in (old_window, new_window)]
    return resample_grid(table, *spans)


def resample_pair_bias(table: Tensor, old: list[tuple[int, int]], new: list[tuple[int, int]]) -> Tensor:
    """A (heads, queries, keys) bias for other grids of queries and keys, each resampled as the grid that it is."""
    by_query = resample_grid(table.permute(1, 0, 2), old[0], new[0])
    return resample_grid(by_query.permute(2, 1, 0), old[1], new[1]).permute(1, 2, 0).contiguous()


def square(count: int) -> tuple[int, int]:
    """The (side, side) of a square grid of `count` positions. UserError when they are none: their rows and columns are unknown."""
    side = math.isqrt(count)
    if side * side != count:
        raise UserError(f"{count} positions are no square grid: weights of a rectangular image fit a model of the same image_size alone")
    return side, side


def replace_data(parameter: nn.Parameter, resample: Callable[[Tensor], Tensor], resized: Resized) -> None:
    """Gives `parameter` its resampled data and, when that changed its shape, notes how in `resized`."""
    old_shape = parameter.shape
    with torch.no_grad():
        parameter.data = resample(parameter.data)
    if parameter.shape != old_shape:
        parameter.grad = None
        resized[parameter] = resample

"""Tables that depend on the resolution: position embeddings and relative position biases."""

from __future__ import annotations

import math

from timm.layers import resample_abs_pos_embed
from torch import Tensor

from replicate.errors import UserError

Grid = tuple[int, int]


def resample_grid(table: Tensor, old: Grid, new: Grid, antialias: bool = True) -> Tensor:
    """Bicubic resampling of a (rows * columns, ...) table to another grid; an equal grid is the identity."""
    if tuple(old) == tuple(new):
        return table
    flat = table.reshape(1, old[0] * old[1], -1)
    flat = resample_abs_pos_embed(flat, list(new), list(old), 0, antialias=antialias)
    return flat.reshape(new[0] * new[1], *table.shape[1:])


def resample_window_bias(table: Tensor, old: Grid, new: Grid, antialias: bool = True) -> Tensor:
    """Swin's ((2 h - 1) (2 w - 1), heads) relative position table for another window (FastMIM A.3.2)."""
    return resample_grid(table, span(old), span(new), antialias)


def span(window: Grid) -> Grid:
    """(rows, columns) of the relative positions within a window."""
    return 2 * window[0] - 1, 2 * window[1] - 1


def resample_pair_bias(table: Tensor, old: list[Grid], new: list[Grid], antialias: bool = True) -> Tensor:
    """A (heads, queries, keys) bias for other grids of queries and keys, resampled along each."""
    by_query = resample_grid(table.permute(1, 0, 2), old[0], new[0], antialias)
    by_key = resample_grid(by_query.permute(2, 1, 0), old[1], new[1], antialias)
    return by_key.permute(1, 2, 0).contiguous()


def trained_grid(count: int, own: Grid, stated: Grid | None = None) -> Grid:
    """The (rows, columns) of a checkpoint's table with `count` positions, for a model whose grid is `own`.

    stated: the grid, if known. Otherwise the table is taken for the model's own grid, or for a square.
    Raises UserError when neither fits, or when both do and differ.
    """
    side = math.isqrt(count)
    advice = "state the size of the images that it was trained on"
    if stated is not None:
        if stated[0] * stated[1] != count:
            raise UserError(f"{count} positions are not a grid of {stated[0]}x{stated[1]}; {advice}")
        return stated
    if own[0] * own[1] == count:
        if side * side == count and own[0] != own[1]:
            raise UserError(f"{count} positions may be {side}x{side} or {own[0]}x{own[1]}; {advice}")
        return own
    if side * side != count:
        raise UserError(f"{count} positions are no square grid: the images were rectangular; {advice}")
    return side, side

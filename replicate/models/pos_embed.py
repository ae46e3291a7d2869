"""The fixed 2-D sine-cosine position embeddings of MAE."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def sincos_2d(embed_dim: int, grid: tuple[int, int], cls_token: bool = True) -> Tensor:
    """(1, [1 +] rows * columns, embed_dim) float32 sine-cosine table (MAE, appendix A.1; MoCo v3).

    The first half of the channels encodes the column (x), the second half the row (y). Each half holds sines,
    then cosines, at frequencies 10000^(-i / (embed_dim / 4)). The class token's row is zero. The table is
    computed in float64, so that every machine rounds to the same values.
    """
    if embed_dim % 4:
        raise ValueError(f"a 2-D sine-cosine table needs a width that is a multiple of 4, not {embed_dim}")
    rows, columns = (torch.arange(side, dtype=torch.float64) for side in grid)
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    table = torch.cat([_sincos_1d(embed_dim // 2, x.flatten()), _sincos_1d(embed_dim // 2, y.flatten())], 1)
    if cls_token:
        table = torch.cat([torch.zeros(1, embed_dim, dtype=torch.float64), table])
    return table.float()[None]


def _sincos_1d(width: int, position: Tensor) -> Tensor:
    frequency = 10000 ** -(torch.arange(width // 2, dtype=torch.float64) / (width / 2))
    angle = position[:, None] * frequency
    return torch.cat([angle.sin(), angle.cos()], 1)


def sincos_grid(table: Tensor, num_prefix_tokens: int = 1) -> tuple[int, int] | None:
    """(rows, columns) of a position table (1, prefix + L, C) that equals a sine-cosine table, else None."""
    positions = table[:, num_prefix_tokens:]
    length, width = positions.shape[1:]
    if width % 4 or positions.is_meta:
        return None
    for rows in range(1, length + 1):
        grid = (rows, length // rows)
        if length % rows == 0 and torch.allclose(positions.float(), sincos_2d(width, grid, False), atol=1e-4):
            return grid
    return None


def class_row_missing(table: Tensor) -> bool:
    """Whether a position table (1, L, C) has a row for every patch, but none for a class token."""
    if sincos_grid(table):
        return False
    return (
        sincos_grid(table, 0) is not None or _is_square(table.shape[1]) and not _is_square(table.shape[1] - 1)
    )


def _is_square(count: int) -> bool:
    return math.isqrt(count) ** 2 == count

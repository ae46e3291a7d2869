"""Position embeddings: the fixed 2-D sine-cosine table of MAE, and resampling between resolutions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def sincos_2d(embed_dim: int, grid: tuple[int, int], cls_token: bool = True) -> Tensor:
    """(1, [1 +] rows * columns, embed_dim) float32 sine-cosine table (MAE, appendix A.1; ViT / MoCo v3).

    The first half of the channels encodes the column (x), the second the row (y); each half is sines, then cosines, at
    frequencies 10000^(-i / (embed_dim / 4)). A class token's row is zero. Computed in float64 so that every machine
    rounds to the same table.
    """
    if embed_dim % 4:
        raise ValueError(f"a 2-D sine-cosine table needs a width that is a multiple of 4, not {embed_dim}")
    rows, columns = grid
    y, x = torch.meshgrid(torch.arange(rows, dtype=torch.float64), torch.arange(columns, dtype=torch.float64), indexing="ij")
    table = torch.cat([_sincos_1d(embed_dim // 2, x.flatten()), _sincos_1d(embed_dim // 2, y.flatten())], 1)
    if cls_token:
        table = torch.cat([torch.zeros(1, embed_dim, dtype=torch.float64), table])
    return table.float()[None]


def _sincos_1d(width: int, position: Tensor) -> Tensor:
    frequency = 10000 ** -(torch.arange(width // 2, dtype=torch.float64) / (width / 2))
    angle = position[:, None] * frequency
    return torch.cat([angle.sin(), angle.cos()], 1)


def resample_pos_embed(table: Tensor, old_grid: tuple[int, int], new_grid: tuple[int, int]) -> Tensor:
    """A (1, prefix + rows * columns, C) table for another grid: bicubic with antialiasing (DailyMAE's stages,
    fine-tuning at another size).

    Rows before the grid's (class token) are carried over; an equal grid returns the table itself, untouched.
    """
    if tuple(old_grid) == tuple(new_grid):
        return table
    prefix = table.shape[1] - old_grid[0] * old_grid[1]
    if prefix < 0:
        raise ValueError(f"a table of {table.shape[1]} positions cannot hold a {old_grid[0]}x{old_grid[1]} grid")
    image = table[:, prefix:].reshape(1, *old_grid, -1).permute(0, 3, 1, 2).float()
    image = F.interpolate(image, size=tuple(new_grid), mode="bicubic", antialias=True)
    resampled = image.permute(0, 2, 3, 1).flatten(1, 2).to(table.dtype)
    return torch.cat([table[:, :prefix], resampled], 1)

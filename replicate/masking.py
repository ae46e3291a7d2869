"""Which patches the model sees: random, block-wise and grid-wise sampling (MAE, section 3, Table 1f, Figure 6).

Every sampler turns one row of noise per image into (ids_keep, ids_restore, mask) with the reference's meaning:
`ids_keep` (N, V) indexes the visible patches, `ids_restore` (N, L) undoes the shuffle that puts the visible patches
first, and `mask` (N, L) is 0 = visible, 1 = masked. Equal noise gives equal masks, and every image of a batch has
exactly `num_visible(L, mask_ratio)` visible patches.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from replicate.errors import UserError

BLOCK_SHARE = 16 / 196
"""Smallest block as a share of the grid: 16 patches of 14 x 14 (BEiT)."""
BLOCK_ASPECT = 0.3
"""Block aspect ratios run log-uniformly over (0.3, 1 / 0.3) (BEiT)."""


class Masking(NamedTuple):
    """ids_keep (N, V) int64, ids_restore (N, L) int64, mask (N, L) float with 0 = visible and 1 = masked."""

    ids_keep: Tensor
    ids_restore: Tensor
    mask: Tensor


def num_visible(num_patches: int, mask_ratio: float) -> int:
    """Patches that stay visible: floor(L (1 - ratio)), at least one.

    Rounding to nine decimals first keeps binary fractions from losing a patch: 100 (1 - 0.9) is 9.99... in floating
    point but means 10.
    """
    if not 0 <= mask_ratio < 1:
        raise UserError(f"mask_ratio {mask_ratio} is outside [0, 1): at least one patch must stay visible")
    return max(1, math.floor(round(num_patches * (1 - mask_ratio), 9)))


def _from_scores(scores: Tensor, mask_ratio: float) -> Masking:
    """The patches of lowest score stay visible."""
    length = scores.shape[1]
    visible = num_visible(length, mask_ratio)
    ids_shuffle = torch.argsort(scores, dim=1, stable=True)
    ids_restore = torch.argsort(ids_shuffle, dim=1)
    return Masking(ids_shuffle[:, :visible], ids_restore, (ids_restore >= visible).float())


def random_masking(noise: Tensor, mask_ratio: float) -> Masking:
    """Uniform sampling without replacement: the patches with the smallest noise (N, L) stay visible."""
    return _from_scores(noise, mask_ratio)


def grid_masking(noise: Tensor, mask_ratio: float, grid: tuple[int, int]) -> Masking:
    """Regular sampling: at 75 % one of every four patches stays visible (Figure 6, right).

    Patches are ranked by an ordered-dither (Bayer) matrix, whose every prefix is spread evenly, so that any ratio is
    met exactly. The pattern's phase is drawn per image; on grids with an odd side, where one in four is no whole
    number, the rank decides.
    """
    rows, columns = grid
    rank = _bayer(max(rows, columns), noise.device)
    period = len(rank)
    shift = (noise[:, [0, -1]] * period).long().clamp(0, period - 1)
    y = (torch.arange(rows, device=noise.device) + shift[:, :1]) % period
    x = (torch.arange(columns, device=noise.device) + shift[:, 1:]) % period
    return _from_scores(rank[y[:, :, None], x[:, None, :]].flatten(1), mask_ratio)


def _bayer(side: int, device: torch.device) -> Tensor:
    matrix = torch.zeros(1, 1, dtype=torch.long, device=device)
    while len(matrix) < side:
        matrix = torch.cat([torch.cat([4 * matrix, 4 * matrix + 2], 1), torch.cat([4 * matrix + 3, 4 * matrix + 1], 1)], 0)
    return matrix


def block_masking(noise: Tensor, mask_ratio: float, grid: tuple[int, int]) -> Masking:
    """Block-wise sampling after BEiT (Figure 6, middle): rectangles of random area and aspect ratio are masked one
    after another.

    As in BEiT a rectangle counts only when it masks something new and does not overrun the quota. BEiT then falls short
    of the ratio; here the last rectangle that overran is trimmed in raster order, and noise decides what may still be
    missing, so that the ratio holds exactly. `noise` (N, L) must be uniform on [0, 1): four of its values draw one
    rectangle.
    """
    length = noise.shape[1]
    quota = length - num_visible(length, mask_ratio)
    masked = torch.zeros_like(noise, dtype=torch.bool)
    overrun = torch.zeros_like(masked)
    for block in _blocks(noise, quota, grid):
        fresh = block & ~masked
        added = fresh.sum(1)
        room = quota - masked.sum(1)
        masked |= fresh & (added <= room)[:, None]
        overran = (added > room) & (room > 0)
        overrun = torch.where(overran[:, None], block, overrun)
        # Asking is free on the CPU; on a GPU it would stall the stream at every rectangle, and it cannot be compiled.
        if room.device.type == "cpu" and not torch.compiler.is_compiling() and not room.any():
            break
    raster = torch.arange(length, device=noise.device, dtype=noise.dtype) / length
    trimmed = torch.where(overrun, 2 - raster, noise.clamp(0, 0.999))
    return _from_scores(torch.where(masked, torch.full_like(noise, 3), trimmed), mask_ratio)


def _blocks(noise: Tensor, quota: int, grid: tuple[int, int]) -> Tensor:
    """(B, N, L) bool rectangles drawn from the noise, B = max(1, L // 4)."""
    rows, columns = grid
    length = rows * columns
    count = max(1, length // 4)
    draws = F.pad(noise, (0, max(0, 4 - length)), value=0.5)[:, : 4 * count].clamp(0, 1)
    draws = draws.reshape(len(noise), count, 4)
    area, aspect, down, right = draws.unbind(2)
    smallest = min(BLOCK_SHARE * length, quota)
    area = smallest + area * (quota - smallest)
    aspect = torch.exp((2 * aspect - 1) * math.log(1 / BLOCK_ASPECT))
    height = (area * aspect).sqrt().round().clamp(1, rows)
    width = (area / aspect).sqrt().round().clamp(1, columns)
    top = (down * (rows - height + 1)).floor().minimum(rows - height)
    left = (right * (columns - width + 1)).floor().minimum(columns - width)
    in_rows = _spans(rows, top, height)
    in_columns = _spans(columns, left, width)
    return (in_rows[..., :, None] & in_columns[..., None, :]).flatten(2).transpose(0, 1)


def _spans(size: int, start: Tensor, extent: Tensor) -> Tensor:
    index = torch.arange(size, device=start.device)
    return (index >= start[..., None]) & (index < (start + extent)[..., None])


def sample_mask(kind: str, noise: Tensor, mask_ratio: float, grid: tuple[int, int]) -> Masking:
    """The sampler named `kind` ("random", "block" or "grid") on noise (N, rows * columns)."""
    if noise.shape[1] != grid[0] * grid[1]:
        raise UserError(f"noise has {noise.shape[1]} values an image, but a {grid[0]}x{grid[1]} grid has {grid[0] * grid[1]} patches")
    if kind == "random":
        return random_masking(noise, mask_ratio)
    if kind == "block":
        return block_masking(noise, mask_ratio, grid)
    if kind == "grid":
        return grid_masking(noise, mask_ratio, grid)
    raise UserError(f"mask {kind!r} is unknown: choose random, block or grid")


def unit_grid(image_size: tuple[int, int], unit: int, patch_size: int) -> tuple[int, int]:
    """(rows, columns) of mask units in image space (SimMIM, FastMIM): units are squares of whole patches.

    Raises UserError when the unit is not a multiple of the patch or does not divide the image.
    """
    if unit < patch_size or unit % patch_size:
        raise UserError(f"mask_unit {unit} is not a multiple of patch_size {patch_size}")
    height, width = image_size
    if height % unit or width % unit:
        raise UserError(f"image_size {height}x{width} is not a multiple of mask_unit {unit}")
    return height // unit, width // unit


def expand_units(mask: Tensor, grid: tuple[int, int], factor: int) -> Tensor:
    """A mask of units (N, rows * columns) as a map (N, rows * factor, columns * factor).

    `factor` is the unit's side in what the map counts: the unit itself for pixels, unit // patch_size for patches.
    """
    return mask.reshape(len(mask), *grid).repeat_interleave(factor, 1).repeat_interleave(factor, 2)

"""Which patches the model sees: random, block-wise and grid-wise sampling (MAE, section 3, Table 1f, Figure
6).

Every sampler maps one row of noise per image to a `Masking`, whose fields have the reference's meaning. Equal
noise gives equal masks. Every image of a batch has exactly `num_visible(L, mask_ratio)` visible patches.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from replicate.errors import UserError

BLOCK_SHARE = 16 / 196
"""Smallest block as a share of the grid: 16 patches of 14 x 14 (BEiT)."""
BLOCK_ASPECT = 0.3
"""Block aspect ratios are log-uniform on (0.3, 1 / 0.3) (BEiT)."""
TRIES = 10
"""Rectangles that BEiT draws for a block before it stops."""
BLOCKS = 24
"""Most blocks of a mask. One mask in a thousand needs more than 16 at ratio .75."""


class Masking(NamedTuple):
    """ids_keep      (N, V) int64, the visible patches
    ids_restore   (N, L) int64, undoes the shuffle that puts the visible patches first
    mask          (N, L) float, 0 = visible, 1 = masked
    """

    ids_keep: Tensor
    ids_restore: Tensor
    mask: Tensor


def num_visible(num_patches: int, mask_ratio: float) -> int:
    """Patches that stay visible: floor(L (1 - ratio)), at least one. Raises UserError for a ratio outside [0,
    1).

    Rounding to nine decimals corrects binary fractions: 100 (1 - 0.9) is 9.99... in floating point, but means
    10.
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

    An ordered-dither (Bayer) matrix ranks the patches. Any number of its first ranks is spread evenly, so
    every ratio is exact. The noise shifts the pattern of each image.
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
        quarters = [[4 * matrix, 4 * matrix + 2], [4 * matrix + 3, 4 * matrix + 1]]
        matrix = torch.cat([torch.cat(row, dim=1) for row in quarters])
    return matrix


def block_masking(noise: Tensor, mask_ratio: float, grid: tuple[int, int]) -> Masking:
    """Block-wise sampling as in BEiT (Figure 6, middle): mask random rectangles one after another.

    The area of a rectangle is uniform between 16 patches (of 14 x 14) and what remains to be masked. A
    rectangle counts if it masks at least one new patch, and no more than what remains. After ten failures in
    a row BEiT stops below the ratio; here the noise then selects the last patches. `noise` (N, L) must be
    uniform on [0, 1).
    """
    images, length, size = len(noise), noise.shape[1], noise.new_tensor(grid)
    kept, least = num_visible(length, mask_ratio), BLOCK_SHARE * length
    draws = _more_uniforms(noise, BLOCKS * TRIES * 4).view(images, BLOCKS, TRIES, 4)
    shapes = BLOCK_ASPECT ** (draws[..., 1] - 0.5)  # the square root of the aspect ratio
    visible = torch.ones(images, *grid, device=noise.device)
    active = torch.ones(images, 1, dtype=torch.bool, device=noise.device)
    image = torch.arange(images, device=noise.device)
    for number in range(BLOCKS):
        share, shape, place = draws[:, number, :, 0], shapes[:, number], draws[:, number, :, 2:]
        room = visible.sum(dim=(1, 2))[:, None] - kept
        root = (least + share * (room - least)).sqrt()
        extent = torch.stack([root * shape, root / shape], dim=2).round()  # (N, TRIES, 2): height, width
        first = (place * (size - extent + 1)).floor()
        in_rows, in_columns = (_span(side, first[..., k], extent[..., k]) for k, side in enumerate(grid))
        fresh = (in_rows @ visible * in_columns).sum(dim=2)  # visible patches that each rectangle would mask
        fits = active & (extent < size).all(dim=2) & (fresh > 0) & (fresh <= room)
        active = fits.any(dim=1, keepdim=True)
        chosen = fits.byte().argmax(dim=1)
        block = in_rows[image, chosen][:, :, None] * in_columns[image, chosen][:, None]
        visible = visible * (1 - block * active[..., None])
        # Only a CPU can test this without waiting, and the test does not compile.
        if noise.device.type == "cpu" and not torch.compiler.is_compiling() and not active.any():
            break
    return _from_scores(noise.masked_fill(visible.flatten(1) == 0, 1.0), mask_ratio)


def _more_uniforms(noise: Tensor, count: int) -> Tensor:
    """(N, count) uniform numbers from uniform noise (N, L): u continues as a u, a^2 u, ... modulo 1."""
    steps = range(1, math.ceil(count / noise.shape[1]) + 1)
    factors = [pow(1664525, step, 1 << 24) for step in steps]  # float32 noise has 24 bits: exact in float64
    continued = noise.double()[:, None] * noise.new_tensor(factors, dtype=torch.double)[:, None] % 1
    return continued.flatten(1)[:, :count]


def _span(size: int, first: Tensor, extent: Tensor) -> Tensor:
    """(..., size) float: 1 from `first` on, over `extent` places."""
    index = torch.arange(size, device=first.device)
    return ((index >= first[..., None]) & (index < (first + extent)[..., None])).float()


SAMPLERS: dict[str, Callable[..., Masking]] = {
    "random": lambda noise, mask_ratio, grid: random_masking(noise, mask_ratio),
    "block": block_masking,
    "grid": grid_masking,
}


def sample_mask(kind: str, noise: Tensor, mask_ratio: float, grid: tuple[int, int]) -> Masking:
    """The sampler named `kind` on noise (N, rows * columns). Raises UserError if either does not fit."""
    if noise.shape[1] != grid[0] * grid[1]:
        patches = f"a {grid[0]}x{grid[1]} grid has {grid[0] * grid[1]} patches"
        raise UserError(f"noise has {noise.shape[1]} values an image, but {patches}")
    if kind not in SAMPLERS:
        raise UserError(f"mask {kind!r} is unknown: choose one of {', '.join(SAMPLERS)}")
    return SAMPLERS[kind](noise, mask_ratio, grid)


def unit_grid(image_size: tuple[int, int], unit: int, patch_size: int) -> tuple[int, int]:
    """(rows, columns) of mask units in image space (SimMIM, FastMIM). Units are squares of whole patches.

    Raises UserError if the unit is not a multiple of the patch or does not divide the image.
    """
    if unit < patch_size or unit % patch_size:
        raise UserError(f"mask_unit {unit} is not a multiple of patch_size {patch_size}")
    height, width = image_size
    if height % unit or width % unit:
        raise UserError(f"image_size {height}x{width} is not a multiple of mask_unit {unit}")
    return height // unit, width // unit


def expand_units(mask: Tensor, grid: tuple[int, int], factor: int) -> Tensor:
    """A mask of units (N, rows * columns) as a map (N, rows * factor, columns * factor).

    `factor` is the side of a unit: `unit` for a map of pixels, `unit // patch_size` for a map of patches.
    """
    return mask.reshape(len(mask), *grid).repeat_interleave(factor, 1).repeat_interleave(factor, 2)

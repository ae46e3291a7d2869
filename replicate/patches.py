"""Images as sequences of patch vectors, and back (MAE, section 3; names of the reference implementation).

Patches are in raster order, the values of a patch in the order (row, column, channel): 768 for 16 x 16 RGB
pixels.
"""

from __future__ import annotations

from torch import Tensor

from replicate.errors import UserError


def pair(size: int | tuple[int, int]) -> tuple[int, int]:
    """(height, width) of a size given as one number or two."""
    if isinstance(size, int):
        return size, size
    height, width = size
    return int(height), int(width)


def grid_of(image_size: int | tuple[int, int], patch_size: int) -> tuple[int, int]:
    """(rows, columns) of patches in an image. Raises UserError if the patch does not divide a side."""
    height, width = pair(image_size)
    if height < patch_size or width < patch_size or height % patch_size or width % patch_size:
        allowed = f"{patch_size}, {2 * patch_size}, {3 * patch_size}, ..."
        size = f"image_size {height}x{width} is not a multiple of patch_size {patch_size}"
        raise UserError(f"{size}: a side must be {allowed}")
    return height // patch_size, width // patch_size


def patchify(images: Tensor, patch_size: int) -> Tensor:
    """(N, C, H, W) images -> (N, L, P * P * C) patch vectors."""
    rows, columns = grid_of(tuple(images.shape[-2:]), patch_size)
    tiles = images.unflatten(3, (columns, patch_size)).unflatten(2, (rows, patch_size))
    return tiles.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


def unpatchify(patches: Tensor, patch_size: int, grid: tuple[int, int], channels: int = 3) -> Tensor:
    """(N, L, P * P * C) patch vectors on a (rows, columns) grid -> (N, C, H, W) images; undoes `patchify`."""
    rows, columns = grid
    tiles = patches.reshape(len(patches), rows, columns, patch_size, patch_size, channels)
    return tiles.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)

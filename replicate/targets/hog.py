"""Histograms of oriented gradients as the target (FastMIM sec 4.1, after MaskFeat).

Per colour channel: Sobel gradients of the image reflected by one pixel, magnitudes summed into 9 hard,
unsigned orientation bins over cells of 8 x 8 pixels, each cell and colour divided by its L2 norm. No Gaussian
window.

The bin of a pixel must not depend on rounding. Exactly vertical gradients lie on a bin's edge and are common
in 8-bit images: with atan2 of normalised floats, a third of a photograph's cells change. So 8-bit images are
differentiated in integers. A bin follows from comparing gx gy / gx^2 with the cotangents of the bins' edges,
which is exact in single precision for such gradients. Other images are differentiated in double precision.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache

import torch
from torch import Tensor, nn

from replicate.errors import UserError
from replicate.loaders.pixels import IMAGENET_MEAN, IMAGENET_STD
from replicate.patches import grid_of

BINS = 9
CELL = 8
EPSILON = 1e-12
_EDGES = (math.inf, *(1 / math.tan(math.pi * k / BINS) for k in range(1, BINS)), -math.inf)
_NO_GRADIENT_ACROSS = 1e-30  # makes 0 / 0 an infinite ratio; rounding removes it from any other product
_EIGHT_BIT_TOLERANCE = 1 / 64  # in 8-bit steps; a normalised float32 comes back to within 1e-4 of its pixel
_CHUNK = {"cpu": 400_000}  # values at a time, to stay in cache
_CHUNK_ACCELERATOR = 16_000_000


def eight_bit(images: Tensor) -> Tensor | None:
    """The uint8 pixels (N, 3, H, W) behind normalised floats; None if the floats are not an 8-bit image's."""
    if images.dtype == torch.uint8:
        return images
    if images.shape[1] != 3 or images.dtype in (torch.float16, torch.bfloat16):
        return None
    scale = images.new_tensor(IMAGENET_STD).view(3, 1, 1) * 255
    pixels = images * scale + images.new_tensor(IMAGENET_MEAN).view(3, 1, 1) * 255
    rounded = pixels.round().clamp_(0, 255)
    close = (pixels - rounded).abs() < _EIGHT_BIT_TOLERANCE
    return rounded.to(torch.uint8) if bool(close.all()) else None


def _sobel(planes: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients along x and y of (P, H, W) planes: exact int16 for uint8 planes, float64 for others."""
    count, height, width = planes.shape
    dtype = torch.int16 if planes.dtype == torch.uint8 else torch.float64
    padded = planes.new_empty((count, height + 2, width + 2), dtype=dtype)  # torch reflects no integers
    padded[:, 1:-1, 1:-1] = planes
    padded[:, 0], padded[:, -1] = padded[:, 2], padded[:, -3]
    padded[:, :, 0], padded[:, :, -1] = padded[:, :, 2], padded[:, :, -3]
    step_x = padded[..., 2:] - padded[..., :-2]
    step_y = padded[:, 2:] - padded[:, :-2]
    grad_x = (step_x[:, :-2] + step_x[:, 2:]).add_(step_x[:, 1:-1], alpha=2)
    grad_y = (step_y[..., :-2] + step_y[..., 2:]).add_(step_y[..., 1:-1], alpha=2)
    return grad_x, grad_y


def _polar(grad_x: Tensor, grad_y: Tensor) -> tuple[Tensor, Tensor]:
    """Magnitude, and y/x: the cotangent of the paper's angle atan2(gx, gy), whatever the gradient's sign."""
    x_squared = grad_x * grad_x
    magnitude = torch.addcmul(x_squared, grad_y, grad_y).sqrt_()
    return magnitude, (grad_x * grad_y).add_(_NO_GRADIENT_ACROSS).div_(x_squared)


def _keep_between(values: Tensor, ratio: Tensor, low: float, high: float, out: Tensor) -> Tensor:
    """`values` where low < ratio < high, zero elsewhere. An infinite `high` is included."""
    # The gradients of clipping functions are this selection in one pass; comparisons would take four.
    if math.isinf(high):
        return torch.ops.aten.threshold_backward.grad_input(values, ratio, low, grad_input=out)
    return torch.ops.aten.hardtanh_backward.grad_input(values, ratio, low, high, grad_input=out)


def _histograms(images: Tensor, cell: int) -> Tensor:
    """(n, C, H, W) -> (n, C, 9, H / cell, W / cell)."""
    planes = images.flatten(0, 1)
    count, height, width = planes.shape
    precision = torch.float32 if planes.dtype == torch.uint8 else torch.float64
    magnitude, ratio = _polar(*(gradient.to(precision) for gradient in _sobel(planes)))
    selected = torch.empty_like(magnitude)
    rows = magnitude.new_empty(BINS, count * (height // cell), width)
    for bin_ in range(BINS):
        _keep_between(magnitude, ratio, _EDGES[bin_ + 1], _EDGES[bin_], out=selected)
        torch.sum(selected.view(-1, cell, width), dim=1, out=rows[bin_])
    sums = torch.mv(rows.view(-1, cell), rows.new_ones(cell)).view(BINS, count, height // cell, width // cell)
    norm = (
        sums.square().sum(dim=0).sqrt_().clamp_(min=EPSILON)
    )  # many times faster than a vector norm over dim 0
    return sums.div_(norm).unflatten(1, images.shape[:2]).movedim(0, 2)


@contextmanager
def _one_thread_an_operation() -> Iterator[int]:
    """CPU operations within it use one thread, in new threads too. Yields the number before."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield threads
    finally:
        torch.set_num_threads(threads)


@torch.no_grad()
def dense_hog(images: Tensor, cell: int = CELL) -> Tensor:
    """An image's histograms, (N, C, 9, H / cell, W / cell) float32, of unit L2 norm over the bins, or zeros.

    images: (N, C, H, W), uint8 pixels or floats. Bin b holds gradients at 20 b to 20 b + 20 degrees from the
    vertical. Normalised 8-bit pixels are rounded back to uint8; on an accelerator this test waits for the
    device, so pass uint8 pixels where speed matters. Raises UserError if a side is not a multiple of the
    cell.
    """
    if not isinstance(cell, int) or cell < 1:
        raise UserError(f"HOG cell {cell!r} must be a whole number of pixels >= 1")
    batch, channels, height, width = images.shape
    if height % cell or width % cell:
        raise UserError(f"image size {height}x{width} is not a multiple of the HOG cell, {cell} pixels")
    out = torch.empty((batch, channels, BINS, height // cell, width // cell), device=images.device)
    if not out.numel():
        return out
    pixels = eight_bit(images)
    source = images.detach() if pixels is None else pixels
    at_a_time = max(1, _CHUNK.get(images.device.type, _CHUNK_ACCELERATOR) // images[:1].numel())

    def fill(some: Tensor, cells: Tensor) -> None:
        with torch.autocast(images.device.type, enabled=False):  # it would halve the precision of the pooling
            cells.copy_(_histograms(some, cell))

    parts = source.split(at_a_time), out.split(at_a_time)
    if images.device.type != "cpu":
        list(map(fill, *parts))
        return out
    # Every thread takes its own images. Threads that share each short operation would wait for one another.
    with _one_thread_an_operation() as threads, ThreadPoolExecutor(threads) as pool:
        list(pool.map(fill, *parts))
    return out


@lru_cache(maxsize=8)
def _unit_order(height: int, width: int, side: int, device: torch.device) -> Tensor:
    """Where each value of the units is in an image's dense histograms; faster than a permuted copy."""
    dense = torch.arange(3 * BINS * height * width, device=device)
    dense = dense.view(3 * BINS, height // side, side, width // side, side)
    return dense.permute(1, 3, 0, 2, 4).flatten()


class Target(nn.Module):
    """HOG of every unit: 3 colours x 9 bins x the unit's cells, 108 values for 16 pixels, 432 for 32.

    The values of a unit of k x k cells are in the order ((colour * 9 + bin) * k + cell_y) * k + cell_x. A
    prediction of zeros costs 1/9 except in constant cells. Raises UserError if the unit is not a multiple of
    the cell.
    """

    loss = "mse"

    def __init__(self, patch_size: int, cell: int = CELL) -> None:
        super().__init__()
        for key, size in (("patch_size", patch_size), ("cell", cell)):
            if not isinstance(size, int) or size < 1:
                raise UserError(f"target hog: {key} {size!r} must be a whole number of pixels >= 1")
        if patch_size % cell:
            raise UserError(
                f"target hog: a unit of {patch_size} pixels is no whole number of cells of {cell} pixels"
            )
        self.patch_size, self.cell, self.cells_a_side = patch_size, cell, patch_size // cell
        self.dim = 3 * BINS * self.cells_a_side**2

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, L, dim). Raises UserError if a side is not a multiple of the unit."""
        grid_of(tuple(images.shape[-2:]), self.patch_size)
        return self.to_units(dense_hog(images, self.cell))

    def to_units(self, cells: Tensor) -> Tensor:
        """Dense histograms (N, 3, 9, h, w) -> (N, L, dim), units in raster order."""
        order = _unit_order(cells.shape[-2], cells.shape[-1], self.cells_a_side, cells.device)
        return cells.flatten(1).index_select(1, order).unflatten(1, (-1, self.dim))

    def to_dense(self, units: Tensor, grid: tuple[int, int]) -> Tensor:
        """Inverse of `to_units`: (N, L, dim) targets or predictions of a grid (rows, columns) -> (N, 3, 9, h,
        w).
        """
        side = self.cells_a_side
        split = units.unflatten(2, (3 * BINS, side, side)).unflatten(1, grid)
        return split.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3).unflatten(1, (3, BINS))

"""Histograms of oriented gradients as the target (FastMIM sec 4.1, after MaskFeat).

Per colour channel: Sobel gradients of the image reflected by one pixel, magnitudes summed into 9 hard, unsigned orientation
bins over cells of 8 x 8 pixels, each cell and colour divided by its L2 norm. No Gaussian window.

Which bin a pixel falls into must not depend on the arithmetic: exactly vertical gradients, which lie on a bin's edge, are common
in 8-bit images, and taking atan2 of normalised floats moves a third of a photograph's cells. So 8-bit images are differentiated
in integers, and a bin is decided by comparing the ratio of two exact products with the cotangents of the bins' edges: for
integer gradients single precision then decides as exact arithmetic does. Other images are differentiated in double precision,
in which single-precision pixels give exact gradients.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from replicate.errors import UserError

BINS = 9
CELL = 8
EPSILON = 1e-12
_EDGES = (math.inf, *(1 / math.tan(math.pi * k / BINS) for k in range(1, BINS)), -math.inf)
_NO_GRADIENT_ACROSS = 1e-30  # makes 0 / 0 an infinite ratio, and is lost in the rounding of any other product
_EIGHT_BIT_TOLERANCE = 1 / 64  # in 8-bit steps; a normalised float32 comes back to within 1e-4 of its pixel
_CHUNK = {"cpu": 400_000}  # pixels of one channel that are worked on at a time: what stays in cache
_CHUNK_ACCELERATOR = 16_000_000


def eight_bit(images: Tensor) -> Tensor | None:
    """The uint8 pixels (N, 3, H, W) behind normalised floats, or None when the floats are not those of an 8-bit image."""
    if images.dtype == torch.uint8:
        return images
    if images.shape[1] != 3 or images.dtype in (torch.float16, torch.bfloat16):
        return None
    from replicate.loaders.pixels import IMAGENET_MEAN, IMAGENET_STD  # only float input needs them

    scale = images.new_tensor(IMAGENET_STD).view(3, 1, 1) * 255
    pixels = images * scale + images.new_tensor(IMAGENET_MEAN).view(3, 1, 1) * 255
    rounded = pixels.round().clamp_(0, 255)
    return rounded.to(torch.uint8) if bool(((pixels - rounded).abs() < _EIGHT_BIT_TOLERANCE).all()) else None


def _reflect_by_one(planes: Tensor, dtype: torch.dtype) -> Tensor:
    count, height, width = planes.shape
    padded = planes.new_empty((count, height + 2, width + 2), dtype=dtype)
    padded[:, 1:-1, 1:-1] = planes
    padded[:, 0] = padded[:, 2]
    padded[:, -1] = padded[:, -3]
    padded[:, :, 0] = padded[:, :, 2]
    padded[:, :, -1] = padded[:, :, -3]
    return padded


def _sobel(planes: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients along x and y of (P, H, W) planes: exact int16 for uint8 planes, float64 for the others."""
    padded = _reflect_by_one(planes, torch.int16 if planes.dtype == torch.uint8 else torch.float64)
    step_x = padded[..., 2:] - padded[..., :-2]
    step_y = padded[:, 2:] - padded[:, :-2]
    grad_x = (step_x[:, :-2] + step_x[:, 2:]).add_(step_x[:, 1:-1], alpha=2)
    grad_y = (step_y[..., :-2] + step_y[..., 2:]).add_(step_y[..., 1:-1], alpha=2)
    return grad_x, grad_y


def _polar(grad_x: Tensor, grad_y: Tensor) -> tuple[Tensor, Tensor]:
    """Magnitude, and y/x: the cotangent of the angle that the paper's atan2(gx, gy) measures, whatever the gradient's sign."""
    x_squared = grad_x * grad_x
    magnitude = torch.addcmul(x_squared, grad_y, grad_y).sqrt_()
    return magnitude, (grad_x * grad_y).add_(_NO_GRADIENT_ACROSS).div_(x_squared)


def _keep_between(values: Tensor, ratio: Tensor, low: float, high: float, out: Tensor) -> Tensor:
    """`values` where low < ratio < high (high may be infinite and is then included), zero elsewhere, in one pass over memory."""
    # The gradients of the clipping functions are this selection; comparisons and products would take four passes.
    if math.isinf(high):
        return torch.ops.aten.threshold_backward.grad_input(values, ratio, low, grad_input=out)
    return torch.ops.aten.hardtanh_backward.grad_input(values, ratio, low, high, grad_input=out)


def _normalised_cells(planes: Tensor, cell: int) -> Tensor:
    """(P, H, W) planes of one colour each -> (BINS, P, H / cell, W / cell), unit L2 norm over the bins (or zeros)."""
    count, height, width = planes.shape
    precision = torch.float32 if planes.dtype == torch.uint8 else torch.float64
    magnitude, ratio = _polar(*(gradient.to(precision) for gradient in _sobel(planes)))
    selected = torch.empty_like(magnitude)
    rows = magnitude.new_empty(BINS, count * (height // cell), width)
    for bin_ in range(BINS):
        _keep_between(magnitude, ratio, _EDGES[bin_ + 1], _EDGES[bin_], out=selected)
        torch.sum(selected.view(-1, cell, width), dim=1, out=rows[bin_])
    sums = torch.mv(rows.view(-1, cell), rows.new_ones(cell)).view(BINS, count, height // cell, width // cell)
    # Summing squares by hand: a vector norm over a leading dimension is many times slower.
    norm = sums.square().sum(dim=0).sqrt_().clamp_(min=EPSILON)
    return sums.div_(norm)


def _histograms(images: Tensor, cell: int) -> Tensor:
    """(n, C, H, W) -> (n, C, 9, H / cell, W / cell)."""
    cells = _normalised_cells(images.flatten(0, 1), cell)
    return cells.unflatten(1, images.shape[:2]).movedim(0, 2)


@contextmanager
def _serial_operations() -> Iterator[int]:
    """Within it, an operation uses one thread of the CPU, here and in threads that start; yields how many it used before."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield threads
    finally:
        torch.set_num_threads(threads)


def _fill(out: Tensor, images: Tensor, work: Callable[[Tensor, Tensor], None]) -> Tensor:
    """Fills `out` (N, ...) by `work(images, out)` on a few images at a time, so that what is worked on stays in cache.

    On a CPU every thread takes its own images: threads that share each of the many short operations would wait for one another at
    every one of them, for as long as another process holds a core.
    """
    if not out.numel():
        return out
    pixels = eight_bit(images)
    source = images.detach() if pixels is None else pixels
    at_a_time = max(1, _CHUNK.get(images.device.type, _CHUNK_ACCELERATOR) // images[:1].numel())
    parts = source.split(at_a_time), out.split(at_a_time)
    if images.device.type != "cpu":
        # Autocast would make the pooling product half precision; threads that start know nothing of it.
        with torch.autocast(images.device.type, enabled=False):
            list(map(work, *parts))
        return out
    with _serial_operations() as threads, ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, *parts))
    return out


def _check_multiple(images: Tensor, size: int, what: str) -> None:
    if not isinstance(size, int) or size < 1:
        raise UserError(f"{what} {size!r} must be a whole number of pixels >= 1")
    height, width = images.shape[-2:]
    if height % size or width % size:
        raise UserError(f"image size {height}x{width} is not a multiple of the {what}, {size} pixels")


@torch.no_grad()
def dense_hog(images: Tensor, cell: int = CELL) -> Tensor:
    """The image's histograms, (N, C, 9, H / cell, W / cell) float32, of unit L2 norm over the bins; zero where nothing changes.

    images: (N, C, H, W), uint8 pixels or floats. Bin b holds the gradients at 20 b to 20 b + 20 degrees from the vertical.
    An affine change of a channel, such as normalisation, changes nothing but rounding, so floats are used as they are, unless
    they are normalised 8-bit pixels, which are rounded back (on an accelerator, finding that out waits for it: hand over the
    uint8 pixels where speed matters). Raises UserError when a side is not a multiple of the cell.
    """
    _check_multiple(images, cell, "HOG cell")
    batch, channels, height, width = images.shape
    out = torch.empty((batch, channels, BINS, height // cell, width // cell), device=images.device)
    return _fill(out, images, lambda some, cells: cells.copy_(_histograms(some, cell)))


@lru_cache(maxsize=8)
def _unit_order(height: int, width: int, side: int, device: torch.device) -> Tensor:
    """Where each value of the units comes from in an image's dense histograms. A permuted copy does the same ten times slower."""
    dense = torch.arange(3 * BINS * height * width, device=device).view(3 * BINS, height // side, side, width // side, side)
    return dense.permute(1, 3, 0, 2, 4).flatten()


class Target(nn.Module):
    """HOG of every unit of `patch_size` pixels: 3 colours x 9 bins x the unit's cells, 108 values for 16 pixels, 432 for 32.

    A unit of k x k cells has its values in the order ((colour * 9 + bin) * k + cell_y) * k + cell_x. Predicting zeros costs 1/9
    wherever the image is not constant.
    """

    loss = "mse"

    def __init__(self, patch_size: int, cell: int = CELL) -> None:
        super().__init__()
        for key, size in (("patch_size", patch_size), ("cell", cell)):
            if not isinstance(size, int) or size < 1:
                raise UserError(f"target hog: {key} {size!r} must be a whole number of pixels >= 1")
        if patch_size % cell:
            raise UserError(f"target hog: a unit of {patch_size} pixels is not a whole number of cells of {cell} pixels")
        self.patch_size = patch_size
        self.cell = cell
        self.cells_a_side = patch_size // cell
        self.dim = 3 * BINS * self.cells_a_side**2

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, L, dim). Raises UserError when a side is not a multiple of the unit."""
        _check_multiple(images, self.patch_size, "unit")
        count = images.shape[-2] * images.shape[-1] // self.patch_size**2
        units = torch.empty((len(images), count, self.dim), device=images.device)
        return _fill(units, images, lambda some, out: self._fill_units(_histograms(some, self.cell).float(), out))

    def to_units(self, cells: Tensor) -> Tensor:
        """Dense histograms (N, 3, 9, h, w) -> (N, L, dim), units in raster order."""
        count = cells.shape[-2] * cells.shape[-1] // self.cells_a_side**2
        units = cells.new_empty((len(cells), count, self.dim))
        self._fill_units(cells, units)
        return units

    def _fill_units(self, cells: Tensor, out: Tensor) -> None:
        order = _unit_order(cells.shape[-2], cells.shape[-1], self.cells_a_side, cells.device)
        torch.index_select(cells.flatten(1), 1, order, out=out.flatten(1))

    def to_dense(self, units: Tensor, grid: tuple[int, int]) -> Tensor:
        """The inverse of `to_units`: targets or predictions (N, L, dim) of a grid (rows, columns) -> (N, 3, 9, h, w)."""
        side = self.cells_a_side
        split = units.unflatten(2, (3 * BINS, side, side)).unflatten(1, grid)
        return split.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3).unflatten(1, (3, BINS))


@lru_cache(maxsize=8)
def _strokes(side: int) -> Tensor:
    """(9, side, side): one line through the cell's centre a bin, along the edge that such gradients cross."""
    centre = (torch.arange(side) - (side - 1) / 2) / (side / 2)
    y, x = torch.meshgrid(centre, centre, indexing="ij")
    angle = math.pi * (torch.arange(BINS).view(-1, 1, 1) + 0.5) / BINS
    # The gradient points along (sin, cos); the edge's distance from a pixel is measured along it.
    distance = (x * torch.sin(angle) + y * torch.cos(angle)).abs() * side / 2
    inside = (x.square() + y.square()) <= 1
    return (1 - distance).clamp_(min=0) * inside


def hog_image(cells: Tensor, side: int = 16) -> Tensor:
    """Glyphs: histograms (..., 9, h, w) -> (..., h * side, w * side) float32, one star of `side` pixels a cell, rays along edges.

    Negative values (of a prediction) draw nothing.
    """
    glyphs = torch.einsum("...bhw,byx->...hywx", cells.float().clamp(min=0).cpu(), _strokes(side))
    return glyphs.flatten(-2).flatten(-3, -2)


def hog_maps(cells: Tensor, size: tuple[int, int] | None = None) -> Tensor:
    """Histograms (N, C, 9, h, w) as (N, C * 9, h, w) maps in 0..1, resized (bilinear) to `size` for PSNR and SSIM."""
    maps = cells.flatten(1, 2)
    return maps if size is None else F.interpolate(maps, size=size, mode="bilinear", align_corners=False)

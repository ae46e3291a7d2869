"""How alike a target is at full and at reduced resolution: PSNR and SSIM of pixels and of HOG (FastMIM Figures 3, 8 and 9)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from replicate.errors import UserError
from replicate.targets.hog import CELL, dense_hog, hog_maps

WINDOW = 7
"""Pixels a side of SSIM's window (Wang et al. 2004; scikit-image's default)."""


def reduced(images: Tensor, size: int) -> Tensor:
    """uint8 images (N, 3, S, S) at `size` pixels, antialiased, as uint8: what a pre-training at that resolution is shown."""
    small = F.interpolate(images.float(), size=(size, size), mode="bilinear", antialias=True, align_corners=False)
    return small.round().clamp(0, 255).to(torch.uint8)


@torch.no_grad()
def similarities(images: Tensor, size: int, cell: int = CELL) -> dict[str, Tensor]:
    """uint8 images (N, 3, S, S) and themselves reduced to `size` pixels -> psnr_pixel, ssim_pixel, psnr_hog, ssim_hog, each (N,).

    The reduced image and the HOG of the reduced image are resized (bilinear) to the full ones' shape; both kinds lie in 0..1.
    Raises UserError when an image has fewer than 7 cells a side, SSIM's window.
    """
    full, small = images.float() / 255, reduced(images, size).float() / 255
    pixels = full, F.interpolate(small, size=full.shape[-2:], mode="bilinear", align_corners=False)
    cells = dense_hog(images, cell)
    hog = hog_maps(cells), hog_maps(dense_hog(reduced(images, size), cell), size=tuple(cells.shape[-2:]))
    return {f"{measure.__name__}_{name}": measure(*pair) for name, pair in (("pixel", pixels), ("hog", hog)) for measure in (psnr, ssim)}


def psnr(left: Tensor, right: Tensor) -> Tensor:
    """Peak signal-to-noise ratio (N,) in dB of (N, C, H, W) maps in 0..1."""
    return -10 * (left - right).square().flatten(1).mean(dim=1).clamp(min=1e-10).log10()


def ssim(left: Tensor, right: Tensor, window: int = WINDOW) -> Tensor:
    """Structural similarity (N,) of (N, C, H, W) maps in 0..1 over square windows, mean over channels and places."""
    if min(left.shape[-2:]) < window:
        raise UserError(f"SSIM: maps of {left.shape[-2]}x{left.shape[-1]} are smaller than its window of {window}")
    left, right = left.double(), right.double()
    unbiased = window**2 / (window**2 - 1)
    mean_l, mean_r = (F.avg_pool2d(maps, window, 1) for maps in (left, right))
    var_l, var_r, both = (
        (F.avg_pool2d(product, window, 1) - means) * unbiased
        for product, means in ((left * left, mean_l**2), (right * right, mean_r**2), (left * right, mean_l * mean_r))
    )
    c1, c2 = 0.01**2, 0.03**2
    index = ((2 * mean_l * mean_r + c1) * (2 * both + c2)) / ((mean_l**2 + mean_r**2 + c1) * (var_l + var_r + c2))
    return index.flatten(1).mean(dim=1)

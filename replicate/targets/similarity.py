"""PSNR and SSIM of pixels and of HOG between full and reduced resolution (FastMIM Figures 3, 8 and 9)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from replicate.errors import UserError
from replicate.targets.hog import CELL, dense_hog

WINDOW = 7
"""Side of SSIM's window in pixels (Wang et al. 2004; scikit-image's default)."""


def reduced(images: Tensor, size: int) -> Tensor:
    """uint8 images (N, 3, S, S) at `size` pixels, antialiased, as uint8."""
    small = F.interpolate(images.float(), (size, size), mode="bilinear", antialias=True, align_corners=False)
    return small.round().clamp(0, 255).to(torch.uint8)


@torch.no_grad()
def similarities(images: Tensor, size: int, cell: int = CELL) -> dict[str, Tensor]:
    """PSNR and SSIM of uint8 images (N, 3, S, S) and the same images reduced to `size` pixels.

    Returns psnr_pixel, ssim_pixel, psnr_hog, ssim_hog, each (N,). Reduced images and their HOG are resized
    (bilinear) to the full shape; all values are in 0..1. Raises UserError for fewer than 7 cells a side,
    SSIM's window.
    """
    small = reduced(images, size)
    found = {}
    for name, full, low in (
        ("pixel", images.float() / 255, small.float() / 255),
        ("hog", dense_hog(images, cell).flatten(1, 2), dense_hog(small, cell).flatten(1, 2)),
    ):
        pair = full, F.interpolate(low, full.shape[-2:], mode="bilinear", align_corners=False)
        found |= {f"psnr_{name}": psnr(*pair), f"ssim_{name}": ssim(*pair)}
    return found


def psnr(left: Tensor, right: Tensor) -> Tensor:
    """Peak signal-to-noise ratio (N,) in dB of (N, C, H, W) maps in 0..1."""
    return -10 * (left - right).square().flatten(1).mean(dim=1).clamp(min=1e-10).log10()


def ssim(left: Tensor, right: Tensor, window: int = WINDOW) -> Tensor:
    """Structural similarity (N,) of (N, C, H, W) maps in 0..1 over square windows, averaged over the image.

    Raises UserError for maps smaller than the window.
    """
    if min(left.shape[-2:]) < window:
        shape = "x".join(map(str, left.shape[-2:]))
        raise UserError(f"SSIM: maps of {shape} are smaller than its window of {window}")
    left, right = left.double(), right.double()
    unbiased = window**2 / (window**2 - 1)
    mean_l, mean_r = (F.avg_pool2d(maps, window, 1) for maps in (left, right))
    var_l, var_r, both = (
        (F.avg_pool2d(product, window, 1) - means) * unbiased
        for product, means in (
            (left * left, mean_l**2),
            (right * right, mean_r**2),
            (left * right, mean_l * mean_r),
        )
    )
    c1, c2 = 0.01**2, 0.03**2
    index = ((2 * mean_l * mean_r + c1) * (2 * both + c2)) / (
        (mean_l**2 + mean_r**2 + c1) * (var_l + var_r + c2)
    )
    return index.flatten(1).mean(dim=1)

"""HOG against pixels: how much of each survives low resolution (FastMIM section 4.1, Figures 3, 8, 9)."""

from __future__ import annotations

from functools import lru_cache

import ipywidgets as widgets
import torch
import torch.nn.functional as F
from torch import Tensor

from replicate.explore import images
from replicate.explore.panel import choice, whole
from replicate.report.glyphs import hog_glyphs
from replicate.report.style import OURS, PALETTE, REFERENCE, WIDTH, Figure, new
from replicate.targets.hog import CELL, dense_hog
from replicate.targets.similarity import reduced, similarities

FULL = 224
SIZES = tuple(range(64, FULL, 32))
"""Reduced resolutions of the curves. At full resolution nothing differs, and PSNR is a matter of rounding."""


def controls() -> dict[str, widgets.Widget]:
    return {
        "size": whole(4 * CELL, FULL, 128, "resolution", CELL),
        "image": choice(list(images.PHOTOGRAPHS), "astronaut", "photograph"),
    }


@lru_cache(maxsize=64)
def similarity(image: str, size: int) -> dict[str, float]:
    """PSNR (dB) and SSIM of pixels and of HOG between 224 pixels and `size`."""
    return {
        name: float(value) for name, value in similarities(images.square(image, FULL)[None], size).items()
    }


def draw(size: int, image: str) -> Figure:
    """Pixels and glyphs at both resolutions; PSNR and SSIM against resolution, this one marked."""
    raw = images.square(image, FULL)[None]
    small = reduced(raw, size)
    found = similarity(image, size)
    figure, axes = new(2, 3, width=WIDTH * 1.7, height=6.0)
    enlarged = F.interpolate(small.float(), size=(FULL, FULL)).to(torch.uint8)
    glyphs = [
        (255 * hog_glyphs(dense_hog(view))).to(torch.uint8).expand(-1, 3, -1, -1) for view in (raw, small)
    ]
    rows = (("pixel", "", (raw, enlarged), "psnr", "PSNR (dB)"), ("hog", "HOG of ", glyphs, "ssim", "SSIM"))
    for row, (kind, what, views, measure, label) in zip(axes, rows, strict=True):
        scores = f"{found[f'psnr_{kind}']:.1f} dB, SSIM {found[f'ssim_{kind}']:.2f}"
        _image(row[0], views[0], f"{what}{FULL} pixels")
        _image(row[1], views[1], f"{what}{size} pixels: {scores}")
        for name, colour in (("pixel", OURS), ("hog", PALETTE[1])):
            scored = [similarity(image, at)[f"{measure}_{name}"] for at in SIZES]
            row[2].plot(SIZES, scored, color=colour, marker="o", label=name)
        row[2].axvline(size, color=REFERENCE, linestyle="--")
        row[2].set(xlabel="resolution (pixels)", ylabel=label)
    axes[0, 2].legend()
    return figure


def caption(size: int, image: str) -> str:
    """The similarities of the picture in a sentence."""
    found = similarity(image, size)
    return (
        f"At {size} of {FULL} pixels, pixels keep {found['psnr_pixel']:.1f} dB (SSIM "
        f"{found['ssim_pixel']:.2f}) and HOG keeps {found['psnr_hog']:.1f} dB (SSIM {found['ssim_hog']:.2f})."
    )


def _image(axis, view: Tensor, title: str) -> None:
    axis.imshow(view[0].permute(1, 2, 0).numpy())
    axis.set_title(title, loc="center", fontsize="small")
    axis.set(xticks=[], yticks=[])

"""HOG against pixels: how much of each survives a lower resolution (FastMIM section 4.1, Figures 3, 8 and 9)."""

from __future__ import annotations

from functools import lru_cache

import ipywidgets as widgets
import torch
import torch.nn.functional as F

from replicate.explore import images
from replicate.explore.panel import choice, whole
from replicate.report.figures import new
from replicate.report.reconstruct import hog_glyphs
from replicate.report.style import OURS, PALETTE, REFERENCE, WIDTH, Figure
from replicate.targets.hog import CELL, dense_hog
from replicate.targets.similarity import reduced, similarities

FULL = 224
SIZES = tuple(range(64, FULL + 1, 32))


def controls() -> dict[str, widgets.Widget]:
    return {
        "size": whole(4 * CELL, FULL, 128, "resolution", CELL),
        "image": choice(list(images.PHOTOGRAPHS), "astronaut", "photograph"),
    }


@lru_cache(maxsize=64)
def alike(image: str, size: int) -> dict[str, float]:
    """PSNR (dB) and SSIM of pixels and of HOG between 224 pixels and `size`."""
    return {name: float(value) for name, value in similarities(images.square(image, FULL)[None], size).items()}


def draw(size: int, image: str) -> Figure:
    """Pixels and glyphs at both resolutions on the left; PSNR and SSIM against resolution on the right, this one marked."""
    raw = images.square(image, FULL)[None]
    small = reduced(raw, size)
    found = alike(image, size)
    figure, axes = new(2, 3, width=WIDTH * 1.7, height=6.0)
    enlarged = F.interpolate(small.float(), size=(FULL, FULL)).to(torch.uint8)
    _pair(axes[0], (raw, enlarged), ("224 pixels", f"{size} pixels: {found['psnr_pixel']:.1f} dB, SSIM {found['ssim_pixel']:.2f}"))
    glyphs = [(255 * hog_glyphs(dense_hog(view))).to(torch.uint8).expand(-1, 3, -1, -1) for view in (raw, small)]
    _pair(axes[1], glyphs, ("HOG of 224 pixels", f"HOG of {size} pixels: {found['psnr_hog']:.1f} dB, SSIM {found['ssim_hog']:.2f}"))
    for axis, measure, unit in ((axes[0, 2], "psnr", "PSNR (dB)"), (axes[1, 2], "ssim", "SSIM")):
        for name, colour in (("pixel", OURS), ("hog", PALETTE[1])):
            # At full resolution nothing differs, and PSNR is a matter of rounding.
            axis.plot(SIZES[:-1], [alike(image, at)[f"{measure}_{name}"] for at in SIZES[:-1]], color=colour, marker="o", label=name)
        axis.axvline(size, color=REFERENCE, linestyle="--")
        axis.set(xlabel="resolution (pixels)", ylabel=unit)
    axes[0, 2].legend()
    return figure


def _pair(axes, views, titles) -> None:
    for axis, view, title in zip(axes, views, titles, strict=False):
        axis.imshow(view[0].permute(1, 2, 0).numpy())
        axis.set_title(title, loc="center", fontsize="small")
        axis.set(xticks=[], yticks=[])

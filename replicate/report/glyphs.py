"""Histograms of oriented gradients as pictures: one star a cell, with a ray along each bin's edges."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from replicate.targets.hog import BINS

GLYPH = 16  # pixels a side that one HOG cell's star is drawn with


@lru_cache(maxsize=8)
def _strokes(side: int) -> Tensor:
    """(9, side, side): a line a bin through the cell's centre, along the edge that such gradients cross."""
    centre = (torch.arange(side) - (side - 1) / 2) / (side / 2)
    y, x = torch.meshgrid(centre, centre, indexing="ij")
    angle = math.pi * (torch.arange(BINS).view(-1, 1, 1) + 0.5) / BINS
    # The gradient points along (sin, cos); distances to the edge are measured along it.
    distance = (x * torch.sin(angle) + y * torch.cos(angle)).abs() * side / 2
    return (1 - distance).clamp_(min=0) * ((x.square() + y.square()) <= 1)


def hog_image(cells: Tensor, side: int = 16) -> Tensor:
    """Histograms (..., 9, h, w) -> glyphs (..., h * side, w * side) float32 of `side` pixels a cell.

    Negative values of a prediction draw nothing.
    """
    glyphs = torch.einsum("...bhw,byx->...hywx", cells.float().clamp(min=0).cpu(), _strokes(side))
    return glyphs.flatten(-2).flatten(-3, -2)


def hog_glyphs(cells: Tensor) -> Tensor:
    """Histograms (N, 3, 9, h, w) -> (N, 1, h * 16, w * 16) glyphs in 0..1, mean over the colours."""
    glyphs = hog_image(cells.mean(dim=1), GLYPH)[:, None]
    return glyphs / glyphs.amax(dim=(1, 2, 3), keepdim=True).clamp(min=1e-6)

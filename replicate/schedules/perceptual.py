"""How much of an object a crop shows, and how large: DailyMAE sec 5, Eqs. 1-3, Table 8.

RandomResizedCrop draws the area of the crop, as a share of the image, uniformly from [low**2, high**2]. So
the relative side sigma has density 2 sigma / (high**2 - low**2) on [low, high]; scale=(.08, 1) is low =
sqrt(.08) = .283. The object is a square as large as the image (the paper's C = 1), and the aspect ratio is 1.
"""

from __future__ import annotations

import math


def sides(scale: tuple[float, float]) -> tuple[float, float]:
    """(low, high) relative sides for RandomResizedCrop's `scale` of relative areas."""
    return math.sqrt(scale[0]), math.sqrt(scale[1])


def perceptual_ratio(low: float, high: float) -> float:
    """E[sigma]: the share of the object's side that a crop shows (Eq. 2)."""
    if low == high:
        return low
    return 2 / 3 * (high**3 - low**3) / (high**2 - low**2)


def apparent_size(size: int, low: float, high: float) -> float:
    """Eq. 1 as printed: `size` / E[sigma], in pixels. 1 / E[sigma] is smaller than E[1 / sigma]."""
    return size / perceptual_ratio(low, high)


def expected_apparent_size(size: int, low: float, high: float) -> float:
    """E[size / sigma], in pixels: the meaning of Eq. 1. E[1 / sigma] is 2 / (low + high)."""
    return 2 * size / (low + high)


def masked_perceptual_ratio(mask_ratio: float, patch_size: int, size: int) -> float:
    """E[mask ratio * patch / image size] (Eq. 3, with the letter sigma for the mask ratio)."""
    return mask_ratio * patch_size / size

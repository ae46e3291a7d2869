"""Images for the explore notebooks: the photographs that scikit-image carries, and pictures of the `photos` data set at any size."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from skimage import data

from replicate.loaders.photos import LAYOUTS, PhotosSource

PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket")
PICTURES = 48


@lru_cache(maxsize=8)
def photograph(name: str) -> np.ndarray:
    """One of `PHOTOGRAPHS` as it comes: uint8 (H, W, 3), 300 to 640 pixels a side."""
    return np.ascontiguousarray(getattr(data, name)())


@lru_cache(maxsize=32)
def square(name: str, size: int) -> torch.Tensor:
    """The central square of a photograph at `size` pixels, uint8 (3, size, size)."""
    import cv2

    pixels = photograph(name)
    side = min(pixels.shape[:2])
    top, left = (pixels.shape[0] - side) // 2, (pixels.shape[1] - side) // 2
    cut = cv2.resize(pixels[top : top + side, left : left + side], (size, size), interpolation=cv2.INTER_AREA)
    return torch.from_numpy(cut).permute(2, 0, 1).contiguous()


@lru_cache(maxsize=64)
def picture(index: int, size: int) -> torch.Tensor:
    """Validation picture number `index` of the `photos` data set at `size` pixels, uint8 (3, size, size)."""
    source = PhotosSource("val", num_images=max(PICTURES, len(LAYOUTS)), image_size=size)
    return torch.from_numpy(np.ascontiguousarray(source.read(index))).permute(2, 0, 1).contiguous()

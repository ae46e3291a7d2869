"""Images to explore with: scikit-image's photographs, images of one's own, and pictures of the `photos` data
set.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from replicate.errors import UserError

PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket")
PICTURES = 48


@lru_cache(maxsize=8)
def photograph(name: str) -> np.ndarray:
    """One of `PHOTOGRAPHS`: uint8 (H, W, 3), 300 to 640 pixels a side."""
    from skimage import data

    return np.ascontiguousarray(getattr(data, name)())


def square(image: str | Path | object, size: int) -> Tensor:
    """The central square of an image at `size` pixels, uint8 (3, size, size).

    image: a name in `PHOTOGRAPHS`, a file, a PIL image, or an array of uint8 (H, W, 3). Raises UserError for
    a file that cannot be read and for another array.
    """
    import cv2

    pixels = _pixels(image)
    side = min(pixels.shape[:2])
    top, left = (pixels.shape[0] - side) // 2, (pixels.shape[1] - side) // 2
    cut = cv2.resize(pixels[top : top + side, left : left + side], (size, size), interpolation=cv2.INTER_AREA)
    return torch.from_numpy(cut).permute(2, 0, 1).contiguous()


def _pixels(image: str | Path | object) -> np.ndarray:
    from PIL import Image, UnidentifiedImageError

    if image in PHOTOGRAPHS if isinstance(image, str) else False:
        return photograph(image)
    if isinstance(image, str | Path):
        try:
            image = Image.open(image)
        except FileNotFoundError:
            raise UserError(f"{image}: no such image file, and none of {', '.join(PHOTOGRAPHS)}") from None
        except (UnidentifiedImageError, OSError) as error:
            raise UserError(f"{image}: cannot be read as an image ({error})") from None
    pixels = np.asarray(image.convert("RGB") if isinstance(image, Image.Image) else image)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise UserError(f"image: must be uint8 (H, W, 3); it is {pixels.dtype} {pixels.shape}")
    return pixels


@lru_cache(maxsize=64)
def picture(index: int, size: int) -> Tensor:
    """Validation picture number `index` of the `photos` data set, uint8 (3, size, size)."""
    from replicate.loaders.photos import LAYOUTS, PhotosSource

    source = PhotosSource("val", num_images=max(PICTURES, len(LAYOUTS)), image_size=size)
    return torch.from_numpy(np.ascontiguousarray(source.read(index))).permute(2, 0, 1).contiguous()

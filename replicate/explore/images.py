"""Images to explore with: scikit-image's photographs, images of one's own, and pictures of the `photos` data
set.
"""

from __future__ import annotations

import io
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from replicate.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket")
PICTURES = 48
LONGEST = 1024
"""Longest side in pixels that is kept of an image of one's own."""

_own: dict[str, np.ndarray] = {}


def add(name: str, content: bytes) -> str:
    """Keep an image file of one's own under a name that `photograph` and `square` take; returns the name.

    Raises UserError for a file that is no image.
    """
    from PIL import Image, ImageOps

    opened = ImageOps.exif_transpose(_opened(io.BytesIO(content), name))
    opened.thumbnail((LONGEST, LONGEST), Image.Resampling.BOX)
    name = f"{name} ({len(_own) + 1})"
    _own[name] = np.asarray(opened.convert("RGB"))
    return name


@lru_cache(maxsize=8)
def photograph(name: str) -> np.ndarray:
    """One of `PHOTOGRAPHS`, 300 to 640 pixels a side, or one that was added: uint8 (H, W, 3)."""
    if name in _own:
        return _own[name]
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
    from PIL import Image

    if isinstance(image, str) and (image in PHOTOGRAPHS or image in _own):
        return photograph(image)
    if isinstance(image, str | Path):
        image = _opened(image, str(image))
    pixels = np.asarray(image.convert("RGB") if isinstance(image, Image.Image) else image)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise UserError(f"image: must be uint8 (H, W, 3); it is {pixels.dtype} {pixels.shape}")
    return pixels


def _opened(file: str | Path | io.BytesIO, name: str) -> Image.Image:
    """An image file, decoded. Raises UserError, naming it, for one that is missing or cannot be read."""
    from PIL import Image

    try:
        opened = Image.open(file)
        opened.load()
        return opened
    except FileNotFoundError:
        raise UserError(f"{name}: no such image file, and none of {', '.join(PHOTOGRAPHS)}") from None
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{name}: cannot be read as an image ({error})") from None


@lru_cache(maxsize=64)
def picture(index: int, size: int) -> Tensor:
    """Validation picture number `index` of the `photos` data set, uint8 (3, size, size)."""
    from replicate.loaders.photos import LAYOUTS, PhotosSource

    source = PhotosSource("val", num_images=max(PICTURES, len(LAYOUTS)), image_size=size)
    return torch.from_numpy(np.ascontiguousarray(source.read(index))).permute(2, 0, 1).contiguous()

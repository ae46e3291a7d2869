"""Crops of JPEGs, from the package `crop_decode` if it is installed, else from Pillow and OpenCV.

The pixels are the same, but Pillow and OpenCV are slower, because they decode the whole image (DailyMAE,
section 3.1). Set REPLICATE_CROP_DECODE=python to do without the package.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from replicate.errors import UserError

if TYPE_CHECKING:
    from crop_decode import BatchResult

try:
    if os.environ.get("REPLICATE_CROP_DECODE") == "python":
        raise ImportError("REPLICATE_CROP_DECODE is python")
    import crop_decode as _package
    from crop_decode import STATUS, Decoding
except ImportError as error:
    _package = None
    # A path means that the package is there but broken. Without one it is missing, even where the folder
    # crop_decode/ of the repository imports as an empty package.
    if error.path is not None:
        warnings.warn(f"{error}; PIL and OpenCV decode instead, more slowly, the same pixels", stacklevel=2)
    STATUS = ("ok", "corrupt", "unsupported", "box", "too large", "memory", "index", "file")

    @dataclass(frozen=True)
    class Decoding:
        """`crop_decode.Decoding`, of which Pillow and OpenCV use `dct`, `interpolation` and `planar`."""

        dct: str = "accurate"
        interpolation: str = "area"
        resize: str = "exact"
        planar: bool = False
        verify: bool = False
        seek: bool = True
        entropy: str = "own"
        full: bool = False


EXACT = Decoding()
MAX_OUTPUT_SIDE = 16384
_MISSING = "is not installed; run `pip install ./crop_decode`"


def available() -> bool:
    """Whether the package decodes the crops."""
    return _package is not None


def require() -> Any:
    """The package `crop_decode`. Raises UserError, with the command to install it, where it is missing."""
    if not available():
        raise UserError(f"crop decode: the package crop_decode {_MISSING}")
    return _package


def function(name: str) -> Any:
    """A function of the C library, for numba (see `crop_decode.function`)."""
    return require().function(name)


def fault(status: int) -> str:
    """A status other than 0 in words."""
    return _package.describe(status) if available() else "damaged JPEG (corrupt)"


@contextmanager
def user_errors() -> Iterator[None]:
    """Turn the package's DecodeError into a UserError."""
    try:
        yield
    except require().DecodeError as error:
        raise UserError(str(error)) from error


def decode_crop(
    jpeg: bytes,
    box: Sequence[int],
    flip: bool = False,
    decoding: Decoding = EXACT,
    *,
    index: bytes | None = None,
    name: str = "image",
) -> np.ndarray:
    """The pixels in `box` = (top, left, height, width), uint8 (height, width, 3) RGB, mirrored if `flip`.

    Raises UserError naming `name` for a damaged or unsupported JPEG, and for a box that leaves the image.
    """
    if not available():
        return _python_crop(jpeg, box, flip, decoding, name)
    with user_errors():
        return _package.decode_jpeg(jpeg, box, flip=flip, decoding=decoding, index=index, name=name)


def decode_crop_resize(
    jpeg: bytes,
    box: Sequence[int],
    flip: bool,
    size: int | tuple[int, int],
    decoding: Decoding = EXACT,
    *,
    index: bytes | None = None,
    out: np.ndarray | None = None,
    name: str = "image",
) -> np.ndarray:
    """The crop `box`, resized to `size` (a side, or height and width), mirrored if `flip`.

    uint8 (H, W, 3), or (3, H, W) when planar. `out` receives the pixels if given. Raises UserError as
    `decode_crop` does.
    """
    if not available():
        pixels = _python_resize(_python_crop(jpeg, box, False, decoding, name), flip, size, decoding)
        if out is None:
            return pixels
        out[...] = pixels
        return out
    with user_errors():
        return _package.decode_jpeg(
            jpeg, box, size, flip=flip, decoding=decoding, index=index, out=out, name=name
        )


def resize_pixels(
    pixels: np.ndarray, flip: bool, size: int | tuple[int, int], decoding: Decoding = EXACT
) -> np.ndarray:
    """Resize uint8 (H, W, 3) pixels as `decode_crop_resize` does in its exact mode."""
    if not available():
        return _python_resize(pixels, flip, size, decoding)
    with user_errors():
        return _package.resize_pixels(pixels, size, flip=flip, decoding=decoding)


def decode_batch(*arguments: Any, **options: Any) -> BatchResult:
    """`crop_decode.decode_addresses`. Raises UserError without the package."""
    package = require()
    with user_errors():
        return package.decode_addresses(*arguments, **options)


def _python_crop(jpeg: bytes, box: Sequence[int], flip: bool, decoding: Decoding, name: str) -> np.ndarray:
    from replicate.loaders.decode import decode_image

    if decoding.dct == "fast":
        raise UserError(f"crop decode dct: 'fast' needs the package crop_decode, which {_MISSING}")
    jpeg = bytes(jpeg)
    if not jpeg.rstrip(b"\0").endswith(b"\xff\xd9"):
        raise UserError(f"{name}: damaged JPEG (it does not end with an end-of-image marker)")
    pixels = decode_image(jpeg, name)
    top, left, height, width = (int(side) for side in box)
    rows, columns = pixels.shape[:2]
    if min(top, left) < 0 or min(height, width) < 1 or top + height > rows or left + width > columns:
        raise UserError(
            f"{name}: cannot be decoded (box {tuple(box)} leaves the image of {rows} x {columns})"
        )
    crop = pixels[top : top + height, left : left + width]
    return np.ascontiguousarray(crop[:, ::-1] if flip else crop)


def _python_resize(
    pixels: np.ndarray, flip: bool, size: int | tuple[int, int], decoding: Decoding
) -> np.ndarray:
    import cv2
    from PIL import Image

    rows, columns = (size, size) if isinstance(size, (int, np.integer)) else size
    if not (1 <= rows <= MAX_OUTPUT_SIDE and 1 <= columns <= MAX_OUTPUT_SIDE):
        raise UserError(
            f"crop decode: output of {rows} x {columns} pixels, where a side may have 1 to {MAX_OUTPUT_SIDE}"
        )
    if decoding.interpolation == "bicubic":
        # Two calls, because newer versions of Pillow sometimes take rows before columns, which rounds
        # differently.
        narrow = Image.fromarray(pixels).resize((columns, pixels.shape[0]), Image.Resampling.BICUBIC)
        resized = np.asarray(narrow.resize((columns, rows), Image.Resampling.BICUBIC))
    else:
        resized = cv2.resize(pixels, (columns, rows), interpolation=cv2.INTER_AREA)
    resized = resized[:, ::-1] if flip else resized
    return np.ascontiguousarray(resized.transpose(2, 0, 1) if decoding.planar else resized)

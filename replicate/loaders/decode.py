"""From an image file's bytes to 8-bit RGB pixels, and from pixels to one crop.

Every reader of image files calls `decode_image`. The conventions are those of torchvision's ImageFolder: EXIF
orientation, ICC profiles and transparency are ignored, and an animation gives its first frame.
"""

import io
import warnings
from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np
from PIL import Image

from replicate.errors import UserError
from replicate.loaders.listing import formats

# Pillow warns of odd metadata and large images. `catch_warnings` around each call would be unsafe in threads.
warnings.filterwarnings("ignore", module=r"PIL\.")

END_OF_IMAGE = b"\xff\xd9"
# TIFF tags, and the values of them that Pillow does not act on.
_BITS_PER_SAMPLE, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339
_WHITE_IS_ZERO, _SIGNED = 0, 2
# Formats whose mode "I" holds 16-bit values. Elsewhere it holds 32-bit integers.
_SIXTEEN_BITS_AS_I = ("PNG", "PPM")


def decode_image(data: bytes, name: str) -> np.ndarray:
    """All pixels of an image file's bytes, uint8 (H, W, 3) RGB.

    Converts grey, palette, CMYK, YCbCr and LAB pixels. Scales 16-bit grey to 8 bits. Raises UserError that
    starts with `name` for bytes that are not an image or end early, and for pixels without a defined range
    (32-bit integers, floating point).
    """
    try:
        with Image.open(io.BytesIO(data), formats=formats()) as image:
            return _rgb(image, name)
    except (UserError, MemoryError):
        raise
    except Image.UnidentifiedImageError as error:
        raise UserError(f"{name}: not an image that Pillow can read") from error
    except Exception as error:  # Pillow's plugins raise errors of many types for damaged files.
        raise UserError(f"{name}: damaged image ({error})") from error


def _rgb(image: Image.Image, name: str) -> np.ndarray:
    tags = getattr(image, "tag_v2", {})
    sixteen = image.mode.startswith("I;16") or (image.mode == "I" and image.format in _SIXTEEN_BITS_AS_I)
    undefined = image.mode in ("I", "F") and not sixteen
    if undefined or image.format == "FITS" or _SIGNED in tags.get(_SAMPLE_FORMAT, ()):
        what = f"{image.format} image with pixels of mode {image.mode}"
        raise UserError(f"{name}: {what}, which have no defined range; convert it to unsigned 8 or 16 bits")
    if sixteen:
        return np.repeat(_eight_bits(image, tags)[..., None], 3, axis=2)
    image.load()
    try:
        return np.asarray(image.convert("RGB"))
    except ValueError as error:
        raise UserError(f"{name}: pixels of mode {image.mode} cannot be converted to RGB") from error


def _eight_bits(image: Image.Image, tags: Mapping[int, Any]) -> np.ndarray:
    """16-bit grey as uint8 (H, W): 65535 / 255 = 257 steps become one. TIFF may use fewer bits."""
    bits = tags.get(_BITS_PER_SAMPLE, (16,))[0]
    grey = np.rint(np.asarray(image).astype(np.float64) * (255 / (2**bits - 1))).astype(np.uint8)
    return 255 - grey if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO else grey


def resize_crop(
    pixels: np.ndarray, box: np.ndarray, flip: bool, image_size: int, interpolation: str = "area"
) -> np.ndarray:
    """The part `box` (top, left, height, width) of uint8 (H, W, 3), resized to (image_size, image_size, 3).

    `flip` mirrors it left to right. "area" is OpenCV's INTER_AREA, as in FFCV. "bicubic" is Pillow's, which
    widens its kernel when it shrinks an image, as torchvision does.
    """
    top, left, height, width = (int(side) for side in box)
    crop = pixels[top : top + height, left : left + width]
    if interpolation == "bicubic":
        resized = np.asarray(Image.fromarray(crop).resize((image_size, image_size), Image.Resampling.BICUBIC))
    else:
        resized = cv2.resize(crop, (image_size, image_size), interpolation=cv2.INTER_AREA)
    return resized[:, ::-1] if flip else resized

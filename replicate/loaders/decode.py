"""From a file's bytes to the pixels of one crop, in Python: the reference that faster decoders are held against."""

import io
import warnings

import cv2
import numpy as np
from PIL import Image

from replicate.errors import UserError

END_OF_IMAGE = b"\xff\xd9"
_RESAMPLE = {"area": cv2.INTER_AREA}


def decode_image(data: bytes, name: str) -> np.ndarray:
    """All pixels of a JPEG or PNG file's bytes, uint8 (H, W, 3) RGB; grey, palette and CMYK images are converted.

    EXIF orientation is ignored, as torchvision's ImageFolder and FFCV do. Raises UserError naming `name` when the bytes are no
    image or end early.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as image:
                return np.asarray(image.convert("RGB"))
    except Image.UnidentifiedImageError as error:
        raise UserError(f"{name}: not a JPEG or PNG image") from error
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{name}: damaged image ({error})") from error


def resize_crop(pixels: np.ndarray, box: np.ndarray, flip: bool, image_size: int, interpolation: str = "area") -> np.ndarray:
    """The part `box` (top, left, height, width) of uint8 (H, W, 3), resized to (image_size, image_size, 3), then mirrored if
    `flip`.

    "area" is OpenCV's INTER_AREA, as FFCV; "bicubic" is Pillow's, which widens its kernel when it shrinks, as torchvision.
    """
    top, left, height, width = (int(side) for side in box)
    crop = pixels[top : top + height, left : left + width]
    if interpolation == "bicubic":
        resized = np.asarray(Image.fromarray(crop).resize((image_size, image_size), Image.Resampling.BICUBIC))
    else:
        resized = cv2.resize(crop, (image_size, image_size), interpolation=_RESAMPLE[interpolation])
    return resized[:, ::-1] if flip else resized


def decode(jpeg: bytes, box: np.ndarray, flip: bool, image_size: int, *, name: str, interpolation: str = "area") -> np.ndarray:
    """One crop of a JPEG file's bytes, uint8 (image_size, image_size, 3). Raises UserError as `decode_image` does.

    A JPEG whose tail was overwritten decodes without complaint, so its end marker is asked for first.
    """
    if not jpeg.endswith(END_OF_IMAGE):
        raise UserError(f"{name}: damaged JPEG (it does not end with an end-of-image marker)")
    return resize_crop(decode_image(jpeg, name), box, flip, image_size, interpolation)

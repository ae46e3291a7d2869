"""DailyMAE, Figure 6: what FFCV's way of storing and decoding changes of a photograph."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from replicate.loaders.crop_decode import Decoding, decode_crop_resize
from replicate.loaders.crops import center_boxes
from replicate.loaders.decode import decode_image
from replicate.loaders.writer import encode_jpeg, shrink

ALL_STEPS = "all three"
WAYS = {  # longest side in pixels (None: as it is), and how it is decoded
    "decoder's fast DCT": (None, Decoding(dct="fast", interpolation="bicubic")),
    "area for bicubic": (None, Decoding(interpolation="area")),
    "compressed to 500_95": (500, Decoding(interpolation="bicubic")),
    ALL_STEPS: (500, Decoding(dct="fast")),
}
QUALITY = 95


def codec_differences(images: Sequence[np.ndarray], size: int = 224) -> pd.DataFrame:
    """An image folder's way against FFCV's: mean absolute difference of photographs in 0..1."""
    found = sample_differences(images, size)
    return pd.DataFrame({"mean difference": {way: f"{np.mean(values):.4f}" for way, values in found.items()}})


def sample_differences(images: Sequence[np.ndarray], size: int = 224) -> dict[str, list[float]]:
    """Of each photograph, what each step alone changes, then all three.

    The steps are the decoder's DCT method, the resize filter, and compression to 500 pixels at quality 95.
    """
    found: dict[str, list[float]] = {way: [] for way in WAYS}
    for image in images:
        original = encode_jpeg(image, QUALITY)
        plain = _view(original, image, size, Decoding(interpolation="bicubic")).astype(np.float32)
        for way, (longest, decoding) in WAYS.items():
            stored, seen = original, image
            if longest is not None:
                seen = shrink(decode_image(original, "photograph"), longest)
                stored = encode_jpeg(seen, QUALITY)
            found[way].append(float(np.abs(plain - _view(stored, seen, size, decoding)).mean() / 255))
    return found


def _view(jpeg: bytes, image: np.ndarray, size: int, decoding: Decoding) -> np.ndarray:
    box = center_boxes(np.array([image.shape[:2]]))[0]
    return decode_crop_resize(jpeg, box, False, size, decoding)


def photographs() -> list[np.ndarray]:
    """The large photographs that scikit-image carries, at least 400 pixels a side."""
    from skimage import data

    found = (data.astronaut(), data.coffee(), data.rocket(), data.immunohistochemistry())
    return [np.ascontiguousarray(image) for image in found]

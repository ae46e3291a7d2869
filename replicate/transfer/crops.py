"""Training crops and colours of segmentation, as BEiT's code for ADE20K draws them.

Random scale, a square crop in which no class covers too much, flip, photometric distortion, padding.
"""

from __future__ import annotations

import cv2
import numpy as np

from replicate.loaders.pixels import IMAGENET_MEAN
from replicate.transfer.ade import IGNORED

LONGEST = 4
"""The long side is at most so many times the short side's target: 2,048 x 512."""
TRIES = 10
BRIGHTNESS = 32
CONTRAST = SATURATION = (0.5, 1.5)
HUE = 18
"""Degrees of 180, as OpenCV counts hue."""
PADDING = tuple(round(255 * mean) for mean in IMAGENET_MEAN)
"""The colour that normalisation makes zero."""


def scale_to(shape: tuple[int, int], short: float, longest: float) -> tuple[int, int]:
    """(height, width) at a short side, or at a smaller one where the long side would exceed."""
    factor = min(short / min(shape), longest / max(shape))
    return max(1, round(shape[0] * factor)), max(1, round(shape[1] * factor))


def resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bilinear for an image (H, W, 3); nearest for a mask (H, W)."""
    how = cv2.INTER_LINEAR if image.ndim == 3 else cv2.INTER_NEAREST
    return image if image.shape[:2] == size else cv2.resize(image, size[::-1], interpolation=how)


def training_crop(
    image: np.ndarray,
    mask: np.ndarray,
    size: int,
    scale: tuple[float, float],
    most_of_a_class: float,
    rng: np.random.Generator,
    flip: bool = True,
) -> tuple[np.ndarray, np.ndarray]:
    """uint8 (size, size, 3) and (size, size); padding is ignored in the mask. All chance comes from `rng`."""
    short = size * rng.uniform(*scale)
    resized = scale_to(image.shape[:2], short, LONGEST * short)
    image, mask = resize(image, resized), resize(mask, resized)
    rows, columns = crop_box(mask, size, most_of_a_class, rng)
    image, mask = image[rows, columns], mask[rows, columns]
    if flip and rng.random() < 0.5:
        image, mask = image[:, ::-1], mask[:, ::-1]
    return padded(distorted(np.ascontiguousarray(image), rng), size), padded(mask, size)


def crop_box(
    mask: np.ndarray, size: int, most_of_a_class: float, rng: np.random.Generator
) -> tuple[slice, slice]:
    """A random square, drawn up to ten times until no class covers more than its share of labelled pixels."""
    for _ in range(TRIES):
        top, left = (int(rng.integers(max(side - size, 0) + 1)) for side in mask.shape)
        box = slice(top, top + size), slice(left, left + size)
        counts = np.bincount(mask[box].ravel(), minlength=256)[:IGNORED]
        if (counts > 0).sum() > 1 and counts.max() < most_of_a_class * counts.sum():
            break
    return box


def padded(pixels: np.ndarray, size: int) -> np.ndarray:
    """The image or mask in the upper left corner of a square."""
    height, width = pixels.shape[:2]
    if (height, width) == (size, size):
        return np.ascontiguousarray(pixels)
    whole = np.empty((size, size, *pixels.shape[2:]), np.uint8)
    whole[:] = PADDING if pixels.ndim == 3 else IGNORED
    whole[:height, :width] = pixels
    return whole


def distorted(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Photometric distortion (Liu et al. 2016): brightness, contrast first or last, saturation, hue."""
    contrast_first = rng.random() < 0.5
    if rng.random() < 0.5:
        image = _scaled(image, 1.0, rng.uniform(-BRIGHTNESS, BRIGHTNESS))
    if contrast_first:
        image = _contrast(image, rng)
    if rng.random() < 0.5:
        hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
        hsv[..., 1] = _scaled(hsv[..., 1], rng.uniform(*SATURATION), 0.0)
        image = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    if rng.random() < 0.5:
        hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
        hsv[..., 0] = (hsv[..., 0].astype(np.int16) + int(rng.integers(-HUE, HUE))) % 180
        image = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    return image if contrast_first else _contrast(image, rng)


def _contrast(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return _scaled(image, rng.uniform(*CONTRAST), 0.0) if rng.random() < 0.5 else image


def _scaled(values: np.ndarray, factor: float, offset: float) -> np.ndarray:
    return np.clip(values.astype(np.float32) * factor + offset, 0, 255).astype(np.uint8)

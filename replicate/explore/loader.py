"""Loader: what a training crop decodes, and what quality and stored resolution cost in bytes and in pixels.

DailyMAE section 4 and Table 4 (crop decode, compression).
"""

from __future__ import annotations

import time
from functools import lru_cache

import cv2
import ipywidgets as widgets
import numpy as np
from matplotlib.patches import Rectangle
from PIL import Image

from replicate.explore import images
from replicate.explore.panel import choice, real, whole
from replicate.loaders import crop_decode
from replicate.loaders.crop_decode import Decoding, decode_crop_resize
from replicate.loaders.crops import random_resized_crop_boxes
from replicate.report.style import MARKERS, PALETTE, PAPER, WIDTH, Figure, new

OUTPUT = 224
QUALITIES = (50, 70, 80, 90, 95, 100)
RESOLUTIONS = (256, 400, 500, 640)
AMPLIFIED = 8


def controls() -> dict[str, widgets.Widget]:
    return {
        "image": choice(list(images.PHOTOGRAPHS), "coffee", "photograph"),
        "quality": whole(20, 100, 90, "JPEG quality"),
        "resolution": choice(list(RESOLUTIONS), 500, "longest side"),
        "low": real(0.02, 1.0, 0.02, 0.08, "least crop area"),
        "seed": whole(0, 20, 0, "crop number"),
    }


def stored_size(image: str, resolution: int) -> tuple[int, int]:
    """(height, width) of a photograph whose longest side is capped."""
    height, width = images.photograph(image).shape[:2]
    scale = min(1.0, resolution / max(height, width))
    return round(height * scale), round(width * scale)


@lru_cache(maxsize=128)
def stored(image: str, quality: int, resolution: int) -> bytes:
    """A photograph as it is stored: its longest side capped, then JPEG."""
    pixels, (height, width) = images.photograph(image), stored_size(image, resolution)
    if pixels.shape[:2] != (height, width):
        pixels = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
    return cv2.imencode(".jpg", pixels[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()


def crop_box(
    image: str, resolution: int, low: float, seed: int
) -> tuple[np.ndarray, tuple[float, float, float, float]]:
    """One training crop (top, left, height, width) of the stored photograph, and the same part of the
    original.

    The latter is (left, top, right, bottom).
    """
    height, width = images.photograph(image).shape[:2]
    sizes = np.array([stored_size(image, resolution)])
    box = random_resized_crop_boxes(sizes, np.array([seed]), seed=0, epoch=0, scale=(low, 1.0))[0]
    down, across = np.array([height, width]) / sizes[0]
    top, left, tall, wide = map(float, box)
    right, bottom = min((left + wide) * across, width), min((top + tall) * down, height)
    return box, (left * across, top * down, right, bottom)


def microseconds(jpeg: bytes, box: np.ndarray, decoding: Decoding, rounds: int = 7) -> float:
    """Median time of decoding one crop to 224 pixels."""
    taken = []
    for _ in range(rounds):
        start = time.perf_counter()
        decode_crop_resize(jpeg, box, False, OUTPUT, decoding)
        taken.append(time.perf_counter() - start)
    return 1e6 * float(np.median(taken))


@lru_cache(maxsize=128)
def times(image: str, quality: int, resolution: int, low: float, seed: int) -> tuple[float, float]:
    """Microseconds of one crop by decoding all of the stored photograph, and by decoding the crop alone."""
    jpeg, (box, _) = stored(image, quality, resolution), crop_box(image, resolution, low, seed)
    full, part = (microseconds(jpeg, box, Decoding(full=full)) for full in (True, False))
    return full, part


def caption(image: str, quality: int, resolution: int, low: float, seed: int) -> str:
    """Bytes, the crop's share and what decoding it alone saves."""
    size = len(stored(image, quality, resolution)) / 1e3
    (_, _, height, width), _ = crop_box(image, resolution, low, seed)
    rows, columns = stored_size(image, resolution)
    text = f"{size:.0f} kB at quality {quality}; the crop is {height * width / rows / columns:.0%} of it."
    if not crop_decode.available():
        return text + " Without the package crop_decode, the whole image is decoded."
    full, part = times(image, quality, resolution, low, seed)
    return f"{text} Decoding it alone takes {part:.0f} µs, not {full:.0f}: {full / part:.1f} times as fast."


def draw(image: str, quality: int, resolution: int, low: float, seed: int) -> Figure:
    """The stored photograph; the training crop; its difference from the original; size against quality."""
    jpeg = stored(image, quality, resolution)
    box, original_box = crop_box(image, resolution, low, seed)
    pixels = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    crop = decode_crop_resize(jpeg, box, False, OUTPUT)
    original = Image.fromarray(images.photograph(image))
    truth = np.asarray(original.resize((OUTPUT, OUTPUT), Image.Resampling.BOX, box=original_box))
    figure, axes = new(2, 2, width=WIDTH * 1.5, height=7.0)
    _photograph(axes[0, 0], pixels, box)
    axes[0, 1].imshow(crop)
    axes[0, 1].set(
        title=f"{OUTPUT} x {OUTPUT}{_times(image, quality, resolution, low, seed)}", xticks=[], yticks=[]
    )
    gap = crop.astype(int) - truth
    axes[1, 0].imshow(np.clip(128 + AMPLIFIED * gap, 0, 255).astype(np.uint8))
    psnr = 10 * np.log10(255**2 / max((gap.astype(float) ** 2).mean(), 1e-9))
    axes[1, 0].set(title=f"difference from the original, x {AMPLIFIED}: {psnr:.1f} dB", xticks=[], yticks=[])
    _sizes(axes[1, 1], image, quality, len(jpeg))
    return figure


def _photograph(axes, pixels: np.ndarray, box: np.ndarray) -> None:
    top, left, height, width = box
    faded = (0.35 * pixels + 0.65 * 255).astype(np.uint8)
    faded[top : top + height, left : left + width] = pixels[top : top + height, left : left + width]
    axes.imshow(faded)
    frame = {"fill": False, "edgecolor": PAPER, "linewidth": 2}
    axes.add_patch(Rectangle((left - 0.5, top - 0.5), width, height, **frame))
    share, size = (
        height * width / (pixels.shape[0] * pixels.shape[1]),
        f"{pixels.shape[1]} x {pixels.shape[0]}",
    )
    axes.set(title=f"{size} stored: {1 - share:.0%} outside the crop", xticks=[], yticks=[])


def _times(*values: str | float) -> str:
    if not crop_decode.available():
        return ""
    full, part = times(*values)
    return f": {full:.0f} µs by the whole, {part:.0f} by the crop"


def _sizes(axes, image: str, quality: int, size: int) -> None:
    for index, resolution in enumerate(RESOLUTIONS):
        sizes = [len(stored(image, at, resolution)) / 1e3 for at in QUALITIES]
        style = {"color": PALETTE[index], "marker": MARKERS[index]}
        axes.plot(QUALITIES, sizes, label=f"{resolution} pixels", **style)
    axes.plot(quality, size / 1e3, "*", color=PAPER, markersize=16)
    title = f"this file: {size / 1e3:.0f} kB"
    axes.set(xlabel="JPEG quality", ylabel="size (kB)", yscale="log", title=title)
    axes.legend()

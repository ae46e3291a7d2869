"""Loader: what a training crop decodes and throws away, and what quality and stored resolution cost in bytes and in pixels.

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
from replicate.report.figures import new
from replicate.report.style import MARKERS, PALETTE, PAPER, WIDTH, Figure

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


@lru_cache(maxsize=128)
def stored(image: str, quality: int, resolution: int) -> bytes:
    """A photograph as it is stored: its longest side capped, then JPEG."""
    pixels = images.photograph(image)
    scale = min(1.0, resolution / max(pixels.shape[:2]))
    if scale < 1:
        size = (round(pixels.shape[1] * scale), round(pixels.shape[0] * scale))
        pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    return cv2.imencode(".jpg", pixels[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()


def box_of(image: str, resolution: int, low: float, seed: int) -> tuple[np.ndarray, tuple[float, float, float, float]]:
    """One training crop (top, left, height, width) of the stored photograph, and the same part (left, top, right, bottom) of the original."""
    height, width = images.photograph(image).shape[:2]
    scale = min(1.0, resolution / max(height, width))
    sizes = np.array([[round(height * scale), round(width * scale)]])
    box = random_resized_crop_boxes(sizes, np.array([seed]), seed=0, epoch=0, scale=(low, 1.0))[0]
    down, across = np.array([height, width]) / sizes[0]
    top, left, tall, wide = (float(side) for side in box)
    return box, (left * across, top * down, min((left + wide) * across, width), min((top + tall) * down, height))


def microseconds(jpeg: bytes, box: np.ndarray, decoding: Decoding, rounds: int = 7) -> float:
    """Median time of decoding one crop to 224 pixels."""
    taken = []
    for _ in range(rounds):
        start = time.perf_counter()
        decode_crop_resize(jpeg, box, False, OUTPUT, decoding)
        taken.append(time.perf_counter() - start)
    return 1e6 * float(np.median(taken))


def draw(image: str, quality: int, resolution: int, low: float, seed: int) -> Figure:
    """The stored photograph with its crop, the crop as it is trained on, its difference from the original's, and size against quality."""
    jpeg = stored(image, quality, resolution)
    box, original_box = box_of(image, resolution, low, seed)
    pixels = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    crop = decode_crop_resize(jpeg, box, False, OUTPUT)
    truth = np.asarray(Image.fromarray(images.photograph(image)).resize((OUTPUT, OUTPUT), Image.Resampling.BOX, box=original_box))
    figure, axes = new(2, 2, width=WIDTH * 1.5, height=7.0)
    _whole(axes[0, 0], pixels, box)
    axes[0, 1].imshow(crop)
    axes[0, 1].set(title=f"{OUTPUT} x {OUTPUT}{_times(jpeg, box)}", xticks=[], yticks=[])
    gap = crop.astype(int) - truth
    axes[1, 0].imshow(np.clip(128 + AMPLIFIED * gap, 0, 255).astype(np.uint8))
    noise = 10 * np.log10(255**2 / max((gap.astype(float) ** 2).mean(), 1e-9))
    axes[1, 0].set(title=f"difference from the original, x {AMPLIFIED}: {noise:.1f} dB", xticks=[], yticks=[])
    _sizes(axes[1, 1], image, quality, len(jpeg))
    return figure


def _whole(axes, pixels: np.ndarray, box: np.ndarray) -> None:
    top, left, height, width = box
    faded = (0.35 * pixels + 0.65 * 255).astype(np.uint8)
    faded[top : top + height, left : left + width] = pixels[top : top + height, left : left + width]
    axes.imshow(faded)
    axes.add_patch(Rectangle((left - 0.5, top - 0.5), width, height, fill=False, edgecolor=PAPER, linewidth=2))
    share = height * width / (pixels.shape[0] * pixels.shape[1])
    axes.set(title=f"{pixels.shape[1]} x {pixels.shape[0]} stored: {1 - share:.0%} outside the crop", xticks=[], yticks=[])


def _times(jpeg: bytes, box: np.ndarray) -> str:
    if not crop_decode.available():
        return ""
    full, part = (microseconds(jpeg, box, Decoding(full=whole)) for whole in (True, False))
    return f": {full:.0f} µs by the whole, {part:.0f} by the crop"


def _sizes(axes, image: str, quality: int, size: int) -> None:
    for index, resolution in enumerate(RESOLUTIONS):
        sizes = [len(stored(image, at, resolution)) / 1e3 for at in QUALITIES]
        axes.plot(QUALITIES, sizes, color=PALETTE[index], marker=MARKERS[index], label=f"{resolution} pixels")
    axes.plot(quality, size / 1e3, "*", color=PAPER, markersize=16)
    axes.set(xlabel="JPEG quality", ylabel="size (kB)", yscale="log", title=f"this file: {size / 1e3:.0f} kB")
    axes.legend()

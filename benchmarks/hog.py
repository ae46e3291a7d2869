"""What the HOG target costs: against scikit-image in a loop, and against its pre-training step.

Run: python benchmarks/hog.py [--images 256] [--batch 16] [--rounds 5]

Ours takes a batch of 8-bit images at 224 pixels to units of 16 pixels. Theirs takes one image and colour at a
time through scipy's Sobel filter and scikit-image's cell histograms, and normalises. Both run with torch's
default number of threads, then with one. In the last rows "theirs" is a FastMIM step of ViT-B at 128 pixels
(forward and backward, bfloat16 autocast, no optimiser): a ratio of 20 is 5 % of the step.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from scipy.ndimage import sobel
from skimage.feature import _hoghistogram
from torch import Tensor

from replicate.cost.bench import compare, interleave, write_results
from replicate.loaders.pixels import normalise
from replicate.losses.reconstruction import reconstruction_loss
from replicate.models.backbones import build_encoder
from replicate.models.mim import MIM
from replicate.targets.hog import BINS, CELL, EPSILON, Target


def scikit_loop(images: np.ndarray) -> None:
    side = images.shape[-1] // CELL
    for plane in images.reshape(-1, *images.shape[-2:]):
        across, down = sobel(plane, axis=1, mode="mirror"), sobel(plane, axis=0, mode="mirror")
        cells = np.zeros((side, side, BINS))
        _hoghistogram.hog_histograms(down, across, CELL, CELL, *plane.shape[::-1], side, side, BINS, cells)
        cells /= np.maximum(np.linalg.norm(cells, axis=-1, keepdims=True), EPSILON)


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def pixels(count: int, size: int) -> Tensor:
    """8-bit pictures with structure at every scale, as in photographs; noise costs a different time."""
    generator = torch.Generator().manual_seed(0)
    layers = [
        torch.randn(count, 3, size // scale, size // scale, generator=generator) * scale
        for scale in (1, 4, 16)
    ]
    resized = [torch.nn.functional.interpolate(layer, size=size, mode="bilinear") for layer in layers]
    return (sum(resized) * 8 + 128).clamp(0, 255).to(torch.uint8)


def against_scikit_image(count: int, rounds: int, device: str) -> list[dict[str, Any]]:
    images, target, rows = pixels(count, 224), Target(16), []
    numbers = [torch.get_num_threads(), 1] if device == "cpu" else [torch.get_num_threads()]
    for number in dict.fromkeys(numbers):
        with threads(number):
            cases = {
                "ours": partial(target, images.to(device)),
                "scikit": partial(scikit_loop, images.numpy().astype(np.float64)),
            }
            times = interleave(cases, rounds)
            case = f"{count} images, 224 px, {device}" + (f", {number} threads" if device == "cpu" else "")
            rows.append(compare("hog batch vs scikit-image loop", case, times["ours"], times["scikit"]))
    return rows


def step(model: MIM, images: Tensor, target: Tensor) -> None:
    with torch.autocast(images.device.type, torch.bfloat16):
        prediction = model(images)
    reconstruction_loss(prediction.pred, target, prediction.scored).backward()
    model.zero_grad(set_to_none=True)


def against_a_step(batch: int, rounds: int, device: str) -> list[dict[str, Any]]:
    torch.manual_seed(0)
    target = Target(16)
    model = MIM(build_encoder("vit_base_patch16", 128), target.dim).to(device)
    raw = pixels(batch, 128).to(device)
    images, units = normalise(raw), target(raw)
    cases = {
        "raw": partial(target, raw),
        "normalised": partial(target, images),
        "step": partial(step, model, images, units),
    }
    times = interleave(cases, rounds)
    return [
        compare(
            f"hog of {kind} pixels in a step",
            f"ViT-B, 128 px, batch {batch}, {device}",
            times[kind],
            times["step"],
            percent=100 * times[kind].median / times["step"].median,
        )
        for kind in ("raw", "normalised")
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows = against_scikit_image(options.images, options.rounds, device)
    write_results("hog", rows + against_a_step(options.batch, options.rounds, device))


if __name__ == "__main__":
    main()

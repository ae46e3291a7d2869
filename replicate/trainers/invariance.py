"""How well HOG and pixels survive a change of resolution (FastMIM Figures 3, 8 and 9), without training."""

from __future__ import annotations

from typing import Any

import torch

from replicate.targets.hog import CELL
from replicate.targets.similarity import similarities
from replicate.trainers.checkpoints import Checkpoints
from replicate.trainers.context import RunContext
from replicate.trainers.images import whole_loader

IMAGES = 1000


def train_seed(context: RunContext, seed: int, checkpoints: Checkpoints) -> dict[str, Any]:
    """Mean PSNR and SSIM between the image sizes of run and pre-training, over at most 1,000 images.

    Each seed takes other images, so that the interval over seeds is one over images.
    """
    source = context.upstream_run
    size, cell = source.image_size, source.target_options.get("cell", CELL)
    found: dict[str, list[torch.Tensor]] = {}
    with whole_loader(context, "train", context.run.image_size) as loader:
        step = -(-loader.num_images // (IMAGES * context.seeds))
        for images, _, index in loader.epoch(0):
            mine = index % (step * context.seeds) == seed * step
            if mine.any():
                for name, values in similarities(images[mine], size, cell).items():
                    found.setdefault(name, []).append(values)
    means = {name: float(torch.cat(values).mean()) for name, values in found.items()}
    return {"results": means | {"images": sum(map(len, found["psnr_hog"]))}, "history": []}

"""Reconstructions of a few validation images while a pre-training goes on, for the loggers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from replicate.loaders.pixels import denormalise, normalise
from replicate.patches import unpatchify
from replicate.trainers.images import validation_loader

if TYPE_CHECKING:
    from replicate.trainers.context import RunContext

COUNT = 4


class Pictures:
    """Masked image, prediction and original in a row, an image a line; none for targets that are no picture.

    `task` is pre-training's (`trainers.pretrain`). Called between epochs. Draws no random number that
    training would: the masks are fixed.
    """

    def __init__(self, task: nn.Module, context: RunContext) -> None:
        self.task, self.context = task, context

    @torch.no_grad()
    def __call__(self) -> dict[str, np.ndarray]:
        """{"reconstruction": uint8 (COUNT * S, 3 * S, 3)}, or nothing."""
        task, run = self.task, self.context.run
        if run.target != "pixel":
            return {}
        images = self._images(task.model.image_size[0]).to(self.context.session.device)
        task.eval()
        generator = torch.Generator().manual_seed(0)
        noise = torch.rand(len(images), task.model.num_patches, generator=generator).to(images.device)
        found = task.model(normalise(images), noise, task.mask_ratio)
        pixels = task.target.unnormalise(found.pred, images)
        predicted = denormalise(unpatchify(pixels, run.patch_size, found.grid))
        hidden = found.mask[..., None].expand(-1, -1, run.patch_size**2)
        hidden = unpatchify(hidden, run.patch_size, found.grid, channels=1) > 0
        rows = [images.where(~hidden, 128), predicted.where(hidden, images), images]
        sheet = torch.cat([row.clamp(0, 255).to(torch.uint8) for row in rows], dim=3)
        return {"reconstruction": torch.cat(list(sheet), dim=1).permute(1, 2, 0).cpu().numpy()}

    def _images(self, size: int) -> Tensor:
        """The first validation images (n, 3, size, size) uint8."""
        with validation_loader(self.context, size) as loader:
            for images, *_ in loader.epoch(0):
                return images[:COUNT]
        raise RuntimeError("the validation set is empty")

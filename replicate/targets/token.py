"""Discrete tokens as the target, scored by cross-entropy (MAE Tables 1d and 6, after BEiT)."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from replicate.loaders.pixels import as_normalised
from replicate.models.tokenizer import load_tokenizer
from replicate.patches import grid_of


class Target(nn.Module):
    """The token of each patch from a frozen tokenizer; `dim` is the size of its vocabulary.

    tokenizer   a file (see `load_tokenizer`), or a module with `vocabulary`, `stride` and `ids(images)`

    If the tokenizer's stride is not the patch size, the image is resized to one token a patch, as in BEiT:
    112 pixels at a stride of 8, 224 at patches of 16.
    """

    loss = "cross_entropy"

    def __init__(self, patch_size: int, tokenizer: str | Path | nn.Module) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.tokenizer = tokenizer if isinstance(tokenizer, nn.Module) else load_tokenizer(tokenizer)
        self.tokenizer.requires_grad_(False).eval()
        self.dim = self.tokenizer.vocabulary

    def train(self, mode: bool = True) -> Target:
        """Keeps the tokenizer in evaluation mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, L) int64."""
        rows, columns = grid_of(tuple(images.shape[-2:]), self.patch_size)
        images = as_normalised(images)
        stride = self.tokenizer.stride
        if stride != self.patch_size:
            size = (rows * stride, columns * stride)
            images = functional.interpolate(images, size, mode="bicubic", antialias=True, align_corners=False)
        with torch.autocast(images.device.type, enabled=False):
            return self.tokenizer.ids(images.float())

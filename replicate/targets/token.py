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
    """The token that a frozen tokenizer gives each patch; `dim` is the size of its vocabulary.

    tokenizer: a file (one of the workbook's own, or a released discrete VAE, see `load_tokenizer`), or a module with
    `vocabulary`, `stride` and `ids(images)`. Where the tokenizer's stride is not the patch size the image is resized first, so
    that there is one token a patch, as BEiT does (112 pixels for a stride of 8 beside 224 for patches of 16).
    """

    loss = "cross_entropy"

    def __init__(self, patch_size: int, tokenizer: str | Path | nn.Module) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.tokenizer = tokenizer if isinstance(tokenizer, nn.Module) else load_tokenizer(tokenizer)
        self.tokenizer.requires_grad_(False).eval()
        self.dim = self.tokenizer.vocabulary

    def train(self, mode: bool = True) -> Target:
        """The tokenizer stays in evaluation mode, whatever the run around it does."""
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

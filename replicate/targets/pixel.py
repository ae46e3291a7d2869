"""Pixels as the target, normalised within each patch or not (MAE sec 3, Table 1d)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from replicate.loaders.pixels import as_normalised
from replicate.patches import patchify

EPSILON = 1e-6


def statistics(patches: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation, (N, L, 1) each, of all values of a patch, the three channels together.

    The variance is unbiased (divided by D - 1), plus 1e-6, as in the reference implementation.
    """
    variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
    return mean, (variance + EPSILON).sqrt()


class Target(nn.Module):
    """A patch's pixels; `norm_pix` subtracts their mean and divides by their standard deviation."""

    loss = "mse"

    def __init__(self, patch_size: int, norm_pix: bool = True) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.norm_pix = norm_pix
        self.dim = patch_size**2 * 3

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, L, patch_size**2 * 3)."""
        patches = patchify(as_normalised(images), self.patch_size)
        if not self.norm_pix:
            return patches
        mean, deviation = statistics(patches.float())
        return (patches - mean) / deviation

    @torch.no_grad()
    def unnormalise(self, pred: Tensor, images: Tensor) -> Tensor:
        """Predictions (N, L, D) as pixels of the normalised space, for pictures.

        For normalised pixels this takes each patch's true mean and deviation from `images`. The model does
        not know them, so label such a picture. Unnormalised predictions stay as they are.
        """
        if not self.norm_pix:
            return pred
        mean, deviation = statistics(patchify(as_normalised(images), self.patch_size).float())
        return pred * deviation + mean

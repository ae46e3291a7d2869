"""Pixels as the target, normalised within each patch or not (MAE sec 3, Table 1d)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from replicate.errors import UserError

EPSILON = 1e-6  # added to the patch's variance, as the reference implementation does


def as_normalised(images: Tensor) -> Tensor:
    """Floats in the normalised space: raw uint8 images (N, 3, H, W) are converted, float images are taken to be there already."""
    if images.is_floating_point():
        return images
    from replicate.loaders.pixels import normalise  # only raw input needs it

    return normalise(images)


def patchify(images: Tensor, patch_size: int) -> Tensor:
    """(N, 3, H, W) -> (N, L, patch_size**2 * 3): raster order of patches; within one, row, then column, then channel.

    Raises UserError when a side is not a multiple of the patch size.
    """
    batch, channels, height, width = images.shape
    if height % patch_size or width % patch_size:
        raise UserError(f"image size {height}x{width} is not a multiple of patch size {patch_size}")
    rows, columns = height // patch_size, width // patch_size
    split = images.reshape(batch, channels, rows, patch_size, columns, patch_size)
    return split.permute(0, 2, 4, 3, 5, 1).reshape(batch, rows * columns, patch_size**2 * channels)


def unpatchify(patches: Tensor, grid: tuple[int, int], patch_size: int) -> Tensor:
    """The inverse of `patchify`: (N, rows * columns, patch_size**2 * 3) -> (N, 3, H, W)."""
    rows, columns = grid
    split = patches.reshape(len(patches), rows, columns, patch_size, patch_size, -1)
    return split.permute(0, 5, 1, 3, 2, 4).reshape(len(patches), -1, rows * patch_size, columns * patch_size)


def statistics(patches: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation, (N, L, 1) each, of all values of a patch, the three channels together.

    The variance is the unbiased one (divided by D - 1) plus 1e-6: the paper only says "standard deviation", the
    released models use this.
    """
    variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
    return mean, (variance + EPSILON).sqrt()


class Target(nn.Module):
    """The pixels of each patch; `norm_pix` subtracts the patch's mean and divides by its standard deviation."""

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

        For normalised pixels this borrows each patch's true mean and deviation from `images`: the picture then shows
        something that the model was never told, and has to be labelled so. Unnormalised predictions are returned as
        they are.
        """
        if not self.norm_pix:
            return pred
        mean, deviation = statistics(patchify(as_normalised(images), self.patch_size).float())
        return pred * deviation + mean

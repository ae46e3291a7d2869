"""The leading principal components of a patch as the target: 96 of a 16x16 patch (MAE sec 4.1, Table 1d)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from replicate.errors import UserError
from replicate.loaders.pixels import as_normalised
from replicate.patches import patchify

_SHARE = 8  # 96 coefficients of 768 values: an eighth, whatever the patch size


class Target(nn.Module):
    """A patch's coefficients on the leading principal axes of the training set's patches.

    First call `fit`, or load a state: mean and axes are buffers. The axes are orthonormal and the
    coefficients are not rescaled, so the error is that of the pixels within the 96 dimensions. MAE keeps the
    "largest PCA coefficients" and mentions no scale. `components` None is an eighth of the patch's values.
    """

    loss = "mse"

    def __init__(self, patch_size: int, components: int | None = None) -> None:
        super().__init__()
        values = patch_size**2 * 3
        self.patch_size = patch_size
        self.dim = components or max(1, values // _SHARE)
        if self.dim > values:
            patch = f"a {patch_size}x{patch_size} patch has {values} values"
            raise UserError(f"target pca: {self.dim} components, but {patch}")
        self.register_buffer("mean", torch.zeros(values))
        self.register_buffer("axes", torch.zeros(values, self.dim))

    @property
    def needs_fit(self) -> bool:
        return not bool(self.axes.any())

    @torch.no_grad()
    def fit(self, batches: Iterable[Tensor]) -> Target:
        """Fit to batches of images (N, 3, H, W), raw or normalised, in one pass. Returns itself.

        Moments are summed in double precision, so the batch size has no effect. The largest entry of an axis
        is positive. Raises UserError if there are fewer patches than components.
        """
        count, total, moment = 0, 0.0, 0.0
        for images in batches:
            patches = self._patches(images.to(self.mean.device)).flatten(0, 1).double()
            count, total, moment = (
                count + len(patches),
                total + patches.sum(dim=0),
                moment + patches.t() @ patches,
            )
        if count <= self.dim:
            raise UserError(f"target pca: {count} patches are too few to fit {self.dim} components")
        mean = total / count
        axes = torch.linalg.eigh(moment / count - torch.outer(mean, mean)).eigenvectors.flip(1)[:, : self.dim]
        largest = axes.gather(0, axes.abs().argmax(dim=0, keepdim=True))
        self.mean.copy_(mean)
        self.axes.copy_(axes * largest.sign())
        return self

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, L, components). Raises UserError before `fit`."""
        if self.needs_fit:
            raise UserError(
                "target pca has not been fitted: call fit() on the training images, or load its state"
            )
        with torch.autocast(images.device.type, enabled=False):
            return (self._patches(images) - self.mean) @ self.axes

    @torch.no_grad()
    def unnormalise(self, pred: Tensor, images: Tensor) -> Tensor:
        """Predicted coefficients (N, L, components) as pixels (N, L, D) of the normalised space."""
        return pred.float() @ self.axes.t() + self.mean

    def _patches(self, images: Tensor) -> Tensor:
        return patchify(as_normalised(images), self.patch_size).float()

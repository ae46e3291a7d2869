"""Difficulty-Flatten Loss: hard targets weigh less, by d**-gamma (Efficient MAE sec 4.1, Eq. 2)."""

from __future__ import annotations

import torch
from torch import Tensor

from replicate.errors import UserError
from replicate.losses.weights import equal, normalise_per_image


class Weighting:
    """Weight d**-gamma for difficulty d. gamma 0 is the plain mean, bit for bit, and needs no difficulty.

    Eq. 2 sums over "the set of masked patches"; here this is one image's set, so the weights of every image
    sum to 1. If the loss is on all patches, visible units count as 1 pixel away, the least of a masked pixel.
    Infinitely hard units get no weight. Raises UserError for a negative gamma.
    """

    def __init__(self, gamma: float = 0.6) -> None:
        if not gamma >= 0:
            raise UserError(f"weighting flatten: gamma is {gamma}; it must be 0 or larger")
        self.gamma = float(gamma)

    @property
    def needs_difficulty(self) -> bool:
        return self.gamma > 0

    def __call__(self, difficulty: Tensor | None, scored: Tensor, progress: float = 1.0) -> Tensor:
        """difficulty, scored (N, L) -> weights (N, L) that sum to 1 over an image's scored units."""
        if not self.needs_difficulty:
            return equal(scored)
        precise = difficulty.to(torch.promote_types(difficulty.dtype, torch.float32))
        return normalise_per_image(precise.where(precise > 0, 1.0).pow(-self.gamma), scored)

"""Difficulty-Flatten Loss: hard targets weigh less, by d**-gamma (Efficient MAE sec 4.1, Eq. 2)."""

from __future__ import annotations

import torch
from torch import Tensor

from replicate.errors import UserError
from replicate.losses.uniform import Weighting as Uniform
from replicate.losses.uniform import normalise_per_image


class Weighting:
    """Weight d**-gamma, d being P2Dist or one of its rivals; gamma 0 is the plain mean, bit for bit, and reads no P2Dist.

    Eq. 2 sums over "the set of masked patches"; here that is one image's, so that the weights of every image sum to 1. Where
    visible units are scored too (loss on all patches) they count as 1 pixel away, the least that a masked pixel can be.
    Infinitely hard units get no weight.
    """

    def __init__(self, gamma: float = 0.6) -> None:
        if not gamma >= 0:
            raise UserError(f"weighting flatten: gamma is {gamma}, it must be 0 or larger")
        self.gamma = float(gamma)

    @property
    def needs_p2dist(self) -> bool:
        return self.gamma > 0

    def __call__(self, p2dist: Tensor | None, scored: Tensor, progress: float = 1.0) -> Tensor:
        """p2dist, scored (N, L) -> weights (N, L) that sum to 1 over an image's scored units."""
        if not self.needs_p2dist:
            return Uniform()(p2dist, scored, progress)
        distance = p2dist.to(torch.promote_types(p2dist.dtype, torch.float32)).where(p2dist > 0, 1.0)
        return normalise_per_image(distance.pow(-self.gamma), scored)

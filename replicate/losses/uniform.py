"""The plain mean over the scored units: MAE's own weighting, and the form that every other weighting is normalised to."""

from __future__ import annotations

import torch
from torch import Tensor


def normalise_per_image(factor: Tensor, scored: Tensor) -> Tensor:
    """Scales non-negative factors to weights that sum to 1 over each image's scored units.

    factor, scored: (N, L). Returns (N, L) in at least float32, zero where `scored` is zero. An image with no scored
    unit, or whose factors are all zero, gets weights of zero: it has no say in the loss, and `reconstruction_loss`
    leaves it out of the mean.
    """
    kept = factor.where(scored > 0, 0.0)
    total = kept.sum(dim=1, keepdim=True)
    return kept / total.where(total > 0, 1.0)


def within(p2dist: Tensor, scored: Tensor, beta: float) -> Tensor:
    """Equal weights (N, L) over the scored units with P2Dist <= beta."""
    return normalise_per_image((p2dist <= beta).to(torch.promote_types(p2dist.dtype, torch.float32)), scored)


class Weighting:
    """Every scored unit weighs the same."""

    needs_p2dist = False

    def __call__(self, p2dist: Tensor | None, scored: Tensor, progress: float = 1.0) -> Tensor:
        """p2dist is not read and may be None; scored (N, L). Returns (N, L) weights."""
        precise = torch.promote_types(scored.dtype, torch.float32)
        return normalise_per_image(scored.ne(0).to(precise), scored)

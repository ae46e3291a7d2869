"""What the weightings share: weights that sum to 1 over an image's scored units."""

from __future__ import annotations

import torch
from torch import Tensor


def normalise_per_image(factor: Tensor, scored: Tensor) -> Tensor:
    """Scale non-negative factors to weights that sum to 1 over each image's scored units.

    factor, scored: (N, L). Returns (N, L) in at least float32, zero where `scored` is zero. An image without
    a scored unit, or with factors of zero only, gets weights of zero: `reconstruction_loss` leaves it out of
    the mean.
    """
    kept = factor.where(scored > 0, 0.0)
    total = kept.sum(dim=1, keepdim=True)
    return kept / total.where(total > 0, 1.0)


def equal(scored: Tensor) -> Tensor:
    """Equal weights (N, L) over the scored units: MAE's plain mean."""
    precise = torch.promote_types(scored.dtype, torch.float32)
    return normalise_per_image(scored.ne(0).to(precise), scored)


def within(difficulty: Tensor, scored: Tensor, beta: float) -> Tensor:
    """Equal weights (N, L) over the scored units with difficulty <= beta."""
    precise = torch.promote_types(difficulty.dtype, torch.float32)
    return normalise_per_image((difficulty <= beta).to(precise), scored)

"""The plain mean over the scored units: MAE's own weighting."""

from __future__ import annotations

from torch import Tensor

from replicate.losses.weights import equal


class Weighting:
    """Every scored unit weighs the same."""

    needs_difficulty = False

    def __call__(self, difficulty: Tensor | None, scored: Tensor, progress: float = 1.0) -> Tensor:
        """scored (N, L) -> weights (N, L). `difficulty` has no effect and may be None."""
        return equal(scored)

"""A curriculum that admits targets from easy to hard (Efficient MAE sec 5.3.3, Table 6 b)."""

from __future__ import annotations

from torch import Tensor

from replicate.errors import UserError
from replicate.losses.weights import within


class Weighting:
    """Thresholding with a threshold that rises linearly from `start` to `end` pixels over pre-training.

    The paper states neither the ends nor the pace. `start` is the smallest threshold of its Table 8, which
    keeps half of the masked patches. `end` admits 999 of 1000 at ratio .85, because the paper complains that
    this rival ends without any restriction. Both are in pixels at patch size 16. Raises UserError for an end
    below the start.
    """

    needs_difficulty = True

    def __init__(self, start: float = 9.0, end: float = 70.0) -> None:
        if end < start:
            raise UserError(
                f"weighting curriculum: end {end} is below start {start}; the threshold must rise"
            )
        self.start, self.end = float(start), float(end)

    def threshold(self, progress: float) -> float:
        """The threshold in pixels at this fraction (0..1) of pre-training."""
        return self.start + (self.end - self.start) * min(max(progress, 0.0), 1.0)

    def __call__(self, difficulty: Tensor, scored: Tensor, progress: float = 1.0) -> Tensor:
        """difficulty, scored (N, L) -> weights (N, L): zeros for an image without an admitted unit."""
        return within(difficulty, scored, self.threshold(progress))

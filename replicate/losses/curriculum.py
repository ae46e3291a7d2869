"""Difficulty scheduling: a curriculum that admits targets from easy to hard (Efficient MAE sec 5.3.3, Table 6 b)."""

from __future__ import annotations

from torch import Tensor

from replicate.errors import UserError
from replicate.losses.uniform import within


class Weighting:
    """Difficulty thresholding whose threshold expands linearly from `start` to `end` pixels over pre-training.

    The paper states neither the ends nor the pace. `start` is the smallest threshold of its Table 8, which keeps half of the
    masked patches; `end` admits all but one in a thousand at ratio .85, because the paper's complaint about this rival is that
    in the end no restriction is left. Both are in pixels at patch size 16.
    """

    needs_p2dist = True

    def __init__(self, start: float = 9.0, end: float = 70.0) -> None:
        if end < start:
            raise UserError(f"weighting curriculum: end {end} lies below start {start}; the threshold must expand")
        self.start, self.end = float(start), float(end)

    def threshold(self, progress: float) -> float:
        """The threshold in pixels when this fraction (0..1) of pre-training is done."""
        return self.start + (self.end - self.start) * min(max(progress, 0.0), 1.0)

    def __call__(self, p2dist: Tensor, scored: Tensor, progress: float = 1.0) -> Tensor:
        """p2dist, scored (N, L) -> weights (N, L); an image without any admitted unit gets zeros."""
        return within(p2dist, scored, self.threshold(progress))

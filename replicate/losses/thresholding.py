"""Difficulty thresholding: discard targets beyond a P2Dist (Efficient MAE sec 5.3.3, Table 6 a)."""

from __future__ import annotations

from torch import Tensor

from replicate.losses.weights import within


class Weighting:
    """Equal weights up to `beta` pixels, none beyond.

    The paper names no threshold here. 26 is its threshold for decoder masking, and the accuracy of that
    without DFLoss (Table 8 a, 84.3) is this row's. Unlike decoder masking, thresholding leaves the decoder's
    input as it is.
    """

    needs_difficulty = True

    def __init__(self, beta: float = 26.0) -> None:
        self.beta = float(beta)

    def __call__(self, difficulty: Tensor, scored: Tensor, progress: float = 1.0) -> Tensor:
        """difficulty, scored (N, L) -> weights (N, L): zeros for an image with no unit within `beta`."""
        return within(difficulty, scored, self.beta)

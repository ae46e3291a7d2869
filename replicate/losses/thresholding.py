"""Difficulty thresholding: targets beyond a P2Dist are discarded (Efficient MAE sec 5.3.3, Table 6 a)."""

from __future__ import annotations

from torch import Tensor

from replicate.losses.uniform import within


class Weighting:
    """Equal weights up to `beta` pixels, none beyond.

    The paper names no threshold for this row; 26 is the one that it uses for decoder masking, and its accuracy without DFLoss
    (Table 8 a, 84.3) is this row's. Unlike decoder masking this leaves the decoder's input as it is.
    """

    needs_p2dist = True

    def __init__(self, beta: float = 26.0) -> None:
        self.beta = float(beta)

    def __call__(self, p2dist: Tensor, scored: Tensor, progress: float = 1.0) -> Tensor:
        """p2dist, scored (N, L) -> weights (N, L); an image whose units all lie beyond the threshold gets zeros."""
        return within(p2dist, scored, self.beta)

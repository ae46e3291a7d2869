"""What a pre-training model hands to the loss: the same for every paper."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Prediction(NamedTuple):
    """One forward pass over N images of L units (patches or mask units), D predicted values a unit, C channels.

    pred    (N, L, D) prediction for every unit in raster order; units that never entered the decoder hold zeros
    mask    (N, L) float, 0 = visible, 1 = masked
    scored  (N, L) float, 1 = enters the loss
    latent  encoder output after its last norm: MAE (N, 1 + visible, C), class token first; image-space masking (N, L,
            C)
    p2dist  (N, L) P2Dist in pixels, or the rival metric that the run names; None when nothing asked for it
    grid    (rows, columns) of units
    """

    pred: Tensor
    mask: Tensor
    scored: Tensor
    latent: Tensor
    p2dist: Tensor | None
    grid: tuple[int, int]

"""The reconstruction loss: one error per unit, weighted within its image, averaged over the batch.

Source: MAE sec 3; Efficient MAE Eq. 2. Eq. 2 prints the error as ||p - t||_2, unsquared, and calls it MAE's
l2 loss. But MAE's loss is the mean squared error, and so is the baseline that Efficient MAE reports: .407 at
ratio .75 (Table 2) is a mean square of normalised pixels; the norm of 768 of them would be near 18. So the
default is squared, and `norm="l2"` is Eq. 2 as printed.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from replicate.errors import UserError
from replicate.losses.weights import equal

NORMS = ("mse", "l1", "l2")


def per_unit_error(pred: Tensor, target: Tensor, norm: str = "mse") -> Tensor:
    """The error of every unit, (N, L) in at least float32: what the loss averages and a loss map draws.

    pred    (N, L, D)
    target  (N, L, D) real values, or (N, L) integers: class ids below D, scored by cross-entropy
    norm    "mse", the mean over D of the squared difference; "l1", of the absolute one (SimMIM sec 4.1);
            "l2", the Euclidean norm over D (Efficient MAE Eq. 2 as printed)

    Raises UserError for an unknown norm.
    """
    if norm not in NORMS:
        raise UserError(f"loss norm: {norm!r} does not exist; choose one of {', '.join(NORMS)}")
    precise = torch.promote_types(pred.dtype, torch.float32)
    with torch.autocast(pred.device.type, enabled=False):
        if not target.is_floating_point():
            return functional.cross_entropy(pred.to(precise).transpose(1, 2), target.long(), reduction="none")
        difference = pred.to(precise) - target.to(precise)
        if norm == "l1":
            return difference.abs().mean(dim=-1)
        if norm == "l2":
            return torch.linalg.vector_norm(difference, dim=-1)
        return difference.square().mean(dim=-1)


def reconstruction_loss(
    pred: Tensor, target: Tensor, scored: Tensor, weights: Tensor | None = None, norm: str = "mse"
) -> Tensor:
    """The loss of a batch, a scalar.

    pred     (N, L, D)
    target   (N, L, D), or integer (N, L)
    scored   (N, L), 1 for units in the loss
    weights  (N, L), which sum to 1 over an image's scored units (a `Weighting`); None is uniform

    An image without any weight (decoder masking can drop all its units) is not in the mean; a batch without
    images has loss 0. With uniform weights and equal counts this is MAE's loss, sum(error * mask) /
    sum(mask). With other counts every image still has the same weight: Eq. 2 of Efficient MAE for each image.
    """
    if weights is None:
        weights = equal(scored)
    error = per_unit_error(pred, target, norm)
    weights = weights.to(error.dtype) * (scored > 0)
    images = (weights.sum(dim=1) > 0).sum().clamp(min=1)
    return (error * weights).sum() / images

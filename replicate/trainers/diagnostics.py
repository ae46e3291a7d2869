"""Measurements of a finished pre-training: the error by P2Dist and the memory of a step."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from replicate.difficulty import p2dist
from replicate.models.activations import activation_bytes

PATCH = 16
BIN, BINS = 4.0, 64
LEAST_SHARE = 0.002
MEASURED_IMAGES = 8


class ErrorByP2Dist:
    """Mean error of masked units by their P2Dist on validation images (Efficient MAE Figure 2, lower part).

    P2Dist is exact and in the paper's pixels (patches of 16) at every budget, whatever metric the run uses.
    Bins are 4 pixels wide. Bins with less than 0.2 % of the units are left out: too few errors for a mean.
    """

    def __init__(self) -> None:
        self.errors = torch.zeros(BINS, dtype=torch.float64)
        self.units = torch.zeros(BINS, dtype=torch.float64)

    def add(self, error: Tensor, mask: Tensor, scored: Tensor, grid: tuple[int, int]) -> None:
        """Count the masked and scored units of a batch: error, mask, scored (N, L)."""
        distance = p2dist(mask, grid, PATCH)
        chosen = (mask > 0) & (scored > 0) & distance.isfinite()
        number = (distance[chosen] / BIN).long().clamp_(max=BINS - 1).cpu()
        self.errors.index_add_(0, number, error[chosen].double().cpu())
        self.units.index_add_(0, number, torch.ones(len(number), dtype=torch.float64))

    def results(self, all_reduce_sum: Callable[..., list[float]]) -> dict[str, float]:
        """`loss_p2dist_<middle of the bin in pixels>` -> mean error; nothing where no unit is masked."""
        summed = all_reduce_sum(*self.errors.tolist(), *self.units.tolist())
        errors, units = summed[:BINS], summed[BINS:]
        least = LEAST_SHARE * sum(units)
        return {
            f"loss_p2dist_{(k + 0.5) * BIN:g}": errors[k] / units[k] for k in range(BINS) if units[k] > least
        }


def activation_gb(
    forward: Callable[[Tensor], object], parameters: Iterable[Tensor], images: Tensor, batch_size: int
) -> float:
    """Gigabytes (1e9 bytes) that autograd keeps for one step of `batch_size` images, without weights.

    Measured on `images` (uint8, a few) and scaled in proportion. It is the same number on every device.
    """

    def with_gradient() -> object:
        with torch.enable_grad():
            return forward(images)

    return activation_bytes(with_gradient, parameters) / len(images) * batch_size / 1e9

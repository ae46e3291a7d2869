"""What is measured of a finished pre-training beside its loss: the error by difficulty, and the memory of its step."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from replicate.difficulty import p2dist
from replicate.models.activations import activation_bytes

if TYPE_CHECKING:
    from replicate.trainers.pretrain import PretrainTask
    from replicate.trainers.session import Session

PATCH = 16
BIN, BINS = 4.0, 64
LEAST_SHARE = 0.002
MEASURED_IMAGES = 8


class ErrorByP2Dist:
    """Mean error of masked units by their P2Dist on validation images (Efficient MAE Figure 2, lower part).

    P2Dist is exact and in the paper's pixels, patches of 16, at every budget and for every run, whatever metric the run itself
    reads. Bins are 4 pixels wide. A bin that holds less than 0.2 % of the units is left out: its mean is one of a few dozen errors.
    """

    def __init__(self) -> None:
        self.errors = torch.zeros(BINS, dtype=torch.float64)
        self.units = torch.zeros(BINS, dtype=torch.float64)

    def add(self, error: Tensor, mask: Tensor, scored: Tensor, grid: tuple[int, int]) -> None:
        """A batch: error, mask, scored (N, L). What is visible, or has no prediction, or nothing visible to be far from, does not count."""
        distance = p2dist(mask, grid, PATCH)
        chosen = (mask > 0) & (scored > 0) & distance.isfinite()
        number = (distance[chosen] / BIN).long().clamp_(max=BINS - 1).cpu()
        self.errors.index_add_(0, number, error[chosen].double().cpu())
        self.units.index_add_(0, number, torch.ones(len(number), dtype=torch.float64))

    def results(self, all_reduce_sum: Callable[..., list[float]]) -> dict[str, float]:
        """`loss_p2dist_<middle of the bin in pixels>` -> mean error; nothing where no unit is masked."""
        summed = all_reduce_sum(*self.errors.tolist(), *self.units.tolist())
        errors, units = summed[:BINS], summed[BINS:]
        return {f"loss_p2dist_{(k + 0.5) * BIN:g}": errors[k] / units[k] for k in range(BINS) if units[k] > LEAST_SHARE * sum(units)}


def activation_gb(task: PretrainTask, batch_size: int, session: Session) -> float:
    """Gigabytes (1e9 bytes) that autograd keeps for one step of `batch_size` images: the same number on every device, without weights.

    Measured on a few images and scaled: it grows in proportion to the batch. Under decoder masking the few images stand for all.
    """
    images = torch.zeros(MEASURED_IMAGES, 3, *task.model.image_size, dtype=torch.uint8, device=session.device)

    def forward() -> object:
        with torch.enable_grad(), session.autocast():
            return task.reconstruct(images, torch.arange(MEASURED_IMAGES), 0, 1.0)

    return activation_bytes(forward, task.parameters()) / MEASURED_IMAGES * batch_size / 1e9

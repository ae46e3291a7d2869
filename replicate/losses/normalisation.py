"""Weights that undo what a higher mask ratio does to P2Dist (Efficient MAE sec 5.3.3, Table 6 c)."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from replicate.difficulty import difficulty as measured
from replicate.errors import UserError
from replicate.losses.weights import normalise_per_image
from replicate.masking import num_visible

_SIMULATED = 4096  # masks: 600,000 masked patches at ratio .75


class Weighting:
    """A unit weighs (units of its interval at `reference_ratio`) / (units of its interval at this run's
    ratio).

    The paper states neither the intervals of P2Dist nor how to count. Here they are a quarter of
    a patch wide. Both counts come from random masks of the same grid, so the weights do not depend on the
    batch or on its split over devices. The run's ratio is read off the masks. Units harder than any at the
    reference ratio get no weight. At the reference ratio this is the plain mean. Raises UserError without an
    `interval` for `neighbours_3x3`, which is no distance.
    """

    needs_difficulty = True

    def __init__(
        self,
        reference_ratio: float = 0.75,
        interval: float | None = None,
        patch_size: int = 16,
        grid: tuple[int, int] | None = None,
        difficulty: str = "p2dist",
    ) -> None:
        if difficulty == "neighbours_3x3" and not interval:
            raise UserError("weighting normalisation: neighbours_3x3 is no distance; state `interval`")
        self.reference_ratio, self.patch_size, self.metric = reference_ratio, patch_size, difficulty
        self.interval = float(interval or patch_size / 4)
        self.grid = tuple(grid) if grid else None

    def __call__(self, difficulty: Tensor, scored: Tensor, progress: float = 1.0) -> Tensor:
        """difficulty, scored (N, L) -> weights (N, L). All images must have as many visible units."""
        if not len(difficulty):
            return scored
        grid = self.grid or _square(difficulty.shape[1])
        visible = int((difficulty[0] == 0).sum())
        factors = _factors(self.metric, grid, self.patch_size, visible, self.reference_ratio, self.interval)
        number = (difficulty / self.interval).clamp(max=len(factors) - 1).long()
        return normalise_per_image(factors.to(difficulty.device)[number], scored)


def _square(patches: int) -> tuple[int, int]:
    side = math.isqrt(patches)
    if side * side != patches:
        raise UserError(
            f"weighting normalisation: {patches} patches make no square grid; state `grid` as [rows, columns]"
        )
    return side, side


@lru_cache(maxsize=64)
def _factors(
    metric: str, grid: tuple[int, int], patch_size: int, visible: int, reference_ratio: float, interval: float
) -> Tensor:
    """(intervals,): masked units at the reference ratio / masked units with `visible` visible."""
    count = math.ceil(patch_size * math.hypot(*grid) / interval) + 1
    ours, reference = (
        _histogram(metric, grid, patch_size, number, interval, count)
        for number in (visible, num_visible(grid[0] * grid[1], reference_ratio))
    )
    return (reference / ours).where(ours > 0, 1.0).float()


@lru_cache(maxsize=64)
def _histogram(
    metric: str, grid: tuple[int, int], patch_size: int, visible: int, interval: float, count: int
) -> Tensor:
    noise = torch.rand(_SIMULATED, grid[0] * grid[1], generator=torch.Generator().manual_seed(0))
    mask = noise.argsort(dim=1).ge(visible).float()
    distance = measured(mask, grid, patch_size, metric)[mask > 0]
    return torch.bincount((distance / interval).clamp(max=count - 1).long(), minlength=count).double()

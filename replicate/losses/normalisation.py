"""Difficulty-based normalisation: weights that undo what a higher mask ratio does to P2Dist (Efficient MAE sec 5.3.3, Table 6
c).
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from replicate.difficulty import difficulty as measured
from replicate.errors import UserError
from replicate.losses.uniform import normalise_per_image
from replicate.masking import num_visible

_SIMULATED = 4096  # masks a distribution is counted over: 600,000 patches at ratio .75


class Weighting:
    """Splits P2Dist into intervals; a unit weighs (units of its interval at `reference_ratio`) / (units at this run's ratio).

    The paper gives neither the intervals nor how the numbers are counted. Here the intervals are a quarter of a patch wide, and
    both numbers are counted once over random masks of the same grid, so that the weights depend neither on the batch nor on how
    it is split over devices. The run's ratio is read off the masks. Units harder than any at the reference ratio get no weight.
    At the reference ratio itself this is the plain mean. For `difficulty` neighbours_3x3, which is no distance, state `interval`.
    """

    needs_p2dist = True

    def __init__(
        self,
        reference_ratio: float = 0.75,
        interval: float | None = None,
        patch_size: int = 16,
        grid: tuple[int, int] | None = None,
        difficulty: str = "p2dist",
    ) -> None:
        if difficulty == "neighbours_3x3" and not interval:
            raise UserError("weighting normalisation: difficulty neighbours_3x3 is no distance, so it has no usual interval; state `interval`")
        self.reference_ratio = reference_ratio
        self.patch_size = patch_size
        self.difficulty = difficulty
        self.interval = float(interval or patch_size / 4)
        self.grid = tuple(grid) if grid else None

    def __call__(self, p2dist: Tensor, scored: Tensor, progress: float = 1.0) -> Tensor:
        """p2dist, scored (N, L) -> weights (N, L). Every image must have the same number of visible units."""
        if not len(p2dist):
            return scored
        grid = self.grid or _square(p2dist.shape[1])
        visible = int((p2dist[0] == 0).sum())
        factors = _factors(self.difficulty, grid, self.patch_size, visible, self.reference_ratio, self.interval).to(p2dist.device)
        number = (p2dist / self.interval).clamp(max=len(factors) - 1).long()
        return normalise_per_image(factors[number], scored)


def _square(patches: int) -> tuple[int, int]:
    side = math.isqrt(patches)
    if side * side != patches:
        raise UserError(f"weighting normalisation: {patches} patches make no square grid; state `grid` as [rows, columns]")
    return side, side


@lru_cache(maxsize=64)
def _factors(metric: str, grid: tuple[int, int], patch_size: int, visible: int, reference_ratio: float, interval: float) -> Tensor:
    """Per interval of P2Dist, the last one open: masked units at the reference ratio / masked units with `visible` visible."""
    longest = patch_size * math.hypot(*grid)
    count = math.ceil(longest / interval) + 1
    ours = _histogram(metric, grid, patch_size, visible, interval, count)
    reference = _histogram(metric, grid, patch_size, num_visible(grid[0] * grid[1], reference_ratio), interval, count)
    return (reference / ours).where(ours > 0, 1.0).float()


@lru_cache(maxsize=64)
def _histogram(metric: str, grid: tuple[int, int], patch_size: int, visible: int, interval: float, count: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    mask = torch.rand(_SIMULATED, grid[0] * grid[1], generator=generator).argsort(dim=1).ge(visible).float()
    distance = measured(mask, grid, patch_size, metric)[mask > 0]
    return torch.bincount((distance / interval).clamp(max=count - 1).long(), minlength=count).double()

"""Learning rate of dense transfer over iterations: linear warm-up, then cosine, linear or steps."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from replicate.config import DenseRun

STEP = 0.1
"""Factor of the rate at each step."""


def learning_rate(run: DenseRun, step: int, steps: int, images: int) -> float:
    """The rate of optimiser step `step` of `steps`, on `images` training images.

    The warm-up lies inside the schedule, as in the codes that the papers used: it multiplies the decay.
    """
    warmup = min(run.warmup_steps(images), steps)
    share = step / steps
    rise = min(1.0, step / warmup) if warmup else 1.0
    if run.decay == "step":
        return run.peak_lr * rise * STEP ** sum(share >= place for place in run.steps)
    fall = 0.5 * (1.0 + math.cos(math.pi * share)) if run.decay == "cosine" else 1.0 - share
    return run.min_lr + (run.peak_lr - run.min_lr) * rise * fall

"""When a classifier's training scores the validation images."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from replicate.config import EvaluateRun

PARTS = (30, 60)
"""Percent of the epochs at which DailyMAE's Table 9 reports."""
EVALUATIONS = 10
"""How many times a run is scored, about."""


def scored_epochs(run: EvaluateRun, train_images: int, val_images: int) -> set[int]:
    """The epochs, counted from 1, after which a run is scored: every tenth of it and the end of each stage.

    With few labels a class and many validation images, ten scorings cost more than the training. Such a run
    is scored at the ends of its stages alone.
    """
    if not run.epochs:
        return set()
    ends = {round(stage.until * run.epochs) for stage in run.stages} - {0} | {run.epochs}
    period = max(1, run.epochs // EVALUATIONS)
    if run.labels_per_class and period * train_images < val_images:
        return ends
    return ends | set(range(period, run.epochs + 1, period))

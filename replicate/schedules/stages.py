"""Resolution, mask-ratio and batch stages within one run (FastMIM-P, sec 4.2; DailyMAE Tables 8 and 10)."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from replicate.config import Optimisation


class View(NamedTuple):
    """The settings of one epoch."""

    image_size: int
    mask_ratio: float | None
    batch_size: int
    crop_scale: tuple[float, float]
    auto_augment: str | None


def view_at(run: Optimisation, epoch: int) -> View:
    """The settings of `epoch`: those of its stage and, where the stage states none, of the run.

    Stage i lasts from epoch round(until[i-1] * epochs) to round(until[i] * epochs).
    """
    stage = next((stage for stage in run.stages if epoch < round(stage.until * run.epochs)), None)
    own = {key: getattr(stage, key, None) for key in View._fields}
    return View(*(getattr(run, key, None) if value is None else value for key, value in own.items()))

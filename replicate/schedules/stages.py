"""Resolution, mask-ratio and batch stages within one run (FastMIM-P, sec 4.2; DailyMAE Tables 8 and 10)."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from replicate.params import Optimisation


class View(NamedTuple):
    """What holds during one epoch; a stage's gaps are filled from the run."""

    image_size: int
    mask_ratio: float | None
    batch_size: int
    crop_scale: tuple[float, float]
    auto_augment: str | None


def view_at(run: Optimisation, epoch: int) -> View:
    """The stage that `epoch` belongs to. Stage i covers the epochs from round(until[i-1] * epochs) to round(until[i] * epochs)."""
    stage = next((s for s in run.stages if epoch < round(s.until * run.epochs)), None)
    fallback = (run.image_size, getattr(run, "mask_ratio", None), run.batch_size, run.crop_scale, getattr(run, "auto_augment", None))
    if stage is None:
        return View(*fallback)
    chosen = (stage.image_size, stage.mask_ratio, stage.batch_size, stage.crop_scale, stage.auto_augment)
    return View(*(own if own is not None else default for own, default in zip(chosen, fallback, strict=True)))

"""Resolution, mask-ratio and batch stages within one run (FastMIM-P, sec 4.2; DailyMAE Tables 8 and 10)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from replicate.config import Optimisation


KEYS = ("schedule", "sizes", "ends", "mask_ratios")


def palindrome(sizes: Sequence[int]) -> list[int]:
    """Down and up again: [224, 192, 160] -> [224, 192, 160, 192, 224] (DailyMAE's scheme s5 is that of [224, 192])."""
    return [*sizes, *reversed(sizes[:-1])]


SCHEDULES = {"palindrome": palindrome, "rising": sorted, "falling": lambda sizes: sorted(sizes, reverse=True), "listed": list}


def expand(stated: Mapping[str, Any]) -> tuple[dict[str, Any], ...]:
    """The stages of a schedule that is stated by its name, as `Stage` takes them.

    {"schedule": "palindrome", "sizes": [224, 192], "ends": [0.25, 0.5], "mask_ratios": [...]}: `ends` are fractions of the run at which the
    stages end, without the last one's 1.0 (left out: equal parts), `mask_ratios` one a stage, where they change. Raises ValueError for a
    schedule that does not exist, another key, what is no list of numbers, or lists that do not fit together.
    """
    if unknown := set(stated) - set(KEYS):
        raise ValueError(f"stages: unknown key {min(map(str, unknown))}; a named schedule has {', '.join(KEYS)}")
    _refuse_wrong_types(stated)
    if stated.get("schedule") not in SCHEDULES or not stated.get("sizes"):
        raise ValueError(f"stages: schedule {stated.get('schedule')!r} with sizes {stated.get('sizes')!r}; schedules are {', '.join(SCHEDULES)}")
    sizes = SCHEDULES[stated["schedule"]](list(stated["sizes"]))
    ends = [*stated.get("ends", [k / len(sizes) for k in range(1, len(sizes))]), 1.0]
    ratios = stated.get("mask_ratios", [None] * len(sizes))
    if not len(sizes) == len(ends) == len(ratios):
        raise ValueError(f"stages: {len(sizes)} sizes ({', '.join(map(str, sizes))}), {len(ends)} ends and {len(ratios)} mask ratios do not fit")
    named = ({"until": end, "image_size": size, "mask_ratio": ratio} for end, size, ratio in zip(ends, sizes, ratios, strict=True))
    return tuple({key: value for key, value in stage.items() if value is not None} for stage in named)


def _refuse_wrong_types(stated: Mapping[str, Any]) -> None:
    """Raises ValueError, since pydantic makes a message of no other error: a TypeError from below would reach the user as it is."""
    if not isinstance(stated.get("schedule", ""), str):
        raise ValueError(f"stages: schedule {_as_stated(stated['schedule'])!r} must be one name of {', '.join(SCHEDULES)}")
    for key, example in (("sizes", "[192, 224]"), ("ends", "[0.5]"), ("mask_ratios", "[0.75, 0.9]")):
        value = stated.get(key, [])
        listed = value if isinstance(value, list | tuple) else [value]
        gaps = [one for one in listed if one is None and key == "mask_ratios"]  # null: the run's own ratio holds in that stage
        numbers = [one for one in listed if isinstance(one, int | float) and not isinstance(one, bool)]
        if listed is not value or len(numbers) + len(gaps) < len(listed):
            raise ValueError(f"stages: {key} {_as_stated(value)!r} must be a list of numbers, such as {example}")


def _as_stated(value: Any) -> Any:
    """A list as the file has it; the reader of the file makes tuples of lists."""
    return list(value) if isinstance(value, tuple) else value


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

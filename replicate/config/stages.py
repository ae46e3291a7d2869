"""Stages by the name of their schedule: palindrome, rising, falling (DailyMAE Table 10)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

KEYS = ("schedule", "sizes", "ends", "mask_ratios")


def palindrome(sizes: Sequence[int]) -> list[int]:
    """Down and up again: [224, 192, 160] -> [224, 192, 160, 192, 224] (DailyMAE's s5: [224, 192])."""
    return [*sizes, *reversed(sizes[:-1])]


SCHEDULES = {
    "palindrome": palindrome,
    "rising": sorted,
    "falling": lambda sizes: sorted(sizes, reverse=True),
    "listed": list,
}


def expand(stated: Mapping[str, Any]) -> tuple[dict[str, Any], ...]:
    """The stages of a named schedule, as `Stage` takes them.

    schedule      one of SCHEDULES
    sizes         pixels, such as [224, 192]
    ends          fractions of the run at which the stages end, without the last 1.0; equal parts when left
                  out
    mask_ratios   one a stage, null for the run's own

    Raises ValueError for an unknown schedule or key, and for lists that do not fit together.
    """
    if unknown := set(stated) - set(KEYS):
        raise ValueError(
            f"stages: unknown key {min(map(str, unknown))}; a named schedule has {', '.join(KEYS)}"
        )
    _check_types(stated)
    if stated.get("schedule") not in SCHEDULES or not stated.get("sizes"):
        given = f"schedule {stated.get('schedule')!r} with sizes {stated.get('sizes')!r}"
        raise ValueError(f"stages: {given}; schedules are {', '.join(SCHEDULES)}")
    sizes = SCHEDULES[stated["schedule"]](list(stated["sizes"]))
    ends = [*stated.get("ends", [k / len(sizes) for k in range(1, len(sizes))]), 1.0]
    ratios = stated.get("mask_ratios", [None] * len(sizes))
    if not len(sizes) == len(ends) == len(ratios):
        counts = (
            f"{len(sizes)} sizes ({', '.join(map(str, sizes))}), {len(ends)} ends, {len(ratios)} mask ratios"
        )
        raise ValueError(f"stages: {counts} do not fit")
    rows = zip(ends, sizes, ratios, strict=True)
    stages = ({"until": end, "image_size": size, "mask_ratio": ratio} for end, size, ratio in rows)
    return tuple({key: value for key, value in stage.items() if value is not None} for stage in stages)


def _check_types(stated: Mapping[str, Any]) -> None:
    """Raise ValueError, the only error that pydantic turns into a message."""
    if not isinstance(stated.get("schedule", ""), str):
        raise ValueError(
            f"stages: schedule {_listed(stated['schedule'])!r} must be one of {', '.join(SCHEDULES)}"
        )
    for key, example in (("sizes", "[192, 224]"), ("ends", "[0.5]"), ("mask_ratios", "[0.75, 0.9]")):
        value = stated.get(key, [])
        items = value if isinstance(value, list | tuple) else [None]
        numbers = [one for one in items if isinstance(one, int | float) and not isinstance(one, bool)]
        gaps = [one for one in items if one is None and key == "mask_ratios" and items is value]
        if len(numbers) + len(gaps) < len(items):
            raise ValueError(f"stages: {key} {_listed(value)!r} must be a list of numbers, such as {example}")


def _listed(value: Any) -> Any:
    """Tuples as the lists that the file holds."""
    return list(value) if isinstance(value, tuple) else value

"""Pre-trainings in the box: trained weights that come with the project, in `weights/<budget>/`.

A budget with `boxed: true` takes a pre-training from its box where the recipe is the same, and trains the
others. `python -m replicate box RUN` fills the box.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from replicate.config.runs import PretrainRun
from replicate.errors import UserError

BOX = Path("weights")
"""Folder of the boxes, below the repository."""
SEEDS = 1
"""Seeds of a boxed pre-training: every evaluation starts from the same weights."""
_OTHER = ("paper", "keep_weights")
"""Settings that do not decide the weights."""


@dataclass(frozen=True)
class Box:
    """One boxed pre-training.

    weights   the safetensors file, in bfloat16
    content   {results, history, resolved, dataset, provenance} of the run that made it, seed 0
    """

    weights: Path
    content: dict[str, Any]


def paths(folder: Path, budget: str, name: str) -> tuple[Path, Path]:
    """(weights, description) of a run's box."""
    place = folder / budget
    return place / f"{name}.safetensors", place / f"{name}.json"


def recipe(run: PretrainRun, dataset: Any) -> dict[str, Any]:
    """What must be the same for a box to stand for a run: the resolved run, and what its images are."""
    return {
        "resolved": run.model_dump(mode="json", exclude=set(_OTHER)),
        "dataset": dataset.model_dump(mode="json", exclude_unset=True),
    }


def find(folder: Path, budget: str, name: str, run: PretrainRun, dataset: Any) -> Box | None:
    """The box of a run, or None where there is none or its recipe is another.

    Raises UserError for a broken description, and for a description without weights.
    """
    weights, description = paths(folder, budget, name)
    if not description.exists():
        return None
    content = _read(description)
    now, boxed = recipe(run, dataset), content.get("resolved", {})
    if content.get("dataset") != now["dataset"] or not _same(run, now["resolved"], boxed):
        return None
    if not weights.exists():
        raise UserError(f"{description} describes {weights.name}, which is missing; restore it from git")
    return Box(weights, content)


def _same(run: PretrainRun, now: dict[str, Any], boxed: dict[str, Any]) -> bool:
    """Whether a box's settings are those of now; settings that it does not know must have their default."""
    changed = run.model_dump(exclude_defaults=True)
    known = {key: value for key, value in now.items() if key in boxed or key in changed}
    return known == boxed


@functools.lru_cache
def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path}: not valid JSON ({error}); restore it from git") from None

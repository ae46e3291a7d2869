"""What a budget makes of a run: its paper's numbers beside the numbers that are trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

if TYPE_CHECKING:
    from replicate.config import Params

_HIDDEN = {"paper", "dataset", "target_options", "weighting_options"}


def lens(params: Params, runs: Sequence[str], budget: str | None = None) -> pd.DataFrame:
    """One line a setting that the budget changes for any of the runs, one column a run: "paper -> this budget".

    What a run has in common with its paper is left blank. Raises UserError for a run that params.yaml does not hold.
    """
    columns = {name: _changes(params, name, budget) for name in runs}
    settings = list(dict.fromkeys(key for changes in columns.values() for key in changes))
    return pd.DataFrame({name: [changes.get(key, "") for key in settings] for name, changes in columns.items()}, index=settings)


def _changes(params: Params, name: str, budget: str | None) -> dict[str, str]:
    stated, resolved = (_numbers(params, run) for run in (params.run(name), params.resolve(name, budget)))
    return {key: f"{_text(stated[key])} → {_text(resolved[key])}" for key in stated if _text(stated[key]) != _text(resolved[key])}


def _numbers(params: Params, run: Any) -> dict[str, Any]:
    from replicate.config.backbones import is_plain_vit, vit_backbone

    numbers = {key: value for key, value in run.model_dump().items() if key not in _HIDDEN}
    numbers["peak_lr"] = run.peak_lr
    numbers |= _by_stage(numbers.pop("stages", ()))
    kwargs = numbers.pop("backbone_kwargs", None)
    if kwargs is not None and is_plain_vit(run.backbone, kwargs):
        numbers |= vit_backbone(run.backbone, **kwargs).kwargs
    return numbers


def _by_stage(stages: Sequence[dict[str, Any]]) -> dict[str, tuple]:
    """What stages set, each setting by itself: {"stages.image_size": (128, 160, 192), ...}."""
    names = dict.fromkeys(name for stage in stages for name, value in stage.items() if value is not None)
    return {f"stages.{name}": tuple(stage[name] for stage in stages) for name in names}


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return ", ".join(_text(part) for part in value)
    return "off" if value in (None, "") else str(value)

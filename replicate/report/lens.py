"""What a budget changes of a run: its paper's numbers beside the numbers that are trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

if TYPE_CHECKING:
    from replicate.config import Params

_HIDDEN = {"paper", "dataset", "target_options", "weighting_options"}


def lens(params: Params, runs: Sequence[str], budget: str | None = None) -> pd.DataFrame:
    """A line a setting that the budget changes for any of the runs, a column a run: "paper → budget".

    What a run shares with its paper stays blank. Raises UserError for an unknown run.
    """
    changes = {name: _changes(params, name, budget) for name in runs}
    settings = list(dict.fromkeys(key for one in changes.values() for key in one))
    columns = {name: [one.get(key, "") for key in settings] for name, one in changes.items()}
    return pd.DataFrame(columns, index=settings)


def _changes(params: Params, name: str, budget: str | None) -> dict[str, str]:
    stated, resolved = (_numbers(run) for run in (params.run(name), params.resolve(name, budget)))
    pairs = {key: (setting_text(stated[key]), setting_text(resolved[key])) for key in stated}
    return {key: f"{then} → {now}" for key, (then, now) in pairs.items() if then != now}


def _numbers(run: Any) -> dict[str, Any]:
    """A run's settings; those of its stages one by one, {"stages.image_size": (128, 160, 192), ...}."""
    from replicate.config.backbones import is_plain_vit, vit_backbone

    numbers = {key: value for key, value in run.model_dump().items() if key not in _HIDDEN}
    numbers["peak_lr"] = run.peak_lr
    stages = numbers.pop("stages", ())
    names = dict.fromkeys(name for stage in stages for name, value in stage.items() if value is not None)
    numbers |= {f"stages.{name}": tuple(stage[name] for stage in stages) for name in names}
    kwargs = numbers.pop("backbone_kwargs", None)
    if kwargs is not None and is_plain_vit(run.backbone, kwargs):
        numbers |= vit_backbone(run.backbone, **kwargs).kwargs
    return numbers


def setting_text(value: Any) -> str:
    """A setting in words: "off" for none, lists joined by commas, four digits of a fraction."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return "; ".join(f"{key}: {setting_text(part)}" for key, part in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(setting_text, value))
    return "off" if value in (None, "") else str(value)

"""Which runs a claim rests on, and the commands that run them again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from replicate.report import published

if TYPE_CHECKING:
    from replicate.params import Params

SHOWN = 4
"""Commands beyond these are counted, not listed."""


def runs_of(claim: dict[str, Any], params: Params) -> list[str]:
    """The runs of params.yaml that a claim's checks read, in their order; none where it is decided by computation."""
    sweeps = published.sweeps()
    found: dict[str, None] = {}
    for text in _texts(claim["checks"]):
        names = sweeps[text].points.values() if text in sweeps else [text]
        found |= dict.fromkeys(name for name in (place.partition("/")[0] for place in names) if name in params.runs)
    return list(found)


def commands(runs: list[str], params: Params, budget: str) -> list[str]:
    """Shell commands that train these runs, what they start from included, at a budget."""
    headline = [_stage(name, params) for name in runs if name not in params.grid]
    grid = [f"make grid TARGET={_stage(name, params)}" for name in runs if name in params.grid]
    lines = [f"python -m replicate budget {budget}"]
    lines += [f"dvc repro {' '.join(headline)}"] if headline else []
    lines += grid if len(grid) <= SHOWN else [*grid[:SHOWN], f"# and {len(grid) - SHOWN} more in the same way, or all of them: make grid"]
    return lines if runs else ["python -m replicate scoreboard"]


def _stage(name: str, params: Params) -> str:
    groups = {"pretrain": params.pretrain, "evaluate": params.evaluate}
    if name in params.grid:
        fields = type(params.grid).model_fields
        groups = {"tokenizer" if group == "tokenizers" else group: getattr(params.grid, group) for group in fields}
    return next(f"{kind}@{name}" for kind, runs in groups.items() if name in runs)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _texts(part)

"""Runs with settings changed on the command line: `python -m replicate pretrain light_75 mask_ratio=0.6`.

Such a run trains into `.replicate/scratch/<run>-<key>/`, which no table, stage or `keep` reads. To evaluate a
changed pre-training, name the change again: `evaluate light_75_llrd_80 pretrain.mask_ratio=0.6`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from replicate.config import EvaluateRun, Params, load
from replicate.config.loading import assemble, read_files
from replicate.config.yaml_file import frozen, parsed
from replicate.errors import UserError

SCRATCH = Path(".replicate/scratch")
WHERE = "the command line"
ABOVE = "pretrain."
"""What stands before a setting of the pre-training that an evaluation starts from."""


class ChangedParams(Params):
    """Params whose changed runs have folders of their own."""

    folders: dict[str, Path]

    def results_folder(self, name: str, budget: str | None = None) -> Path:
        return self.folders.get(name) or super().results_folder(name, budget)


def changed(path: str | Path, name: str, settings: Sequence[str]) -> Params:
    """The configuration with a run's settings changed, as `runs` of `params.yaml` changes them.

    settings  texts such as "mask_ratio=0.6", values in YAML; `pretrain.` before a key changes the
              pre-training that an evaluation starts from

    Raises UserError for an unknown key, an impossible value, and what changes nothing at the active budget.
    """
    params = load(path)
    run, own, above = params.run(name), *_split(settings)
    changes = {name: _values(own)} if own else {}
    if above:
        if not isinstance(run, EvaluateRun) or params.upstream_of(name) != run.pretrain:
            raise UserError(
                f"{ABOVE}{above[0]}: run {name} starts from no pre-training that could be changed"
            )
        changes[run.pretrain] = _values(above)
    stated, budgets, rooms = read_files(path)
    runs = stated.runs | {one: stated.runs.get(one, {}) | new for one, new in changes.items()}
    found = assemble(stated.model_copy(update={"runs": runs}), budgets, rooms, WHERE)
    folders: dict[str, Path] = {}
    for one in reversed(changes):  # a pre-training before its evaluation
        if found.resolve(one) == params.resolve(one):
            raise UserError(f"{WHERE} changes nothing of run {one} at budget {params.budget}")
        folders[one] = _folder(found, one, folders)
    if above and not (folders[run.pretrain] / "metrics.json").exists():
        command = f"python -m replicate pretrain {run.pretrain} {' '.join(above)}"
        raise UserError(f"run {name} starts from {folders[run.pretrain]}, which is missing; run `{command}`")
    folders.setdefault(name, _folder(found, name, folders))
    return ChangedParams.model_construct(**dict(found), folders=folders)


def outcome(params: Params, name: str) -> str:
    """The scores of a changed run that has finished, and where they are."""
    folder = params.results_folder(name)
    scores = json.loads((folder / "scores.json").read_text())
    shown = ", ".join(f"{key} {value:.4g}" for key, value in scores.items())
    return f"{shown}; written to {folder}, which no table and no stage reads"


def _folder(params: Params, name: str, above: dict[str, Path]) -> Path:
    """A place of its own for each recipe at each budget."""
    parts = [params.budget, params.resolve(name).model_dump(mode="json"), sorted(map(str, above.values()))]
    return SCRATCH / f"{name}-{hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:8]}"


def _split(settings: Sequence[str]) -> tuple[list[str], list[str]]:
    """The settings of the run, and those of the pre-training that it starts from."""
    above = [one.removeprefix(ABOVE) for one in settings if one.startswith(ABOVE)]
    return [one for one in settings if not one.startswith(ABOVE)], above


def _values(settings: Sequence[str]) -> dict[str, Any]:
    """{key: value}. Raises UserError for what is no KEY=VALUE."""
    found = {}
    for one in settings:
        key, equals, value = one.partition("=")
        if not key or not equals:
            raise UserError(f"{one!r} is no setting; write KEY=VALUE, such as mask_ratio=0.6")
        found[key] = frozen(parsed(value, one))
        if key == "pretrain" and isinstance(found[key], dict):
            raise UserError(f"{one}: released weights are named under `runs` of params.yaml")
    return found

"""An evaluation that starts from released weights: `pretrain: {weights: hf:facebook/vit-mae-base, model:
mae_base}`.

`model` names the pre-training whose model the weights are of; without it, the one that the evaluation
started from. Such a start becomes a pre-training of its own, `<evaluation>_start`, that trains nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from replicate.config.rooms import Entry
from replicate.errors import UserError
from replicate.names import closest

UNTRAINED = {"epochs": 0, "warmup_epochs": 0.0, "stages": ()}
"""What makes a pre-training hand its weights on as they are."""


def with_starts(found: list[Entry], changes: Mapping[str, dict[str, Any]]) -> list[Entry]:
    """The entries, with what `changes` says of `pretrain`, and a pre-training before each that names
    weights.
    """
    models = {
        entry.name: entry.stated | changes.get(entry.name, {})
        for entry in found
        if entry.section == "pretrain"
    }
    return [one for entry in found for one in _expanded(entry, models, changes.get(entry.name, {}))]


def _expanded(
    entry: Entry, models: Mapping[str, dict[str, Any]], change: Mapping[str, Any]
) -> Iterator[Entry]:
    before = entry.stated.get("pretrain")
    start = change.get("pretrain", before)
    if entry.section != "evaluate" or not isinstance(start, Mapping):
        yield entry._replace(stated=entry.stated | ({"pretrain": start} if "pretrain" in change else {}))
        return
    model = start.get("model", before if isinstance(before, str) else None)
    where = f"{entry.where}.pretrain"
    if set(start) - {"weights", "model"} or "weights" not in start:
        raise UserError(
            f"{where}: takes weights and model, such as {{weights: hf:OWNER/NAME, model: mae_base}}"
        )
    if model not in models:
        wanted = f"model: {model!r} is no pre-training{closest(str(model), models)}"
        raise UserError(f"{where}: {wanted}; name the one whose model the weights are of")
    name, stated = f"{entry.name}_start", models[model] | UNTRAINED | {"weights": start["weights"]}
    yield entry._replace(section="pretrain", name=name, stated=stated, where=where)
    yield entry._replace(stated=entry.stated | {"pretrain": name})

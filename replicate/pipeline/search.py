"""The low-cost search for layer-wise lr decay (MAE Are Secretly Efficient Learners, section 4).

A search fine-tunes the same weights at several decays on a subset of the images and recommends the best one,
with the interval that its seeds leave; `--apply` uses it on the full set. Every point is a run of the store:
one more decay trains that point alone, and a point equal to a finished run is not trained again.
"""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from replicate import intervals
from replicate.errors import UserError
from replicate.files import atomic_write
from replicate.intervals import Curve, Estimate
from replicate.pipeline.digests import code_of
from replicate.pipeline.launch import refuse_one_class
from replicate.pipeline.parallel import end_with_parent, seed_processes, train_seeds_in_processes
from replicate.pipeline.seeds import train_one_seed, used
from replicate.pipeline.store import store_of
from replicate.provenance import provenance
from replicate.trainers.context import RunContext
from replicate.trainers.session import Session, open_session

if TYPE_CHECKING:
    from replicate.config import Params, Search

SEARCHED, APPLIED = "search.json", "applied.json"


def search(params: Params, name: str, command: Sequence[str]) -> dict[str, Any]:
    """Train a search's points, every seed of the budget, and write `search.json`: the curve and the
    recommended decay.

    `command` holds this command's arguments, to start one process a seed with. Raises UserError for an
    unknown search and for missing weights or data.
    """
    budget, stated = params.budget_named(), params.search(name)
    with open_session(params.machine, budget.precision, budget.loader) as session:
        contexts = {
            decay: _context(params, name, stated, decay, stated.dataset, session)
            for decay in stated.layer_decays
        }
        seeds = range(budget.seeds)
        waiting = [s for s in seeds if not all(store_of(one, s).finished() for one in contexts.values())]
        processes = seed_processes(params.machine.seed_processes, len(waiting), session)
        if processes > 1:
            train_seeds_in_processes(command, budget.seeds, processes)
        trained = {decay: _train(context) for decay, context in contexts.items()}
        found = recommendation({decay: _top1(outcomes) for decay, outcomes in trained.items()})
        found |= {"search": name, "pretrain": stated.pretrain}
        found |= {"dataset": stated.dataset, "full": stated.full, "run": stated.model_dump(mode="json")}
        everything = [outcome for outcomes in trained.values() for outcome in outcomes]
        found |= {"provenance": _provenance(next(iter(contexts.values())), everything)}
        if session.is_main:
            _write(params.search_folder(name) / SEARCHED, found)
    return found


def search_seed(params: Params, name: str, seed: int) -> None:
    """Train one seed of all of a search's points into the store."""
    end_with_parent()
    budget, stated = params.budget_named(), params.search(name)
    with open_session(params.machine, budget.precision, budget.loader) as session:
        for decay in stated.layer_decays:
            _train_seed(_context(params, name, stated, decay, stated.dataset, session), seed)


def apply(params: Params, name: str) -> dict[str, Any]:
    """Fine-tune on the full set at the recommended decay, every seed of the budget, and write `applied.json`.

    Raises UserError when the search has not run.
    """
    budget, stated = params.budget_named(), params.search(name)
    path = params.search_folder(name) / SEARCHED
    if not path.exists():
        raise UserError(f"{path}: no such file; run `python -m replicate search llrd {name}` first")
    decay = json.loads(path.read_text())["recommended"]["layer_decay"]
    with open_session(params.machine, budget.precision, budget.loader) as session:
        context = _context(params, name, stated, decay, stated.full, session)
        trained = _train(context)
        found = {"search": name, "dataset": stated.full, "layer_decay": decay, **_point(_top1(trained))}
        found |= {"run": context.stated.model_dump(mode="json"), "provenance": _provenance(context, trained)}
        if session.is_main:
            _write(params.search_folder(name) / APPLIED, found)
    return found


def described(found: dict[str, Any]) -> str:
    """What a search found, in lines for a terminal."""
    lines = [f"{point['layer_decay']:<6g} top-1 {_interval(point, '.1f')}" for point in found["points"]]
    note = f"; {found['note']}" if found["note"] else ""
    return "\n".join([*lines, f"recommended layer_decay {_interval(found['recommended'], 'g')}{note}"])


def _interval(point: dict[str, Any], form: str) -> str:
    text = format(point["top1"] if "top1" in point else point["layer_decay"], form)
    return (
        text
        if point["low"] is None
        else f"{text} [{format(point['low'], form)}, {format(point['high'], form)}]"
    )


def _context(
    params: Params, name: str, stated: Search, decay: float, dataset: str, session: Session
) -> RunContext:
    run, source = stated.point(decay, dataset), params.resolve(stated.pretrain)
    resolved = params.resolve_run(run)
    return RunContext(
        name=f"{name} at {decay:g}",
        stated=run,
        run=resolved,
        seeds=params.budget_named().seeds,
        session=session,
        dataset=params.dataset(dataset),
        data_folder=params.data_folder(dataset),
        results_folder=params.search_folder(name),
        code=code_of(resolved, source),
        upstream=params.results_folder(stated.pretrain),
        upstream_run=source,
    )


def _train(context: RunContext) -> list[dict[str, Any]]:
    refuse_one_class(context)
    return [_train_seed(context, seed) for seed in range(context.seeds)]


def _train_seed(context: RunContext, seed: int) -> dict[str, Any]:
    trainer = importlib.import_module(f"replicate.trainers.{context.run.protocol}")
    return train_one_seed(context, seed, trainer.train_seed)


def _top1(outcomes: Sequence[dict[str, Any]]) -> dict[int, float]:
    return {seed: outcome["results"]["top1"] for seed, outcome in enumerate(outcomes)}


def recommendation(top1: dict[float, dict[int, float]]) -> dict[str, Any]:
    curve = Curve(list(top1), list(top1.values()))
    best = intervals.argmax(curve)
    edge = {curve.x[0]: "smallest", curve.x[-1]: "largest"}.get(best.value)
    note = f"it is the {edge} of the search: add a point beyond it" if edge else ""
    points = [{"layer_decay": decay, **_point(values)} for decay, values in top1.items()]
    return {"recommended": {"layer_decay": best.value, **_bounds(best)}, "note": note, "points": points}


def _point(values: dict[int, float]) -> dict[str, Any]:
    found = intervals.mean(list(values.values()))
    return {"top1": found.value, **_bounds(found), "per_seed": list(values.values())}


def _bounds(found: Estimate) -> dict[str, Any]:
    low, high = (bound if math.isfinite(bound) else None for bound in (found.low, found.high))
    return {"low": low, "high": high, "seeds": found.seeds}


def _provenance(context: RunContext, outcomes: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return provenance(
        device=context.session.describe(),
        seeds=list(range(context.seeds)),
        manifest_sha256=context.manifest_sha256,
        images_per_second=None,
        **used(outcomes),
    )


def _write(path: Path, content: dict[str, Any]) -> None:
    atomic_write(path, lambda temporary: temporary.write_text(json.dumps(content, indent=2) + "\n"))

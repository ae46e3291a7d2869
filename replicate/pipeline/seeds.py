"""A run over its seeds: each seed is trained once and kept; the run's folder is written when all have
finished.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pandas as pd
from scipy.special import stdtrit

from replicate.files import atomic_write
from replicate.pipeline.box import boxed_outcome, unpack
from replicate.pipeline.store import RunStore, store_of
from replicate.provenance import git_state, provenance
from replicate.trainers.context import RunContext, weights_path

SCORES = ("top1", "ap_box", "ap_mask", "miou", "val_loss", "loss")

TrainSeed = Callable[[RunContext, int, RunStore], dict[str, Any]]
"""(context, seed, store) -> {"results": {name: number}, "history": [row, ...]}."""


def train_one_seed(context: RunContext, seed: int, train_seed: TrainSeed) -> dict[str, Any]:
    """The outcome of one seed: from the store when it has finished before, else trained now.

    Raises UserError when the weights that the run starts from are missing, or another process trains this
    seed.
    """
    if context.box:
        return boxed_outcome(context.box)
    store = store_of(context, seed)
    if (outcome := store.finished()) is not None:
        return outcome
    with store.locked(f"{context.name}, seed {seed}") if context.session.is_main else nullcontext():
        started = time.monotonic()
        outcome = train_seed(context, seed, store)
        outcome["seconds"] = max(time.monotonic() - started, _trained_seconds(outcome))
        outcome["peak_memory_bytes"] = context.session.peak_memory_bytes()
        if context.session.is_main:
            store.finish(outcome)
    context.session.barrier()
    return outcome


def train_seeds(context: RunContext, train_seed: TrainSeed) -> dict[str, Any]:
    """Train every seed that has not finished and write the run's folder; returns its metrics.

    The folder gets the weights, history.csv, scores.json and metrics.json.
    """
    git_state()
    if context.session.is_main:
        _refuse_read_only(context.results_folder)
    finished = [train_one_seed(context, seed, train_seed) for seed in range(context.seeds)]
    metrics = _metrics(context, finished)
    if context.session.is_main:
        _write(context, metrics, finished)
    return metrics


def all_finished(context: RunContext) -> bool:
    """Whether the store holds the outcome of every seed."""
    return bool(context.box) or all(store_of(context, seed).finished() for seed in range(context.seeds))


def _refuse_read_only(folder: Path) -> None:
    """Raise UserError now, rather than after hours of training, when the run's folder cannot be written."""
    probe = folder / ".writable"
    atomic_write(probe, lambda path: path.touch())
    probe.unlink()


def summary(values: list[float]) -> dict[str, float | None]:
    """Mean and 95 % Student-t interval over seeds; one seed has no interval."""
    count, mean = len(values), sum(values) / len(values)
    if count < 2:
        return {"mean": mean, "low": None, "high": None}
    deviation = (sum((value - mean) ** 2 for value in values) / (count - 1)) ** 0.5
    reach = float(stdtrit(count - 1, 0.975)) * deviation / count**0.5
    return {"mean": mean, "low": mean - reach, "high": mean + reach}


def _trained_seconds(outcome: dict[str, Any]) -> float:
    """Seconds of all epochs, with those before an interruption."""
    return sum(row["seconds"] for row in outcome["history"])


def used(outcomes: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Seconds of all seeds together and their highest peak memory, whichever processes trained them."""
    peaks = [outcome["peak_memory_bytes"] for outcome in outcomes if "peak_memory_bytes" in outcome]
    seconds = sum(outcome.get("seconds", _trained_seconds(outcome)) for outcome in outcomes)
    return {"wall_seconds": seconds, "peak_memory_bytes": max(peaks, default=None)}


def _metrics(context: RunContext, finished: list[dict[str, Any]]) -> dict[str, Any]:
    per_seed = [outcome["results"] for outcome in finished]
    seeds = list(range(context.seeds))
    shared = [key for key in per_seed[0] if all(key in results for results in per_seed)]
    means = {key: summary([results[key] for results in per_seed]) for key in shared}
    found = context.box
    made_by = {"box": found.weights.as_posix()} | found.content["provenance"] if found else {}
    return {
        "results": {"seeds": seeds, "per_seed": per_seed} | means,
        "run": context.stated.model_dump(mode="json"),
        "resolved": context.run.model_dump(mode="json") | {"peak_lr": context.run.peak_lr},
        "provenance": made_by or made_here(context, seeds, finished),
    }


def made_here(context: RunContext, seeds: list[int], outcomes: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The provenance of seeds that were trained on this machine."""
    epochs = [row for outcome in outcomes for row in outcome["history"]]
    images, seconds = (sum(row[key] for row in epochs) for key in ("images", "seconds"))
    return provenance(
        device=context.session.describe(),
        seeds=seeds,
        manifest_sha256=context.manifest_sha256,
        images_per_second=images / seconds if seconds else None,
        **used(outcomes),
    )


def scores(results: dict[str, Any]) -> dict[str, float]:
    """The numbers that a run is judged by, means over seeds, for `dvc metrics` and `dvc exp show`."""
    means = {key: found["mean"] for key, found in results.items() if isinstance(found, dict)}
    return {key: means[key] for key in SCORES if key in means} or means


def _write(context: RunContext, metrics: dict[str, Any], finished: list[dict[str, Any]]) -> None:
    """Write metrics.json last: its presence says that the folder is complete."""
    folder = context.results_folder
    for seed in range(context.seeds):
        kept, place = store_of(context, seed).weights_path, weights_path(folder, seed)
        if context.box:
            unpack(context.box, place)
        elif kept.exists():
            atomic_write(place, lambda path, kept=kept: shutil.copyfile(kept, path))
    rows = [{"seed": seed, **row} for seed, outcome in enumerate(finished) for row in outcome["history"]]
    history = pd.DataFrame(rows if rows else {"seed": [], "epoch": [], "loss": []})
    atomic_write(folder / "history.csv", lambda path: history.to_csv(path, index=False))
    for name, content in (("scores", scores(metrics["results"])), ("metrics", metrics)):
        text = json.dumps(content, indent=2) + "\n"
        atomic_write(folder / f"{name}.json", lambda path, text=text: path.write_text(text))

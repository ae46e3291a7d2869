"""A run over its seeds: each seed is trained once and kept, and the run's folder is written when all of them have finished."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from scipy.special import stdtrit

from replicate.loaders.manifest import FILE_NAME, Manifest, sha256
from replicate.report.provenance import git_state, provenance
from replicate.sources import fingerprint
from replicate.trainers.session import Session
from replicate.trainers.store import RunStore, atomic_write, run_key

if TYPE_CHECKING:
    from replicate.params import Optimisation


@dataclass(frozen=True)
class RunContext:
    """A resolved run with all that its trainer needs to know of the world, passed down whole.

    `stated` is the run in its paper's numbers, `run` the same run through the budget; `upstream` names the weights that it starts from.
    """

    name: str
    stated: Optimisation
    run: Optimisation
    seeds: int
    session: Session
    data_folder: Path
    results_folder: Path
    entries: tuple[str, ...]
    upstream: Path | None = None
    upstream_run: Optimisation | None = None

    @property
    def manifest_path(self) -> Path:
        return self.data_folder / FILE_NAME

    @property
    def num_classes(self) -> int:
        return len(Manifest.read(self.manifest_path).class_names)

    def upstream_weights(self, seed: int) -> Path:
        return weights_path(self.upstream, seed)

    def store(self, seed: int) -> RunStore:
        """The seed's place in the store of resumable runs. Device, workers and micro-batch are not part of its key."""
        upstream = None if self.upstream is None else (self.upstream / "metrics.json").read_text()
        manifest = sha256(self.manifest_path)
        resolved = self.run.model_dump(exclude={"paper"})
        code = fingerprint(*self.entries)
        return RunStore(run_key(run=resolved, seed=seed, precision=str(self.session.precision), manifest=manifest, upstream=upstream, code=code))


def weights_path(folder: Path, seed: int) -> Path:
    return folder / "weights" / f"seed{seed}.safetensors"


def train_seeds(context: RunContext, train_seed: Callable[[RunContext, int, RunStore], dict[str, Any]]) -> dict[str, Any]:
    """Train every seed that has not finished, then write metrics.json and history.csv into the run's folder; returns the metrics.

    `train_seed(context, seed, store)` returns {"results": {name: number}, "history": [row, ...]}.
    """
    git_state()
    started = time.monotonic()
    finished = []
    for seed in range(context.seeds):
        store = context.store(seed)
        outcome = store.finished()
        if outcome is None:
            outcome = train_seed(context, seed, store)
            if context.session.is_main:
                store.finish(outcome)
        finished.append(outcome)
        context.session.wait_for_all()
    metrics = _metrics(context, finished, time.monotonic() - started)
    if context.session.is_main:
        _write(context.results_folder, metrics, finished)
    return metrics


def summary(values: list[float]) -> dict[str, float | None]:
    """Mean and 95 % Student-t interval over seeds; one seed has no interval."""
    count, mean = len(values), sum(values) / len(values)
    if count < 2:
        return {"mean": mean, "low": None, "high": None}
    deviation = (sum((value - mean) ** 2 for value in values) / (count - 1)) ** 0.5
    reach = float(stdtrit(count - 1, 0.975)) * deviation / count**0.5
    return {"mean": mean, "low": mean - reach, "high": mean + reach}


def _metrics(context: RunContext, finished: list[dict[str, Any]], wall_seconds: float) -> dict[str, Any]:
    per_seed = [outcome["results"] for outcome in finished]
    shared = [key for key in per_seed[0] if all(key in results for results in per_seed)]
    trained = [outcome["history"] for outcome in finished if outcome["history"]]
    images = sum(row["images"] for history in trained for row in history)
    seconds = sum(row["seconds"] for history in trained for row in history)
    return {
        "results": {"seeds": list(range(context.seeds)), "per_seed": per_seed} | {key: summary([r[key] for r in per_seed]) for key in shared},
        "run": context.stated.model_dump(mode="json"),
        "resolved": context.run.model_dump(mode="json") | {"peak_lr": context.run.peak_lr},
        "provenance": provenance(
            device=context.session.describe(),
            seeds=list(range(context.seeds)),
            manifest_sha256=sha256(context.manifest_path),
            wall_seconds=wall_seconds,
            images_per_second=images / seconds if seconds else None,
            peak_memory_bytes=context.session.peak_memory_bytes(),
        ),
    }


def _write(folder: Path, metrics: dict[str, Any], finished: list[dict[str, Any]]) -> None:
    """metrics.json last: its presence says that the folder is whole."""
    rows = [{"seed": seed, **row} for seed, outcome in enumerate(finished) for row in outcome["history"]]
    history = pd.DataFrame(rows if rows else {"seed": [], "epoch": [], "loss": []})
    atomic_write(folder / "history.csv", lambda path: history.to_csv(path, index=False))
    atomic_write(folder / "metrics.json", lambda path: path.write_text(json.dumps(metrics, indent=2) + "\n"))

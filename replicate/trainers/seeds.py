"""A run over its seeds: each seed is trained once and kept, and the run's folder is written when all of them have finished."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from scipy.special import stdtrit

from replicate.errors import UserError
from replicate.loaders.manifest import FILE_NAME, Manifest, sha256
from replicate.provenance import git_state, provenance
from replicate.sources import fingerprint
from replicate.trainers.session import Session
from replicate.trainers.store import RunStore, atomic_write, run_key

if TYPE_CHECKING:
    from replicate.params import Dataset, Optimisation

SCORES = ("top1", "val_loss", "loss")


@dataclass(frozen=True)
class RunContext:
    """A resolved run with all that its trainer needs to know of the world, passed down whole.

    `stated` is the run in its paper's numbers, `run` the same run through the budget; `upstream` names the weights that it starts
    from, or those of its teacher, `upstream_run` the pre-training that they come from, `tokenizer` the file of the tokenizer that it needs.
    """

    name: str
    stated: Optimisation
    run: Optimisation
    seeds: int
    session: Session
    dataset: Dataset
    data_folder: Path
    results_folder: Path
    entries: tuple[str, ...]
    upstream: Path | None = None
    upstream_run: Optimisation | None = None
    tokenizer: Path | None = None
    teacher_run: Optimisation | None = None

    @property
    def manifest(self) -> Manifest:
        """What the run's data set holds. Raises UserError, with the command that writes it, when it is not there or not what is stated."""
        manifest = Manifest.read(self.data_folder / FILE_NAME)
        manifest.refuse_other(self.data_folder, self.dataset)
        return manifest

    @property
    def on_error(self) -> str:
        return self.dataset.on_error

    @property
    def manifest_sha256(self) -> str:
        return hashlib.sha256(json.dumps(asdict(self.manifest), sort_keys=True).encode()).hexdigest()

    @property
    def num_classes(self) -> int:
        return len(self.manifest.class_names)

    def upstream_weights(self, seed: int) -> Path:
        """The pre-trained weights that this seed starts from. Raises UserError when they are not there."""
        path = weights_path(self.upstream, seed)
        if not path.exists():
            command = "evaluate" if self.teacher_run else "pretrain"
            raise UserError(f"run {self.name} starts from {path}, which is not there; run `python -m replicate {command} {self.upstream.name}`")
        return path

    def store(self, seed: int) -> RunStore:
        """The seed's place in the store of resumable runs. Device, workers and micro-batch are not part of its key."""
        upstream = None if self.upstream is None else sha256(self.upstream_weights(seed))
        resolved = self.run.model_dump(exclude={"paper"})
        parts = {"run": resolved, "seed": seed, "precision": str(self.session.precision), "manifest": self.manifest_sha256}
        # Evaluations take their model from the upstream run; a loader without FFCV's pixels is another loader.
        for role, run in (("upstream_run", self.upstream_run), ("teacher_run", self.teacher_run)):
            if run is not None:
                parts[role] = run.model_dump(exclude={"paper"})
        if self.session.loader == "folder":
            parts["loader"] = "folder"
        if self.tokenizer is not None:
            parts["tokenizer"] = sha256(self.tokenizer)
        if self.on_error != "raise":
            parts["on_error"] = self.on_error
        return RunStore(run_key(**parts, upstream=upstream, code=fingerprint(*self.entries)))


TrainSeed = Callable[[RunContext, int, RunStore], dict[str, Any]]
"""(context, seed, store) -> {"results": {name: number}, "history": [row, ...]}."""


def weights_path(folder: Path, seed: int) -> Path:
    return folder / "weights" / f"seed{seed}.safetensors"


def train_one_seed(context: RunContext, seed: int, train_seed: TrainSeed) -> dict[str, Any]:
    """The outcome of one seed: from the store when it has finished before, else trained now.

    Raises UserError when the weights that the run starts from are not there, or another process is training the same seed.
    """
    store = context.store(seed)
    if (outcome := store.finished()) is not None:
        return outcome
    with store.locked(f"{context.name}, seed {seed}") if context.session.is_main else nullcontext():
        started = time.monotonic()
        outcome = train_seed(context, seed, store)
        outcome["seconds"] = max(time.monotonic() - started, _trained_seconds(outcome))
        if context.session.is_main:
            store.finish(outcome)
    context.session.wait_for_all()
    return outcome


def train_seeds(context: RunContext, train_seed: TrainSeed) -> dict[str, Any]:
    """Train every seed that has not finished, then write weights, history.csv and metrics.json into the run's folder; returns the metrics."""
    git_state()
    if context.session.is_main:
        _refuse_read_only(context.results_folder)
    finished = [train_one_seed(context, seed, train_seed) for seed in range(context.seeds)]
    metrics = _metrics(context, finished)
    if context.session.is_main:
        _write(context, metrics, finished)
    return metrics


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
    """Seconds of all epochs, those before an interruption included."""
    return sum(row["seconds"] for row in outcome["history"])


def _metrics(context: RunContext, finished: list[dict[str, Any]]) -> dict[str, Any]:
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
            manifest_sha256=context.manifest_sha256,
            wall_seconds=sum(outcome.get("seconds", _trained_seconds(outcome)) for outcome in finished),
            images_per_second=images / seconds if seconds else None,
            peak_memory_bytes=context.session.peak_memory_bytes(),
        ),
    }


def scores(results: dict[str, Any]) -> dict[str, float]:
    """What a run is judged by, means over its seeds, for `dvc metrics` and `dvc exp show`: all its numbers would not fit a screen."""
    means = {key: found["mean"] for key, found in results.items() if isinstance(found, dict)}
    return {key: means[key] for key in SCORES if key in means} or means


def _write(context: RunContext, metrics: dict[str, Any], finished: list[dict[str, Any]]) -> None:
    """metrics.json last: its presence says that the folder is whole."""
    folder = context.results_folder
    for seed in range(context.seeds):
        kept = context.store(seed).weights_path
        if kept.exists():
            atomic_write(weights_path(folder, seed), lambda path, kept=kept: shutil.copyfile(kept, path))
    rows = [{"seed": seed, **row} for seed, outcome in enumerate(finished) for row in outcome["history"]]
    history = pd.DataFrame(rows if rows else {"seed": [], "epoch": [], "loss": []})
    atomic_write(folder / "history.csv", lambda path: history.to_csv(path, index=False))
    atomic_write(folder / "scores.json", lambda path: path.write_text(json.dumps(scores(metrics["results"]), indent=2) + "\n"))
    atomic_write(folder / "metrics.json", lambda path: path.write_text(json.dumps(metrics, indent=2) + "\n"))

"""Finished runs of one budget, read from `results/<budget>/<paper>/<run>/metrics.json`.

Runs of the full grid lie one folder deeper, in `results/<budget>/grid/<paper>/<run>`. `measured/` holds the
numbers of long runs in git, in the same layout. They count wherever this checkout has not trained the run
itself.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from replicate.errors import UserError
from replicate.noise import Noise, distinct, pool

if TYPE_CHECKING:
    from replicate.config import Params

FEWEST_SEEDS = 3
"""Fewer seeds than these have no interval of their own: with two, Student's t is 12.7."""

SECTIONS = ("results", "run", "resolved", "provenance")
PATTERNS = ("*/*/metrics.json", "grid/*/*/metrics.json")
MEASURED = "measured"
REFERENCES = ("pretrain", "classifier", "teacher", "tokenizer")
"""Settings that name another run; older files have its folder."""

ADDED = {"labels_per_class": None, "weights": None}
"""Settings that older files lack, and what their runs had."""

TIMES = ("seconds_per_epoch", "wall_seconds", "images_per_second", "seconds")
"""Numbers that are valid only when the run had the machine to itself."""

UNPOOLED = (*TIMES, "train_hours")
"""Metrics whose noise is the machine's rather than the seed's."""

BY_SEED = ("linear", "knn")
"""Protocols whose runs may share an effect of the seed. In others, runs from the same weights may."""


@dataclass(frozen=True)
class Run:
    """One finished run: `run` as its paper states it, `resolved` at the budget, results by seed."""

    paper: str
    name: str
    path: Path
    seeds: tuple[int, ...]
    per_seed: tuple[dict[str, float], ...]
    run: dict[str, Any] = field(default_factory=dict)
    resolved: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)

    def values(self, metric: str) -> dict[int, float]:
        """Seed -> value; a number of the whole run, from its provenance, belongs to the first seed.

        Raises UserError, naming the known metrics, for a metric that the run does not report.
        """
        whole = self.provenance.get(metric)
        if metric not in self.per_seed[0] and isinstance(whole, int | float):
            return {self.seeds[0]: float(whole)}
        if any(metric not in one for one in self.per_seed):
            known = sorted(set.intersection(*(set(one) for one in self.per_seed)))
            raise UserError(f"{self.path}: no metric '{metric}'; the run reports {', '.join(known)}")
        return {seed: one[metric] for seed, one in zip(self.seeds, self.per_seed, strict=True)}

    @property
    def device(self) -> str:
        return str(self.provenance.get("device", ""))

    @property
    def kind(self) -> str:
        """The protocol, or "pretrain"; runs of a kind may share a noise. Empty for what trains nothing."""
        return self.resolved.get("protocol") or "pretrain" * ("objective" in self.resolved)

    @property
    def group(self) -> str:
        """Runs of one kind and group may move together seed by seed (docs/statistics.md)."""
        if self.kind in BY_SEED:
            return ""
        start = self.resolved.get("classifier") or self.resolved.get("pretrain") or self.name
        return start.rpartition("/")[2]


@dataclass(frozen=True)
class Results:
    """Every finished run of one budget; `params` say on which images, where they are known."""

    budget: str
    runs: dict[str, Run]
    params: Params | None = field(default=None, compare=False, repr=False)
    _noise: dict[tuple[str, str, bool], Noise | None] = field(
        default_factory=dict, init=False, compare=False, repr=False
    )

    def __contains__(self, name: str) -> bool:
        return name in self.runs

    def values(self, name: str, metric: str) -> dict[int, float]:
        """Seed -> value of a run. Raises KeyError for an unfinished run, UserError for an unknown metric."""
        return self.runs[name].values(metric)

    def is_synthetic(self, name: str) -> bool:
        """Whether a run saw images that were made on the spot, which say nothing about a paper."""
        dataset = self.runs[name].resolved.get("dataset")
        if self.params is None or dataset not in self.params.datasets:
            return False
        return self.params.dataset(dataset, self.budget).is_synthetic

    def noise(self, name: str, metric: str, log: bool = False) -> Noise | None:
        """The noise of a run's metric, or of its logarithm, pooled over all runs of its kind.

        None where these runs differ in their noise, or where there are too few of them.
        """
        kind = self.runs[name].kind
        if not kind or metric in UNPOOLED:
            return None
        key = kind, metric, log
        if key not in self._noise:
            found = self._pool(*key)
            self._noise[key] = found if found is not None and found.equal else None
        return self._noise[key]

    def _pool(self, kind: str, metric: str, log: bool) -> Noise | None:
        runs = {name: run for name, run in self.runs.items() if run.kind == kind}
        runs = {name: run for name, run in runs.items() if all(metric in one for one in run.per_seed)}
        values = {name: run.values(metric) for name, run in runs.items()}
        if log:
            values = {name: logarithms(run) for name, run in values.items() if min(run.values()) > 0}
        return pool(kind, distinct(values), {name: run.group for name, run in runs.items()})

    def recipe(self, name: str) -> dict[str, Any] | None:
        """A run's settings at the budget, with those of its weights; None where it states none."""
        resolved = self.runs[name].resolved if name in self.runs else {}
        if "base_lr" not in resolved:
            return None
        added = ADDED if "protocol" in resolved else {}
        own = {key: value for key, value in (added | resolved).items() if key != "paper"}
        if "pretrain" in own:
            upstream = str(own["pretrain"]).rpartition("/")[2]
            own["pretrain"] = self.recipe(upstream) or upstream
        return own

    def history(self, name: str) -> pd.DataFrame:
        """The run's `history.csv`, empty where it left none."""
        return _history(self.runs[name].path)


def logarithms(values: Mapping[int, float]) -> dict[int, float]:
    """Seed -> logarithm of a positive value."""
    return {seed: math.log(value) for seed, value in values.items()}


def load(
    budget: str, root: str | Path = "results", grid: bool = True, params: Params | None = None
) -> Results:
    """All finished runs of a budget, those trained here before measured ones, `grid` runs included.

    With `params`, a measured run whose settings have changed since is left out. No run at all gives an empty
    `Results`, so that reports work before anything is trained. Raises UserError for a broken file and for two
    runs of one name.
    """
    root = Path(root)
    own, measured = (_runs(folder / budget, grid) for folder in (root, root.with_name(MEASURED)))
    if params is not None:
        measured = {
            name: run for name, run in measured.items() if _is_current(name, measured, params, budget)
        }
    return Results(budget, measured | own, params)


def _is_current(name: str, measured: Mapping[str, Run], params: Params, budget: str) -> bool:
    """Whether a measured run, and those that it starts from, have the settings that `params` states."""
    if name not in measured or name not in params.runs or changed(measured[name], params, budget):
        return False
    upstream = params.upstream_of(name)
    return upstream is None or _is_current(upstream, measured, params, budget)


def changed(run: Run, params: Params, budget: str) -> dict[str, tuple[Any, Any]]:
    """Settings of a finished run that `params` resolves otherwise now: key -> (then, now)."""
    now = params.resolve(run.name, budget).model_dump(mode="json")
    then = {key: value for key, value in (ADDED | run.resolved).items() if key in now}
    then |= {key: then[key].rpartition("/")[2] for key in REFERENCES if then.get(key)}
    return {key: (value, now[key]) for key, value in then.items() if value != now[key]}


def keep(run: Path, times: bool = True) -> Path:
    """Copy a finished run's numbers and history from `results/...` into `measured/...` for git.

    `times` False leaves out its speeds, for runs that shared their machine. The provenance still says how
    long the run took. Raises UserError where the run has not finished or its numbers are broken.
    """
    read(run / "metrics.json")
    parts = run.parts
    at = len(parts) - 1 - parts[::-1].index("results")
    kept = Path(*parts[:at], MEASURED, *parts[at + 1 :])
    kept.mkdir(parents=True, exist_ok=True)
    for name in ("metrics.json", "history.csv"):
        shutil.copyfile(run / name, kept / name)
    if not times:
        _drop_times(kept)
    return kept


def _drop_times(folder: Path) -> None:
    content = json.loads((folder / "metrics.json").read_text())
    took = content["provenance"].get("wall_seconds")
    for part in (content["results"], *content["results"]["per_seed"], content["provenance"]):
        for key in TIMES:
            part.pop(key, None)
    content["provenance"] |= {"wall_seconds": took, "shared_machine": True}
    (folder / "metrics.json").write_text(json.dumps(content, indent=2) + "\n")
    history = pd.read_csv(folder / "history.csv").drop(columns=list(TIMES), errors="ignore")
    history.to_csv(folder / "history.csv", index=False, lineterminator="\n")


def _runs(folder: Path, grid: bool) -> dict[str, Run]:
    runs: dict[str, Run] = {}
    for path in [path for pattern in PATTERNS[: 1 + grid] for path in sorted(folder.glob(pattern))]:
        run = read(path)
        if run.name in runs:
            other = runs[run.name].path.parent
            raise UserError(f"{path}: run '{run.name}' exists in {other} too; a run's name must be its own")
        runs[run.name] = run
    return runs


def read(path: str | Path) -> Run:
    """One `metrics.json`. Raises UserError, naming the file and the entry, where it is broken."""
    path = Path(path)
    content = _content(path)
    results = content["results"]
    seeds, per_seed = results.get("seeds"), results.get("per_seed")
    if (
        not isinstance(seeds, list)
        or not isinstance(per_seed, list)
        or not seeds
        or len(seeds) != len(per_seed)
    ):
        raise UserError(f"{path}: results.seeds and results.per_seed must be lists with one entry a seed")
    if len(set(seeds)) != len(seeds):
        raise UserError(f"{path}: results.seeds repeats a seed: {seeds}")
    numbers = [_numbers(one, f"{path}: results.per_seed[{k}]") for k, one in enumerate(per_seed)]
    hours = _train_hours(path)
    return Run(
        paper=path.parent.parent.name,
        name=path.parent.name,
        path=path,
        seeds=tuple(int(seed) for seed in seeds),
        per_seed=tuple(one | hours.get(seed, {}) for seed, one in zip(seeds, numbers, strict=True)),
        run=content["run"],
        resolved=content["resolved"],
        provenance=content["provenance"],
    )


def _history(metrics: Path) -> pd.DataFrame:
    path = metrics.with_name("history.csv")
    return pd.read_csv(path) if path.exists() else pd.DataFrame()


def _train_hours(metrics: Path) -> dict[int, dict[str, float]]:
    """Seed -> `train_hours`, the sum of its epochs' seconds; nothing where the run left no history."""
    history = _history(metrics)
    if not {"seed", "seconds"} <= set(history.columns):
        return {}
    hours = history.groupby("seed").seconds.sum() / 3600
    return {int(seed): {"train_hours": float(value)} for seed, value in hours.items()}


def _content(path: Path) -> dict[str, dict[str, Any]]:
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; the run has not finished") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(
            f"{path}: not valid JSON ({error}); delete the run's folder and train it again"
        ) from None
    absent = [
        key for key in SECTIONS if not isinstance(content, dict) or not isinstance(content.get(key), dict)
    ]
    if absent:
        raise UserError(
            f"{path}: lacks the entry {', '.join(absent)}; a finished run has {', '.join(SECTIONS)}"
        )
    return content


def _numbers(entry: Any, where: str) -> dict[str, float]:
    """The finite numbers of one seed's results; lists and texts are no metrics."""
    if not isinstance(entry, dict):
        raise UserError(f"{where} must be a table of metrics")
    found = {key: float(value) for key, value in entry.items() if type(value) in (int, float)}
    for key, value in found.items():
        if not math.isfinite(value):
            raise UserError(f"{where}.{key} is {value}; a finished run has finite metrics")
    return found

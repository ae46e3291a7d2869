"""Finished runs as one tidy table: `results/<budget>/<paper>/<run>/metrics.json` -> paper, run, metric, seed, value.

Runs of the full grid lie one folder deeper, in `results/<budget>/grid/<paper>/<run>`; a run's name is its own wherever it lies.
The numbers of runs that took long are in git too, under `measured/` in the same order: they stand wherever this checkout has not
trained the run itself.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from replicate.errors import UserError

if TYPE_CHECKING:
    from replicate.config import Params

COLUMNS = ["paper", "run", "metric", "seed", "value"]
SECTIONS = ("results", "run", "resolved", "provenance")
PATTERNS = ("*/*/metrics.json", "grid/*/*/metrics.json")
MEASURED = "measured"
"""The folder beside `results` whose numbers git holds."""


@dataclass(frozen=True)
class Run:
    """One finished run: what it was (`run` as its paper states it, `resolved` at the budget), what came out, and where it ran."""

    paper: str
    name: str
    path: Path
    seeds: tuple[int, ...]
    per_seed: tuple[dict[str, float], ...]
    run: dict[str, Any] = field(default_factory=dict)
    resolved: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)

    def values(self, metric: str) -> dict[int, float]:
        """Seed -> value; what the provenance gives for the whole run stands at its first seed alone, and so has no interval.

        Raises UserError, naming what there is, for a metric that the run does not report.
        """
        whole = self.provenance.get(metric)
        if metric not in self.per_seed[0] and isinstance(whole, int | float):
            return {self.seeds[0]: float(whole)}
        if any(metric not in one for one in self.per_seed):
            known = sorted(set.intersection(*(set(one) for one in self.per_seed)))
            raise UserError(f"{self.path}: no metric '{metric}'; the run reports {', '.join(known)}")
        return {seed: one[metric] for seed, one in zip(self.seeds, self.per_seed, strict=True)}


@dataclass(frozen=True)
class Results:
    """Every finished run of one budget."""

    budget: str
    runs: dict[str, Run]

    def __contains__(self, name: str) -> bool:
        return name in self.runs

    def values(self, name: str, metric: str) -> dict[int, float]:
        """Seed -> value of one run. Raises KeyError for a run that is not finished, UserError for a metric that it lacks."""
        return self.runs[name].values(metric)

    @cached_property
    def frame(self) -> pd.DataFrame:
        """One line a paper, run, metric and seed."""
        lines = [
            (run.paper, run.name, metric, seed, value)
            for run in self.runs.values()
            for seed, one in zip(run.seeds, run.per_seed, strict=True)
            for metric, value in one.items()
        ]
        return pd.DataFrame(lines, columns=COLUMNS)

    def recipe(self, name: str) -> dict[str, Any] | None:
        """What a run really trained at the budget, its weights' own recipe included; None where the run does not state it."""
        resolved = self.runs[name].resolved if name in self.runs else {}
        if "base_lr" not in resolved:
            return None
        own = {key: value for key, value in resolved.items() if key != "paper"}
        if "pretrain" in own:
            upstream = str(own["pretrain"]).rpartition("/")[2]
            own["pretrain"] = self.recipe(upstream) or upstream
        return own

    def history(self, name: str) -> pd.DataFrame:
        """The run's `history.csv`, empty where it left none."""
        path = self.runs[name].path.with_name("history.csv")
        return pd.read_csv(path) if path.exists() else pd.DataFrame()


def load(budget: str, root: str | Path = "results", grid: bool = True, params: Params | None = None) -> Results:
    """All finished runs of a budget, those of the full grid too unless `grid` is False; runs trained here before measured ones.

    With `params`, a measured run whose settings have changed since is left out. None at all is an empty `Results`, so that a report
    can be drawn before anything is trained. Raises UserError for a file that is not what a trainer writes, and for two runs of one
    name.
    """
    root = Path(root)
    own, measured = (_runs(folder / budget, grid) for folder in (root, root.with_name(MEASURED)))
    if params is not None:
        measured = {name: run for name, run in measured.items() if _holds(name, measured, params, budget)}
    return Results(budget, measured | own)


def _holds(name: str, measured: Mapping[str, Run], params: Params, budget: str) -> bool:
    """Whether a measured run, and every run whose weights it starts from, is what `params` states now."""
    if name not in measured or name not in params.runs or changed(measured[name], params, budget):
        return False
    upstream = params.upstream_of(name)
    return upstream is None or _holds(upstream, measured, params, budget)


def changed(run: Run, params: Params, budget: str) -> dict[str, tuple[Any, Any]]:
    """Settings that a finished run was trained with and `params` resolves otherwise now: key -> (then, now)."""
    now = params.resolve(run.name, budget).model_dump(mode="json")
    then = {key: _name(value) if key in REFERENCES else value for key, value in run.resolved.items() if key in now}
    return {key: (value, now[key]) for key, value in then.items() if value != now[key]}


REFERENCES = ("pretrain", "classifier", "teacher", "tokenizer")
"""Settings that name another run; older files have its folder."""


def _name(reference: str | None) -> str | None:
    return reference and reference.rpartition("/")[2]


TIMES = ("seconds_per_epoch", "wall_seconds", "images_per_second", "seconds")
"""Numbers that say something of a run only when the machine was its own."""


def keep(run: Path, times: bool = True) -> Path:
    """Copy a finished run's numbers and history, not its weights, from `results/...` into `measured/...` for git; returns the new folder.

    `times` False leaves out how long it took, for runs that shared their machine with other work.

    Raises UserError where the run has not finished or its numbers are broken.
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
    for part in (content["results"], *content["results"]["per_seed"], content["provenance"]):
        for key in TIMES:
            part.pop(key, None)
    (folder / "metrics.json").write_text(json.dumps(content, indent=2) + "\n")
    history = pd.read_csv(folder / "history.csv")
    history.drop(columns=[key for key in TIMES if key in history]).to_csv(folder / "history.csv", index=False, lineterminator="\n")


def _runs(folder: Path, grid: bool) -> dict[str, Run]:
    runs: dict[str, Run] = {}
    for path in [path for pattern in PATTERNS[: 1 + grid] for path in sorted(folder.glob(pattern))]:
        run = read(path)
        if run.name in runs:
            raise UserError(f"{path}: run '{run.name}' exists in {runs[run.name].path.parent} too; a run's name must be its own")
        runs[run.name] = run
    return runs


def read(path: str | Path) -> Run:
    """One `metrics.json`. Raises UserError, naming the file and the entry, where it is broken."""
    path = Path(path)
    content = _content(path)
    results = content["results"]
    seeds, per_seed = results.get("seeds"), results.get("per_seed")
    if not isinstance(seeds, list) or not isinstance(per_seed, list) or not seeds or len(seeds) != len(per_seed):
        raise UserError(f"{path}: results.seeds and results.per_seed must be lists of one length, one entry a seed")
    if len(set(seeds)) != len(seeds):
        raise UserError(f"{path}: results.seeds repeats a seed: {seeds}")
    numbers = [_numbers(one, f"{path}: results.per_seed[{k}]") for k, one in enumerate(per_seed)]
    for one, hours in zip(numbers, _train_hours(path.with_name("history.csv"), seeds), strict=True):
        one.update(hours)
    return Run(
        paper=path.parent.parent.name,
        name=path.parent.name,
        path=path,
        seeds=tuple(int(seed) for seed in seeds),
        per_seed=tuple(numbers),
        run=content["run"],
        resolved=content["resolved"],
        provenance=content["provenance"],
    )


def _train_hours(path: Path, seeds: list[int]) -> list[dict[str, float]]:
    """`train_hours` of each seed, from the seconds of its epochs; nothing where the run left no history."""
    history = pd.read_csv(path) if path.exists() else pd.DataFrame()
    if not {"seed", "seconds"} <= set(history.columns):
        return [{} for _ in seeds]
    hours = history.groupby("seed").seconds.sum() / 3600
    return [{"train_hours": float(hours[seed])} if seed in hours.index else {} for seed in seeds]


def _content(path: Path) -> dict[str, dict[str, Any]]:
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; the run has not finished") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path}: not valid JSON ({error}); delete the run's folder and train it again") from None
    absent = [key for key in SECTIONS if not isinstance(content, dict) or not isinstance(content.get(key), dict)]
    if absent:
        raise UserError(f"{path}: lacks the entry {', '.join(absent)}; a finished run has {', '.join(SECTIONS)}")
    return content


def _numbers(entry: Any, where: str) -> dict[str, float]:
    """The finite numbers of one seed's results; lists and texts beside them are no metric and are left out."""
    if not isinstance(entry, dict):
        raise UserError(f"{where} must be a table of metrics")
    found = {key: float(value) for key, value in entry.items() if isinstance(value, int | float) and not isinstance(value, bool)}
    broken = [key for key, value in found.items() if not math.isfinite(value)]
    if broken:
        raise UserError(f"{where}.{broken[0]} is {found[broken[0]]}; a finished run has finite metrics")
    return found

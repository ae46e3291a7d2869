"""What a claim or a table cell takes from results: runs, differences, ratios, the best of several.

A quantity is written as data:

| written                        | meaning                                                            |
|--------------------------------|--------------------------------------------------------------------|
| `light_90_llrd_65`             | the run's top-1 accuracy (or the check's own `metric`)             |
| `light_90/loss`                | another metric of a run                                            |
| `{best: SWEEP}`, `{worst: }`   | the run of a sweep, or of a list, whose mean is highest or lowest  |
| `{minus: [A, B]}`              | A - B                                                              |
| `{times: [0.25, A]}`           | a multiple                                                         |
| `{over: [A, B]}`               | A / B, of positive metrics                                         |
| `{peak: SWEEP}`                | where the sweep is highest                                         |

All but `peak` are linear in runs (a ratio is, in logarithms), so an expression is evaluated seed by seed and gets one interval.
"""

from __future__ import annotations

import fnmatch
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from replicate import intervals
from replicate.config.published import Sweep
from replicate.errors import UserError
from replicate.intervals import Curve, Estimate
from replicate.report.results import Results

DEFAULT_METRIC = "top1"
EXPRESSIONS = ("best", "worst", "minus", "times", "over", "peak")


class NotRun(Exception):
    """Runs that a quantity needs and that have not finished; `missing` names them, or the metric that a run lacks."""

    def __init__(self, missing: list[str]) -> None:
        super().__init__(", ".join(missing))
        self.missing = missing


@dataclass(frozen=True)
class Linear:
    """sum of coefficient * run's metric; in logarithms when `log`, and then a product of powers."""

    terms: tuple[tuple[float, str, str], ...]
    log: bool = False

    def scaled(self, factor: float) -> Linear:
        return Linear(tuple((factor * c, run, metric) for c, run, metric in self.terms), self.log)

    def plus(self, other: Linear) -> Linear:
        if self.log != other.log:
            raise UserError("published/claims.yaml: a ratio and a difference cannot be compared with one another")
        merged: dict[tuple[str, str], float] = {}
        for c, run, metric in self.terms + other.terms:
            merged[run, metric] = merged.get((run, metric), 0.0) + c
        return Linear(tuple((c, *key) for key, c in merged.items() if c), self.log)

    def minus(self, other: Linear) -> Linear:
        return self.plus(other.scaled(-1.0))


@dataclass(frozen=True)
class Reader:
    """Reads quantities from one budget's results."""

    results: Results
    sweeps: dict[str, Sweep] = field(default_factory=dict)
    metric: str = DEFAULT_METRIC

    def estimate(self, quantity: Any) -> Estimate:
        """The quantity's value and interval. Raises NotRun when a run that it needs has not finished."""
        if isinstance(quantity, dict) and "peak" in quantity:
            return intervals.argmax(self.curve(quantity["peak"]))
        return self.evaluate(self.linear(quantity))

    def evaluate(self, linear: Linear, raw: bool = False) -> Estimate:
        """The expression's interval; a ratio comes as a factor, or with `raw` in logarithms, where its interval is symmetric."""
        found = [(c, self.values(run, metric)) for c, run, metric in linear.terms]
        self._refuse_one_recipe([(run, metric) for _, run, metric in linear.terms])
        if not found:
            return Estimate(0.0 if raw or not linear.log else 1.0, math.nan, math.nan, 0)
        if linear.log:
            found = [(c, {seed: math.log(value) for seed, value in run.items()}) for c, run in found]
        estimate = intervals.combination(found)
        return estimate.map(math.exp) if linear.log and not raw else estimate

    def _refuse_one_recipe(self, terms: list[tuple[str, str]]) -> None:
        """A budget may cap what two runs differ in (batch sizes of 1,024 and 4,096 at a cap of 16): such a comparison says nothing."""
        recipes = [(run, metric, recipe) for run, metric in terms if (recipe := self.results.recipe(run)) is not None]
        for k, (left, metric, recipe) in enumerate(recipes):
            for right, other, same in recipes[k + 1 :]:
                if left != right and metric == other and recipe == same:
                    raise NotRun([f"{left} and {right} are one recipe at this budget"])

    def linear(self, quantity: Any) -> Linear:
        """The quantity as a linear expression, the best and the worst of a set resolved by their means."""
        if isinstance(quantity, str):
            run, _, metric = quantity.partition("/")
            return Linear(((1.0, run, metric or self.metric),))
        kind, argument = self._expression(quantity)
        if kind in ("best", "worst"):
            return self.linear(self._extreme(argument, 1 if kind == "best" else -1))
        if kind == "times":
            return self.linear(argument[1]).scaled(float(argument[0]))
        left, right = (self.linear(part) for part in argument)
        if kind == "over":
            left, right = (Linear(part.terms, log=True) for part in (left, right))
        return left.minus(right)

    def values(self, run: str, metric: str) -> dict[int, float]:
        if run not in self.results:
            raise NotRun([run])
        try:
            return self.results.values(run, metric)
        except UserError:
            raise NotRun([f"{run}/{metric}"]) from None

    def curve(self, sweep: Any, low: float = -math.inf, high: float = math.inf, least: int = 3) -> Curve:
        """A sweep's finished points between two places. Raises NotRun when fewer than `least` have finished."""
        points = {x: run for x, run in sorted(self.points(sweep).items()) if low <= x <= high}
        finished = {x: run for x, run in points.items() if run in self.results}
        if len(finished) < min(least, len(points)):
            raise NotRun([run for run in points.values() if run not in self.results])
        return Curve(list(finished), [self.values(run, self.metric) for run in finished.values()])

    def points(self, sweep: Any) -> dict[float, str]:
        """A named sweep, {x: run}, or a list of runs numbered in its order."""
        if isinstance(sweep, list):
            return {float(k): run for k, run in enumerate(sweep)}
        if isinstance(sweep, dict):
            return {float(x): run for x, run in sweep.items()}
        if sweep not in self.sweeps:
            raise UserError(f"published/claims.yaml: no sweep '{sweep}'; there are {', '.join(self.sweeps)}")
        return self.sweeps[sweep].points | self._more(self.sweeps[sweep])

    def _more(self, sweep: Sweep) -> dict[float, str]:
        """Finished runs that belong to the sweep without being named in it."""
        fitting = fnmatch.filter(self.results.runs, sweep.runs) if sweep.runs else []
        return {float(self.results.runs[name].run[sweep.by]): name for name in fitting if sweep.by in self.results.runs[name].run}

    def _extreme(self, argument: Any, sign: int) -> str:
        candidates = list(argument) if isinstance(argument, list) else list(self.points(argument).values())
        finished = [run for run in candidates if run.partition("/")[0] in self.results]
        if len(finished) < min(2, len(candidates)):
            raise NotRun([run for run in candidates if run not in finished])
        means = [float(np.mean(list(self.values(*self.linear(run).terms[0][1:]).values()))) for run in finished]
        return finished[int(np.argmax([sign * mean for mean in means]))]

    @staticmethod
    def _expression(quantity: Any) -> tuple[str, Any]:
        if not isinstance(quantity, dict) or len(quantity) != 1 or next(iter(quantity)) not in EXPRESSIONS:
            raise UserError(f"published: {quantity!r} is no quantity; write a run's name or one of {', '.join(EXPRESSIONS)}")
        return next(iter(quantity.items()))

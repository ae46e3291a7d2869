"""What a claim or a table cell reads from results: runs, differences, ratios, the best of several.

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

All but `peak` are linear in runs (a ratio is, in logarithms): an expression gets one interval. Its noise is
pooled over all runs of the kind where they share one. A best or worst of several leaves out the run that it
is compared with, and its interval allows for the selection (docs/statistics.md).
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import combinations, pairwise
from typing import Any

import numpy as np

from replicate import intervals
from replicate.config import published
from replicate.config.published import Sweep
from replicate.errors import UserError
from replicate.intervals import Curve, Estimate
from replicate.noise import Term, combination
from replicate.report.results import FEWEST_SEEDS, Results, logarithms

DEFAULT_METRIC = "top1"
EXPRESSIONS = ("best", "worst", "minus", "times", "over", "peak")


class NotRun(Exception):
    """Runs, or metrics of runs, that a quantity needs and that are missing."""

    def __init__(self, missing: list[str]) -> None:
        super().__init__(", ".join(missing))
        self.missing = missing


@dataclass(frozen=True)
class Linear:
    """sum of coefficient * run's metric; in logarithms when `log`, and then a product of powers.

    raised, lowered   of how many candidates selections took those that raise, or lower, the sum most
    """

    terms: tuple[tuple[float, str, str], ...]
    log: bool = False
    raised: int = 1
    lowered: int = 1

    def scaled(self, factor: float) -> Linear:
        counts = (self.raised, self.lowered) if factor > 0 else (self.lowered, self.raised)
        return Linear(tuple((factor * c, run, metric) for c, run, metric in self.terms), self.log, *counts)

    def minus(self, other: Linear) -> Linear:
        if self.log != other.log:
            raise UserError("papers/*/claims.yaml: a ratio and a difference cannot be compared")
        merged: dict[tuple[str, str], float] = {}
        for c, run, metric in self.terms + other.scaled(-1.0).terms:
            merged[run, metric] = merged.get((run, metric), 0.0) + c
        counts = self.raised * other.lowered, self.lowered * other.raised
        return Linear(tuple((c, *key) for key, c in merged.items() if c), self.log, *counts)


@dataclass(frozen=True)
class Reader:
    """Reads quantities from one budget's results."""

    results: Results
    sweeps: dict[str, Sweep] = field(default_factory=published.sweeps)
    metric: str = DEFAULT_METRIC

    def estimate(self, quantity: Any) -> Estimate:
        """The quantity's value and interval. Raises NotRun when a run that it needs has not finished."""
        if isinstance(quantity, dict) and "peak" in quantity:
            return intervals.argmax(self.curve(quantity["peak"]))
        return self.evaluate(self.linear(quantity))

    def value(self, quantity: Any) -> float:
        """The quantity's value; NaN when a run that it needs has not finished."""
        try:
            return self.estimate(quantity).value
        except NotRun:
            return math.nan

    def text(self, quantity: Any, factor: float = 1.0, digits: int | None = None, missing: str = "") -> str:
        """The quantity times a factor, "12.3 [11.9, 12.7]"; `missing` when a run has not finished.

        Without `digits`, values from 10 on have one decimal and others two.
        """
        try:
            found = self.estimate(quantity)
        except NotRun as error:
            return missing.format(error)
        digits = digits if digits is not None else 1 if factor * abs(found.value) >= 10 else 2
        value, *ends = (f"{factor * number:.{digits}f}" for number in found[:3])
        return f"{value} [{', '.join(ends)}]" if found.has_interval else value

    def evaluate(self, linear: Linear, raw: bool = False) -> Estimate:
        """The expression's interval; a ratio is a factor, or with `raw` its logarithm."""
        for _, run, metric in linear.terms:
            self.values(run, metric)
        self._refuse_one_recipe([(run, metric) for _, run, metric in linear.terms])
        if not linear.terms:
            return Estimate(0.0 if raw or not linear.log else 1.0, math.nan, math.nan, 0)
        estimate = self._combined(linear)
        return estimate.map(math.exp) if linear.log and not raw else estimate

    def difference(self, left: str, right: str) -> Estimate:
        """The metric of one run minus that of another."""
        return self._combined(Linear(((1.0, left, self.metric), (-1.0, right, self.metric))))

    def _combined(self, linear: Linear) -> Estimate:
        """The interval with the pooled noise, where all terms have one, beside that of the runs alone.

        Fewer than three seeds have no interval of their own. Metrics of one run move together, so an
        expression of two metrics uses its own seeds alone.
        """
        found = [(c, self.values(run, metric)) for c, run, metric in linear.terms]
        if linear.log:
            found = [(c, logarithms(values)) for c, values in found]
        selected = linear.raised, linear.lowered
        own = intervals.combination(found).selected(*selected)
        one_metric = len({metric for _, _, metric in linear.terms}) == 1
        noises = [self.results.noise(run, metric, linear.log) for _, run, metric in linear.terms]
        if not (own.has_interval and one_metric and all(noises)):
            return own if own.seeds >= FEWEST_SEEDS or _is_exact(own) else own.without_interval()
        groups = [self.results.runs[run].group for _, run, _ in linear.terms]
        terms = [Term(*pair, *rest) for pair, *rest in zip(found, noises, groups, strict=True)]
        return combination(terms).selected(*selected).beside(own)

    def _refuse_one_recipe(self, terms: list[tuple[str, str]]) -> None:
        """Raise NotRun for runs that a budget makes equal (batches of 1,024 and 4,096 at a cap of 16)."""
        recipes = [(run, metric, self.results.recipe(run)) for run, metric in terms]
        for (left, metric, recipe), (right, other, same) in combinations(recipes, 2):
            if left != right and metric == other and recipe is not None and recipe == same:
                raise NotRun([f"{left} and {right} are one recipe at this budget"])

    def linear(self, quantity: Any) -> Linear:
        """The quantity as a linear expression; the means decide the best and the worst of a set."""
        if isinstance(quantity, str):
            run, _, metric = quantity.partition("/")
            return Linear(((1.0, run, metric or self.metric),))
        if not isinstance(quantity, dict) or len(quantity) != 1 or next(iter(quantity)) not in EXPRESSIONS:
            choice = ", ".join(EXPRESSIONS)
            raise UserError(f"papers/*: {quantity!r} is no quantity; write a run's name or one of {choice}")
        [(kind, argument)] = quantity.items()
        if kind in ("best", "worst"):
            return self._extreme(argument, kind == "best")
        if kind == "times":
            return self.linear(argument[1]).scaled(float(argument[0]))
        left, right = (self.linear(part) for part in self.apart(*argument))
        if kind == "over":
            left, right = (replace(part, log=True) for part in (left, right))
        return left.minus(right)

    def apart(self, left: Any, right: Any) -> tuple[Any, Any]:
        """Both sides of a comparison; a best or worst of several leaves out the run on the other side."""
        return self._without(left, right), self._without(right, left)

    def _without(self, chosen: Any, other: Any) -> Any:
        if not (isinstance(chosen, dict) and isinstance(other, str) and {"best", "worst"} & set(chosen)):
            return chosen
        [(kind, argument)] = chosen.items()
        own = self.linear(other)
        return {kind: [run for run in self._candidates(argument) if self.linear(run) != own]}

    def _candidates(self, argument: Any) -> list[str]:
        return list(argument if isinstance(argument, list) else self.points(argument).values())

    def values(self, run: str, metric: str) -> dict[int, float]:
        """Seed -> value of one run. Raises NotRun when the run has not finished or lacks the metric."""
        if run not in self.results:
            raise NotRun([run])
        try:
            return self.results.values(run, metric)
        except UserError:
            raise NotRun([f"{run}/{metric}"]) from None

    def curve(self, sweep: Any, low: float = -math.inf, high: float = math.inf, least: int = 3) -> Curve:
        """A sweep's finished points between two places. Raises NotRun for fewer than `least`."""
        points = {x: run for x, run in sorted(self.points(sweep).items()) if low <= x <= high}
        finished = {x: run for x, run in points.items() if run in self.results}
        if len(finished) < min(least, len(points)):
            raise NotRun([run for run in points.values() if run not in self.results])
        values = [self.values(run, self.metric) for run in finished.values()]
        return Curve(list(finished), values, *self._noise(list(finished.values())))

    def _noise(self, runs: list[str]) -> tuple[float, float, int]:
        """Spread, df and number of runs of the pooled noise of a sweep; nothing pooled gives (NaN, 0, 0).

        Neighbours may share an effect of the seed or not: the pair with the largest noise counts.
        """
        found = [(pair, self.difference(*pair)) for pair in pairwise(runs)]
        if not found or not all(one.pooled for _, one in found):
            return math.nan, 0.0, 0
        return max((self._one_seed(pair, one), one.df, one.pooled) for pair, one in found)

    def _one_seed(self, pair: tuple[str, str], difference: Estimate) -> float:
        """Standard deviation of one seed of either run, from the interval of their difference."""
        counts = [len(self.values(run, self.metric)) for run in pair]
        return difference.spread / math.sqrt(difference.seeds * sum(1 / count for count in counts))

    def points(self, sweep: Any) -> dict[float, str]:
        """{x: run} of a named sweep, of such a mapping, or of a list of runs, numbered in order."""
        if not isinstance(sweep, str):
            pairs = sweep.items() if isinstance(sweep, dict) else enumerate(sweep)
            return {float(x): run for x, run in pairs}
        if sweep not in self.sweeps:
            raise UserError(f"papers/*/claims.yaml: no sweep '{sweep}'; there are {', '.join(self.sweeps)}")
        return self.sweeps[sweep].points | dict(self._more(self.sweeps[sweep]))

    def _more(self, sweep: Sweep) -> Iterator[tuple[float, str]]:
        """Finished runs that fit the sweep's pattern without being named in it."""
        for name in fnmatch.filter(self.results.runs, sweep.runs) if sweep.runs else []:
            stated = self.results.runs[name].run
            if sweep.by in stated:
                yield float(stated[sweep.by]), name

    def _extreme(self, argument: Any, best: bool) -> Linear:
        """The candidate with the highest or lowest mean, with the number of those that have finished."""
        candidates = self._candidates(argument)
        finished = [run for run in candidates if run.partition("/")[0] in self.results]
        if len(finished) < min(2, len(candidates)) or not finished:
            raise NotRun([run for run in candidates if run not in finished])
        found = [self.linear(run) for run in finished]
        means = [float(np.mean(list(self.values(*one.terms[0][1:]).values()))) for one in found]
        count = {"raised" if best else "lowered": len(finished)}
        return replace(found[int(np.argmax(means) if best else np.argmin(means))], **count)


def _is_exact(found: Estimate) -> bool:
    """Whether all seeds give one number, as for sizes of files and of models."""
    return found.has_interval and found.low == found.high

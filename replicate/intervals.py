"""Means, differences, ratios, rank correlations and peaks over seeds, each with its 95 % interval.

Runs are few (two to five seeds), so every interval is Student's t. Two runs that share their seeds share data order and initial
weights and are compared seed by seed (paired); otherwise Welch's interval is used.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

LEVEL = 0.95
DRAWS = 4000
MOST_SEEDS = 1000


class Estimate(NamedTuple):
    """A value with its interval. One seed, or a number that was computed rather than measured, has no interval (NaN)."""

    value: float
    low: float
    high: float
    seeds: int
    spread: float = math.nan

    @property
    def has_interval(self) -> bool:
        return math.isfinite(self.low) and math.isfinite(self.high)

    @property
    def half_width(self) -> float:
        return (self.high - self.low) / 2

    def map(self, function) -> Estimate:
        """The estimate on another scale; `function` must be increasing."""
        return Estimate(function(self.value), function(self.low), function(self.high), self.seeds, math.nan)


class Curve(NamedTuple):
    """A sweep: `x` (K,) sorted, `values` K mappings from seed to result."""

    x: Sequence[float]
    values: Sequence[Mapping[int, float]]

    @property
    def means(self) -> np.ndarray:
        return np.array([np.mean(list(point.values())) for point in self.values])


def mean(values: Sequence[float], level: float = LEVEL) -> Estimate:
    """Mean of one run's seeds with its t interval."""
    sample = np.asarray(list(values), dtype=float)
    centre = float(sample.mean())
    if len(sample) < 2:
        return Estimate(centre, math.nan, math.nan, len(sample))
    spread = float(sample.std(ddof=1))
    return _student(centre, spread / math.sqrt(len(sample)), len(sample) - 1, len(sample), spread, level)


def combination(terms: Sequence[tuple[float, Mapping[int, float]]], level: float = LEVEL) -> Estimate:
    """Interval of sum_k c_k * run_k, each run a mapping from seed to result: differences, and differences of differences.

    All runs on the same seeds are combined seed by seed. Runs on different seeds are independent, and the degrees of freedom are
    Welch's and Satterthwaite's.
    """
    shared = _shared_seeds(terms)
    if shared:
        return mean([sum(c * run[seed] for c, run in terms) for seed in shared], level)
    samples = [(c, np.array(list(run.values()), dtype=float)) for c, run in terms]
    centre = float(sum(c * sample.mean() for c, sample in samples))
    fewest = min(len(sample) for _, sample in samples)
    if fewest < 2:
        return Estimate(centre, math.nan, math.nan, fewest)
    parts = np.array([c**2 * sample.var(ddof=1) / len(sample) for c, sample in samples])
    freedom = [len(sample) - 1 for _, sample in samples]
    total = parts.sum()
    df = total**2 / sum(part**2 / n for part, n in zip(parts, freedom, strict=True)) if total > 0 else min(freedom)
    return _student(centre, math.sqrt(total), df, fewest, math.sqrt(total * fewest), level)


def difference(left: Mapping[int, float], right: Mapping[int, float], level: float = LEVEL) -> Estimate:
    """left - right; paired when both hold the same seeds, Welch otherwise."""
    return combination([(1.0, left), (-1.0, right)], level)


def ratio(left: Mapping[int, float], right: Mapping[int, float], level: float = LEVEL) -> Estimate:
    """left / right of positive results (times, losses): the interval is taken on the logarithm, so both ends are positive."""
    logs = [{seed: math.log(value) for seed, value in run.items()} for run in (left, right)]
    return difference(*logs, level=level).map(math.exp)


def spearman(x: Sequence[float], y: Sequence[float]) -> float:
    """Rank correlation; ties share their mean rank."""
    return float(stats.spearmanr(x, y).statistic)


def noise(curve: Curve) -> tuple[float, int]:
    """Standard deviation of one seed about its point's mean, pooled over the sweep, and its degrees of freedom.

    Points on the same seeds shift together; that shift moves no peak, so it is removed first.
    """
    seeds = _shared_seeds([(1.0, point) for point in curve.values])
    if len(seeds) >= 2:
        table = np.array([[point[seed] for seed in seeds] for point in curve.values])
        residual = table - table.mean(1, keepdims=True) - table.mean(0, keepdims=True) + table.mean()
        df = (table.shape[0] - 1) * (table.shape[1] - 1)
    else:
        groups = [np.array(list(point.values())) for point in curve.values]
        residual = np.concatenate([group - group.mean() for group in groups])
        df = sum(len(group) - 1 for group in groups)
    return (float(np.sqrt((residual**2).sum() / df)), df) if df > 0 else (math.nan, 0)


def draws(curve: Curve, count: int = DRAWS, seed: int = 0, seeds: int | None = None) -> np.ndarray:
    """(count, K) sweeps that the seeds could have given, or `seeds` of them a point could: a parametric bootstrap.

    Resampling two or three seeds repeats the same few curves, so the noise is pooled over the points and drawn from a normal
    distribution whose variance is itself uncertain (inverse chi-squared), as in Student's t.
    """
    generator = np.random.default_rng(seed)
    spread, df = noise(curve)
    if df == 0:
        return curve.means[None]
    if seeds is not None:
        df = max(1, round(df * (seeds - 1) / max(1, min(map(len, curve.values)) - 1)))
    scale = np.sqrt(df / generator.chisquare(df, (count, 1))) * spread
    widths = np.array([1 / math.sqrt(seeds or len(point)) for point in curve.values])
    return curve.means + generator.standard_normal((count, len(widths))) * scale * widths


def argmax(curve: Curve, level: float = LEVEL, count: int = DRAWS, seed: int = 0, more: int | None = None) -> Estimate:
    """Where the sweep peaks, as one of its x, with the bootstrap interval of that place, or the one that `more` seeds a point would leave."""
    places = np.asarray(curve.x, dtype=float)
    best = float(places[int(curve.means.argmax())])
    seeds = min(len(point) for point in curve.values)
    if seeds < 2:
        return Estimate(best, math.nan, math.nan, seeds)
    peaks = places[draws(curve, count, seed, more).argmax(1)]
    low, high = np.quantile(peaks, [(1 - level) / 2, (1 + level) / 2], method="inverted_cdf")
    return Estimate(best, min(float(low), best), max(float(high), best), seeds)


def bootstrap(curve: Curve, statistic, level: float = LEVEL, count: int = DRAWS, seed: int = 0, more: int | None = None) -> Estimate:
    """Any number read off a sweep's means, with its bootstrap interval, or the one that `more` seeds a point would leave."""
    value = float(statistic(curve.means))
    seeds = min(len(point) for point in curve.values)
    if seeds < 2:
        return Estimate(value, math.nan, math.nan, seeds)
    found = np.apply_along_axis(statistic, 1, draws(curve, count, seed, more))
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(value, float(low), float(high), seeds)


def seeds_to_decide(estimate: Estimate, threshold: float = 0.0, level: float = LEVEL) -> int | None:
    """How many seeds in all would put `threshold` outside the interval, effect and spread as now; None beyond 1000."""
    distance = abs(estimate.value - threshold)
    if not math.isfinite(estimate.spread) or distance == 0:
        return None
    for n in range(2, MOST_SEEDS + 1):
        if stats.t.ppf((1 + level) / 2, n - 1) * estimate.spread / math.sqrt(n) < distance:
            return n
    return None


def fewest_seeds(decides: Callable[[int], bool], have: int) -> int | None:
    """The smallest number of seeds above `have` for which `decides` is true, if more seeds only help; None beyond 1000."""
    low, high = have, have + 1
    while not decides(high):
        if high == MOST_SEEDS:
            return None
        low, high = high, min(2 * high, MOST_SEEDS)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if decides(middle) else (middle, high)
    return high


def _shared_seeds(terms: Sequence[tuple[float, Mapping[int, float]]]) -> list[int]:
    sets = [set(run) for _, run in terms]
    return sorted(sets[0]) if all(found == sets[0] for found in sets) else []


def _student(centre: float, error: float, df: float, seeds: int, spread: float, level: float) -> Estimate:
    reach = float(stats.t.ppf((1 + level) / 2, df)) * error
    return Estimate(centre, centre - reach, centre + reach, seeds, spread)

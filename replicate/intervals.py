"""Means, differences, ratios, rank correlations and peaks over seeds, each with its 95 % interval.

Here an interval rests on the seeds of its own runs: Student's t, seed by seed where two runs share their
seeds, Welch's otherwise. `replicate.noise` pools the noise of all runs of a kind.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import stdtrit

TAILS = (0.025, 0.975)
DRAWS = 4000
MOST_SEEDS = 1000


class Estimate(NamedTuple):
    """A value with its interval, NaN for one seed.

    spread              standard deviation of one seed
    df                  degrees of freedom of the interval
    pooled              number of runs whose noise is pooled; 0 where only the compared runs count
    own_low, own_high   beside a pooled interval: the interval of the compared runs alone
    """

    value: float
    low: float
    high: float
    seeds: int
    spread: float = math.nan
    df: float = math.nan
    pooled: int = 0
    own_low: float = math.nan
    own_high: float = math.nan

    @property
    def has_interval(self) -> bool:
        return math.isfinite(self.low) and math.isfinite(self.high)

    @property
    def half_width(self) -> float:
        return (self.high - self.low) / 2

    def map(self, function: Callable[[float], float]) -> Estimate:
        """The estimate on another scale; `function` must be increasing."""
        ends = {
            name: function(getattr(self, name)) for name in ("value", "low", "high", "own_low", "own_high")
        }
        return self._replace(**ends, spread=math.nan)

    def scaled(self, factor: float, shift: float = 0.0) -> Estimate:
        """factor * estimate + shift; a negative factor exchanges the ends of the interval."""
        pairs = [("low", "high"), ("own_low", "own_high")]
        ends = {}
        for names in pairs:
            found = [factor * getattr(self, name) + shift for name in names]
            ends |= dict(zip(names, found if factor > 0 else reversed(found), strict=True))
        return self._replace(value=factor * self.value + shift, spread=abs(factor) * self.spread, **ends)

    def selected(self, raised: int, lowered: int) -> Estimate:
        """The interval of a value whose parts were selected for their means, by Bonferroni's correction.

        The lower end allows for the best of `raised` candidates, the upper end for the worst of `lowered`.
        """
        low, high = (
            float(stdtrit(self.df, 1 - TAILS[0] / count) / stdtrit(self.df, TAILS[1])) if count > 1 else 1.0
            for count in (raised, lowered)
        )
        ends = {"low": self.value - low * (self.value - self.low)}
        return self._replace(**ends, high=self.value + high * (self.high - self.value))

    def without_interval(self) -> Estimate:
        """The value alone."""
        return _without_interval(self.value, self.seeds)

    def beside(self, own: Estimate) -> Estimate:
        """This pooled estimate with the interval of the compared runs alone."""
        return self._replace(own_low=own.low, own_high=own.high)


class Curve(NamedTuple):
    """A sweep: `x` (K,) sorted, `values` K mappings from seed to result.

    `spread`, `df` and `pooled` are the noise of one seed where it is known from more runs, as in `Estimate`.
    """

    x: Sequence[float]
    values: Sequence[Mapping[int, float]]
    spread: float = math.nan
    df: float = 0.0
    pooled: int = 0

    @property
    def means(self) -> np.ndarray:
        return np.array([np.mean(list(point.values())) for point in self.values])

    @property
    def seeds(self) -> int:
        """The fewest seeds of any point."""
        return min(map(len, self.values))

    @property
    def own(self) -> Curve:
        """The sweep without what other runs say about its noise."""
        return Curve(self.x, self.values)


def mean(values: Sequence[float]) -> Estimate:
    """Mean of one run's seeds with its t interval."""
    sample = np.asarray(list(values), dtype=float)
    centre = float(sample.mean())
    if len(sample) < 2:
        return _without_interval(centre, len(sample))
    spread = float(sample.std(ddof=1))
    return _student(centre, spread / math.sqrt(len(sample)), len(sample) - 1, len(sample), spread)


def combination(terms: Sequence[tuple[float, Mapping[int, float]]]) -> Estimate:
    """Interval of sum_k c_k * run_k, each run a mapping from seed to result.

    All runs on the same seeds are combined seed by seed. Runs on different seeds are independent; then the
    degrees of freedom follow Welch and Satterthwaite.
    """
    shared = _shared_seeds([run for _, run in terms])
    if shared:
        return mean([sum(c * run[seed] for c, run in terms) for seed in shared])
    samples = [(c, np.array(list(run.values()), dtype=float)) for c, run in terms]
    centre = float(sum(c * sample.mean() for c, sample in samples))
    fewest = min(len(sample) for _, sample in samples)
    if fewest < 2:
        return _without_interval(centre, fewest)
    parts = np.array([c**2 * sample.var(ddof=1) / len(sample) for c, sample in samples])
    freedom = np.array([len(sample) - 1 for _, sample in samples])
    total = parts.sum()
    df = total**2 / (parts**2 / freedom).sum() if total > 0 else freedom.min()
    return _student(centre, math.sqrt(total), df, fewest, math.sqrt(total * fewest))


def difference(left: Mapping[int, float], right: Mapping[int, float]) -> Estimate:
    """left - right; paired when both hold the same seeds, Welch otherwise."""
    return combination([(1.0, left), (-1.0, right)])


def spearman(x: Sequence[float], y: Sequence[float]) -> float:
    """Rank correlation; ties share their mean rank."""
    return float(np.corrcoef(_ranks(x), _ranks(y))[0, 1])


def _ranks(values: Sequence[float]) -> np.ndarray:
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(count) - (count - 1) / 2)[place]


def noise(curve: Curve) -> tuple[float, float]:
    """Standard deviation of one seed, the curve's own or pooled over its points, and its df.

    Points on the same seeds shift together. That shift moves no peak, so it is removed first.
    """
    if curve.pooled:
        return curve.spread, curve.df
    seeds = _shared_seeds(curve.values)
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
    """(count, K) sweeps that the seeds could have given, or `seeds` seeds a point: a parametric bootstrap.

    Resampling two or three seeds repeats the same few curves. So the noise is pooled over the points and
    drawn from a normal distribution whose variance is itself uncertain (inverse chi-squared), as in Student's
    t.
    """
    generator = np.random.default_rng(seed)
    spread, df = noise(curve)
    if df == 0:
        return curve.means[None]
    if seeds is not None and not curve.pooled:
        df = max(1, round(df * (seeds - 1) / max(1, curve.seeds - 1)))
    scale = np.sqrt(df / generator.chisquare(df, (count, 1))) * spread
    widths = np.array([1 / math.sqrt(seeds or len(point)) for point in curve.values])
    return curve.means + generator.standard_normal((count, len(widths))) * scale * widths


def argmax(curve: Curve, count: int = DRAWS, more: int | None = None) -> Estimate:
    """The x where the sweep peaks, with the bootstrap interval of its seeds, or of `more` seeds."""
    places = np.asarray(curve.x, dtype=float)
    best = float(places[int(curve.means.argmax())])
    if curve.seeds < 2:
        return _without_interval(best, curve.seeds)
    low, high = np.quantile(places[draws(curve, count, seeds=more).argmax(1)], TAILS, method="inverted_cdf")
    low, high = min(float(low), best), max(float(high), best)
    found = Estimate(best, low, high, curve.seeds, df=noise(curve)[1], pooled=curve.pooled)
    return found.beside(argmax(curve.own, count)) if curve.pooled and more is None else found


def peak_distance(curves: tuple[Curve, Curve], more: int | None = None) -> Estimate:
    """Peak of the first sweep minus that of the second, with a bootstrap interval as in `argmax`."""
    first, second = (argmax(curve) for curve in curves)
    value, seeds = first.value - second.value, min(first.seeds, second.seeds)
    if seeds < 2:
        return _without_interval(value, seeds)
    drawn = [np.asarray(c.x)[draws(c, seed=k, seeds=more).argmax(1)] for k, c in enumerate(curves)]
    low, high = np.quantile(drawn[0] - drawn[1], TAILS, method="inverted_cdf")
    low, high = min(low, value), max(high, value)
    df, pooled = min(noise(curve)[1] for curve in curves), min(curve.pooled for curve in curves)
    found = Estimate(value, float(low), float(high), seeds, df=df, pooled=pooled)
    if pooled and more is None:
        return found.beside(peak_distance((curves[0].own, curves[1].own)))
    return found


def bootstrap(
    curve: Curve, statistic: Callable[..., np.ndarray], count: int = DRAWS, more: int | None = None
) -> Estimate:
    """A statistic of a sweep's means, such as `np.ptp`, with a bootstrap interval as in `argmax`.

    `statistic(array, axis)` reduces the axis of the sweep's points.
    """
    value = float(statistic(curve.means, axis=-1))
    if curve.seeds < 2:
        return _without_interval(value, curve.seeds)
    low, high = np.quantile(statistic(draws(curve, count, seeds=more), axis=-1), TAILS)
    low, high = min(low, value), max(high, value)
    df, pooled = noise(curve)[1], curve.pooled
    found = Estimate(value, float(low), float(high), curve.seeds, df=df, pooled=pooled)
    return found.beside(bootstrap(curve.own, statistic, count)) if pooled and more is None else found


def seeds_to_decide(estimate: Estimate, threshold: float = 0.0) -> int | None:
    """Seeds in all that would put `threshold` outside the interval; None beyond 1000.

    A pooled noise keeps its degrees of freedom, however many seeds the compared runs have. An end that was
    widened for a selection stays so many times as far from the value.
    """
    distance = abs(estimate.value - threshold)
    if not math.isfinite(estimate.spread) or distance == 0:
        return None
    facing = estimate.value - estimate.low if estimate.value > threshold else estimate.high - estimate.value
    plain = stdtrit(estimate.df, TAILS[1]) * estimate.spread / math.sqrt(estimate.seeds)
    widened = max(1.0, facing / plain) if plain > 0 else 1.0

    def decides(seeds: int) -> bool:
        df = estimate.df if estimate.pooled else seeds - 1
        return widened * stdtrit(df, TAILS[1]) * estimate.spread / math.sqrt(seeds) < distance

    return fewest_seeds(decides, 1)


def fewest_seeds(decides: Callable[[int], bool], have: int) -> int | None:
    """The fewest seeds above `have` for which `decides` is true; None beyond 1000."""
    low, high = have, have + 1
    while not decides(high):
        if high == MOST_SEEDS:
            return None
        low, high = high, min(2 * high, MOST_SEEDS)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if decides(middle) else (middle, high)
    return high


def _shared_seeds(runs: Sequence[Mapping[int, float]]) -> list[int]:
    first = set(runs[0])
    return sorted(first) if all(set(run) == first for run in runs) else []


def _student(centre: float, error: float, df: float, seeds: int, spread: float) -> Estimate:
    reach = float(stdtrit(df, TAILS[1])) * error
    return Estimate(centre, centre - reach, centre + reach, seeds, spread, df)


def _without_interval(value: float, seeds: int) -> Estimate:
    return Estimate(value, math.nan, math.nan, seeds)

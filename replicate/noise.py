"""The noise of one seed, pooled over all runs of one kind (budget, protocol, metric): docs/statistics.md.

Model: value = run + shared effect + residual. All runs have one residual variance. Runs of one group share an
effect seed by seed: fine-tunings that start from the same weights, or linear probes that see the data in the
same order. An F test on the data decides whether the effect stays in the model.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import linalg, special

from replicate.intervals import TAILS, Estimate

ALPHA = 0.05
"""Level of the F test for a shared effect and of the test for equal variances."""
DRAWS = 2000

Run = Mapping[int, float]
"""seed -> value"""


@dataclass(frozen=True)
class Noise:
    """Standard deviations of one seed's value, pooled over `runs` runs.

    sd, df                  of the residual
    shared_sd, shared_df    of the effect that runs of one group share seed by seed; 0 where it was left out
    p_shared                p value of the F test for that effect; NaN where the runs do not allow one
    p_equal                 p value of the test that all runs have the same noise
    """

    kind: str
    sd: float
    df: int
    runs: int
    p_equal: float
    shared_sd: float = 0.0
    shared_df: int = 0
    p_shared: float = math.nan

    @property
    def equal(self) -> bool:
        """Whether the runs' noise may be pooled. Where not, each comparison uses its own seeds alone."""
        return self.p_equal >= ALPHA

    def variance_parts(self, terms: Sequence[Term]) -> list[tuple[float, int]]:
        """Variance of sum_k c_k mean_k as multiples of independent mean squares, each with its df.

        With n_k seeds in run k the variance is a * shared_sd^2 + b * sd^2. Here b = sum_k c_k^2 / n_k, and a
        sums the squared weights of the shared effects in the combination: 0 in a paired difference.
        """
        own = sum(term.weight**2 / len(term.values) for term in terms)
        if not self.shared_df:
            return [(own * self.sd**2, self.df)]
        weights: dict[tuple[str, int], float] = {}
        for term in terms:
            for seed in term.values:
                key = term.group, seed
                weights[key] = weights.get(key, 0.0) + term.weight / len(term.values)
        share = self.shared_df / (self.shared_df + self.df)
        together = share * sum(weight**2 for weight in weights.values())
        mean_square = self.sd**2 + self.shared_sd**2 / share
        return [(together * mean_square, self.shared_df), ((own - together) * self.sd**2, self.df)]


class Term(NamedTuple):
    """One run of a combination: its weight c_k, its values, the noise of its kind, and its group there."""

    weight: float
    values: Run
    noise: Noise
    group: str = ""


def combination(terms: Sequence[Term]) -> Estimate:
    """Interval of sum_k c_k * run_k: a mean, a difference, a difference of differences.

    Student's t with the pooled degrees of freedom. Where several mean squares enter (a shared effect that
    does not cancel, runs of two protocols), the degrees of freedom are Satterthwaite's (1946).
    """
    value = sum(term.weight * _mean(term.values) for term in terms)
    noises = list(dict.fromkeys(term.noise for term in terms))
    parts = [
        part for noise in noises for part in noise.variance_parts([t for t in terms if t.noise == noise])
    ]
    total = sum(variance for variance, _ in parts)
    df = total**2 / sum(variance**2 / df for variance, df in parts)
    error = math.sqrt(total)
    reach = float(special.stdtrit(df, TAILS[1])) * error
    seeds, runs = min(len(term.values) for term in terms), sum(noise.runs for noise in noises)
    return Estimate(value, value - reach, value + reach, seeds, error * math.sqrt(seeds), df, runs)


def distinct(values: Mapping[str, Run]) -> dict[str, Run]:
    """The runs without those that repeat another run's values at all of two seeds or more.

    Two names of one computation have identical values. Pooling both would count its noise twice.
    """
    first: dict[frozenset, str] = {}
    for name, run in values.items():
        first.setdefault(frozenset(run.items()) if len(run) > 1 else frozenset([name]), name)
    return {name: values[name] for name in first.values()}


def pool(
    kind: str, values: Mapping[str, Run], groups: Mapping[str, str] | None = None, draws: int = DRAWS
) -> Noise | None:
    """The noise of `values` (run -> seed -> value), all of one kind.

    `groups` (run -> group) names the runs that may share an effect seed by seed; without it they all may.
    Runs may have different numbers of seeds. Returns None where fewer than two runs have two seeds, or where
    no run's values vary.
    """
    runs = {name: run for name, run in values.items() if len(run) > 1}
    if len(runs) < 2:
        return None
    y = np.array([value - _mean(run) for run in runs.values() for value in run.values()])
    scale = max(abs(value) for run in runs.values() for value in run.values())
    if np.abs(y).max() <= 1e-12 * scale:
        return None
    within, shared = (_design(_layout(runs, found)) for found in (None, groups or {}))
    variance, df = _mean_square(within, y), within.df
    p_shared = _p_shared(within, shared, y)
    if not p_shared < ALPHA:
        p_equal = _p(within.unevenness(y), _null(within, draws))
        return Noise(kind, math.sqrt(variance), df, len(runs), p_equal, p_shared=p_shared)
    residual = _mean_square(shared, y)
    shared_sd = math.sqrt(variance - residual)
    p_equal = _p_equal(within, shared, y, shared_sd / math.sqrt(residual), draws)
    return Noise(
        kind, math.sqrt(residual), shared.df, len(runs), p_equal, shared_sd, df - shared.df, p_shared
    )


def _p_shared(within: _Design, shared: _Design, y: np.ndarray) -> float:
    """p value of the F test for the shared effect; NaN without residual degrees of freedom."""
    df = within.df - shared.df
    if not (shared.df and df):
        return math.nan
    squares, residual = _mean_square(within, y) * within.df, _mean_square(shared, y) * shared.df
    if residual <= 1e-12 * squares:
        return math.nan
    return float(special.fdtrc(df, shared.df, (squares - residual) / df / (residual / shared.df)))


def _p_equal(within: _Design, shared: _Design, y: np.ndarray, ratio: float, draws: int) -> float:
    """p value of equal noise beside a shared effect with `ratio` times the residual's standard deviation.

    The residuals and the whole spread within runs are tested, each at half the level.
    """
    generator = np.random.default_rng(1)
    noise = generator.standard_normal((draws, len(y)))
    noise += ratio * generator.standard_normal((draws, shared.effects.shape[1])) @ shared.effects.T
    p_residual = _p(shared.unevenness(y), _null(shared, draws))
    p_within = _p(within.unevenness(y), within.unevenness(noise))
    return min(1.0, 2 * min(p_residual, p_within))


class _Design:
    """Least squares of one layout: each value has a run and a shared effect."""

    def __init__(self, runs: np.ndarray, effects: np.ndarray) -> None:
        self.runs, self.effects = _indicators(runs), _indicators(effects)
        self.basis = linalg.orth(np.hstack([self.runs, self.effects]))
        self.df = len(runs) - self.basis.shape[1]
        self.run_df = (1 - (self.basis**2).sum(1)) @ self.runs
        self.null: dict[int, np.ndarray] = {}

    def residuals(self, y: np.ndarray) -> np.ndarray:
        """Residuals of y (..., values)."""
        return y - (y @ self.basis) @ self.basis.T

    def unevenness(self, y: np.ndarray) -> np.ndarray:
        """Mean variance over squared mean standard deviation of the runs, each weighted by its df.

        It is 1 where all runs have the same standard deviation, and grows with their difference. Unlike
        Bartlett's statistic it stays finite where rounding makes a run's values equal.
        """
        held = self.run_df > 1e-9
        weight = self.run_df[held]
        squares = (self.residuals(y) ** 2) @ self.runs[:, held]
        mean_sd = np.sqrt(squares * weight).sum(-1) / weight.sum()
        return squares.sum(-1) / weight.sum() / mean_sd**2


def _mean_square(design: _Design, y: np.ndarray) -> float:
    return float((design.residuals(y) ** 2).sum() / max(design.df, 1))


def _null(design: _Design, draws: int) -> np.ndarray:
    """Unevenness of `draws` tables of equal, independent noise. It depends on the layout alone."""
    if draws not in design.null:
        noise = np.random.default_rng(0).standard_normal((draws, len(design.runs)))
        design.null[draws] = design.unevenness(noise)
    return design.null[draws]


def _p(found: float, null: np.ndarray) -> float:
    return float((1 + (null >= found).sum()) / (1 + len(null)))


@functools.lru_cache(maxsize=64)
def _design(layout: tuple[tuple[int, int], ...]) -> _Design:
    return _Design(*np.array(layout).T)


def _layout(runs: Mapping[str, Run], groups: Mapping[str, str] | None) -> tuple[tuple[int, int], ...]:
    """(number of the run, number of the shared effect) of each value; without `groups` one effect for all."""
    effects: dict[tuple[str, int], int] = {}
    layout = []
    for k, (name, run) in enumerate(runs.items()):
        for seed in run:
            key = ("", 0) if groups is None else (groups.get(name, ""), seed)
            layout.append((k, effects.setdefault(key, len(effects))))
    return tuple(layout)


def _indicators(numbers: np.ndarray) -> np.ndarray:
    return np.equal.outer(numbers, np.arange(numbers.max() + 1)).astype(float)


def _mean(run: Run) -> float:
    return sum(run.values()) / len(run)

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from replicate import intervals
from replicate.intervals import Curve

A = {0: 41.2, 1: 40.1, 2: 42.0, 3: 41.7}
B = {0: 38.9, 1: 38.8, 2: 39.5, 3: 38.1}


def test_mean_is_students_interval():
    sample = list(A.values())
    low, high = stats.t.interval(0.95, 3, loc=np.mean(sample), scale=stats.sem(sample))
    found = intervals.mean(sample)
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-12)
    assert found.seeds == 4 and found.spread == pytest.approx(np.std(sample, ddof=1))


def test_runs_on_the_same_seeds_are_paired():
    oracle = stats.ttest_rel(list(A.values()), list(B.values())).confidence_interval(0.95)
    found = intervals.difference(A, B)
    assert (found.low, found.high) == pytest.approx((oracle.low, oracle.high), abs=1e-12)


def test_runs_on_other_seeds_are_welchs():
    other = {10: 38.9, 11: 38.8, 12: 39.5}
    oracle = stats.ttest_ind(list(A.values()), list(other.values()), equal_var=False).confidence_interval(
        0.95
    )
    found = intervals.difference(A, other)
    assert (found.low, found.high) == pytest.approx((oracle.low, oracle.high), abs=1e-12)


def test_a_difference_of_differences_is_paired_too():
    c, d = {s: v + 0.1 * s for s, v in A.items()}, {s: v - 0.2 for s, v in B.items()}
    per_seed = [(A[s] - B[s]) - (c[s] - d[s]) for s in A]
    oracle = stats.ttest_1samp(per_seed, 0).confidence_interval(0.95)
    found = intervals.combination([(1, A), (-1, B), (-1, c), (1, d)])
    assert (found.low, found.high) == pytest.approx((oracle.low, oracle.high), abs=1e-12)


def test_one_seed_gives_a_value_and_no_interval():
    for found in (
        intervals.mean([3.0]),
        intervals.difference({0: 3.0}, {0: 1.0}),
        intervals.difference({0: 3.0}, {1: 1.0}),
    ):
        assert math.isfinite(found.value) and not found.has_interval


@given(
    st.lists(st.floats(-100, 100), min_size=3, max_size=12),
    st.lists(st.floats(-100, 100), min_size=3, max_size=12),
)
@settings(max_examples=50, deadline=None)
def test_spearman_agrees_with_scipy(x, y):
    n = min(len(x), len(y))
    if len(set(x[:n])) < 2 or len(set(y[:n])) < 2:
        return
    assert intervals.spearman(x[:n], y[:n]) == pytest.approx(stats.spearmanr(x[:n], y[:n])[0], nan_ok=True)


def _curve(means, spread, seeds=3, seed=0):
    generator = np.random.default_rng(seed)
    points = [{s: m + spread * generator.standard_normal() for s in range(seeds)} for m in means]
    return Curve([0.65, 0.75, 0.8, 0.85, 0.9], points)


def test_a_clear_peak_has_a_narrow_interval_and_a_flat_sweep_a_wide_one():
    clear = intervals.argmax(_curve([30, 38, 44, 38, 30], 0.3))
    flat = intervals.argmax(_curve([40, 40, 40, 40, 40], 1.0))
    assert (clear.value, clear.low, clear.high) == (0.8, 0.8, 0.8)
    assert flat.high - flat.low > 0.1


def test_the_interval_of_the_peak_covers_the_true_peak():
    covered = 0
    for trial in range(60):
        found = intervals.argmax(_curve([40, 42, 43, 42.5, 40], 1.0, seed=trial), count=400)
        covered += found.low <= 0.8 <= found.high
    assert covered >= 54


def test_a_shift_shared_by_all_points_of_a_seed_is_no_noise_of_the_sweep():
    shifted = Curve([0, 1, 2], [{s: m + 10.0 * s for s in range(3)} for m in (1.0, 5.0, 2.0)])
    assert intervals.noise(shifted)[0] == pytest.approx(0.0, abs=1e-9)
    assert intervals.argmax(shifted).low == 1.0


def test_noise_of_separate_seeds_is_the_pooled_deviation():
    groups = [{0: 1.0, 1: 2.0}, {2: 5.0, 3: 9.0, 4: 7.0}]
    spread, df = intervals.noise(Curve([0, 1], groups))
    assert df == 3 and spread == pytest.approx(math.sqrt((0.5 + 8.0) / 3))


def test_bootstrap_of_a_mean_agrees_with_students_interval():
    sample = {s: v for s, v in enumerate([3.0, 4.0, 5.5, 4.2, 3.9])}
    pair = Curve([0, 1], [sample, {s + 10: v for s, v in sample.items()}])
    found = intervals.bootstrap(pair, lambda means, axis: np.take(means, 0, axis), count=20000)
    spread, df = intervals.noise(pair)
    reach = stats.t.ppf(0.975, df) * spread / math.sqrt(5)
    assert found.high - found.low == pytest.approx(2 * reach, rel=0.05)


def test_seeds_to_decide_is_the_first_count_whose_interval_excludes_the_threshold():
    estimate = intervals.Estimate(0.5, -0.3, 1.3, 3, 0.6)
    n = intervals.seeds_to_decide(estimate)
    reach = [stats.t.ppf(0.975, k - 1) * 0.6 / math.sqrt(k) for k in (n - 1, n)]
    assert reach[0] >= 0.5 > reach[1]
    assert intervals.seeds_to_decide(estimate._replace(value=1e-5)) is None

import csv
import functools
import itertools
import math
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from replicate import intervals, noise
from replicate.noise import Term, combination, distinct, pool

# Top-1 accuracy of the 49 fine-tunings of `brief`, three seeds each, and the weights that each starts from.
FINETUNINGS = Path(__file__).with_name("finetune_noise.csv")

THREE = {"a": {0: 10, 1: 12}, "b": {0: 20, 1: 22}, "c": {0: 30, 1: 34}}
"""Within runs: sum of squares 2 + 2 + 8 = 12 on 3 df. The seed effect has F = 16 on (1, 2) df, p = 0.057."""
TOGETHER = {"a": {0: 10, 1: 14}, "b": {0: 20, 1: 24}, "c": {0: 30, 1: 35}}
"""Within runs 28.5 on 3 df: seeds 169/6 on 1 df, residual 1/3 on 2 df. F = 169, p = 0.006."""


def finetunings():
    values, starts = defaultdict(dict), {}
    for line in csv.DictReader(FINETUNINGS.open()):
        values[line["run"]][int(line["seed"])] = float(line["top1"])
        starts[line["run"]] = line["start"]
    return dict(values), starts


def interval(weights, values, found, groups=None):
    return combination(
        [Term(c, values[name], found, (groups or {}).get(name, "")) for name, c in weights.items()]
    )


def error(found):
    """Standard error of an estimate."""
    return found.spread / math.sqrt(found.seeds)


def test_a_pool_computed_by_hand():
    found = pool("finetune", THREE)
    assert (found.sd, found.df, found.runs, found.shared_df) == (2.0, 3, 3, 0)
    assert found.p_shared == pytest.approx(0.0572, abs=5e-5)
    mean = interval({"a": 1}, THREE, found)
    assert mean[:3] == pytest.approx((11, 11 - 3.1824 * math.sqrt(2), 11 + 3.1824 * math.sqrt(2)), abs=1e-3)
    difference = interval({"b": 1, "a": -1}, THREE, found)
    assert difference[:3] == pytest.approx((10, 10 - 3.1824 * 2, 10 + 3.1824 * 2), abs=1e-3)
    assert (difference.df, difference.pooled) == (3, 3)


def test_a_pool_with_a_seed_effect_computed_by_hand():
    found = pool("linear", TOGETHER)
    assert (found.df, found.shared_df) == (2, 1)
    assert found.sd**2 == pytest.approx(1 / 6)
    assert found.shared_sd**2 == pytest.approx(28.5 / 3 - 1 / 6)
    paired = interval({"b": 1, "a": -1}, TOGETHER, found)
    assert paired.high - paired.value == pytest.approx(4.3027 * math.sqrt(2 * (1 / 6) / 2), abs=1e-3)
    mean = interval({"a": 1}, TOGETHER, found)
    assert error(mean) == pytest.approx(math.sqrt(9.5 / 2))
    assert mean.df == pytest.approx(28.5**2 / ((169 / 6) ** 2 / 1 + (1 / 3) ** 2 / 2))


def test_two_runs_give_students_two_sample_interval():
    values = {"a": {0: 41.2, 1: 40.1, 2: 42.0}, "b": {0: 38.9, 1: 39.8, 2: 38.1, 3: 39.0}}
    oracle = stats.ttest_ind(*(list(run.values()) for run in values.values())).confidence_interval(0.95)
    found = interval({"a": 1, "b": -1}, values, pool("finetune", values))
    assert (found.low, found.high) == pytest.approx(tuple(oracle))


def test_two_runs_that_move_together_give_the_paired_interval():
    values = {"a": {0: 41.2, 1: 30.1, 2: 52.0, 3: 61.7}, "b": {0: 40.9, 1: 29.2, 2: 51.5, 3: 61.3}}
    oracle = stats.ttest_rel(*(list(run.values()) for run in values.values())).confidence_interval(0.95)
    found = interval({"a": 1, "b": -1}, values, pool("linear", values))
    assert (found.low, found.high) == pytest.approx(tuple(oracle))


def test_runs_of_two_kinds_give_welchs_interval():
    values = {"a": {0: 1.0, 1: 2.0, 2: 4.0}, "b": {0: 5.0, 1: 5.1, 2: 5.3, 3: 5.0}}
    twins = {
        name: {name: run, name + "2": {seed + 9: v + 7 for seed, v in run.items()}}
        for name, run in values.items()
    }
    terms = [Term(sign, values[name], pool(name, twins[name])) for name, sign in (("a", 1), ("b", -1))]
    variances = [np.var(list(run.values()), ddof=1) / len(run) for run in values.values()]
    df = sum(variances) ** 2 / (variances[0] ** 2 / 4 + variances[1] ** 2 / 6)
    found = combination(terms)
    assert found.df == pytest.approx(df)
    assert found.high - found.value == pytest.approx(stats.t.ppf(0.975, df) * math.sqrt(sum(variances)))


@pytest.mark.parametrize("groups", [None, {"r0": "x", "r1": "x", "r2": "x", "r3": "y", "r4": "y", "r5": "y"}])
def test_components_agree_with_plain_least_squares(groups):
    generator = np.random.default_rng(3)
    group = (groups or {}).get
    effect = defaultdict(lambda: 3 * generator.standard_normal())
    values = {
        f"r{k}": {
            seed: k + effect[group(f"r{k}"), seed] + generator.standard_normal() for seed in range(k % 2, 4)
        }
        for k in range(6)
    }
    cells = [(name, seed, value) for name, run in values.items() for seed, value in run.items()]
    y = np.array([value for *_, value in cells])
    runs = [[name == other for other in values] for name, *_ in cells]
    keys = sorted({(str(group(name)), seed) for name, seed, _ in cells})
    effects = [[(str(group(name)), seed) == key for key in keys] for name, seed, _ in cells]

    def fit(x):
        coefficients, _, rank, _ = np.linalg.lstsq(np.array(x, float), y, rcond=None)
        return ((y - np.array(x, float) @ coefficients) ** 2).sum(), len(y) - rank

    (all_squares, all_df), (squares, df) = fit(runs), fit(np.hstack([runs, effects]))
    found = pool("k", values, groups)
    assert (found.df, found.shared_df) == (df, all_df - df)
    assert found.sd**2 == pytest.approx(squares / df)
    assert found.sd**2 + found.shared_sd**2 == pytest.approx(all_squares / all_df)
    f = (all_squares - squares) / (all_df - df) / (squares / df)
    assert found.p_shared == pytest.approx(stats.f.sf(f, all_df - df, df))


def test_a_combination_has_the_variance_of_its_weights():
    """Weights applied value by value to the model's covariance matrix, for runs with unlike seeds."""
    values = {"a": {0: 1, 1: 2, 2: 3}, "b": {1: 4, 2: 5}, "c": {0: 6, 5: 7}, "d": {0: 8, 1: 9, 2: 10}}
    groups = {"a": "x", "b": "x", "c": "x", "d": "y"}
    model = noise.Noise("k", sd=2.0, df=40, runs=4, p_equal=1.0, shared_sd=3.0, shared_df=20)
    weights = {"a": 1.0, "b": -2.0, "c": 0.5, "d": 0.5}
    cells = [(name, seed) for name, run in values.items() for seed in run]
    covariance = np.array(
        [
            [
                4.0 * (one == two) + 9.0 * (groups[one[0]] == groups[two[0]] and one[1] == two[1])
                for two in cells
            ]
            for one in cells
        ]
    )
    w = np.array([weights[name] / len(values[name]) for name, _ in cells])
    found = interval(weights, values, model, groups)
    assert error(found) == pytest.approx(math.sqrt(w @ covariance @ w))


def test_a_pool_needs_two_runs_whose_seeds_vary():
    assert pool("k", {"a": {0: 1.0, 1: 2.0}, "b": {0: 3.0}}) is None
    assert pool("k", {"a": {0: 1.0, 1: 1.0}, "b": {0: 3.0, 1: 3.0}}) is None


def test_a_computation_with_two_names_counts_once():
    values = {"a": {0: 36.2, 1: 35.2}, "same": {0: 36.2, 1: 35.2}, "one": {0: 3.0}, "other": {0: 3.0}}
    assert set(distinct(values)) == {"a", "one", "other"}


def test_noise_of_the_fine_tunings_of_brief():
    """The numbers of docs/statistics.md."""
    values, starts = finetunings()
    assert len(values) == 49
    found = pool("finetune", values)
    table = np.array([list(run.values()) for run in values.values()])
    assert found.sd == pytest.approx(math.sqrt(table.var(1, ddof=1).mean())) == pytest.approx(1.393, abs=5e-4)
    assert (found.df, found.runs, found.shared_df, found.equal) == (98, 49, 0, True)
    assert found.p_shared == pytest.approx(0.67, abs=5e-3)

    pairs = [np.var(one - two, ddof=1) for one, two in itertools.combinations(table, 2)]
    paired = math.sqrt(np.mean(pairs))
    assert (paired, found.sd * math.sqrt(2)) == pytest.approx((1.98, 1.97), abs=5e-3)
    difference = interval({"mae_base_ft": 1, "daily_s5_ft": -1}, values, found)
    assert difference.high - difference.value == pytest.approx(2.258, abs=1e-3)
    assert stats.t.ppf(0.975, 2) * paired / math.sqrt(3) == pytest.approx(4.9, abs=0.05)

    nested = pool("finetune", distinct(values), starts)
    assert (nested.runs, nested.df, nested.shared_df, nested.equal) == (48, 20, 76, True)
    assert (nested.sd, nested.shared_sd) == pytest.approx((0.81, 1.15), abs=5e-3)
    assert nested.p_shared == pytest.approx(0.0013, abs=1e-4)
    across = interval({"mae_base_ft": 1, "daily_s5_ft": -1}, values, nested, starts)
    assert (across.high - across.value, across.df) == pytest.approx((2.29, 86), abs=0.6)
    same = interval({"daily_ft_192": 1, "daily_ft_160": -1}, values, nested, starts)
    assert same.high - same.value == pytest.approx(1.39, abs=5e-3)


LAYOUTS = {
    # name: (groups, standard deviation of the shared effect)
    "independent": ([""] * 12, 0.0),
    "seeds move together": ([""] * 12, 1.5),
    "starts move together": ([f"start {k // 3}" for k in range(12)], 1.5),
}
SEEDS = (3, 3, 2, 2, 4, 4, 3, 3, 3, 3, 5, 5)


@functools.cache
def simulated(layout, scale=1.0, step=0.0, simulations=1000):
    """Coverage of differences within and across groups, and how often the noise is found unequal."""
    names, effect = LAYOUTS[layout]
    groups = {f"r{k}": name for k, name in enumerate(names)}
    generator = np.random.default_rng(0)
    covered, fell_back = defaultdict(int), 0
    pairs = {"within": [(0, 1), (3, 4), (6, 7), (9, 10)], "across": [(0, 3), (6, 9), (1, 4), (7, 10)]}
    for _ in range(simulations):
        shared = defaultdict(lambda: effect * generator.standard_normal())
        values = {
            f"r{k}": {
                seed: k + shared[name, seed] + (scale if k % 2 else 1) * generator.standard_normal()
                for seed in range(count)
            }
            for k, (name, count) in enumerate(zip(names, SEEDS, strict=True))
        }
        if step:
            values = {
                name: {s: round(v / step) * step for s, v in run.items()} for name, run in values.items()
            }
        found = pool("k", values, groups, draws=1000)
        fell_back += not found.equal
        for kind, members in pairs.items():
            for one, two in members:
                weights = {f"r{one}": 1.0, f"r{two}": -1.0}
                if found.equal:
                    low, high = interval(weights, values, found, groups)[1:3]
                else:
                    low, high = intervals.combination([(c, values[name]) for name, c in weights.items()])[1:3]
                covered[kind] += low <= one - two <= high
    return {kind: count / simulations / 4 for kind, count in covered.items()}, fell_back / simulations


@pytest.mark.parametrize("layout", LAYOUTS)
def test_intervals_of_differences_cover_the_truth_in_95_of_100_cases(layout):
    coverage, _ = simulated(layout)
    assert 0.94 <= coverage["within"] <= 0.96 and 0.94 <= coverage["across"] <= 0.96, coverage


@pytest.mark.parametrize("layout", LAYOUTS)
def test_equal_noise_falls_back_at_the_level_of_the_test(layout):
    _, rate = simulated(layout)
    assert 0.03 <= rate <= 0.065, rate


def test_rounding_to_whole_images_does_not_make_equal_noise_fall_back():
    """Bartlett's statistic is infinite where rounding makes the values of a run equal."""
    _, rate = simulated("independent", step=0.5, simulations=600)
    assert 0.03 <= rate <= 0.065, rate


def test_unequal_noise_falls_back():
    _, rate = simulated("independent", scale=4.0, simulations=100)
    assert rate > 0.8, rate

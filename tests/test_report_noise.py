"""Intervals of claims and tables with the noise pooled over runs, against arithmetic of its own."""

import json
import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from replicate import intervals
from replicate.config.published import Sweep
from replicate.report import scoreboard, summary, tables, verdicts, wording
from replicate.report.checks import INCONCLUSIVE, REPRODUCED, check
from replicate.report.quantities import Reader
from replicate.report.results import Results, Run, load

ROOT = Path(__file__).resolve().parents[1]
BUDGETS = sorted(path.name for path in (ROOT / "measured").iterdir())
ABOVE = {"kind": "above", "left": "a", "right": "b"}


def results(runs, protocol="finetune", metric="top1", starts=None):
    """runs: name -> values by seed; `starts`: name -> the pre-training that it starts from."""
    made = {}
    for name, values in runs.items():
        resolved = {"protocol": protocol, "pretrain": f"mae/{(starts or {}).get(name, name)}"}
        per_seed = tuple({metric: float(value)} for value in values)
        made[name] = Run("mae", name, None, tuple(range(len(values))), per_seed, resolved=resolved)
    return Results("laptop", made)


def noisy(count, seeds=3, scale=1.0):
    """`count` runs with means 50, 51, ... and independent noise."""
    noise = np.random.default_rng(5).standard_normal((count, seeds)) * scale
    return {"abcdefghijklmnop"[k]: 50 + k + noise[k] for k in range(count)}


def test_a_check_uses_the_noise_of_all_runs_and_keeps_the_interval_of_its_own():
    runs = noisy(10)
    outcome = check(ABOVE, results(runs))
    sd = math.sqrt(np.mean([np.var(values, ddof=1) for values in runs.values()]))
    reach = stats.t.ppf(0.975, 20) * sd * math.sqrt(2 / 3)
    assert (outcome.low, outcome.high) == pytest.approx((outcome.effect - reach, outcome.effect + reach))
    assert (outcome.df, outcome.pooled, outcome.seeds) == (20, 10, 3)
    own = stats.ttest_rel(runs["a"], runs["b"]).confidence_interval(0.95)
    assert (outcome.own_low, outcome.own_high) == pytest.approx((own.low, own.high))


def test_a_difference_that_three_pairs_leave_open_is_decided_by_the_pooled_noise():
    runs = noisy(10) | {"a": [54.0, 55.5, 53.5], "b": [50.5, 49.5, 51.5]}
    assert check(ABOVE, results({name: runs[name] for name in "ab"}, "score")).own_low < 0
    assert check(ABOVE, results(runs)).verdict == REPRODUCED


def test_unequal_noise_is_not_pooled():
    runs = noisy(8) | {"y": [40.0, 60.0, 80.0], "z": [80.0, 40.0, 60.0]}
    outcome = check(ABOVE, results(runs))
    own = stats.ttest_rel(runs["a"], runs["b"]).confidence_interval(0.95)
    assert (outcome.low, outcome.high) == pytest.approx((own.low, own.high))
    assert (outcome.df, outcome.pooled) == (2, 0) and math.isnan(outcome.own_low)


def test_two_seeds_have_an_interval_by_the_pooled_noise_and_one_seed_has_none():
    runs = noisy(12, seeds=2) | {"z": [51.0]}
    outcome = check(ABOVE, results(runs))
    assert (outcome.seeds, outcome.df, outcome.pooled) == (2, 12, 12)
    assert outcome.high - outcome.low < (outcome.own_high - outcome.own_low) / 2
    alone = check({"kind": "above", "left": "a", "right": "z"}, results(runs))
    assert (
        alone.verdict == INCONCLUSIVE and math.isnan(alone.low) and "one seed gives no interval" in alone.note
    )


def test_a_ratio_pools_the_noise_of_the_logarithms():
    runs = {name: np.exp(values - 50) for name, values in noisy(10, scale=0.1).items()}
    found = Reader(results(runs)).estimate({"over": ["a", "b"]})
    sd = math.sqrt(np.mean([np.var(np.log(values), ddof=1) for values in runs.values()]))
    centre = np.log(runs["a"]).mean() - np.log(runs["b"]).mean()
    reach = stats.t.ppf(0.975, 20) * sd * math.sqrt(2 / 3)
    assert found[:3] == pytest.approx((math.exp(centre), math.exp(centre - reach), math.exp(centre + reach)))


def test_linear_probes_are_compared_seed_by_seed():
    seed = np.array([-3.0, 0.0, 3.0])
    runs = {name: values + seed for name, values in noisy(6).items()}
    table = np.array(list(runs.values()))
    residual = table - table.mean(0) - table.mean(1, keepdims=True) + table.mean()
    found = Reader(results(runs, "linear")).difference("a", "b")
    sd = math.sqrt((residual**2).sum() / 10)
    assert found.df == 10
    assert found.half_width == pytest.approx(stats.t.ppf(0.975, 10) * sd * math.sqrt(2 / 3))


def test_fine_tunings_of_one_pretraining_are_compared_seed_by_seed():
    runs, shift = noisy(12), np.random.default_rng(1).standard_normal((4, 3)) * 4
    starts = {name: f"pretrain_{k // 3}" for k, name in enumerate(runs)}
    runs = {name: values + shift[k // 3] for k, (name, values) in enumerate(runs.items())}
    reader = Reader(results(runs, starts=starts))
    assert reader.difference("a", "b").half_width < reader.difference("a", "d").half_width / 2


def test_two_metrics_of_one_run_and_times_are_not_pooled():
    values = noisy(6)
    found = results(values, metric="seconds")
    assert Reader(found, metric="seconds").difference("a", "b").pooled == 0
    two = {
        name: Run("mae", name, None, (0, 1, 2), tuple({"top1": v, "top5": v + k} for k, v in enumerate(run)),
                  resolved={"protocol": "finetune"})
        for name, run in values.items()
    }  # fmt: skip
    reader = Reader(Results("laptop", two))
    assert reader.difference("a", "b").pooled == 6
    assert reader.estimate({"minus": ["a/top5", "a/top1"]}).pooled == 0


def test_more_seeds_leave_the_degrees_of_freedom_of_the_pooled_noise():
    found = Reader(results(noisy(10))).difference("a", "b")
    needed = intervals.seeds_to_decide(found, found.value - 0.3)
    reaches = [stats.t.ppf(0.975, found.df) * found.spread / math.sqrt(n) for n in (needed - 1, needed)]
    assert reaches[0] >= 0.3 > reaches[1]


def test_a_peak_is_resampled_with_the_pooled_noise():
    runs = noisy(12)
    sweep = Sweep({float(k): name for k, name in enumerate("abcde")})
    curve = Reader(results(runs), {"sweep": sweep}).curve("sweep")
    sd = math.sqrt(np.mean([np.var(values, ddof=1) for values in runs.values()]))
    assert (curve.spread, curve.df, curve.pooled) == pytest.approx((sd, 24, 12))
    drawn = intervals.draws(curve, count=20000)
    expected = sd / math.sqrt(3) * math.sqrt(24 / 22)  # Student's t on 24 degrees of freedom
    assert drawn.std(0) == pytest.approx(np.full(5, expected), rel=0.03)
    peak = intervals.argmax(curve)
    assert (peak.pooled, peak.df) == (12, 24)
    assert (peak.own_low, peak.own_high) == intervals.argmax(curve.own)[1:3]


@pytest.mark.parametrize("budget", BUDGETS)
def test_intervals_of_measured_fine_tunings_agree_with_plain_least_squares(budget):
    """Up to ten differences a budget, from the files to the interval without the package's arithmetic."""
    values, starts = {}, {}
    for path in sorted((ROOT / "measured" / budget).rglob("metrics.json")):
        content = json.loads(path.read_text())
        if content["resolved"].get("protocol") == "finetune":
            values[path.parent.name] = [one["top1"] for one in content["results"]["per_seed"]]
            starts[path.parent.name] = content["resolved"]["pretrain"].rpartition("/")[2]
    reader = Reader(load(budget, ROOT / "results"))
    for left, right in list(pairwise(values))[:10]:
        found = reader.difference(left, right)
        assert found.value == pytest.approx(np.mean(values[left]) - np.mean(values[right]))
        if found.pooled:
            reach, df = _expected(values, starts, left, right)
            assert (found.half_width, found.df) == pytest.approx((reach, df))
        else:
            own = stats.ttest_rel(values[left], values[right]).confidence_interval(0.95)
            assert (found.low, found.high) == pytest.approx((own.low, own.high))


def _expected(values, starts, left, right):
    """Half-width and degrees of freedom of a difference of two runs on the same seeds."""
    names = list({tuple(run): name for name, run in reversed(values.items())}.values())
    cells = [(name, seed, value) for name in names for seed, value in enumerate(values[name])]
    y = np.array([value for *_, value in cells])
    effects = sorted({(starts[name], seed) for name, seed, _ in cells})
    runs = np.array([[name == one for one in names] for name, *_ in cells], float)
    shared = np.array([[(starts[name], seed) == one for one in effects] for name, seed, _ in cells], float)

    def fit(x):
        solution, _, rank, _ = np.linalg.lstsq(x, y, rcond=None)
        return ((y - x @ solution) ** 2).sum(), len(y) - rank

    (ss_runs, df_runs), (ss, df) = fit(runs), fit(np.hstack([runs, shared]))
    n, t = len(values[left]), stats.t.ppf
    f = (ss_runs - ss) / (df_runs - df) / (ss / df) if df and df_runs > df else 0
    if not f or stats.f.sf(f, df_runs - df, df) >= 0.05:
        return t(0.975, df_runs) * math.sqrt(ss_runs / df_runs * 2 / n), df_runs
    if starts[left] == starts[right]:
        return t(0.975, df) * math.sqrt(ss / df * 2 / n), df
    ss_shared, df_shared = ss_runs - ss, df_runs - df
    satterthwaite = ss_runs**2 / (ss_shared**2 / df_shared + ss**2 / df)
    return t(0.975, satterthwaite) * math.sqrt(ss_runs / df_runs * 2 / n), satterthwaite


def test_an_effect_says_what_its_interval_rests_on():
    line = {"effect": 1.234, "low": 0.9, "high": 1.6, "unit": "points", "df": 85.98, "pooled": 48}
    line |= {"own_low": 0.5, "own_high": 2.0}
    assert wording.rests_on(line) == "df 86, noise of 48 runs; own seeds [0.50, 2.00]"
    assert wording.rests_on(line | {"pooled": 0, "df": 2.0}) == "df 2"
    assert wording.rests_on(line | {"low": math.nan}) == ""


def test_claims_and_tables_show_degrees_of_freedom_and_runs_pooled():
    assert {"low", "high", "df", "pooled", "own_low", "own_high"} <= set(verdicts.COLUMNS)
    assert {"ours_low", "ours_high", "df", "pooled"} <= set(tables.COLUMNS) & set(scoreboard.COLUMNS)
    assert {"low", "high", "df", "pooled"} <= set(summary.CONTRASTS) & set(verdicts.COLUMNS)

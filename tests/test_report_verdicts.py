"""Verdicts on made-up results whose answer is known."""

import math
import re
import zlib
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from scipy import stats

from replicate import intervals
from replicate.config import load, published
from replicate.config.published import Sweep
from replicate.errors import UserError
from replicate.noise import Noise
from replicate.report import benchmarks, checks, verdicts, wording
from replicate.report.checks import CONFIRMED, INCONCLUSIVE, NO_VERDICT, NOT_RUN, OPPOSITE, REPRODUCED, check
from replicate.report.quantities import NotRun, Reader
from replicate.report.results import Results, Run

ROOT = Path(__file__).resolve().parents[1]


def results(runs, budget="laptop"):
    """runs: name -> {metric: values by seed} or values by seed (top-1)."""
    made = {}
    for name, metrics in runs.items():
        metrics = metrics if isinstance(metrics, dict) else {"top1": metrics}
        count = len(next(iter(metrics.values())))
        per_seed = tuple(
            {metric: float(values[k]) for metric, values in metrics.items()} for k in range(count)
        )
        made[name] = Run("paper", name, None, tuple(range(count)), per_seed)
    return Results(budget, made)


A, B = [44.0, 43.6, 44.3], [40.1, 39.9, 40.6]


@pytest.mark.parametrize(("left", "right", "verdict"), [("a", "b", REPRODUCED), ("b", "a", OPPOSITE)])
def test_above_is_decided_by_a_paired_interval(left, right, verdict):
    outcome = check({"kind": "above", "left": left, "right": right}, results({"a": A, "b": B}))
    sign = 1 if left == "a" else -1
    oracle = stats.ttest_1samp(sign * (np.array(A) - np.array(B)), 0).confidence_interval(0.95)
    assert outcome.verdict == verdict and outcome.seeds == 3
    assert (outcome.low, outcome.high) == pytest.approx((oracle.low, oracle.high))


def test_an_interval_over_the_bound_decides_nothing_and_says_what_would():
    found = results({"a": [41.0, 40.0, 42.0], "b": [40.0, 41.1, 39.5]})
    outcome = check({"kind": "above", "left": "a", "right": "b"}, found)
    assert outcome.verdict == INCONCLUSIVE
    needed = intervals.seeds_to_decide(
        intervals.difference(found.values("a", "top1"), found.values("b", "top1"))
    )
    assert f"about {needed - 3} more seeds are needed if the effect persists (towards" in outcome.note
    other_way = check({"kind": "above", "left": "b", "right": "a"}, found)
    assert other_way.verdict == INCONCLUSIVE and "(against the claim)" in other_way.note


def test_rounds_of_a_loader_are_measurements():
    rates = {
        "loader_a": {"images_per_second": [776.0, 700.0, 830.0]},
        "loader_b": {"images_per_second": [643.0, 650.0, 600.0]},
    }
    spec = {
        "kind": "ratio_above",
        "left": "loader_a/images_per_second",
        "right": "loader_b/images_per_second",
        "bound": 1.2,
    }
    outcome = check(spec, results(rates))
    assert outcome.verdict == INCONCLUSIVE and outcome.seeds == 3 and outcome.sample == "measurement"
    assert re.search(r"^about \d+ more measurements are needed", outcome.note)


def test_one_seed_decides_nothing():
    outcome = check({"kind": "above", "left": "a", "right": "b"}, results({"a": [50.0], "b": [40.0]}))
    assert outcome.verdict == INCONCLUSIVE and "one seed gives no interval" in outcome.note


def test_equivalence_needs_a_narrow_interval():
    spec = {"kind": "equal", "left": "a", "right": "b", "tolerance": 0.5}
    assert check(spec, results({"a": [40.0, 41.0, 42.0], "b": [40.1, 41.0, 41.9]})).verdict == REPRODUCED
    assert check(spec, results({"a": A, "b": B})).verdict == OPPOSITE
    wide = check(spec, results({"a": [40.0, 42.0, 41.0], "b": [41.0, 40.5, 41.5]}))
    assert wide.verdict == INCONCLUSIVE and wide.against == "a tolerance of 0.5 points"


def test_not_below_allows_the_tolerance():
    spec = {"kind": "not_below", "left": "b", "right": "a", "tolerance": 5.0}
    assert check(spec, results({"a": A, "b": B})).verdict == REPRODUCED
    assert check({**spec, "tolerance": 1.0}, results({"a": A, "b": B})).verdict == OPPOSITE


def test_ratio_is_judged_in_logarithms():
    runs = results({"dear": {"seconds": [3.0, 3.1, 2.9]}, "cheap": {"seconds": [1.0, 1.02, 0.99]}})
    outcome = check(
        {"kind": "ratio_above", "left": "dear/seconds", "right": "cheap/seconds", "bound": 1.5}, runs
    )
    logs = np.log([3.0, 3.1, 2.9]) - np.log([1.0, 1.02, 0.99])
    oracle = stats.ttest_1samp(logs, 0).confidence_interval(0.95)
    assert outcome.verdict == REPRODUCED
    assert (outcome.low, outcome.high) == pytest.approx(
        (math.exp(oracle.low) - 1.5, math.exp(oracle.high) - 1.5)
    )
    assert (
        check(
            {"kind": "ratio_below", "left": "dear/seconds", "right": "cheap/seconds", "bound": 1.15}, runs
        ).verdict
        == OPPOSITE
    )


def test_best_worst_and_multiples():
    runs = results({"a": A, "b": B, "c": [30.0, 30.1, 29.9]})
    reader = Reader(runs, {"s": Sweep({0.0: "a", 1.0: "b", 2.0: "c"})})
    assert reader.estimate({"best": "s"}).value == pytest.approx(np.mean(A))
    assert reader.estimate({"worst": ["a", "b"]}).value == pytest.approx(np.mean(B))
    assert reader.estimate({"times": [0.25, {"minus": ["a", "b"]}]}).value == pytest.approx(
        0.25 * (np.mean(A) - np.mean(B))
    )
    assert reader.estimate({"peak": "s"}).value == 0.0
    assert reader.estimate({"minus": ["a", "a"]}).value == 0.0


def test_a_best_leaves_out_the_run_that_it_is_compared_with():
    runs = results({"a": A, "b": B, "c": [30.0, 30.1, 29.9]})
    spec = {"kind": "above", "left": {"best": ["a", "b", "c"]}, "right": "a"}
    assert check(spec, runs).effect == pytest.approx(np.mean(B) - np.mean(A))
    assert verdicts.means(spec, runs) == "40.2 against 44"
    gain = Reader(runs).estimate({"minus": [{"best": ["a", "b", "c"]}, "a/top1"]})
    assert gain.value == pytest.approx(np.mean(B) - np.mean(A))
    loss = Reader(runs).estimate({"minus": ["c", {"worst": ["a", "b", "c"]}]})
    assert loss.value == pytest.approx(30.0 - np.mean(B))


def test_the_end_that_a_selection_flatters_is_widened_by_bonferroni():
    """Differences by seed have 2 degrees of freedom: 4.303 at 5 %, 7.649 at 5 % over three candidates."""
    runs = results({"a": A, "b": B, "c": [30.0, 30.1, 29.9], "d": [41.0, 42.0, 40.5]})
    reader, three = Reader(runs), ["a", "b", "c"]
    plain = reader.difference("a", "d")
    wide = stats.t.ppf(1 - 0.025 / 3, 2) / stats.t.ppf(0.975, 2)
    assert wide == pytest.approx(7.649 / 4.303, rel=1e-3)
    best = reader.estimate({"minus": [{"best": three}, "d"]})
    assert (best.value, best.high) == pytest.approx((plain.value, plain.high))
    assert best.value - best.low == pytest.approx(wide * plain.half_width)
    other = reader.estimate({"minus": ["d", {"best": three}]})
    assert (other.low, other.high) == pytest.approx((-plain.high, -best.low))
    worst = reader.estimate({"minus": [{"worst": ["a", "b", "d"]}, "c"]})
    alone = reader.difference("b", "c")
    assert (worst.value, worst.low) == pytest.approx((alone.value, alone.low)) and worst.high > alone.high
    both = reader.estimate({"minus": [{"best": ["a", "b"]}, {"worst": ["c", "d"]}]})
    four = stats.t.ppf(1 - 0.025 / 4, 2) / stats.t.ppf(0.975, 2)
    assert both.value - both.low == pytest.approx(four * reader.difference("a", "c").half_width)
    ratio = reader.estimate({"over": [{"best": three}, "d"]})
    assert ratio.low < reader.estimate({"over": ["a", "d"]}).low and ratio.high == pytest.approx(
        reader.estimate({"over": ["a", "d"]}).high
    )


SELECTIONS = [
    {"kind": "above", "left": {"best": ["a", "b", "c", "d", "e", "r"]}, "right": "r"},
    {"kind": "above", "left": {"worst": ["a", "b", "c", "d", "e"]}, "right": "r"},
    {"kind": "above", "left": "r", "right": {"best": ["a", "b", "c", "d", "e"]}},
    {
        "kind": "not_below",
        "left": {"best": ["a", "b", "c"]},
        "right": {"best": ["d", "e", "r"]},
        "tolerance": 0.0,
    },
    {"kind": "above", "left": {"minus": [{"best": ["a", "b", "c"]}, "d"]}, "right": {"minus": ["e", "r"]}},
]


@pytest.mark.parametrize("pooled", [True, False], ids=["pooled noise", "own seeds"])
@pytest.mark.parametrize("spec", SELECTIONS, ids=range(len(SELECTIONS)))
def test_equal_runs_are_decided_in_at_most_five_percent(spec, pooled):
    """Both directions counted, 1,000 simulations of three seeds a run."""
    generator, decided, count = np.random.default_rng(3), 0, 1000
    noise = Noise("finetune", 1.0, 12, 6, 1.0)
    for table in 50 + generator.standard_normal((count, 6, 3)):
        runs = results(dict(zip("abcder", table, strict=True)))
        sd = float(np.sqrt(table.var(axis=1, ddof=1).mean()))
        known = replace(noise, sd=sd) if pooled else None
        with mock.patch.object(Results, "noise", lambda *_, known=known: known):
            decided += check(spec, runs).verdict != INCONCLUSIVE
    assert decided <= 0.05 * count


def test_a_best_that_is_better_and_one_that_is_worse_are_still_decided():
    generator = np.random.default_rng(4)
    table = 50 + 0.3 * generator.standard_normal((6, 3))
    for shift, verdict in ((2.0, REPRODUCED), (-2.0, OPPOSITE)):
        runs = dict(zip("abcde", table + shift, strict=False)) | {"r": table[5]}
        with mock.patch.object(Results, "noise", lambda *_: Noise("finetune", 0.3, 12, 6, 1.0)):
            assert check(SELECTIONS[0], results(runs)).verdict == verdict


def test_gain_against_gain_cancels_what_both_share():
    runs = results({"a": A, "b": B, "c": [v + 1 for v in A], "d": B})
    gains = {"left": {"minus": ["c", "d"]}, "right": {"minus": ["a", "b"]}}
    outcome = check({"kind": "above", **gains}, runs)
    assert outcome.verdict == REPRODUCED and outcome.effect == pytest.approx(1.0)


def sweep(means, spread=0.1, seed=0):
    generator = np.random.default_rng(seed)
    return {f"r{k}": list(m + spread * generator.standard_normal(3)) for k, m in enumerate(means)}


POINTS = {0.65: "r0", 0.75: "r1", 0.8: "r2", 0.85: "r3", 0.9: "r4"}


def test_place_of_the_peak():
    spec = {"kind": "peak_between", "sweep": POINTS, "low": 0.75, "high": 0.875}
    assert check(spec, results(sweep([30, 38, 44, 38, 30]))).verdict == REPRODUCED
    assert check(spec, results(sweep([44, 38, 36, 34, 30]))).verdict == OPPOSITE
    assert check(spec, results(sweep([40, 40, 40, 40, 40], 1.0))).verdict == INCONCLUSIVE


@pytest.mark.parametrize("spec", [{"kind": "peak_below"}, {"kind": "peaks_agree", "step": 0.05}])
def test_peaks_at_the_end_of_both_sweeps_are_not_compared(spec):
    """Curves that still rise, or fall from the first place on, peak beyond it, and nobody knows where."""
    for means in ([30, 34, 38, 41, 44], [44, 41, 38, 34, 30]):
        runs = sweep(means) | {f"q{k}": v for k, v in enumerate(sweep(means, seed=1).values())}
        other = {x: run.replace("r", "q") for x, run in POINTS.items()}
        outcome = check(spec | {"sweep": POINTS, "than": other}, results(runs))
        assert outcome.verdict == INCONCLUSIVE and "both sweeps peak at their end" in outcome.note


def test_two_peaks():
    runs = sweep([30, 38, 44, 38, 30]) | {
        f"q{k}": v for k, v in enumerate(sweep([44, 38, 36, 34, 30]).values())
    }
    other = {x: run.replace("r", "q") for x, run in POINTS.items()}
    assert check({"kind": "peak_below", "sweep": other, "than": POINTS}, results(runs)).verdict == REPRODUCED
    assert check({"kind": "peak_below", "sweep": POINTS, "than": other}, results(runs)).verdict == OPPOSITE
    assert (
        check({"kind": "peaks_agree", "sweep": POINTS, "than": other, "step": 0.05}, results(runs)).verdict
        == OPPOSITE
    )
    assert (
        check({"kind": "peaks_agree", "sweep": POINTS, "than": POINTS, "step": 0.05}, results(runs)).verdict
        == REPRODUCED
    )


def test_monotone_sweeps():
    rising, bent = results(sweep([30, 32, 34, 36, 38])), results(sweep([30, 36, 33, 36, 38]))
    assert check({"kind": "rising", "sweep": POINTS}, rising).verdict == REPRODUCED
    assert check({"kind": "rising", "sweep": POINTS, "strict": True}, rising).verdict == REPRODUCED
    assert check({"kind": "falling", "sweep": POINTS}, rising).verdict == OPPOSITE
    outcome = check({"kind": "rising", "sweep": POINTS}, bent)
    assert outcome.verdict == OPPOSITE and "0.75 to 0.8" in outcome.note
    # The last step, 38 to 37.5, is within noise: its effect is shown, and it points against the claim.
    level = results(sweep([30, 32, 34, 38, 37.5], 1.0))
    outcome = check({"kind": "rising", "sweep": POINTS, "strict": True}, level)
    assert outcome.verdict == INCONCLUSIVE and outcome.effect < 0 and "against the claim" in outcome.note
    runs = {"kind": "ordered", "runs": ["r4", "r3", "r2", "r1", "r0"]}
    assert check(runs, rising).verdict == REPRODUCED


def test_range_between_two_places():
    runs = results(sweep([30, 38.0, 38.1, 38.05, 30], 0.02))
    assert (
        check({"kind": "range_below", "sweep": POINTS, "low": 0.75, "high": 0.85, "bound": 0.5}, runs).verdict
        == REPRODUCED
    )
    assert check({"kind": "range_below", "sweep": POINTS, "bound": 0.5}, runs).verdict == OPPOSITE


def test_rank_correlation_over_bins():
    bins = {f"loss_p2dist_{d}": [0.1 * d, 0.11 * d, 0.1 * d + 0.01] for d in (8, 12, 16, 24, 32)}
    spec = {"kind": "rank_correlation", "run": "a", "bins": "loss_p2dist_", "bound": 0.9}
    outcome = check(spec, results({"a": bins}))
    assert outcome.verdict == REPRODUCED and outcome.effect == pytest.approx(0.1)
    assert check({**spec, "run": "b"}, results({"a": bins})).verdict == NOT_RUN


def test_unfinished_runs_and_unknown_metrics_are_not_run():
    runs = results({"a": A})
    missing = check({"kind": "above", "left": "a", "right": "b"}, runs)
    assert missing.verdict == NOT_RUN and "b" in missing.note
    assert check({"kind": "above", "left": "a/top7", "right": "a"}, runs).verdict == NOT_RUN
    with pytest.raises(NotRun):
        Reader(runs).curve({0.1: "a", 0.2: "b", 0.3: "c"})


def test_a_sweep_with_a_gap_names_it():
    runs = sweep([30, 38, 44, 38, 30])
    del runs["r3"]
    outcome = check({"kind": "peak_between", "sweep": POINTS, "low": 0.75, "high": 0.875}, results(runs))
    assert outcome.verdict == REPRODUCED and outcome.note == "peak at 0.8; without r3"


CLAIM = {"id": "paper.claim", "statement": "s", "size": "strong"}
WINS, LOSES = {"kind": "above", "left": "a", "right": "b"}, {"kind": "above", "left": "b", "right": "a"}
ABSENT = {"kind": "above", "left": "z", "right": "a"}
TIED = {"kind": "above", "left": "a", "right": "t"}


@pytest.mark.parametrize(
    ("checks", "verdict"),
    [
        ([WINS], REPRODUCED),
        ([WINS, LOSES], OPPOSITE),
        ([WINS, TIED], INCONCLUSIVE),
        ([WINS, ABSENT], INCONCLUSIVE),
        ([ABSENT], NOT_RUN),
    ],
)
def test_checks_make_a_claim(checks, verdict):
    runs = results({"a": A, "b": B, "t": [44.0, 44.2, 43.7]})
    outcome = verdicts.judge({**CLAIM, "checks": checks}, runs)
    assert outcome.verdict == verdict
    if ABSENT in checks and WINS in checks:
        assert outcome.note.startswith("1 of 2 checks run: 1 reproduced; not tested: z > a")


@pytest.mark.parametrize(("spec", "word"), [(WINS, REPRODUCED), (LOSES, OPPOSITE)])
def test_a_check_that_only_stands_in_does_not_decide_the_statement(spec, word):
    claim, runs = {**CLAIM, "checks": [spec], "stand_in": "a probe"}, results({"a": A, "b": B})
    outcome = verdicts.judge(claim, runs)
    assert outcome.verdict == INCONCLUSIVE and f"measured instead: a probe, {word}" in outcome.note
    assert verdicts.checks(claim, runs)[0].verdict == word
    assert verdicts.judge({**claim, "checks": [ABSENT]}, runs).verdict == NOT_RUN
    close = verdicts.judge({**claim, "checks": [TIED]}, results({"a": A, "t": [44.0, 44.2, 43.7]}))
    assert "measured instead: a probe, inconclusive" in close.note and "more seed" not in close.note


def test_a_caveat_goes_with_a_verdict_below_the_papers_budget():
    claim = {**CLAIM, "checks": [WINS], "caveat": "short runs favour a"}
    assert "short runs favour a" in verdicts.judge(claim, results({"a": A, "b": B})).note
    assert "favour" not in verdicts.judge(claim, results({"a": A, "b": B}, "paper")).note
    assert "favour" not in verdicts.judge(claim, results({})).note


def test_smoke_gives_no_verdict():
    outcome = verdicts.judge({**CLAIM, "checks": [WINS]}, results({"a": A, "b": B}, "smoke"))
    assert outcome.verdict == NO_VERDICT and "smoke" in outcome.note


def test_smoke_judges_nothing_but_what_is_computed():
    claim = {
        **CLAIM,
        "checks": [WINS, {"kind": "computed", "function": "neighbour_fractions", "tolerance": 1.0}],
    }
    found = verdicts.checks(claim, results({"a": A, "b": B}, "smoke"))
    assert [outcome.verdict for outcome in found] == [NO_VERDICT, CONFIRMED]
    assert [outcome.verdict for outcome in verdicts.checks(claim, results({"a": A, "b": B}))] == [
        REPRODUCED,
        CONFIRMED,
    ]


def test_a_comparison_shows_both_means():
    found = results({"a": [40.0, 41.0, 42.0], "b": [45.5, 45.6, 45.7]})
    assert verdicts.means({"kind": "above", "left": "a", "right": "b"}, found) == "41 against 45.6"
    assert (
        verdicts.means({"kind": "above", "left": "a", "right": "absent"}, found)
        == ""
        == verdicts.means({"kind": "ordered", "runs": ["a"]}, found)
    )


def test_no_verdict_without_an_interval_unless_computed():
    runs = results(
        {"light_90_llrd_65": A, "light_90_llrd_75": B, "light_90_llrd_80": A, "light_90_llrd_90": B}
    )
    frame = verdicts.all_claims(runs)
    assert len(frame) == len(published.claims()) and list(frame.columns) == verdicts.COLUMNS
    decided = frame[frame.verdict.isin([REPRODUCED, OPPOSITE])]
    measured = decided[decided.budget != "by computation"]
    assert measured.low.notna().all() and measured.high.notna().all() and (measured.seeds >= 2).all()
    assert set(
        frame[frame.claim.isin(["efficient_mae.neighbour_fraction", "efficient_mae.patch_counts"])].verdict
    ) == {CONFIRMED}
    assert set(frame.verdict) <= {REPRODUCED, OPPOSITE, CONFIRMED, INCONCLUSIVE, NOT_RUN}


def test_every_check_of_every_claim_is_well_formed():
    """Every check accepts its own arguments, on results where every run exists."""

    class Everything(dict):
        def __contains__(self, name):
            return True

        def __missing__(self, name):
            return Run("p", name, None, (0, 1), ({},) * 2)

    runs = Results("laptop", Everything())
    object.__setattr__(
        runs, "values", lambda name, metric: {0: 1.0 + zlib.crc32(f"{name} {metric}".encode()) % 7, 1: 2.0}
    )
    for claim in published.claims().values():
        for spec in claim["checks"]:
            if spec["kind"] != "computed":
                assert check(spec, runs).verdict in (REPRODUCED, OPPOSITE, INCONCLUSIVE, NOT_RUN), claim["id"]


def test_wrong_data_is_named():
    runs = results({"a": A})
    with pytest.raises(UserError, match="no check of kind 'guess'"):
        check({"kind": "guess"}, runs)
    with pytest.raises(UserError, match="no sweep 'nowhere'"):
        check({"kind": "rising", "sweep": "nowhere"}, runs)
    with pytest.raises(UserError, match="is no quantity"):
        check({"kind": "above", "left": {"sum": ["a"]}, "right": "a"}, runs)
    with pytest.raises(UserError, match="cannot be compared"):
        check({"kind": "above", "left": {"over": ["a", "a"]}, "right": "a"}, runs)


def test_every_check_has_a_description_of_one_line():
    lines = [wording.describe(spec) for claim in published.claims().values() for spec in claim["checks"]]
    assert all(lines) and not any("{" in line for line in lines)
    assert "best of light_llrd > light_90_llrd_65" in lines
    assert "peak of light_llrd between 0.75 and 0.875" in lines
    assert "full_75/seconds_per_epoch / light_75/seconds_per_epoch > 1.5" in lines
    assert "(emae_95_ft - emae_plain_95_ft) > (emae_85_ft - emae_plain_85_ft)" in lines


def test_a_run_added_to_params_joins_its_sweep():
    found = results({"light_65": A, "light_80": A, "other_70": B})
    found.runs["light_70"] = Run(
        "p", "light_70", None, (0, 1, 2), ({"top1": 50.0},) * 3, run={"layer_decay": 0.7}
    )
    sweep = Sweep({0.65: "light_65", 0.8: "light_80"}, runs="light_*", by="layer_decay")
    reader = Reader(found, {"s": sweep})
    assert reader.points("s") == {0.65: "light_65", 0.8: "light_80", 0.7: "light_70"}
    assert reader.curve("s").x == [0.65, 0.7, 0.8]
    assert Reader(results({"light_65": A}), {"s": sweep}).points("s") == sweep.points


def test_an_undecided_peak_says_how_many_seeds_would_decide_it():
    noisy = {"low": [40.0, 42.4, 41.2], "middle": [41.6, 42.0, 43.0], "high": [40.2, 39.8, 41.0]}
    spec = {
        "kind": "peak_between",
        "sweep": {0.5: "low", 0.75: "middle", 1.0: "high"},
        "low": 0.7,
        "high": 0.8,
    }
    outcome = check(spec, results(noisy))
    more = int(re.search(r"about (\d+) more seeds are needed", outcome.note)[1])
    curve = intervals.Curve([0.5, 0.75, 1.0], [dict(enumerate(values)) for values in noisy.values()])
    enough, short = (intervals.argmax(curve, more=3 + count) for count in (more, more - 1))
    assert outcome.verdict == INCONCLUSIVE and enough.low == enough.high == 0.75 and short.low != short.high


def test_one_seed_decides_nothing_of_any_kind():
    one_seed = results({"a": [50.0], "b": [49.0], "c": [48.0]})
    sweep = ["a", "b", "c"]
    specs = [{"kind": kind, "sweep": sweep} for kind in ("rising", "falling")] + [
        {"kind": "ordered", "runs": sweep}
    ]
    specs += [
        {"kind": "peak_between", "sweep": sweep, "low": 0, "high": 2},
        {"kind": "range_below", "sweep": sweep, "bound": 9},
    ]
    specs += [
        {"kind": kind, "sweep": sweep, "than": sweep} | more
        for kind, more in (("peaks_agree", {"step": 1}), ("peak_below", {}))
    ]
    specs += [
        {"kind": "above", "left": "a", "right": "b"},
        {"kind": "equal", "left": "a", "right": "b", "tolerance": 5},
    ]
    for spec in specs:
        outcome = check(spec, one_seed)
        assert (
            outcome.verdict == INCONCLUSIVE
            and "one seed gives no interval; 2 more would give one" in outcome.note
        ), spec


@pytest.mark.parametrize(
    ("spec", "unit"),
    [
        ({"kind": "above", "left": "a_ft", "right": {"best": ["b", "c"]}}, "points"),
        ({"kind": "above", "left": "a/probe_top1", "right": "b/probe_top1"}, "points"),
        ({"kind": "above", "left": "a/loss", "right": "b/loss"}, "in loss"),
        (
            {
                "kind": "above",
                "left": {"over": ["a/loss", "b/loss"]},
                "right": {"over": ["c/loss", "d/loss"]},
            },
            "x",
        ),
        ({"kind": "ratio_above", "left": "a/train_hours", "right": "b/train_hours", "bound": 1}, "x"),
        ({"kind": "rising", "sweep": "emae_plain_loss", "metric": "loss"}, "in loss"),
        ({"kind": "peak_between", "sweep": "s", "low": 0.7, "high": 0.8, "axis": "LLRD"}, "in LLRD"),
        ({"kind": "ordered", "runs": ["loader_a", "loader_b"], "metric": "images_per_second"}, "images/s"),
        ({"kind": "above", "left": "a/psnr_hog", "right": "a/psnr_pixel"}, "dB"),
    ],
)
def test_effects_have_the_unit_of_what_is_compared(spec, unit):
    assert wording.unit(spec) == unit


def test_an_effect_has_interval_and_unit():
    line = {"verdict": REPRODUCED, "effect": 1.234, "low": 0.5, "high": 2.0, "unit": "points"}
    assert wording.effect_text(line) == "+1.23 [0.50, 2.00] points"
    wide = line | {"effect": 2.27, "low": -0.769, "high": 5.3}
    assert wording.effect_text(wide) == "+2.3 [-0.8, 5.3] points", "no more digits than the interval carries"
    rate = line | {"effect": -1873.4, "low": -3220.0, "high": -520.4, "unit": "images/s"}
    assert wording.effect_text(rate) == "-1,873 [-3,220, -520] images/s"
    bounded = line | {"unit": "x", "against": "a bound of 1.2 x"}
    assert wording.effect_text(bounded) == "+1.23 [0.50, 2.00] x, against a bound of 1.2 x"
    assert wording.effect_text(line | {"low": math.nan, "high": math.nan}) == "+1.23 points"


def test_a_committed_benchmark_is_decided_by_its_quartiles():
    spec = {
        "kind": "benchmark",
        "file": "fastmim_step",
        "line": "step: FastMIM vs SimMIM",
        "case": "ViT-B",
        "bound": 0.0,
    }
    row = benchmarks.row(published.ROOMS.parent, "fastmim_step", spec["line"], "ViT-B")
    low, high = row["spread"]
    for bound, verdict in ((low / 2, REPRODUCED), ((low + high) / 2, INCONCLUSIVE), (2 * high, OPPOSITE)):
        outcome = check(spec | {"bound": bound}, results({}))
        assert outcome.verdict == verdict and (outcome.effect, outcome.low, outcome.high) == (
            row["ratio"] - bound,
            low - bound,
            high - bound,
        )
        assert outcome.unit == "x" and row["machine"] in outcome.note
    assert check(spec | {"line": "step: FastMIM vs nothing"}, results({})).verdict == NOT_RUN
    assert verdicts.checks({**CLAIM, "checks": [spec]}, results({}, "smoke"))[0].verdict == NO_VERDICT


def test_what_was_run_of_a_long_claim_is_counted():
    outcome = verdicts.judge(
        {**CLAIM, "checks": [WINS, WINS, TIED, ABSENT]}, results({"a": A, "b": B, "t": [44.0, 44.2, 43.7]})
    )
    assert outcome.verdict == INCONCLUSIVE and outcome.note.startswith(
        "3 of 4 checks run: 2 reproduced, 1 inconclusive"
    )


def test_a_mask_size_is_compared_with_every_ratio_of_the_others():
    """FastMIM's Table 10b at the printed accuracies: the claim holds, and fails if any other size is best."""
    cells = published.select({"paper": "fastmim", "table": "table_10", "panel": "b"}).to_dict("records")
    printed = {}
    for cell in cells:
        setting = published.setting(cell["row"])
        backbone = "swin_" if setting["backbone"] == "Swin-B" else ""
        printed[
            f"fastmim_mask_{backbone}{setting['mask_size']}_{float(setting['mask_ratio']) * 100:.0f}_ft"
        ] = cell["value"]
    claim = published.claims()["fastmim.mask_size_and_ratio"]
    sizes = [spec for spec in claim["checks"] if spec["kind"] == "not_below"]

    def verdict(accuracies):
        found = results({run: [value - 0.01, value, value + 0.01] for run, value in accuracies.items()})
        return verdicts.judge({**claim, "checks": sizes}, found).verdict

    default = ("fastmim_mask_16_", "fastmim_mask_swin_32_")
    others = [run for run in printed if not run.startswith(default)]
    assert len(printed) == 22 and len(others) == 14
    assert verdict(printed) == REPRODUCED
    assert {run: verdict(printed | {run: 85.0}) for run in others} == dict.fromkeys(others, OPPOSITE)


def test_a_half_that_nothing_tests_leaves_a_claim_inconclusive():
    claim, runs = {**CLAIM, "checks": [WINS], "untested": ["the GPUs"]}, results({"a": A, "b": B})
    outcome = verdicts.judge(claim, runs)
    assert outcome.verdict == INCONCLUSIVE and outcome.effect > 0 and outcome.note == "not tested: the GPUs"
    assert verdicts.judge({**claim, "checks": [LOSES]}, runs).verdict == OPPOSITE
    assert verdicts.line_of(claim, runs)["untested"] == "the GPUs"


@pytest.mark.parametrize(("budget", "source"), [("laptop", "photos"), ("evening", "scenes")])
def test_synthetic_images_say_nothing_about_a_paper(budget, source):
    params = load(ROOT / "params.yaml")
    lenses = params.budgets | {budget: params.budgets[budget].model_copy(update={"data": {"source": source}})}
    params = params.model_copy(update={"budgets": lenses})
    runs = {
        name: replace(run, resolved={"dataset": "full"})
        for name, run in results({"a": A, "b": B}).runs.items()
    }
    verdict = {
        key: verdicts.judge({**CLAIM, "checks": [spec]}, Results(budget, runs, params)).verdict
        for key, spec in (("wins", WINS), ("loses", LOSES))
    }
    assert verdict == {"wins": checks.SHOWN, "loses": checks.OPPOSITE_SYNTHETIC}
    assert verdicts.judge({**CLAIM, "checks": [WINS]}, Results("proxy", runs, params)).verdict == REPRODUCED


def test_no_opposite_verdict_is_printed_without_its_regime():
    line = {"verdict": OPPOSITE, "regime": "ViT 96 wide; budget proxy"}
    assert wording.verdict_text(line) == "opposite at proxy scale (ViT 96 wide; budget proxy)"
    assert wording.verdict_text(line | {"verdict": REPRODUCED}) == "reproduced"


def test_two_seeds_have_an_interval_only_with_a_pooled_noise():
    two = check({"kind": "above", "left": "a", "right": "b"}, results({"a": A[:2], "b": B[:2]}))
    assert two.verdict == INCONCLUSIVE and "2 seeds give no interval; 1 more" in two.note
    assert wording.effect_text(vars(two)) == "+3.80 points"

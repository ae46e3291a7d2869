"""Verdict, sign and unit agree for every claim: results are made in which its checks hold, and the reverse.

The checks are read a second time here, on means alone and without any code of `replicate.report.checks`.
"""

import zlib
from itertools import pairwise

import numpy as np
import pytest

from replicate.config import published
from replicate.report import checks, verdicts, wording
from replicate.report.results import Results, Run

CLAIMS = published.claims()
CONSTANT = ("computed", "benchmark")
STEP = 1e-6
LEAST, AIM = 0.04, 0.06  # a check holds by at least so much; noise is smaller
BINS = (4, 8, 16, 32)


class Values(dict):
    """(run, metric) -> value; what nobody asked for yet is 50 and a little more, another for each."""

    def __missing__(self, key):
        self[key] = 50 + zlib.crc32(repr(key).encode()) % 97 / 970
        return self[key]


def points(sweep):
    named = published.sweeps()[sweep].points if isinstance(sweep, str) else sweep
    return dict(enumerate(named)) if isinstance(named, list) else dict(sorted(named.items()))


def read(quantity, values, metric):
    """A quantity at these values."""
    if isinstance(quantity, str):
        run, _, own = quantity.partition("/")
        return values[run, own or metric]
    [(kind, argument)] = quantity.items()
    if kind in ("best", "worst"):
        runs = argument if isinstance(argument, list) else list(points(argument).values())
        return (max if kind == "best" else min)(read(run, values, metric) for run in runs)
    if kind == "times":
        return argument[0] * read(argument[1], values, metric)
    left, right = (read(part, values, metric) for part in argument)
    return left - right if kind == "minus" else left / right


def peaks_at(curve, place):
    return min(curve[place] - value for x, value in curve.items() if x != place)


def margin(spec, values, reverse=False):
    """By how much a check holds at these values; with `reverse`, by how much its opposite does."""
    kind, metric, sign = spec["kind"], spec.get("metric", "top1"), -1 if reverse else 1
    if kind in CONSTANT:
        return 1e9
    if kind == "rank_correlation":
        losses = [values[spec["run"], f"{spec['bins']}{place}"] for place in BINS]
        return min(sign * (right - left) for left, right in pairwise(losses))
    if "left" in spec:
        left, right = (read(spec[side], values, metric) for side in ("left", "right"))
        if isinstance(spec["left"], dict) and "best" in spec["left"] and isinstance(spec["right"], str):
            named = spec["left"]["best"]
            runs = named if isinstance(named, list) else points(named).values()
            left = max(read(run, values, metric) for run in runs if run != spec["right"])
        if kind.startswith("ratio"):
            return sign * (left / right - spec["bound"]) * (1 if kind == "ratio_above" else -1)
        if kind == "equal":
            return sign * (spec["tolerance"] - abs(left - right))
        return sign * (left - right - spec.get("margin", 0) + spec.get("tolerance", 0))
    curve = {x: values[run, metric] for x, run in points(spec.get("sweep", spec.get("runs"))).items()}
    if kind in ("rising", "falling", "ordered"):
        up = 1 if kind == "rising" else -1
        return min(sign * up * (right - left) for left, right in pairwise(curve.values()))
    if kind == "range_below":
        within = [y for x, y in curve.items() if spec.get("low", -9e9) <= x <= spec.get("high", 9e9)]
        return sign * (spec["bound"] - np.ptp(within))
    if kind == "peak_between":
        inside = [x for x in curve if spec["low"] <= x <= spec["high"]]
        return peaks_at(curve, max(set(curve) - set(inside)) if reverse else inside[0])
    other = {x: values[run, metric] for x, run in points(spec["than"]).items()}
    first, last = list(curve)[1], list(curve)[-2]
    if kind == "peak_below":
        place, than = (last, first) if reverse else (first, last)
    else:
        place, than = (first, last) if reverse else (first, first)
    return min(peaks_at(curve, place), peaks_at(other, than))


def solve(wanted):
    """Values at which every (check, reversed or not) holds: what is violated is stepped to, one by one."""
    values = Values()
    for _ in range(600):
        short = [one for one in wanted if margin(one[0], values, one[1]) < LEAST]
        if not short:
            return values
        for spec, reverse in short:
            have = margin(spec, values, reverse)
            slopes = {}
            for key in list(values):
                values[key] += STEP
                slopes[key] = (margin(spec, values, reverse) - have) / STEP
                values[key] -= STEP
            norm = sum(slope**2 for slope in slopes.values())
            for key, slope in slopes.items():
                values[key] += slope * max(AIM - have, 0) / norm
    raise AssertionError(f"no values found for {wanted}")


def results_at(values):
    """Three seeds of every run, each a little off."""
    runs = {}
    for run, metric in values:
        noise = [1e-5 * (zlib.crc32(f"{run} {metric} {seed}".encode()) % 7 - 3) for seed in range(3)]
        unit = 1e6 if metric == "file_bytes" else 1
        numbers = {metric: [unit * (values[run, metric] + one) for one in noise]}
        runs[run] = runs.get(run, {}) | numbers
    made = {
        name: Run("p", name, None, (0, 1, 2), tuple({m: v[k] for m, v in own.items()} for k in range(3)))
        for name, own in runs.items()
    }
    return Results("laptop", made)


def judged(claim, values):
    return verdicts.judge(claim, results_at(values))


@pytest.mark.parametrize("name", CLAIMS)
def test_what_the_paper_says_has_a_positive_effect_and_its_reverse_a_negative_one(name):
    claim = CLAIMS[name]
    holds = judged(claim, solve([(spec, False) for spec in claim["checks"]]))
    computed = all(spec["kind"] == "computed" for spec in claim["checks"])
    agreeing = checks.CONFIRMED if computed else checks.REPRODUCED
    incomplete = claim.get("untested") or claim.get("stand_in")
    assert holds.verdict == (checks.INCONCLUSIVE if incomplete else agreeing), holds.note
    assert wording.effect_text(vars(holds)).startswith("+") and holds.low > 0 and holds.unit
    for spec in claim["checks"]:
        if spec["kind"] not in CONSTANT:
            alone = {**claim, "checks": [spec]}
            found = judged(alone, solve([(spec, True)]))
            opposite = checks.INCONCLUSIVE if claim.get("stand_in") else checks.OPPOSITE
            assert found.verdict == opposite, (spec, found)
            assert wording.effect_text(vars(found)).startswith("-") and found.high < 0 and found.unit


def test_one_opposite_check_makes_its_claim_opposite():
    claim = CLAIMS["mae.mask_sampling"]
    first, *others = claim["checks"]
    found = judged(claim, solve([(first, True), *((spec, False) for spec in others[1:])]))
    assert found.verdict == checks.OPPOSITE and found.effect < 0

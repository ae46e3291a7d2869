"""The kinds of checks that claims consist of (`papers/<key>/claims.yaml`, key `kind`).

Every effect is oriented: above 0 agrees with the claim, and 0 is the bound of the check. An interval that
lies wholly above 0 reproduces a check, one wholly below 0 is the opposite. Nothing is decided without an
interval, except what is computed. The quartiles of its rounds decide a committed benchmark.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np

from replicate import intervals
from replicate.config import published
from replicate.errors import UserError
from replicate.intervals import Curve, Estimate
from replicate.report import benchmarks, computed, evidence, wording
from replicate.report.quantities import DEFAULT_METRIC, Linear, NotRun, Reader
from replicate.report.results import FEWEST_SEEDS, Results

REPRODUCED, OPPOSITE, INCONCLUSIVE = "reproduced", "opposite at proxy scale", "inconclusive"
NOT_RUN, NO_VERDICT = "not run", "no verdict"
OPPOSITE_AT_SCALE = "opposite at the paper's scale"
SHOWN, OPPOSITE_SYNTHETIC = "shown on synthetic images", "opposite on synthetic images"
CONFIRMED, CONTRADICTED = "confirmed by computation", "contradicted by computation"
AGREEING = (REPRODUCED, SHOWN, CONFIRMED)
OPPOSING = (OPPOSITE, OPPOSITE_AT_SCALE, OPPOSITE_SYNTHETIC, CONTRADICTED)
VERDICTS = (REPRODUCED, OPPOSITE, OPPOSITE_AT_SCALE, CONFIRMED, CONTRADICTED, SHOWN, OPPOSITE_SYNTHETIC)
VERDICTS += (INCONCLUSIVE, NO_VERDICT, NOT_RUN)
FULL_SCALE = "paper"
"""The budget that changes nothing."""


@dataclass(frozen=True)
class Outcome:
    """One check's verdict and its oriented effect.

    against   what an effect of 0 stands for, "a bound of 2 x"; empty where 0 is no difference
    sample    what `seeds` counts: seeds, or a loader's measurements
    """

    verdict: str
    effect: float = math.nan
    low: float = math.nan
    high: float = math.nan
    seeds: int = 0
    df: float = math.nan
    pooled: int = 0
    own_low: float = math.nan
    own_high: float = math.nan
    note: str = ""
    check: str = ""
    unit: str = ""
    against: str = ""
    sample: str = "seed"


def check(spec: dict[str, Any], results: Results) -> Outcome:
    """Evaluate one check. Raises UserError for a kind that does not exist."""
    if spec["kind"] not in KINDS:
        raise UserError(f"papers/*/claims.yaml: no check of kind '{spec['kind']}'; known: {', '.join(KINDS)}")
    arguments = {key: value for key, value in spec.items() if key not in ("kind", "metric", "axis")}
    try:
        outcome = KINDS[spec["kind"]](reader_of(spec, results), **arguments)
    except NotRun as error:
        outcome = Outcome(NOT_RUN, note=f"not run: {error}")
    outcome = _in_units(outcome, spec)
    outcome = replace(outcome, verdict=_in_context(outcome.verdict, spec, results))
    if any(text.startswith("loader_") for text in published.texts(spec)):  # rounds and photographs, no seeds
        return replace(outcome, sample="measurement", note=outcome.note.replace(" seed", " measurement"))
    return outcome


def reader_of(spec: dict[str, Any], results: Results) -> Reader:
    """The reader that takes a check's own metric where a quantity names none."""
    return Reader(results, metric=spec.get("metric", DEFAULT_METRIC))


def _in_units(outcome: Outcome, spec: dict[str, Any]) -> Outcome:
    """The outcome with description and unit, its numbers in that unit (bytes become megabytes)."""
    outcome = replace(outcome, check=wording.describe(spec), unit=outcome.unit or wording.unit(spec))
    factor = wording.FACTORS.get(outcome.unit, 1.0)
    numbers = {
        name: factor * getattr(outcome, name) for name in ("effect", "low", "high", "own_low", "own_high")
    }
    of_unit = outcome.against.startswith(("a tolerance", "a margin"))
    against = f"{outcome.against} {outcome.unit}" * of_unit or outcome.against
    return replace(outcome, **numbers, against=against.replace(" 1 points", " 1 point"))


def _in_context(verdict: str, spec: dict[str, Any], results: Results) -> str:
    """A verdict by what it rests on: computation, synthetic images, the paper's own scale or a proxy."""
    if spec["kind"] == "computed":
        return {REPRODUCED: CONFIRMED, OPPOSITE: CONTRADICTED}.get(verdict, verdict)
    runs = evidence.runs_of({"checks": [spec]}, results.runs)
    if any(results.is_synthetic(name) for name in runs):
        return {REPRODUCED: SHOWN, OPPOSITE: OPPOSITE_SYNTHETIC}.get(verdict, verdict)
    return OPPOSITE_AT_SCALE if verdict == OPPOSITE and results.budget == FULL_SCALE else verdict


def above(reader: Reader, left: Any, right: Any, margin: float = 0.0) -> Outcome:
    """left - right > margin; for two ratios, left / right > 1."""
    return _against(reader, reader.linear({"minus": [left, right]}), margin, wording.margin(margin))


def not_below(reader: Reader, left: Any, right: Any, tolerance: float) -> Outcome:
    """left is no more than `tolerance` below right (non-inferiority)."""
    linear = reader.linear({"minus": [left, right]})
    return _against(reader, linear, -tolerance, wording.tolerance(tolerance))


def equal(reader: Reader, left: Any, right: Any, tolerance: float) -> Outcome:
    """left and right differ by less than the tolerance; the effect is what is left of the tolerance."""
    found = reader.evaluate(reader.linear({"minus": [left, right]}))
    oriented, against = _within(found, tolerance), wording.tolerance(tolerance)
    verdict = _verdict(oriented)
    if verdict != INCONCLUSIVE or not found.has_interval:
        return _outcome(verdict, oriented, against=against)
    needed = intervals.seeds_to_decide(found, math.copysign(tolerance, found.value))
    return _outcome(verdict, oriented, _more(needed, found.seeds, _likely(oriented.value)), against)


def ratio_above(reader: Reader, left: str, right: str, bound: float) -> Outcome:
    """left / right > bound."""
    return _against(reader, reader.linear({"over": [left, right]}), bound, wording.bound(bound))


def ratio_below(reader: Reader, left: str, right: str, bound: float) -> Outcome:
    """left / right < bound."""
    return _against(reader, reader.linear({"over": [left, right]}), bound, wording.bound(bound), sign=-1)


def peak_between(reader: Reader, sweep: Any, low: float, high: float) -> Outcome:
    """The sweep's highest point lies between two places; the effect is the distance to the nearer edge.

    An edge lies halfway to the sweep's next place outside.
    """
    curve = reader.curve(sweep)
    places = np.asarray(curve.x, dtype=float)
    first = (low + places[places < low].max(initial=-math.inf)) / 2
    last = (high + places[places > high].min(initial=math.inf)) / 2

    def inside(place: float) -> float:
        return min(place - first, last - place)

    def find(more: int | None) -> Estimate:
        return _of_places(intervals.argmax(curve, more=more), places, inside)

    note = _joined(f"peak at {intervals.argmax(curve).value:g}", _unfinished(reader, sweep, curve))
    return _by_bootstrap(find, note, "the nearer edge of the range")


def peak_below(reader: Reader, sweep: Any, than: Any) -> Outcome:
    """The peak of a sweep lies below another's; inconclusive where both lie at the same end."""
    curves = reader.curve(sweep), reader.curve(than)
    return _by_distance(curves, lambda more: intervals.peak_distance(curves, more).scaled(-1.0))


def peaks_agree(reader: Reader, sweep: Any, than: Any, step: float) -> Outcome:
    """The peaks of two sweeps lie within one step; inconclusive where both lie at the same end.

    Sweeps have a grid, so that "within one step" is nearer than one and a half.
    """
    curves, reach = (reader.curve(sweep), reader.curve(than)), 1.5 * step
    return _by_distance(
        curves,
        lambda more: _within(intervals.peak_distance(curves, more), reach),
        f"one and a half steps of {step:g}",
    )


def rising(reader: Reader, sweep: Any, strict: bool = False) -> Outcome:
    """No step down and a rise from first to last; `strict`: every step up."""
    return _monotone(reader, sweep, 1, strict)


def falling(reader: Reader, sweep: Any, strict: bool = False) -> Outcome:
    """No step up and a fall from first to last; `strict`: every step down."""
    return _monotone(reader, sweep, -1, strict)


def ordered(reader: Reader, runs: list[str]) -> Outcome:
    """Each run's metric is below the one before it."""
    return _monotone(reader, runs, -1, strict=True)


def range_below(
    reader: Reader, sweep: Any, bound: float, low: float = -math.inf, high: float = math.inf
) -> Outcome:
    """Highest minus lowest of the sweep (between two places) is less than `bound`."""
    curve = reader.curve(sweep, low, high, least=2)

    def find(more: int | None) -> Estimate:
        return intervals.bootstrap(curve, np.ptp, more=more).scaled(-1.0, bound)

    return _by_bootstrap(find, _unfinished(reader, sweep, curve), wording.tolerance(bound))


def rank_correlation(reader: Reader, run: str, bins: str, bound: float) -> Outcome:
    """Rank correlation of a bin's number and its metric above `bound`, one value a seed."""
    if run not in reader.results:
        raise NotRun([run])
    per_seed = reader.results.runs[run].per_seed
    places = sorted((float(name.removeprefix(bins)), name) for name in per_seed[0] if name.startswith(bins))
    if len(places) < 3:
        raise NotRun([f"{run}/{bins}*"])
    x, names = zip(*places, strict=True)
    found = intervals.mean([intervals.spearman(x, [one[name] for name in names]) for one in per_seed])
    found = found if found.seeds >= FEWEST_SEEDS else found.without_interval()
    return _decided(found.scaled(1.0, -bound), f"a correlation of {bound:g}")


def benchmark(reader: Reader, file: str, line: str, case: str, bound: float) -> Outcome:
    """The quartiles of a committed benchmark's ratio, theirs / ours, lie above `bound`."""
    row = benchmarks.row(published.ROOMS.parent, file, line, case)
    if row is None:
        raise NotRun([f"benchmarks/results/{file}.json: {line}, {case}"])
    value, low, high = (end - bound for end in (row["ratio"], *row["spread"]))
    verdict = REPRODUCED if low > 0 else OPPOSITE if high < 0 else INCONCLUSIVE
    note = f"{row['case']}; quartiles of the rounds, on {row['machine']}"
    return Outcome(verdict, value, low, high, note=note, against=wording.bound(bound))


def by_computation(reader: Reader, function: str, **arguments: Any) -> Outcome:
    """Needs no training: a function of replicate/papers/ says whether it holds."""
    answer = computed.answer(function, **arguments)
    verdict = {True: REPRODUCED, False: OPPOSITE, None: NOT_RUN}[answer.holds]
    ends = {"low": answer.margin, "high": answer.margin, "unit": answer.unit, "against": answer.against}
    return Outcome(verdict, answer.margin, note=answer.note, **ends)


_NAMED = (above, not_below, equal, ratio_above, ratio_below, peak_between, peak_below, peaks_agree)
_NAMED += (rising, falling, ordered, range_below, rank_correlation, benchmark)
KINDS: dict[str, Callable[..., Outcome]] = {one.__name__: one for one in _NAMED} | {
    "computed": by_computation
}


def _against(reader: Reader, linear: Linear, bound: float, against: str, sign: int = 1) -> Outcome:
    """Whether sign * quantity exceeds sign * bound; a ratio is compared in logarithms, and shown beyond it.

    Beyond a bound of 1 a ratio is shown in percent.
    """
    if not linear.log:
        return _decided(reader.evaluate(linear).scaled(sign, -sign * bound), against)
    bound = bound if bound > 0 else 1.0
    raw = reader.evaluate(linear, raw=True).scaled(sign, -sign * math.log(bound))
    in_percent = bound == 1.0
    factor, unit = (100.0, "%") if in_percent else (1.0, "x")
    shown = reader.evaluate(linear).scaled(sign * factor, -sign * factor * bound)
    return replace(_decided(raw, against), **_ends(shown), unit=unit)


def _ends(found: Estimate) -> dict[str, float]:
    names = {"effect": "value", "low": "low", "high": "high", "own_low": "own_low", "own_high": "own_high"}
    return {name: getattr(found, source) for name, source in names.items()}


def _decided(found: Estimate, against: str = "") -> Outcome:
    """The outcome of an oriented estimate, with the seeds that would decide it."""
    verdict = _verdict(found)
    if verdict != INCONCLUSIVE or not found.has_interval:
        return _outcome(verdict, found, against=against)
    needed = intervals.seeds_to_decide(found)
    return _outcome(verdict, found, _more(needed, found.seeds, _likely(found.value)), against)


def _verdict(found: Estimate) -> str:
    """What an oriented estimate says: its interval lies above 0, below, or on both sides."""
    if not found.has_interval:
        return INCONCLUSIVE
    return REPRODUCED if found.low > 0 else OPPOSITE if found.high < 0 else INCONCLUSIVE


def _within(found: Estimate, reach: float) -> Estimate:
    """What is left of a reach: reach - |value|, with the ends of its interval."""

    def nearest(low: float, high: float) -> float:
        return 0.0 if low <= 0 <= high else min(abs(low), abs(high))

    def ends(low: float, high: float) -> tuple[float, float]:
        return reach - max(abs(low), abs(high)), reach - nearest(low, high)

    pairs = ends(found.low, found.high), ends(found.own_low, found.own_high)
    names = ("low", "high", "own_low", "own_high")
    return found._replace(value=reach - abs(found.value), **dict(zip(names, sum(pairs, ()), strict=True)))


def _of_places(found: Estimate, places: np.ndarray, inside: Callable[[float], float]) -> Estimate:
    """An estimated place as `inside(place)`, from the lowest to the highest value within its interval."""

    def ends(low: float, high: float) -> tuple[float, float]:
        within = [inside(place) for place in places if low <= place <= high]
        return (min(within), max(within)) if within else (math.nan, math.nan)

    (low, high), (own_low, own_high) = ends(found.low, found.high), ends(found.own_low, found.own_high)
    return found._replace(value=inside(found.value), low=low, high=high, own_low=own_low, own_high=own_high)


def _by_distance(
    curves: tuple[Curve, Curve], find: Callable[[int | None], Estimate], against: str = ""
) -> Outcome:
    """A check on the distance of two peaks; inconclusive where both lie at the same end."""
    peaks = [intervals.argmax(curve).value for curve in curves]
    at_end = all(peak in (min(curve.x), max(curve.x)) for peak, curve in zip(peaks, curves, strict=True))
    found = find(None)
    if found.has_interval and peaks[0] == peaks[1] and at_end:
        note = f"both sweeps peak at their end, {peaks[0]:g}: where they would peak beyond it is unknown"
        return _outcome(INCONCLUSIVE, found, note, against)
    return _by_bootstrap(find, f"peaks at {peaks[0]:g} and {peaks[1]:g}", against)


def _by_bootstrap(find: Callable[[int | None], Estimate], note: str = "", against: str = "") -> Outcome:
    """The outcome of an oriented statistic; `find(seeds)` estimates it, None: the seeds run."""
    found = find(None)
    verdict, missing = _verdict(found), ""
    if verdict == INCONCLUSIVE and found.has_interval:
        needed = intervals.fewest_seeds(lambda seeds: _verdict(find(seeds)) != INCONCLUSIVE, found.seeds)
        missing = _more(needed, found.seeds, _likely(find(needed).value) if needed else "")
    return _outcome(verdict, found, _joined(note, missing), against)


def _monotone(reader: Reader, sweep: Any, sign: int, strict: bool) -> Outcome:
    """The effect is last against first, or the step that decides: the least of those that hold it back."""
    curve = reader.curve(sweep)
    runs = [reader.points(sweep)[x] for x in curve.x]
    steps = [reader.difference(*pair).scaled(-sign) for pair in pairwise(runs)]
    whole = reader.difference(runs[-1], runs[0]).scaled(sign)
    if not whole.has_interval:
        return _outcome(INCONCLUSIVE, whole)
    note = _unfinished(reader, sweep, curve)
    for k, step in enumerate(steps):
        if _verdict(step) == OPPOSITE:
            return _outcome(OPPOSITE, step, f"goes the other way from {curve.x[k]:g} to {curve.x[k + 1]:g}")
    needed = [whole, *steps] if strict else [whole]
    if _verdict(whole) == OPPOSITE:
        return _outcome(OPPOSITE, whole, note)
    if unsettled := [one for one in needed if _verdict(one) != REPRODUCED]:
        worst = min(unsettled, key=lambda one: one.value)
        # One step that goes the other way decides; where all go the claim's way, all must be settled.
        counts = [intervals.seeds_to_decide(one) for one in ([worst] if worst.value < 0 else unsettled)]
        most = None if None in counts else max(counts)
        return _outcome(INCONCLUSIVE, worst, _joined(note, _more(most, whole.seeds, _likely(worst.value))))
    return _outcome(REPRODUCED, whole, note)


def _unfinished(reader: Reader, sweep: Any, curve: Curve) -> str:
    points = reader.points(sweep).items()
    missing = [run for x, run in points if x not in curve.x and run not in reader.results]
    return f"without {', '.join(missing)}" if missing else ""


def _outcome(verdict: str, found: Estimate, note: str = "", against: str = "") -> Outcome:
    """The outcome of an estimate; without an interval the note says how many seeds would give one."""
    if not found.has_interval:
        have = "one seed gives" if found.seeds == 1 else f"{found.seeds} seeds give"
        note = _joined(note, f"{have} no interval; {FEWEST_SEEDS - found.seeds} more would give one")
    return Outcome(verdict, *found[:4], *found[5:], note, against=against)


def _likely(effect: float) -> str:
    return "towards the claim" if effect > 0 else "against the claim"


def _more(needed: int | None, have: int, likely: str) -> str:
    """How many more seeds an effect of this size needs."""
    if needed is None:
        return f"an effect of this size needs more than {intervals.MOST_SEEDS:,} seeds"
    more = max(needed - have, 1)
    count = "one more seed is" if more == 1 else f"{more} more seeds are"
    return f"about {count} needed if the effect persists ({likely})"


def _joined(*parts: str) -> str:
    return "; ".join(part for part in parts if part)

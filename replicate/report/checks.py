"""The kinds of checks that claims consist of (`papers/<key>/claims.yaml`, key `kind`).

An interval that lies wholly on one side of its bound decides a check. Nothing is decided without an interval,
except what is computed. The quartiles of its rounds decide a committed benchmark.
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
from replicate.report import benchmarks, computed, wording
from replicate.report.quantities import DEFAULT_METRIC, Linear, NotRun, Reader
from replicate.report.results import Results

HOLDS, FAILS, UNDECIDED, NOT_RUN = "holds", "fails", "undecided at this scale", "not run"
FEWEST_SEEDS = 3


@dataclass(frozen=True)
class Outcome:
    """One check's verdict and effect: a difference, a factor, a place on the sweep, a correlation."""

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
    sample: str = "seed"


def check(spec: dict[str, Any], results: Results) -> Outcome:
    """Evaluate one check. Raises UserError for a kind that does not exist."""
    if spec["kind"] not in KINDS:
        raise UserError(f"papers/*/claims.yaml: no check of kind '{spec['kind']}'; known: {', '.join(KINDS)}")
    arguments = {key: value for key, value in spec.items() if key not in ("kind", "metric")}
    try:
        outcome = KINDS[spec["kind"]](reader_of(spec, results), **arguments)
    except NotRun as error:
        outcome = Outcome(NOT_RUN, note=f"not run: {error}")
    outcome = replace(outcome, check=wording.describe(spec), unit=wording.unit(spec))
    if any(text.startswith("loader_") for text in published.texts(spec)):  # rounds and photographs, no seeds
        return replace(outcome, sample="measurement", note=outcome.note.replace(" seed", " measurement"))
    return outcome


def reader_of(spec: dict[str, Any], results: Results) -> Reader:
    """The reader that takes a check's own metric where a quantity names none."""
    return Reader(results, metric=spec.get("metric", DEFAULT_METRIC))


def above(reader: Reader, left: Any, right: Any, margin: float = 0.0) -> Outcome:
    """left - right > margin; for two ratios, left / right > 1."""
    return _against(reader, reader.linear(left).minus(reader.linear(right)), margin)


def not_below(reader: Reader, left: Any, right: Any, tolerance: float) -> Outcome:
    """left is no more than `tolerance` below right (non-inferiority)."""
    return _against(reader, reader.linear(left).minus(reader.linear(right)), -tolerance)


def equal(reader: Reader, left: Any, right: Any, tolerance: float) -> Outcome:
    """The interval of left - right lies within the tolerance; fails when it lies wholly outside."""
    found = reader.evaluate(reader.linear(left).minus(reader.linear(right)))
    verdict = _side(found, -tolerance, tolerance)
    if verdict != UNDECIDED or not found.has_interval:
        return _outcome(verdict, found)
    needed = intervals.seeds_to_decide(found, math.copysign(tolerance, found.value))
    if needed is None:
        note = f"the difference is too close to the tolerance of {tolerance:g} for any number of seeds"
        return _outcome(UNDECIDED, found, f"{note} that one would run")
    likely = HOLDS if abs(found.value) < tolerance else FAILS
    note = _would_decide(needed, found.seeds, f"{likely}, tolerance {tolerance:g}", "difference")
    return _outcome(UNDECIDED, found, note)


def ratio_above(reader: Reader, left: str, right: str, bound: float) -> Outcome:
    """left / right > bound."""
    return _against(reader, reader.linear({"over": [left, right]}), bound)


def ratio_below(reader: Reader, left: str, right: str, bound: float) -> Outcome:
    """left / right < bound."""
    return _against(reader, reader.linear({"over": [left, right]}), bound, sign=-1)


def peak_between(reader: Reader, sweep: Any, low: float, high: float) -> Outcome:
    """The sweep's highest point lies between two places."""
    curve = reader.curve(sweep)
    return _by_bootstrap(
        lambda more: intervals.argmax(curve, more=more), low, high, _unfinished(reader, sweep, curve)
    )


def peak_not_above(reader: Reader, sweep: Any, than: Any) -> Outcome:
    """The peak of a sweep is not right of another's; undecided where both lie at the same end."""
    curves = reader.curve(sweep), reader.curve(than)
    distance = intervals.peak_distance(curves)
    direction = "smaller" if distance.value < 0 else "larger" if distance.value > 0 else "the same"
    return _by_distance(curves, distance, -math.inf, 0.0, f"the best place is {direction}")


def peaks_agree(reader: Reader, sweep: Any, than: Any, step: float) -> Outcome:
    """The peaks of two sweeps lie within one step; undecided where both lie at the same end."""
    curves, within = (reader.curve(sweep), reader.curve(than)), step * (1 + 1e-9)
    return _by_distance(curves, intervals.peak_distance(curves), -within, within)


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
    """Highest minus lowest of the sweep (between two places) is at most `bound`."""
    curve = reader.curve(sweep, low, high, least=2)
    note = _unfinished(reader, sweep, curve)
    return _by_bootstrap(lambda more: intervals.bootstrap(curve, np.ptp, more=more), -math.inf, bound, note)


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
    return _decided(found, bound)


def benchmark(reader: Reader, file: str, line: str, case: str, bound: float) -> Outcome:
    """The quartiles of a committed benchmark's ratio, theirs / ours, lie above `bound`."""
    row = benchmarks.row(published.ROOMS.parent, file, line, case)
    if row is None:
        raise NotRun([f"benchmarks/results/{file}.json: {line}, {case}"])
    low, high = row["spread"]
    verdict = HOLDS if low > bound else FAILS if high < bound else UNDECIDED
    note = f"{row['case']}; quartiles of the rounds, on {row['machine']}"
    return Outcome(verdict, row["ratio"], low, high, note=note)


def by_computation(reader: Reader, function: str, **arguments: Any) -> Outcome:
    """Needs no training: one of the `ANSWERS` of replicate/papers/ says whether it holds."""
    answer = computed.answer(function, **arguments)
    verdict = {True: HOLDS, False: FAILS, None: NOT_RUN}[answer.holds]
    return Outcome(verdict, answer.value, answer.value, answer.value, note=answer.note)


_NAMED = (above, not_below, equal, ratio_above, ratio_below, peak_between, peak_not_above, peaks_agree)
_NAMED += (rising, falling, ordered, range_below, rank_correlation, benchmark)
KINDS: dict[str, Callable[..., Outcome]] = {one.__name__: one for one in _NAMED} | {
    "computed": by_computation
}


def _against(reader: Reader, linear: Linear, bound: float, sign: int = 1) -> Outcome:
    """Whether sign * quantity exceeds sign * bound; a ratio is compared in logarithms."""
    if linear.log:
        raw = reader.evaluate(linear, raw=True)
        outcome = _decided(raw, math.log(bound) if bound > 0 else 0.0, sign)
        return _outcome(outcome.verdict, raw.map(math.exp), outcome.note)
    return _decided(reader.evaluate(linear), bound, sign)


def _decided(found: Estimate, bound: float, sign: int = 1) -> Outcome:
    """Whether sign * found exceeds sign * bound."""
    if not found.has_interval:
        return _outcome(UNDECIDED, found)
    low, high = sorted((sign * found.low, sign * found.high))
    if low > sign * bound or high < sign * bound:
        return _outcome(HOLDS if low > sign * bound else FAILS, found)
    needed = intervals.seeds_to_decide(found, bound)
    if needed is None:
        most = intervals.MOST_SEEDS
        return _outcome(UNDECIDED, found, f"an effect this close to {bound:g} would take over {most} seeds")
    likely = HOLDS if sign * found.value > sign * bound else FAILS
    return _outcome(UNDECIDED, found, _would_decide(needed, found.seeds, likely, "effect"))


def _side(found: Estimate, low: float, high: float) -> str:
    """Whether an interval lies within two bounds, outside of them, or neither."""
    if not found.has_interval:
        return UNDECIDED
    if low <= found.low and found.high <= high:
        return HOLDS
    return FAILS if found.high < low or found.low > high else UNDECIDED


def _by_distance(
    curves: tuple[Curve, Curve], distance: Estimate, low: float, high: float, note: str = ""
) -> Outcome:
    """A check on the distance of two peaks; undecided where both lie at the same end."""
    peaks = [intervals.argmax(curve).value for curve in curves]
    at_end = all(peak in (min(curve.x), max(curve.x)) for peak, curve in zip(peaks, curves, strict=True))
    if distance.has_interval and peaks[0] == peaks[1] and at_end:
        note = f"both are best at {peaks[0]:g}, where the sweeps end: which peaks first does not show"
        return _outcome(UNDECIDED, distance, note)
    return _by_bootstrap(lambda more: intervals.peak_distance(curves, more), low, high, note)


def _by_bootstrap(find: Callable[[int | None], Estimate], low: float, high: float, note: str = "") -> Outcome:
    """Whether a statistic lies between two bounds; `find(seeds)` estimates it, None: the seeds run."""
    found = find(None)
    verdict = _side(found, low, high)
    missing = ""
    if verdict == UNDECIDED and found.has_interval:
        needed = intervals.fewest_seeds(lambda seeds: _side(find(seeds), low, high) != UNDECIDED, found.seeds)
        missing = _more(needed, found.seeds, _side(find(needed), low, high) if needed else "")
    return _outcome(verdict, found, _joined(note, missing))


def _monotone(reader: Reader, sweep: Any, sign: int, strict: bool) -> Outcome:
    curve = reader.curve(sweep)
    runs = [reader.points(sweep)[x] for x in curve.x]
    steps = [reader.difference(right, left) for left, right in pairwise(runs)]
    whole = reader.difference(runs[-1], runs[0])
    if not whole.has_interval:
        return _outcome(UNDECIDED, whole)
    note = _unfinished(reader, sweep, curve)
    wrong = [k for k, step in enumerate(steps) if _beyond(step, -sign)]
    if wrong or _beyond(whole, -sign):
        k = wrong[0] if wrong else 0
        return _outcome(FAILS, whole, f"goes the other way from {curve.x[k]:g} to {curve.x[k + 1]:g}")
    needed = steps if strict else [whole]
    if all(_beyond(step, sign) for step in needed):
        return _outcome(HOLDS, whole, note)
    counts = [intervals.seeds_to_decide(step) for step in (whole, *needed) if not _beyond(step, sign)]
    likely = HOLDS if all(sign * step.value > 0 for step in needed) else FAILS
    most = None if None in counts else max(counts)
    return _outcome(UNDECIDED, whole, _joined(note, _more(most, whole.seeds, likely)))


def _beyond(step: Estimate, sign: int) -> bool:
    return step.has_interval and (step.low > 0 if sign > 0 else step.high < 0)


def _unfinished(reader: Reader, sweep: Any, curve: Curve) -> str:
    points = reader.points(sweep).items()
    missing = [run for x, run in points if x not in curve.x and run not in reader.results]
    return f"without {', '.join(missing)}" if missing else ""


def _outcome(verdict: str, found: Estimate, note: str = "") -> Outcome:
    """The outcome of an estimate; without an interval the note says how many seeds would give one."""
    if not found.has_interval:
        few = f"one seed gives no interval; {FEWEST_SEEDS - found.seeds} more would give one"
        note = _joined(note, few)
    return Outcome(verdict, *found[:4], *found[5:], note)


def _more(needed: int | None, have: int, likely: str) -> str:
    if needed is None:
        return f"over {intervals.MOST_SEEDS} seeds would be needed, were the means as measured"
    return _would_decide(needed, have, likely, "means")


def _would_decide(needed: int, have: int, likely: str, of: str) -> str:
    more = max(needed - have, 1)
    return f"{more} more seed{'s' * (more > 1)} would decide it ({likely}), were the {of} as measured"


def _joined(*parts: str) -> str:
    return "; ".join(part for part in parts if part)

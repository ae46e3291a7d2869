"""Each claim against our results: holds, fails, or undecided at this scale, with effect, interval, seeds and budget.

A claim is one or more checks (`published/claims.yaml`), and a check's `kind` is a function below. A check is decided when its
interval lies wholly on one side; a claim holds when all its checks hold and fails when one fails. Nothing is decided without an
interval unless the check is computed; a committed benchmark is decided by the quartiles of its rounds. `smoke` runs are there to
exercise the pipeline: they never decide anything.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from replicate import intervals
from replicate.config import published
from replicate.errors import UserError
from replicate.intervals import Curve, Estimate
from replicate.report import benchmarks, computed
from replicate.report.quantities import DEFAULT_METRIC, Linear, NotRun, Reader
from replicate.report.results import Results

HOLDS, FAILS, UNDECIDED, NOT_RUN = "holds", "fails", "undecided at this scale", "not run"
NO_FINDING = frozenset({"smoke"})
COLUMNS = ["claim", "paper", "statement", "size", "verdict", "check", "effect", "low", "high", "unit", "seeds", "budget", "note"]
FEWEST_SEEDS = 3


@dataclass(frozen=True)
class Outcome:
    """One check's answer; `effect` is what it measures: a difference in points, a factor, a place on the sweep, a correlation."""

    verdict: str
    effect: float = math.nan
    low: float = math.nan
    high: float = math.nan
    seeds: int = 0
    note: str = ""
    check: str = ""
    unit: str = ""
    sample: str = "seed"


def all_claims(results: Results, claims: dict[str, dict[str, Any]] | None = None) -> pd.DataFrame:
    """One line a claim, in the papers' order."""
    lines = []
    for claim in (claims or published.claims()).values():
        outcome = judge(claim, results)
        lines.append(
            {
                "claim": claim["id"],
                "paper": claim["id"].partition(".")[0],
                "statement": claim["statement"],
                "size": claim["size"],
                "verdict": outcome.verdict,
                "check": outcome.check,
                "effect": outcome.effect,
                "low": outcome.low,
                "high": outcome.high,
                "unit": outcome.unit,
                "seeds": outcome.seeds,
                "budget": "by computation" if _is_computed(claim) else results.budget,
                "note": outcome.note,
            }
        )
    return pd.DataFrame(lines, columns=COLUMNS)


def judge(claim: dict[str, Any], results: Results) -> Outcome:
    """The claim's verdict with the effect of the check that settled it (the first one, while nothing is settled).

    A claim whose test says `stand_in` is about something that is not run here: its checks speak for themselves and do not decide it. A
    `caveat` is said with every verdict at less than the paper's budget.
    """
    outcomes = checks(claim, results)
    verdict = together(outcomes)
    shown = min(outcomes, key=lambda outcome: _rank(outcome.verdict, verdict))
    done = sum(outcome.verdict != NOT_RUN for outcome in outcomes)
    part = [f"{done} of {len(outcomes)} checks run: {_counted(outcomes)}"] if 0 < done < len(outcomes) else []
    part += remarks(claim, verdict, results.budget)
    if claim.get("stand_in") and verdict != NOT_RUN:
        return replace(shown, verdict=UNDECIDED, note="; ".join(part))
    return replace(shown, verdict=verdict, note="; ".join(part + [shown.note] * bool(shown.note)))


def together(outcomes: list[Outcome]) -> str:
    """The verdict that a claim's checks make: one that fails is enough, all must hold."""
    verdicts = [outcome.verdict for outcome in outcomes]
    if FAILS in verdicts:
        return FAILS
    if all(verdict == HOLDS for verdict in verdicts):
        return HOLDS
    return NOT_RUN if all(verdict == NOT_RUN for verdict in verdicts) else UNDECIDED


def remarks(claim: dict[str, Any], verdict: str, budget: str) -> list[str]:
    """What is said of a claim beside its checks, which together make `verdict`: that they only stand in for it, or its caveat."""
    if verdict == NOT_RUN:
        return []
    if claim.get("stand_in"):
        return [f"what stands in for it {'is ' * (verdict == UNDECIDED)}{verdict}, which does not decide the statement"]
    return [claim["caveat"]] if claim.get("caveat") and budget != "paper" else []


def _counted(outcomes: list[Outcome]) -> str:
    """How those checks stand that were run: "3 hold, 1 undecided"."""
    words = {HOLDS: "hold", FAILS: "fail", UNDECIDED: "undecided"}
    counts = {word: sum(outcome.verdict == verdict for outcome in outcomes) for verdict, word in words.items()}
    return ", ".join(f"{count} {word if count > 1 or word == 'undecided' else word + 's'}" for word, count in counts.items() if count)


def checks(claim: dict[str, Any], results: Results) -> list[Outcome]:
    """Every check of a claim. Runs of a budget that finds nothing leave theirs undecided."""
    outcomes = [check(spec, results) for spec in claim["checks"]]
    if results.budget not in NO_FINDING:
        return outcomes
    silent = {"verdict": UNDECIDED, "note": f"the {results.budget} budget exercises the pipeline and decides nothing"}
    decided = (spec["kind"] == "computed" or outcome.verdict == NOT_RUN for spec, outcome in zip(claim["checks"], outcomes, strict=True))
    return [outcome if itself else replace(outcome, **silent) for outcome, itself in zip(outcomes, decided, strict=True)]


def means(spec: Mapping[str, Any], results: Results) -> str:
    """Both sides of a comparison by their means, "40.4 against 45.6"; nothing where a check has no two sides or one was not run."""
    if not {"left", "right"} <= set(spec):
        return ""
    reader = Reader(results, published.sweeps(), spec.get("metric", DEFAULT_METRIC))
    try:
        left, right = (_short(reader.estimate(spec[side]).value) for side in ("left", "right"))
    except NotRun:
        return ""
    return f"{left} against {right}"


def check(spec: dict[str, Any], results: Results) -> Outcome:
    """Evaluate one check. Raises UserError for a kind that does not exist."""
    arguments = {key: value for key, value in spec.items() if key not in ("kind", "metric")}
    if spec["kind"] not in KINDS:
        raise UserError(f"published/claims.yaml: no check of kind '{spec['kind']}'; there are {', '.join(KINDS)}")
    reader = Reader(results, published.sweeps(), spec.get("metric", "top1"))
    try:
        outcome = KINDS[spec["kind"]](reader, **arguments)
    except NotRun as error:
        outcome = Outcome(NOT_RUN, note=f"not run: {error}")
    named = replace(outcome, check=describe(spec), unit=unit(spec))
    return _of_measurements(named) if any(text.startswith("loader_") for text in published.texts(spec)) else named


def _of_measurements(outcome: Outcome) -> Outcome:
    """The outcome in the words of a loader's check: its rounds and photographs are measurements, not seeds."""
    return replace(outcome, sample="measurement", note=outcome.note.replace(" seed", " measurement"))


def effect_text(line: Mapping[str, Any]) -> str:
    """A claim's effect with its interval, as a table shows it; nothing for what was not run."""
    if line["verdict"] == NOT_RUN or not math.isfinite(line["effect"]):
        return ""
    bounded = math.isfinite(line["low"]) and line["low"] != line["high"]
    interval = f" [{_short(line['low'])}, {_short(line['high'])}]" if bounded else ""
    return f"{_short(line['effect'])}{interval} {line['unit']}".rstrip()


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def describe(spec: dict[str, Any]) -> str:
    """A check in one line, for the reader of a verdict: "best of light_llrd > light_90_llrd_65"."""
    left, right = (_words(spec[side]) if side in spec else "" for side in ("left", "right"))
    kind, bound = spec["kind"], spec.get("bound")
    if "left" in spec:
        margin = spec.get("margin", 0.0) or spec.get("tolerance", 0.0)
        sign = {"above": ">", "not_below": "≥", "equal": "=", "ratio_above": "/", "ratio_below": "/"}[kind]
        ending = {"above": f" + {margin:g}", "not_below": f" - {margin:g}", "equal": f" ± {margin:g}"}.get(kind, "") if margin else ""
        limit = f" {'>' if kind == 'ratio_above' else '<'} {bound:g}" if bound is not None else ""
        return f"{left} {sign} {right}{ending}{limit}"
    if kind == "computed":
        return f"by computation: {spec['function'].replace('_', ' ')}"
    if kind == "benchmark":
        return f"benchmark {spec['file']}, {spec['case']}, {spec['line']}: ratio > {bound:g}"
    if kind == "rank_correlation":
        return f"rank correlation of {spec['bins']}* in {spec['run']} > {bound:g}"
    subject = _words(spec["sweep"]) if "sweep" in spec else ", ".join(spec["runs"])
    if kind == "peak_between":
        return f"peak of {subject} between {spec['low']:g} and {spec['high']:g}"
    if "than" in spec:
        relation = "no higher than" if kind == "peak_not_above" else f"within {spec['step']:g} of"
        return f"peak of {subject} {relation} that of {_words(spec['than'])}"
    return f"range of {subject} ≤ {bound:g}" if kind == "range_below" else f"{subject} {kind}, last minus first"


def unit(spec: Mapping[str, Any]) -> str:
    """Unit of a check's effect: "points" for a difference of accuracies, "times" for a ratio, ...; none for losses and what is computed."""
    if spec["kind"] == "computed":
        return ""
    if spec["kind"].startswith("peak"):
        return "(place of the peak)" if spec["kind"] == "peak_between" else "(distance of the peaks)"
    if spec["kind"] == "rank_correlation":
        return "(correlation)"
    named = list(published.texts({key: part for key, part in spec.items() if key not in ("kind", "metric")}))
    if spec["kind"] == "benchmark" or spec["kind"].startswith("ratio") or any("over" in part for part in _expressions(spec)):
        return "times"
    metrics = {text.partition("/")[2] for text in named} - {""} or {spec.get("metric", DEFAULT_METRIC)}
    if all("top1" in metric for metric in metrics):
        return "points"
    if all(metric.startswith("psnr") for metric in metrics):
        return "dB"
    return {"images_per_second": "images/s", "file_bytes": "bytes"}.get(metrics.pop(), "") if len(metrics) == 1 else ""


def _expressions(value: Any) -> Iterator[Mapping[str, Any]]:
    """Every expression within a quantity, itself included."""
    if isinstance(value, Mapping):
        yield value
    if isinstance(value, Mapping | list):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _expressions(part)


def _words(quantity: Any) -> str:
    if not isinstance(quantity, dict):
        return quantity if isinstance(quantity, str) else ", ".join(map(_words, quantity))
    kind, argument = next(iter(quantity.items()))
    if kind in ("best", "worst", "peak"):
        return f"{kind} of {_words(argument)}"
    if kind == "times":
        return f"{argument[0]:g} ({_words(argument[1])})"
    if kind in ("minus", "over"):
        first, second = map(_words, argument)
        return f"({first} {'-' if kind == 'minus' else '/'} {second})"
    return ", ".join(map(str, quantity.values()))


def above(reader: Reader, left: Any, right: Any, margin: float = 0.0) -> Outcome:
    """left - right > margin; for two ratios, left / right > 1."""
    return _against(reader, reader.linear(left).minus(reader.linear(right)), margin)


def not_below(reader: Reader, left: Any, right: Any, tolerance: float) -> Outcome:
    """left is no more than `tolerance` below right (non-inferiority)."""
    return _against(reader, reader.linear(left).minus(reader.linear(right)), -tolerance)


def equal(reader: Reader, left: Any, right: Any, tolerance: float) -> Outcome:
    """The whole interval of left - right lies within the tolerance (equivalence); it fails when it lies wholly outside."""
    found = reader.evaluate(reader.linear(left).minus(reader.linear(right)))
    if not found.has_interval:
        return _outcome(UNDECIDED, found, _few(found))
    if -tolerance < found.low and found.high < tolerance:
        return _outcome(HOLDS, found)
    if found.low > tolerance or found.high < -tolerance:
        return _outcome(FAILS, found)
    return _outcome(UNDECIDED, found, _more_for_equality(found, tolerance))


def ratio_above(reader: Reader, left: str, right: str, bound: float) -> Outcome:
    """left / right > bound."""
    return _against(reader, reader.linear({"over": [left, right]}), bound)


def ratio_below(reader: Reader, left: str, right: str, bound: float) -> Outcome:
    """left / right < bound."""
    return _against(reader, reader.linear({"over": [left, right]}), bound, sign=-1)


def peak_between(reader: Reader, sweep: Any, low: float, high: float) -> Outcome:
    """The sweep's highest point lies between two places."""
    curve = reader.curve(sweep)

    def side(found: Estimate) -> str:
        if low <= found.low and found.high <= high:
            return HOLDS
        return FAILS if found.high < low or found.low > high else UNDECIDED

    return _by_bootstrap(lambda more: intervals.argmax(curve, more=more), side, _unfinished(reader, sweep, curve))


def peak_not_above(reader: Reader, sweep: Any, than: Any) -> Outcome:
    """The peak of one sweep is not to the right of another's; undecided where both lie at the same end of their sweep."""
    curves = reader.curve(sweep), reader.curve(than)
    value = _peak_distance(curves).value
    direction = "smaller" if value < 0 else "larger" if value > 0 else "the same"

    def side(found: Estimate) -> str:
        return HOLDS if found.high <= 0 else FAILS if found.low > 0 else UNDECIDED

    return _censored(curves) or _by_bootstrap(lambda more: _peak_distance(curves, more), side, f"the best place is {direction}")


def peaks_agree(reader: Reader, sweep: Any, than: Any, step: float) -> Outcome:
    """The peaks of two sweeps lie within one step of each other; undecided where both lie at the same end of their sweep."""
    curves, within = (reader.curve(sweep), reader.curve(than)), step * (1 + 1e-9)

    def side(found: Estimate) -> str:
        if -within <= found.low and found.high <= within:
            return HOLDS
        return FAILS if found.low > within or found.high < -within else UNDECIDED

    return _censored(curves) or _by_bootstrap(lambda more: _peak_distance(curves, more), side)


def rising(reader: Reader, sweep: Any, strict: bool = False) -> Outcome:
    """No step down and a rise from first to last; `strict`: every step up."""
    return _monotone(reader, sweep, 1, strict)


def falling(reader: Reader, sweep: Any, strict: bool = False) -> Outcome:
    """No step up and a fall from first to last; `strict`: every step down."""
    return _monotone(reader, sweep, -1, strict)


def ordered(reader: Reader, runs: list[str]) -> Outcome:
    """Each run's metric is below the one before it."""
    return _monotone(reader, runs, -1, strict=True)


def range_below(reader: Reader, sweep: Any, bound: float, low: float = -math.inf, high: float = math.inf) -> Outcome:
    """Highest minus lowest of the sweep (between two places) is at most `bound`."""
    curve = reader.curve(sweep, low, high, least=2)

    def side(found: Estimate) -> str:
        return HOLDS if found.high <= bound else FAILS if found.low > bound else UNDECIDED

    return _by_bootstrap(lambda more: intervals.bootstrap(curve, np.ptp, more=more), side, _unfinished(reader, sweep, curve))


def rank_correlation(reader: Reader, run: str, bins: str, bound: float) -> Outcome:
    """Rank correlation of a bin's number and its metric above `bound`, one value a seed; `bins` is the metrics' common prefix."""
    if run not in reader.results:
        raise NotRun([run])
    per_seed = reader.results.runs[run].per_seed
    names = sorted((name for name in per_seed[0] if name.startswith(bins)), key=lambda name: float(name.removeprefix(bins)))
    if len(names) < 3:
        raise NotRun([f"{run}/{bins}*"])
    places = [float(name.removeprefix(bins)) for name in names]
    found = intervals.mean([intervals.spearman(places, [one[name] for name in names]) for one in per_seed])
    return _decided(found, bound)


def benchmark(reader: Reader, file: str, line: str, case: str, bound: float) -> Outcome:
    """A committed benchmark's ratio, theirs / ours, above `bound`: the quartiles of its rounds lie on one side. It is not run again here."""
    row = benchmarks.row(published.ROOMS.parent, file, line, case)
    if row is None:
        raise NotRun([f"benchmarks/results/{file}.json: {line}, {case}"])
    low, high = row["spread"]
    verdict = HOLDS if low > bound else FAILS if high < bound else UNDECIDED
    return Outcome(verdict, row["ratio"], low, high, 0, f"{row['case']}; quartiles of the rounds, on {row['machine']}")


def by_computation(reader: Reader, function: str, **arguments: Any) -> Outcome:
    """A check that needs no training: `function` of replicate/report/computed.py says whether it holds."""
    answer = computed.answer(function, **arguments)
    verdict = {True: HOLDS, False: FAILS, None: NOT_RUN}[answer.holds]
    return Outcome(verdict, answer.value, answer.value, answer.value, 0, answer.note)


KINDS: dict[str, Callable[..., Outcome]] = {
    "above": above,
    "not_below": not_below,
    "equal": equal,
    "ratio_above": ratio_above,
    "ratio_below": ratio_below,
    "peak_between": peak_between,
    "peak_not_above": peak_not_above,
    "peaks_agree": peaks_agree,
    "rising": rising,
    "falling": falling,
    "ordered": ordered,
    "range_below": range_below,
    "rank_correlation": rank_correlation,
    "benchmark": benchmark,
    "computed": by_computation,
}


def _against(reader: Reader, linear: Linear, bound: float, sign: int = 1) -> Outcome:
    """Whether sign * quantity lies beyond sign * bound, decided in logarithms for a ratio, where intervals are symmetric."""
    if linear.log:
        raw = reader.evaluate(linear, raw=True)
        outcome = _decided(raw, math.log(bound) if bound > 0 else 0.0, sign)
        return replace(outcome, effect=math.exp(raw.value), low=math.exp(raw.low), high=math.exp(raw.high))
    return _decided(reader.evaluate(linear), bound, sign)


def _decided(found: Estimate, bound: float, sign: int = 1) -> Outcome:
    """Whether sign * found lies beyond sign * bound."""
    if found.has_interval:
        low, high = sorted((sign * found.low, sign * found.high))
        if low > sign * bound:
            return _outcome(HOLDS, found)
        if high < sign * bound:
            return _outcome(FAILS, found)
    return _undecided(found, bound, HOLDS if sign * found.value > sign * bound else FAILS)


def _undecided(found: Estimate, bound: float, likely: str) -> Outcome:
    if not found.has_interval:
        return _outcome(UNDECIDED, found, _few(found))
    needed = intervals.seeds_to_decide(found, bound)
    if needed is None:
        return _outcome(UNDECIDED, found, f"an effect this close to {bound:g} would take over {intervals.MOST_SEEDS} seeds")
    more = max(needed - found.seeds, 1)
    return _outcome(UNDECIDED, found, f"{more} more seed{'s' * (more > 1)} would decide it ({likely}), were the effect as measured")


def _more_for_equality(found: Estimate, tolerance: float) -> str:
    edge, likely = math.copysign(tolerance, found.value), HOLDS if abs(found.value) < tolerance else FAILS
    needed = intervals.seeds_to_decide(found, edge)
    if needed is None:
        return f"the difference is too close to the tolerance of {tolerance:g} for any number of seeds that one would run"
    return f"{max(needed - found.seeds, 1)} more seeds would decide it ({likely}, tolerance {tolerance:g}), were the difference as measured"


def _by_bootstrap(find: Callable[[int | None], Estimate], side: Callable[[Estimate], str], note: str = "") -> Outcome:
    """A check on a sweep's shape: `find` gives its estimate, for the seeds that there are or for so many, and `side` the verdict on it."""
    found = find(None)
    verdict = side(found) if found.has_interval else UNDECIDED
    missing = ""
    if not found.has_interval:
        missing = _few(found)
    elif verdict == UNDECIDED:
        needed = intervals.fewest_seeds(lambda seeds: side(find(seeds)) != UNDECIDED, found.seeds)
        missing = _more(needed, found.seeds, side(find(needed)) if needed else "")
    return _outcome(verdict, found, "; ".join(part for part in (note, missing) if part))


def _more(needed: int | None, have: int, likely: str) -> str:
    if needed is None:
        return f"over {intervals.MOST_SEEDS} seeds would be needed, were the means as measured"
    more = max(needed - have, 1)
    return f"{more} more seed{'s' * (more > 1)} would decide it ({likely}), were the means as measured"


def _few(found: Estimate) -> str:
    return f"one seed gives no interval; {FEWEST_SEEDS - found.seeds} more would give one"


def _monotone(reader: Reader, sweep: Any, sign: int, strict: bool) -> Outcome:
    curve = reader.curve(sweep)
    steps = [intervals.difference(right, left) for left, right in zip(curve.values, curve.values[1:], strict=False)]
    whole = intervals.difference(curve.values[-1], curve.values[0])
    spread = _outcome(UNDECIDED, whole, _unfinished(reader, sweep, curve))
    if not whole.has_interval:
        return replace(spread, note=_few(whole))
    wrong = [k for k, step in enumerate(steps) if _beyond(step, -sign)]
    if wrong or _beyond(whole, -sign):
        where = wrong[0] if wrong else 0
        return replace(spread, verdict=FAILS, note=f"goes the other way from {curve.x[where]:g} to {curve.x[where + 1]:g}")
    needed = steps if strict else [whole]
    if all(_beyond(step, sign) for step in needed):
        return replace(spread, verdict=HOLDS)
    counts = [intervals.seeds_to_decide(step) for step in (whole, *needed) if not _beyond(step, sign)]
    most = None if None in counts else max(counts)
    likely = HOLDS if all(sign * step.value > 0 for step in needed) else FAILS
    return replace(spread, note="; ".join(part for part in (spread.note, _more(most, whole.seeds, likely)) if part))


def _beyond(step: Estimate, sign: int) -> bool:
    return step.has_interval and (step.low > 0 if sign > 0 else step.high < 0)


def _censored(curves: tuple[Curve, Curve]) -> Outcome | None:
    """The answer where both sweeps are best at the same end, beyond which either may be better still; None where they are not."""
    found = _peak_distance(curves)
    peaks, ends = [intervals.argmax(curve).value for curve in curves], [{min(curve.x), max(curve.x)} for curve in curves]
    if not found.has_interval or peaks[0] != peaks[1] or not all(peak in end for peak, end in zip(peaks, ends, strict=True)):
        return None
    return _outcome(UNDECIDED, found, f"both are best at {peaks[0]:g}, where the sweeps end: which peaks first does not show")


def _peak_distance(curves: tuple[Curve, Curve], more: int | None = None) -> Estimate:
    """Peak of the first sweep minus that of the second, with the bootstrap interval of the distance, or that of `more` seeds a point."""
    peaks = [intervals.argmax(curve) for curve in curves]
    value, seeds = peaks[0].value - peaks[1].value, min(peak.seeds for peak in peaks)
    if seeds < 2:
        return Estimate(value, math.nan, math.nan, seeds)
    drawn = [np.asarray(curve.x)[intervals.draws(curve, seed=k, seeds=more).argmax(1)] for k, curve in enumerate(curves)]
    low, high = np.quantile(drawn[0] - drawn[1], [0.025, 0.975], method="inverted_cdf")
    return Estimate(value, float(low), float(high), seeds)


def _unfinished(reader: Reader, sweep: Any, curve: Curve) -> str:
    missing = [run for x, run in reader.points(sweep).items() if x not in curve.x and run not in reader.results]
    return f"without {', '.join(missing)}" if missing else ""


def _outcome(verdict: str, found: Estimate, note: str = "") -> Outcome:
    return Outcome(verdict, found.value, found.low, found.high, found.seeds, note)


def _rank(outcome: str, verdict: str) -> int:
    """Which check speaks for the claim: the first with the claim's verdict, else the first that was run."""
    return 0 if outcome == verdict else 1 if outcome != NOT_RUN else 2


def _is_computed(claim: dict[str, Any]) -> bool:
    return all(spec["kind"] == "computed" for spec in claim["checks"])

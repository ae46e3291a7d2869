"""Each claim against our results: reproduced, opposite at proxy scale, inconclusive, or not run.

A claim is one or more checks (`papers/<key>/claims.yaml`, `replicate.report.checks`). It is reproduced when
all its checks are, and when no half of its statement went untested. One opposite check makes it opposite.
Runs on synthetic images give no verdict on a paper, and runs of the budget `smoke` give none at all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from replicate.config import published
from replicate.report import checks as words
from replicate.report import evidence
from replicate.report.checks import INCONCLUSIVE, NO_VERDICT, NOT_RUN, Outcome, check, reader_of
from replicate.report.quantities import NotRun
from replicate.report.results import Results
from replicate.report.wording import short

NO_FINDING = frozenset({"smoke"})
BY_COMPUTATION = "by computation"
COLUMNS = [
    "claim",
    "paper",
    "statement",
    "size",
    "verdict",
    "check",
    "effect",
    "low",
    "high",
    "unit",
    "against",
]
COLUMNS += [
    "df",
    "pooled",
    "own_low",
    "own_high",
    "seeds",
    "ran",
    "budget",
    "regime",
    "stand_in",
    "untested",
    "note",
]
NAMED = 3
"""Checks without runs beyond these are counted, not named."""


def all_claims(results: Results, papers: Sequence[str] | None = None) -> pd.DataFrame:
    """One line a claim of these papers (all of them by default), in the papers' order."""
    lines = []
    for name, claim in published.claims().items():
        paper = name.partition(".")[0]
        if papers is None or paper in papers:
            line = {"claim": name, "paper": paper, "statement": claim["statement"], "size": claim["size"]}
            lines.append(line | line_of(claim, results))
    return pd.DataFrame(lines, columns=COLUMNS)


def line_of(claim: dict[str, Any], results: Results) -> dict[str, Any]:
    """What `claims.csv` says of a claim's finding."""
    outcomes = checks(claim, results)
    found = _judged(claim, outcomes, results.budget)
    computed = all(spec["kind"] == "computed" for spec in claim["checks"])
    ran = found.verdict != NOT_RUN
    return vars(found) | {
        "ran": sum(outcome.verdict != NOT_RUN for outcome in outcomes),
        "budget": BY_COMPUTATION if computed else results.budget,
        "regime": evidence.regime(claim, results) if ran and not computed else "",
        "stand_in": claim.get("stand_in", "") if ran else "",
        "untested": "; ".join(untested(claim, outcomes)) if ran else "",
    }


def judge(claim: dict[str, Any], results: Results) -> Outcome:
    """The claim's verdict, with the effect of the check that settled it, else of the first.

    A claim marked `stand_in` is about something that is not run here: its checks do not decide it. A `caveat`
    goes with every verdict at less than the paper's budget.
    """
    return _judged(claim, checks(claim, results), results.budget)


def _judged(claim: dict[str, Any], outcomes: list[Outcome], budget: str) -> Outcome:
    verdict = together(outcomes)
    decided = verdict
    missing = untested(claim, outcomes)
    if claim.get("stand_in") or (missing and verdict in words.AGREEING):
        decided = verdict if verdict in (NOT_RUN, NO_VERDICT) else INCONCLUSIVE
    shown = min(outcomes, key=lambda one: (one.verdict not in (verdict, decided), one.verdict == NOT_RUN))
    notes = [_counted(outcomes), *remarks(claim, verdict, budget)]
    if verdict != NOT_RUN and missing:
        notes.append(f"not tested: {'; '.join(missing)}")
    notes.append("" if claim.get("stand_in") and verdict != NOT_RUN else shown.note)
    return replace(shown, verdict=decided, note="; ".join(note for note in notes if note))


def _counted(outcomes: list[Outcome]) -> str:
    """How many of the checks were run, and what they say; nothing where all or none were run."""
    counts = Counter(outcome.verdict for outcome in outcomes)
    done = len(outcomes) - counts.pop(NOT_RUN, 0)
    said = ", ".join(f"{counts[one]} {one}" for one in words.VERDICTS if counts[one])
    return f"{done} of {len(outcomes)} checks run: {said}" if 0 < done < len(outcomes) else ""


def together(outcomes: list[Outcome]) -> str:
    """The verdict that a claim's checks make: one that is opposite is enough, all must agree."""
    found = {outcome.verdict for outcome in outcomes}
    if opposing := [one for one in words.OPPOSING if one in found]:
        return opposing[0]
    if found <= set(words.AGREEING):
        ranked = (words.SHOWN, words.REPRODUCED, words.CONFIRMED)
        return next(one for one in ranked if one in found)
    if found == {NOT_RUN}:
        return NOT_RUN
    return NO_VERDICT if NO_VERDICT in found else INCONCLUSIVE


def untested(claim: dict[str, Any], outcomes: list[Outcome]) -> list[str]:
    """The halves of a claim that nothing tested: those that no check covers, and checks without runs."""
    waiting = [outcome.check for outcome in outcomes if outcome.verdict == NOT_RUN]
    more = len(waiting) - NAMED
    waiting = waiting[:NAMED] + [f"{more} more check{'s' * (more > 1)}"] * (more > 0)
    return [*claim.get("untested", []), *waiting]


def remarks(claim: dict[str, Any], verdict: str, budget: str) -> list[str]:
    """The caveat of a claim, or what stands in for it and what that, by `verdict`, shows."""
    if verdict == NOT_RUN:
        return []
    if claim.get("stand_in"):
        return [f"measured instead: {claim['stand_in']}, {verdict}; it does not decide the statement"]
    return [claim["caveat"]] if claim.get("caveat") and budget != words.FULL_SCALE else []


def checks(claim: dict[str, Any], results: Results) -> list[Outcome]:
    """Every check of a claim. A budget without findings gives no verdict, except on what is computed."""
    outcomes = [check(spec, results) for spec in claim["checks"]]
    if results.budget not in NO_FINDING:
        return outcomes
    silent = {
        "verdict": NO_VERDICT,
        "note": f"the budget {results.budget} tests the pipeline, not the claims",
    }
    pairs = zip(claim["checks"], outcomes, strict=True)
    keeps = [spec["kind"] == "computed" or outcome.verdict == NOT_RUN for spec, outcome in pairs]
    return [one if keep else replace(one, **silent) for one, keep in zip(outcomes, keeps, strict=True)]


def means(spec: Mapping[str, Any], results: Results) -> str:
    """Both sides of a comparison by their means, "40.4 against 45.6"; nothing if one was not run."""
    if not {"left", "right"} <= set(spec):
        return ""
    reader = reader_of(spec, results)
    try:
        sides = reader.apart(spec["left"], spec["right"])
        return " against ".join(short(reader.estimate(side).value) for side in sides)
    except NotRun:
        return ""

"""Each claim against our results: holds, fails, or undecided at this scale.

A claim is one or more checks (`papers/<key>/claims.yaml`, `replicate.report.checks`). It holds when all its
checks hold and fails when one fails. Runs of the budget `smoke` exercise the pipeline and never decide
anything.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from replicate.config import published
from replicate.report.checks import FAILS, HOLDS, NOT_RUN, UNDECIDED, Outcome, check, reader_of
from replicate.report.quantities import NotRun
from replicate.report.results import Results
from replicate.report.wording import short

NO_FINDING = frozenset({"smoke"})
BY_COMPUTATION = "by computation"
COLUMNS = ["claim", "paper", "statement", "size", "verdict", "check", "effect", "low", "high", "df", "pooled"]
COLUMNS += ["own_low", "own_high", "unit", "seeds", "budget", "note"]
_WORDS = {HOLDS: ("holds", "hold"), FAILS: ("fails", "fail"), UNDECIDED: ("undecided", "undecided")}


def all_claims(results: Results, papers: Sequence[str] | None = None) -> pd.DataFrame:
    """One line a claim of these papers (all of them by default), in the papers' order."""
    lines = []
    for name, claim in published.claims().items():
        paper = name.partition(".")[0]
        if papers is None or paper in papers:
            computed = all(spec["kind"] == "computed" for spec in claim["checks"])
            line = {"claim": name, "paper": paper, "statement": claim["statement"], "size": claim["size"]}
            line |= vars(judge(claim, results)) | {"budget": BY_COMPUTATION if computed else results.budget}
            lines.append(line)
    return pd.DataFrame(lines, columns=COLUMNS)


def judge(claim: dict[str, Any], results: Results) -> Outcome:
    """The claim's verdict, with the effect of the check that settled it, else of the first.

    A claim marked `stand_in` is about something that is not run here: its checks do not decide it. A `caveat`
    goes with every verdict at less than the paper's budget.
    """
    outcomes = checks(claim, results)
    verdict = together(outcomes)
    shown = min(outcomes, key=lambda one: (one.verdict != verdict, one.verdict == NOT_RUN))
    counts = Counter(outcome.verdict for outcome in outcomes)
    done = len(outcomes) - counts[NOT_RUN]
    said = ", ".join(f"{counts[v]} {words[counts[v] > 1]}" for v, words in _WORDS.items() if counts[v])
    notes = [f"{done} of {len(outcomes)} checks run: {said}"] if 0 < done < len(outcomes) else []
    notes += remarks(claim, verdict, results.budget)
    if claim.get("stand_in") and verdict != NOT_RUN:
        return replace(shown, verdict=UNDECIDED, note="; ".join(notes))
    return replace(shown, verdict=verdict, note="; ".join(notes + [shown.note] * bool(shown.note)))


def together(outcomes: list[Outcome]) -> str:
    """The verdict that a claim's checks make: one that fails is enough, all must hold."""
    verdicts = {outcome.verdict for outcome in outcomes}
    if FAILS in verdicts:
        return FAILS
    return verdicts.pop() if len(verdicts) == 1 else UNDECIDED


def remarks(claim: dict[str, Any], verdict: str, budget: str) -> list[str]:
    """The caveat of a claim, or that its checks, which together make `verdict`, only stand in for it."""
    if verdict == NOT_RUN:
        return []
    if claim.get("stand_in"):
        found = f"is {verdict}" if verdict == UNDECIDED else verdict
        return [f"what stands in for it {found}, which does not decide the statement"]
    return [claim["caveat"]] if claim.get("caveat") and budget != "paper" else []


def checks(claim: dict[str, Any], results: Results) -> list[Outcome]:
    """Every check of a claim. A budget without findings leaves them undecided, except computed ones."""
    outcomes = [check(spec, results) for spec in claim["checks"]]
    if results.budget not in NO_FINDING:
        return outcomes
    silent = {
        "verdict": UNDECIDED,
        "note": f"the {results.budget} budget exercises the pipeline and decides nothing",
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
        return " against ".join(short(reader.estimate(spec[side]).value) for side in ("left", "right"))
    except NotRun:
        return ""

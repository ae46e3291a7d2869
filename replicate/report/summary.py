"""Differences between runs as a small table, each with its interval."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from replicate.report.quantities import NotRun, Reader

COLUMNS = ["left", "right", "difference", "low", "high", "seeds"]


def contrasts(reader: Reader, pairs: Mapping[str, tuple[str, str]]) -> pd.DataFrame:
    """One line a pair of runs: both means, left - right in points and its 95 % interval; blank where a run has not finished."""
    lines = {name: _contrast(reader, *pair) for name, pair in pairs.items()}
    return pd.DataFrame.from_dict(lines, orient="index", columns=COLUMNS)


def _contrast(reader: Reader, left: str, right: str) -> list[str]:
    try:
        means = [reader.estimate(run).value for run in (left, right)]
        found = reader.estimate({"minus": [left, right]})
    except NotRun as error:
        return [f"not run: {error}", "", "", "", "", ""]
    bounds = [f"{bound:+.1f}" if found.has_interval else "" for bound in (found.low, found.high)]
    return [*(f"{mean:.1f}" for mean in means), f"{found.value:+.1f}", *bounds, str(found.seeds)]

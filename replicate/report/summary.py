"""Differences between runs as a small table, each with its interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from replicate.report import intervals
from replicate.report.quantities import NotRun, Reader
from replicate.report.results import Run

COLUMNS = ["left", "right", "difference", "low", "high", "seeds"]
HEADLINES = ("top1", "val_loss", "loss")
"""What a run is summed up by: the first of these that it reports."""


def contrasts(reader: Reader, pairs: Mapping[str, tuple[str, str]]) -> pd.DataFrame:
    """One line a pair of runs: both means, left - right in points and its 95 % interval; blank where a run has not finished."""
    lines = {name: _contrast(reader, *pair) for name, pair in pairs.items()}
    return pd.DataFrame.from_dict(lines, orient="index", columns=COLUMNS)


def finished(runs: Sequence[Run]) -> pd.DataFrame:
    """One line a finished run: its number with a 95 % interval over seeds, and what made it."""
    return pd.DataFrame([_line(run) for run in runs])


def _line(run: Run) -> dict[str, object]:
    metric = next((name for name in HEADLINES if name in run.per_seed[0]), "")
    ours = low = high = ""
    if metric:
        found = intervals.mean(list(run.values(metric).values()))
        ours = f"{found.value:.4g}"
        low, high = (f"{bound:.4g}" if found.has_interval else "" for bound in (found.low, found.high))
    made, versions = run.provenance, run.provenance.get("versions", {})
    return {
        "run": run.name,
        "metric": metric,
        "ours": ours,
        "ours_low": low,
        "ours_high": high,
        "seeds": len(run.seeds),
        "per_seed": " ".join(f"{value:.4g}" for value in run.values(metric).values()) if metric else "",
        "device": made.get("device", ""),
        "torch": versions.get("torch", ""),
        "timm": versions.get("timm", ""),
        "revision": str(made.get("git", {}).get("revision", ""))[:12],
        "data": str(made.get("manifest_sha256", ""))[:12],
        "seconds": f"{made.get('wall_seconds') or 0:.0f}",
    }


def _contrast(reader: Reader, left: str, right: str) -> list[str]:
    try:
        means = [reader.estimate(run).value for run in (left, right)]
        found = reader.estimate({"minus": [left, right]})
    except NotRun as error:
        return [f"not run: {error}", "", "", "", "", ""]
    bounds = [f"{bound:+.1f}" if found.has_interval else "" for bound in (found.low, found.high)]
    return [*(f"{mean:.1f}" for mean in means), f"{found.value:+.1f}", *bounds, str(found.seeds)]

"""Measured speeds for a notebook: what `benchmarks/*.py` wrote into `benchmarks/results/`."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

COLUMNS = ["what", "case", "ours", "theirs", "times faster", "quartiles", "machine"]


def speeds(root: Path, pattern: str) -> pd.DataFrame:
    """One line a comparison of the files that fit `pattern` ("p2dist", "decoder_masking*"); empty where no benchmark was run."""
    return comparisons(sorted((root / "benchmarks" / "results").glob(f"{pattern}.json")))


def comparisons(paths: Iterable[Path]) -> pd.DataFrame:
    """The same of these files."""
    rows = [row for path in paths for row in json.loads(path.read_text())]
    return pd.DataFrame([_line(row) for row in rows], columns=COLUMNS).set_index("what").rename_axis(None)


def by_run(root: Path, name: str) -> dict[str, dict]:
    """The lines of one file by the run that each compares, the first word of its name; empty where the benchmark was not run."""
    path = root / "benchmarks" / "results" / f"{name}.json"
    return {row["name"].partition(" ")[0]: row for row in json.loads(path.read_text())} if path.exists() else {}


def row(root: Path, name: str, line: str, case: str) -> dict | None:
    """The line of one file with that name whose case begins with `case`; None where it was not measured."""
    path = root / "benchmarks" / "results" / f"{name}.json"
    rows = json.loads(path.read_text()) if path.exists() else []
    return next((row for row in rows if row["name"] == line and row["case"].startswith(case)), None)


def _line(row: dict) -> list[str]:
    seconds = [f"{row[side]:.3g} {row['unit']}" for side in ("ours", "theirs")]
    low, high = row["spread"]
    return [row["name"], row["case"], *seconds, f"{row['ratio']:.3g}", f"{low:.3g} to {high:.3g}", row["machine"]]

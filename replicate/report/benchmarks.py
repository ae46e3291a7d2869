"""Measured speeds: what `benchmarks/*.py` wrote into `benchmarks/results/`."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

RESULTS = Path("benchmarks") / "results"
COLUMNS = ["what", "case", "ours", "theirs", "times faster", "quartiles", "machine"]


def rows(path: Path) -> list[dict[str, Any]]:
    """The lines of one file; none where the benchmark was not run."""
    return json.loads(path.read_text()) if path.exists() else []


def speeds(root: Path, pattern: str) -> pd.DataFrame:
    """One line a comparison of the files that fit `pattern` ("p2dist", "decoder_masking*")."""
    return comparisons(sorted((root / RESULTS).glob(f"{pattern}.json")))


def comparisons(paths: Iterable[Path]) -> pd.DataFrame:
    """One line a comparison of these files."""
    lines = [_line(row) for path in paths for row in rows(path)]
    return pd.DataFrame(lines, columns=COLUMNS).set_index("what").rename_axis(None)


def by_run(root: Path, name: str) -> dict[str, dict[str, Any]]:
    """The lines of one file by the run that each compares, the first word of its name."""
    return {row["name"].partition(" ")[0]: row for row in rows(root / RESULTS / f"{name}.json")}


def row(root: Path, name: str, line: str, case: str) -> dict[str, Any] | None:
    """The line of one file with that name whose case begins with `case`; None where it was not measured."""
    found = rows(root / RESULTS / f"{name}.json")
    return next((row for row in found if row["name"] == line and row["case"].startswith(case)), None)


def _line(row: dict[str, Any]) -> list[str]:
    seconds = [f"{row[side]:.3g} {row['unit']}" for side in ("ours", "theirs")]
    low, high = row["spread"]
    return [
        row["name"],
        row["case"],
        *seconds,
        f"{row['ratio']:.3g}",
        f"{low:.3g} to {high:.3g}",
        row["machine"],
    ]

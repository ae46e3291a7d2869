"""What `python -m replicate bench loader` measured, as runs `loader_...` that claims and tables can speak of: one "seed" a round."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from replicate.errors import UserError
from replicate.report import results

PAPER = "loader"  # a place of their own, so that a paper's list of runs holds what was trained
FILE = Path("benchmarks") / "results" / "loader.json"


def loader_runs(root: Path) -> dict[str, results.Run]:
    """Name -> run with the metrics `images_per_second` and `file_bytes`; empty where nothing was measured.

    Raises UserError for a file that the benchmark did not write.
    """
    path = root / FILE
    if not path.exists():
        return {}
    try:
        rows = json.loads(path.read_text())
        return {name: _run(path, name, row, side) for row in rows for side, name in enumerate(row["runs"])}
    except (json.JSONDecodeError, KeyError, TypeError, IndexError) as error:
        raise UserError(f"{path}: not what `python -m replicate bench loader` writes ({error!r}); measure again") from None


def _run(path: Path, name: str, row: dict, side: int) -> results.Run:
    rates, stored = row["images_per_second"][side], float(row["file_bytes"][side])
    per_seed = tuple({"images_per_second": float(rate), "file_bytes": stored} for rate in rates)
    made = {"device": row["machine"], "git": {"revision": row["revision"]}}
    return results.Run(PAPER, name, path, tuple(range(len(rates))), per_seed, {"images": row["images"][side], "case": row["case"]}, {}, made)


def load(budget: str, root: Path, grid: bool = True) -> results.Results:
    """All finished runs of a budget below the repository `root`, measured ones as far as its params.yaml still states them, and loaders."""
    from replicate.params import load as load_params

    stated = root / "params.yaml"
    found = results.load(budget, root / "results", grid, load_params(stated) if stated.exists() else None)
    return replace(found, runs=found.runs | loader_runs(root))

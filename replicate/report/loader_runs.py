"""Measurements of loaders, without training, as runs `loader_...` that claims and tables can name.

`python -m replicate bench loader` gives a run a case, one "seed" a round. `benchmarks/crop_decoding.py` gives
`loader_memory`, by how much an epoch's peak memory is below stock FFCV's. `benchmarks/codec_differences.py`
gives `loader_samples`, one "seed" a photograph. Cases measured on this machine (`results/bench`) come before
those in git (`benchmarks/results`). Of several numbers of threads, tables and claims use the fewest: Table 7
of DailyMAE prints one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from replicate.errors import UserError
from replicate.report import benchmarks, results
from replicate.report.quantities import Reader

PAPER = "loader"  # a place of their own, so that a paper's list of runs holds trained ones only
FOLDER, OWN = benchmarks.RESULTS, Path("results") / "bench"
MEMORY, SAMPLES = FOLDER / "crop_decode.json", FOLDER / "codec_differences.json"
NAME = re.compile(r"loader_(\d+)_threads?\.json")
COMMAND = "-m replicate bench loader"


def files(root: Path) -> dict[int, Path]:
    """Threads -> file of the cases measured with so many, fewest first; this machine's own first."""
    for folder in (root / OWN, root / FOLDER):
        found = {int(m[1]): path for path in folder.glob("*.json") if (m := NAME.fullmatch(path.name))}
        if found:
            return dict(sorted(found.items()))
    return {}


def loader_runs(root: Path, threads: int | None = None) -> dict[str, results.Run]:
    """Name -> run with `images_per_second` and `file_bytes`, and the two others.

    Raises UserError for a file that the benchmark did not write.
    """
    measured = files(root)
    found = _read(root / MEMORY, "benchmarks/crop_decoding.py", _memory)
    found |= _read(root / SAMPLES, "benchmarks/codec_differences.py", _samples)
    cases = measured.get(min(measured, default=0) if threads is None else threads)
    return found | (_read(cases, COMMAND, _cases) if cases else {})


def conditions(root: Path) -> str:
    """How the cases were measured: "One thread, processor time, crops of 224 pixels, ..."."""
    found = files(root)
    if not found:
        return "Nothing was measured yet: `python -m replicate bench loader --images FOLDER`."
    threads, path = next(iter(found.items()))
    row = _read(path, COMMAND, lambda path, rows: rows[0] if rows else {})
    images = row.get("photographs")
    parts = (
        "One thread" if threads == 1 else _words(threads),
        {"process_time": "processor time", "perf_counter": "wall time"}.get(row.get("clock"), ""),
        f"crops of {row['size']} pixels" if "size" in row else "",
        f"{images['count']} photographs of {images['of']}" if images else "",
        str(row.get("machine", "")),
    )
    return f"{', '.join(part for part in parts if part)} (`{path.relative_to(root)}`)."


def comparisons(root: Path) -> pd.DataFrame:
    """One line a comparison, of every number of threads."""
    return benchmarks.comparisons(files(root).values())


def by_threads(root: Path, table: Callable[[Reader], pd.DataFrame]) -> pd.DataFrame:
    """A table of loaders for every number of threads that was measured, one below the other."""
    found = {_words(n): table(Reader(results.Results("", loader_runs(root, n)))) for n in files(root)}
    return pd.concat(found) if found else table(Reader(results.Results("", {})))


def load(budget: str, root: Path, grid: bool = True) -> results.Results:
    """All finished runs of a budget below the repository `root`, and loaders.

    Measured runs count where the repository's params.yaml still states them.
    """
    from replicate.config import load as load_params

    stated = root / "params.yaml"
    found = results.load(budget, root / "results", grid, load_params(stated) if stated.exists() else None)
    return replace(found, runs=found.runs | loader_runs(root))


def _words(threads: int) -> str:
    return f"{threads} thread{'s' * (threads > 1)}"


def _read(path: Path, command: str, reader: Callable[[Path, list[dict[str, Any]]], Any]) -> Any:
    try:
        return reader(path, benchmarks.rows(path))
    except (json.JSONDecodeError, KeyError, TypeError, IndexError) as error:
        raise UserError(f"{path}: not what `python {command}` writes ({error!r}); measure again") from None


def _cases(path: Path, rows: list[dict[str, Any]]) -> dict[str, results.Run]:
    found = {}
    for row in rows:
        images = row.get("photographs", {}).get("count")
        for side, name in enumerate(row["runs"]):
            stored = float(row["file_bytes"][side])
            rates = [
                {"images_per_second": float(rate), "file_bytes": stored}
                for rate in row["images_per_second"][side]
            ]
            found[name] = _run(path, name, row, row["images"][side] if images is None else images, rates)
    return found


def _memory(path: Path, rows: list[dict[str, Any]]) -> dict[str, results.Run]:
    found = [row for row in rows if row["unit"] == "bytes"]
    savings = [{"saving_percent": float(100 * (1 - row["ours"] / row["theirs"]))} for row in found]
    return (
        {"loader_memory": _run(path, "loader_memory", found[0], found[0].get("images"), savings)}
        if found
        else {}
    )


def _samples(path: Path, rows: list[dict[str, Any]]) -> dict[str, results.Run]:
    if not rows:
        return {}
    errors = [{"mean_abs_error": float(value)} for value in rows[0]["mean_abs_error"]]
    return {"loader_samples": _run(path, "loader_samples", rows[0], rows[0].get("images"), errors)}


def _run(
    path: Path, name: str, row: dict[str, Any], images: Any, per_seed: list[dict[str, float]]
) -> results.Run:
    made = {"device": row["machine"], "git": {"revision": row["revision"]}}
    stated = {"images": images, "case": row["case"]}
    return results.Run(PAPER, name, path, tuple(range(len(per_seed))), tuple(per_seed), stated, {}, made)

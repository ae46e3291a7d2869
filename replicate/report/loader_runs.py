"""What was measured of loaders without training, as runs `loader_...` that claims and tables can speak of.

`python -m replicate bench loader` gives a run a case, one "seed" a round; `benchmarks/crop_decode.py` gives `loader_memory`, what an epoch's
peak memory is less than stock FFCV's; `benchmarks/codec_differences.py` gives `loader_samples`, one "seed" a photograph.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from replicate.errors import UserError
from replicate.report import results

PAPER = "loader"  # a place of their own, so that a paper's list of runs holds what was trained
FOLDER = Path("benchmarks") / "results"
FILE, MEMORY, SAMPLES = FOLDER / "loader.json", FOLDER / "crop_decode.json", FOLDER / "codec_differences.json"


def loader_runs(root: Path) -> dict[str, results.Run]:
    """Name -> run with the metrics `images_per_second` and `file_bytes`, or that of the two runs named above; empty where nothing was measured.

    Raises UserError for a file that the benchmark did not write.
    """
    readers = {FILE: ("-m replicate bench loader", _cases), MEMORY: (f"{MEMORY.parent.parent / MEMORY.stem}.py", _memory)}
    readers[SAMPLES] = f"{SAMPLES.parent.parent / SAMPLES.stem}.py", _samples
    found: dict[str, results.Run] = {}
    for path, (command, reader) in readers.items():
        if not (root / path).exists():
            continue
        try:
            found |= reader(root / path, json.loads((root / path).read_text()))
        except (json.JSONDecodeError, KeyError, TypeError, IndexError) as error:
            raise UserError(f"{root / path}: not what `python {command}` writes ({error!r}); measure again") from None
    return found


def _cases(path: Path, rows: list[dict]) -> dict[str, results.Run]:
    return {name: _run(path, name, row, side) for row in rows for side, name in enumerate(row["runs"])}


def _memory(path: Path, rows: list[dict]) -> dict[str, results.Run]:
    found = [row for row in rows if row["unit"] == "bytes"]
    savings = [100 * (1 - row["ours"] / row["theirs"]) for row in found]
    return {"loader_memory": _one(path, "loader_memory", found, "saving_percent", savings)} if found else {}


def _samples(path: Path, rows: list[dict]) -> dict[str, results.Run]:
    return {"loader_samples": _one(path, "loader_samples", rows, "mean_abs_error", rows[0]["mean_abs_error"])}


def _one(path: Path, name: str, rows: list[dict], metric: str, values: list[float]) -> results.Run:
    first, per_seed = rows[0], tuple({metric: float(value)} for value in values)
    made = {"device": first["machine"], "git": {"revision": first["revision"]}}
    return results.Run(PAPER, name, path, tuple(range(len(values))), per_seed, {"images": first.get("images"), "case": first["case"]}, {}, made)


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

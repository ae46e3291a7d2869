"""What was measured of loaders without training, as runs `loader_...` that claims and tables can speak of.

`python -m replicate bench loader` gives a run a case, one "seed" a round; `benchmarks/crop_decoding.py` gives `loader_memory`, what an epoch's
peak memory is less than stock FFCV's; `benchmarks/codec_differences.py` gives `loader_samples`, one "seed" a photograph.

Cases were measured on this machine (`results/bench`), or, where nothing was, are those that git holds (`benchmarks/results`). Of several numbers of
threads, tables and claims take the fewest, one as a rule, which is what Table 7 prints; `conditions` says which.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd

from replicate.errors import UserError
from replicate.report import benchmarks, results
from replicate.report.quantities import Reader

PAPER = "loader"  # a place of their own, so that a paper's list of runs holds what was trained
FOLDER, OWN = Path("benchmarks") / "results", Path("results") / "bench"
MEMORY, SAMPLES = FOLDER / "crop_decode.json", FOLDER / "codec_differences.json"
NAME = re.compile(r"loader_(\d+)_threads?\.json")
COMMAND = "-m replicate bench loader"


def files(root: Path) -> dict[int, Path]:
    """Threads -> the file that was measured with so many, fewest first; this machine's own where there is one."""
    for folder in (root / OWN, root / FOLDER):
        found = {int(match[1]): path for path in folder.glob("loader_*.json") if (match := NAME.fullmatch(path.name))}
        if found:
            return dict(sorted(found.items()))
    return {}


def loader_runs(root: Path, threads: int | None = None) -> dict[str, results.Run]:
    """Name -> run with the metrics `images_per_second` and `file_bytes`, with so many threads, or that of the two runs named above.

    Empty where nothing was measured. Raises UserError for a file that the benchmark did not write.
    """
    measured = files(root)
    readers = {root / file: (f"{file.parent.parent / file.stem}.py", reader) for file, reader in ((MEMORY, _memory), (SAMPLES, _samples))}
    cases = measured.get(min(measured, default=0) if threads is None else threads)
    if cases is not None:
        readers[cases] = (COMMAND, _cases)
    found: dict[str, results.Run] = {}
    for path, (command, reader) in readers.items():
        if path.exists():
            try:
                found |= reader(path, _rows(path, command))
            except (KeyError, TypeError, IndexError) as error:
                raise _not_ours(path, command, error) from None
    return found


def conditions(root: Path) -> str:
    """How what tables and claims show was measured: "One thread, processor time, crops of 224 pixels, 167 photographs of ..."."""
    found = files(root)
    if not found:
        return "Nothing was measured yet: `python -m replicate bench loader --images FOLDER`."
    threads, path = next(iter(found.items()))
    row = next(iter(_rows(path, COMMAND)), {})
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
    found = {_words(threads): table(Reader(results.Results("", loader_runs(root, threads)))) for threads in files(root)}
    return pd.concat(found) if found else table(Reader(results.Results("", {})))


def _words(threads: int) -> str:
    return f"{threads} thread{'s' * (threads > 1)}"


def _rows(path: Path, command: str) -> list[dict]:
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise _not_ours(path, command, error) from None


def _not_ours(path: Path, command: str, error: Exception) -> UserError:
    return UserError(f"{path}: not what `python {command}` writes ({error!r}); measure again")


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
    photographs = row.get("photographs", {}).get("count", row["images"][side])
    return results.Run(PAPER, name, path, tuple(range(len(rates))), per_seed, {"images": photographs, "case": row["case"]}, {}, made)


def load(budget: str, root: Path, grid: bool = True) -> results.Results:
    """All finished runs of a budget below the repository `root`, measured ones as far as its params.yaml still states them, and loaders."""
    from replicate.config import load as load_params

    stated = root / "params.yaml"
    found = results.load(budget, root / "results", grid, load_params(stated) if stated.exists() else None)
    return replace(found, runs=found.runs | loader_runs(root))

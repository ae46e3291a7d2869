"""How timings are taken: cases take turns in one process; results are medians, and ratios with their spread.

On a shared machine seconds vary a lot; the ratio of two cases that take turns varies far less.
"""

from __future__ import annotations

import json
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch

from replicate.files import atomic_write
from replicate.provenance import git_state, machine, versions

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results"


class Timing(NamedTuple):
    """Seconds of one case, one value a round."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def interleave(
    cases: Mapping[str, Callable[[], object]],
    rounds: int = 7,
    warmup: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Timing]:
    """Time the cases in turn, each round in another order, waiting for the GPU.

    With `time.process_time` and one thread, other processes do not count.
    """
    timed = {name: partial(_timed, case, clock) for name, case in cases.items()}
    for _ in range(warmup):
        for case in timed.values():
            case()
    return take_turns(timed, rounds)


def take_turns(cases: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, Timing]:
    """Run cases that return their own seconds in turn; each round begins with another case."""
    names = list(cases)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for index in range(rounds):
        start = index % len(names)
        for name in names[start:] + names[:start]:
            seconds[name].append(cases[name]())
    return {name: Timing(tuple(values)) for name, values in seconds.items()}


def _timed(case: Callable[[], object], clock: Callable[[], float]) -> float:
    _synchronize()
    begin = clock()
    case()
    _synchronize()
    return clock() - begin


def timed_window(begin: Callable[[], Iterable[object]], skip: int, clock: Callable[[], float]) -> float:
    """Seconds of an epoch from its `skip`-th batch to the last: a loader's speed once it runs."""
    batches = iter(begin())
    for _ in islice(batches, skip):
        pass
    start = clock()
    for _ in batches:
        pass
    return clock() - start


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def compare(name: str, case: str, ours: Timing, theirs: Timing, **extra: Any) -> dict[str, Any]:
    """One row of a benchmark's file. ratio: median over rounds of theirs / ours; spread: its quartiles."""
    ratios = [their / our for our, their in zip(ours.seconds, theirs.seconds, strict=True)]
    low, _, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    return row(name, case, ours.median, theirs.median, statistics.median(ratios), [low, high], **extra)


def row(
    name: str,
    case: str,
    ours: float,
    theirs: float,
    ratio: float,
    spread: list[float] | None = None,
    **extra: Any,
) -> dict[str, Any]:
    """One row of a benchmark's file. A ratio above 1 means that ours is better."""
    return {
        "name": name,
        "case": case,
        "ours": ours,
        "theirs": theirs,
        "ratio": ratio,
        "unit": "s",
        "spread": spread or [ratio, ratio],
        "machine": describe_machine(),
        "revision": git_state()["revision"],
        **extra,
    }


def describe_machine() -> str:
    """Processor or GPU, cores and threads in use, torch's version."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else _processor()
    threads = torch.get_num_threads()
    plural = "s" * (threads > 1)
    return f"{device}, {machine()['cores']} cores, {threads} thread{plural}, torch {versions()['torch']}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def write_results(name: str, rows: list[dict[str, Any]], folder: Path = RESULTS) -> Path:
    """Write benchmarks/results/<name>.json and print a line a row."""
    path = folder / f"{name}.json"
    atomic_write(path, lambda part: part.write_text(json.dumps(rows, indent=2) + "\n"))
    for found in rows:
        low, high = found["spread"]
        ours, theirs = (f"{side} {found[side]:.4g} {found['unit']}" for side in ("ours", "theirs"))
        ratio = f"ratio {found['ratio']:.2f} ({low:.2f} - {high:.2f})"
        print(f"{found['name']} | {found['case']}: {ours}, {theirs}, {ratio}")
    return path

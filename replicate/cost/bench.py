"""How timings are taken: cases interleaved in one process, medians, and ratios with their spread.

On a machine that others use too, seconds wander; the ratio of two cases that take turns wanders far less.
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

from replicate.provenance import git_state, machine, versions

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results"


class Timing(NamedTuple):
    """Seconds of one case, one value a round."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def interleave(
    cases: Mapping[str, Callable[[], object]], rounds: int = 7, warmup: int = 1, clock: Callable[[], float] = time.perf_counter
) -> dict[str, Timing]:
    """Time the cases in turn, round after round, each round in another order; a GPU is waited for.

    With `time.process_time` for a clock (and one thread) the time that other processes took from this one does not count.
    """
    for _ in range(warmup):
        for case in cases.values():
            timed(case, clock)
    return take_turns({name: partial(timed, case, clock) for name, case in cases.items()}, rounds)


def take_turns(cases: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, Timing]:
    """Let cases that return their own seconds take turns, round after round, each round beginning with another."""
    names = list(cases)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for index in range(rounds):
        start = index % len(names)
        for name in names[start:] + names[:start]:
            seconds[name].append(cases[name]())
    return {name: Timing(tuple(values)) for name, values in seconds.items()}


def timed(case: Callable[[], object], clock: Callable[[], float]) -> float:
    """Seconds of one call; a GPU is waited for."""
    _wait()
    begin = clock()
    case()
    _wait()
    return clock() - begin


def timed_window(begin: Callable[[], Iterable[object]], skip: int, clock: Callable[[], float]) -> float:
    """Seconds of an epoch from the arrival of its `skip`-th batch to that of its last: what a loader does once it runs."""
    batches = iter(begin())
    for _ in islice(batches, skip):
        pass
    start = clock()
    for _ in batches:
        pass
    return clock() - start


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def compare(name: str, case: str, ours: Timing, theirs: Timing, **extra: Any) -> dict[str, Any]:
    """One line of a benchmark's file. ratio = median of theirs / ours round by round (> 1: ours is faster); spread =
    its quartiles.
    """
    ratios = [their / our for our, their in zip(ours.seconds, theirs.seconds, strict=True)]
    quartiles = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else [ratios[0]] * 3
    return {
        "name": name,
        "case": case,
        "ours": ours.median,
        "theirs": theirs.median,
        "ratio": statistics.median(ratios),
        "unit": "s",
        "spread": [quartiles[0], quartiles[2]],
        "machine": describe_machine(),
        "revision": git_state()["revision"],
        **extra,
    }


def describe_machine() -> str:
    """Processor or GPU, cores and threads in use, torch's version."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else _processor()
    threads = torch.get_num_threads()
    return f"{device}, {machine()['cores']} cores, {threads} thread{'s' * (threads > 1)}, torch {versions()['torch']}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def write_results(name: str, rows: list[dict[str, Any]], folder: Path = RESULTS) -> Path:
    """Write benchmarks/results/<name>.json, and print a line for every row."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps(rows, indent=2) + "\n")
    for row in rows:
        low, high = row["spread"]
        values = f"ours {row['ours']:.4g} {row['unit']}, theirs {row['theirs']:.4g} {row['unit']}"
        print(f"{row['name']} | {row['case']}: {values}, ratio {row['ratio']:.2f} ({low:.2f} - {high:.2f})")
    return path

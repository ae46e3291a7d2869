"""`python -m replicate bench loader`: time loaders on any folder of photographs.

The numbers are those of DailyMAE's Figures 1 and 3c and Tables 4, 7 and 13.

All cases run in one process and take turns. With one thread the clock is the process's CPU time, so that
other users of the machine do not count; with more threads it is wall time.

The clock starts after two batches, so that starting workers and touching new memory do not count. For FFCV
and the cases beside it, it starts once each of FFCV's buffers has been filled twice. ImageNet's epochs are
long enough for that to be negligible.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from replicate.cost.bench import Timing, compare, take_turns, timed_window, write_results
from replicate.cost.loader_cases import COMPARISONS, Case, Cases
from replicate.cost.photographs import Photographs
from replicate.cost.stock_ffcv import has_ffcv
from replicate.errors import UserError


def bench(folder: Path | None, *, repeat: int, rounds: int, threads: int, size: int, out: Path) -> Path:
    """Measure, print, and write `<out>/loader_1_thread.json`, `loader_2_threads.json`, ...

    Raises UserError for a folder without images or a number below 1.
    """
    for name, value in (("repeat", repeat), ("rounds", rounds), ("threads", threads), ("size", size)):
        if value < 1:
            raise UserError(f"--{name} {value}: must be at least 1")
    images = Photographs(folder, repeat)
    import cv2
    import torch

    cv2.setNumThreads(1)
    torch.set_num_threads(threads)
    if not has_ffcv():
        print("note: ffcv is not installed; stock FFCV is left out")
    with tempfile.TemporaryDirectory() as scratch:
        cases = Cases(Path(scratch), images, size, threads)
        photographs = f"{len(images.files)} photographs of {images.place}"
        print(f"{photographs}, {len(cases)} loaders in turn, {rounds} rounds")
        rows = measure(cases, rounds, threads, size, images)
    return write_results(f"loader_{_threads(threads).replace(' ', '_')}", rows, out)


def measure(
    cases: Mapping[str, Case], rounds: int, threads: int, size: int, images: Photographs
) -> list[dict[str, Any]]:
    """One row a comparison, in milliseconds an image, with images per second of each round and bytes."""
    clock = time.process_time if threads == 1 else time.perf_counter
    with _progress_bar(rounds * len(cases)) as bar:

        def turn(case: Case) -> float:
            seconds = timed_window(case.begin, case.skip, clock)
            bar.update()
            return seconds

        windows = take_turns({name: lambda case=case: turn(case) for name, case in cases.items()}, rounds)
    timings = {
        name: Timing(tuple(1000 * seconds / cases[name].images for seconds in window.seconds))
        for name, window in windows.items()
    }
    shared = {
        "clock": clock.__name__,
        "unit": "ms an image",
        "threads": threads,
        "size": size,
        "photographs": {"of": images.place, "count": len(images.files)},
    }
    rows = []
    for what, *sides in COMPARISONS:
        if not set(sides) <= set(timings):
            continue
        both = [timings[side] for side in sides]
        own = {
            "images": [cases[side].images for side in sides],
            "runs": sides,
            "images_per_second": [[round(1000 / each, 1) for each in timing.seconds] for timing in both],
            "file_bytes": [cases[side].file_bytes for side in sides],
        }
        rows.append(compare("loader", f"{what}, {size} px, {_threads(threads)}", *both, **shared, **own))
    return rows


def _progress_bar(turns: int) -> tqdm:
    """A bar on stderr; without a terminal, a line every half minute."""
    terminal = sys.stderr.isatty()
    pace = {"mininterval": 0.5, "maxinterval": 10} if terminal else {"mininterval": 30, "maxinterval": 60}
    return tqdm(total=turns, desc="bench loader", unit="turn", dynamic_ncols=terminal, **pace)


def _threads(number: int) -> str:
    return f"{number} thread{'s' * (number > 1)}"

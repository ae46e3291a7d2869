"""`dvc repro` with a line a stage: how far it is, what a run reached, and how long the rest will take."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from statistics import mean
from typing import TYPE_CHECKING

from replicate.pipeline.stages import stages

if TYPE_CHECKING:
    from replicate.config import Params

RUNNING = re.compile(r"^Running stage '([^']+)'")
SKIPPED = re.compile(r"^Stage '([^']+)' (?:didn't change|is cached)")
QUIET = ("> ", "Updating lock", "Generating lock", "Use `dvc push`", "Data and pipelines are up to date")
"""Beginnings of DVC's lines that say nothing to a user without a remote."""
GUESS = {"pretrain": 120.0, "evaluate": 25.0, "notebook": 15.0}
"""Seconds of a stage before one of its kind has finished."""
SHORT = 3.0
"""Seconds of every other kind of stage."""


def default_stages(params: Params) -> list[str]:
    """The stages of the default pipeline, in no order, as DVC names them."""
    found, papers = stages(params), list(params.papers)
    kinds = {"data": found["datasets"], "pretrain": found["pretrain"], "evaluate": found["evaluate"]}
    kinds |= {"source": papers, "notebook": papers}
    return [
        "inputs",
        *(f"{kind}@{key}" for kind, keys in kinds.items() for key in keys),
        "scoreboard",
        "site",
    ]


class Progress:
    """Turns DVC's lines into ours.

    names    stages of the pipeline; a target needs some of them, so the count is then left out
    """

    def __init__(self, params: Params, names: Iterable[str], whole: bool) -> None:
        self.params, self.left, self.whole = params, set(names), whole
        self.total, self.seconds = len(self.left), defaultdict(list)
        self.current: tuple[str, float] | None = None

    def read(self, lines: Iterable[str], clock=time.monotonic, ended=lambda: True) -> Iterator[str]:
        """Lines to print for DVC's lines; a stage's line comes when the next one starts.

        `ended` says, after the last line, whether the last stage succeeded.
        """
        for line in lines:
            if started := RUNNING.match(line):
                now = clock()
                yield from self._finished(now)
                self.current = (started[1], now)
            elif skipped := SKIPPED.match(line):
                self.left.discard(skipped[1])
            elif line.strip() and not line.startswith(QUIET):
                yield line.rstrip()
        if ended():
            yield from self._finished(clock())

    def _finished(self, now: float) -> Iterator[str]:
        if self.current is None:
            return
        (name, started), self.current = self.current, None
        self.left.discard(name)
        self.seconds[name.partition("@")[0]].append(now - started)
        parts = [name.partition("@")[2] or name, *self._result(name), duration(now - started)]
        if self.whole and self.left:
            parts.append(f"about {duration(self.remaining())} left")
        count = f"[{self.total - len(self.left)}/{self.total}] " if self.whole else ""
        yield count + " · ".join(parts)

    def remaining(self) -> float:
        """Seconds of the stages that are left, by the mean of those of their kind."""
        return sum(self._expected(name.partition("@")[0]) for name in self.left)

    def _expected(self, kind: str) -> float:
        return mean(self.seconds[kind]) if self.seconds[kind] else GUESS.get(kind, SHORT)

    def _result(self, stage: str) -> Iterator[str]:
        kind, _, name = stage.partition("@")
        if kind not in ("pretrain", "evaluate") or name not in self.params.runs:
            return
        path = self.params.results_folder(name) / "metrics.json"
        if not path.exists():
            return
        results = json.loads(path.read_text())["results"]
        for key, label, unit in (("top1", "top-1", " %"), ("val_loss", "loss", "")):
            if key in results:
                digits, seeds = 1 if unit else 3, [one[key] for one in results["per_seed"]]
                each = ", ".join(f"{value:.{digits}f}" for value in seeds)
                line = f"{label} {results[key]['mean']:.{digits}f}{unit}"
                yield f"{line} ({each})" if len(seeds) > 1 else line
                return


def duration(seconds: float) -> str:
    """47 s, 3 min, 2.5 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 100 * 60 else f"{seconds / 3600:.1f} h"


def repro(params: Params, targets: Sequence[str]) -> int:
    """Run `dvc repro` for the whole pipeline or for targets; returns its exit status."""
    progress = Progress(params, default_stages(params), whole=not targets)
    with subprocess.Popen(["dvc", "repro", *targets], stdout=subprocess.PIPE, text=True) as process:
        for line in progress.read(process.stdout, ended=lambda: process.wait() == 0):
            print(line, flush=True)
    return process.returncode

"""What a site shows: the results of one budget, or of the budgets of each paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from replicate.config import published
from replicate.config.rooms import ROOMS
from replicate.report import evidence, loader_runs, scoreboard, tables
from replicate.report.results import Results, Run
from replicate.report.scoreboard import Scoreboard

if TYPE_CHECKING:
    from replicate.config import Params

TAUGHT = ("start", "lesson_", "explore_")
"""Notebooks that are read with their code, whether or not they have been executed."""


@dataclass(frozen=True)
class Shown:
    """Scoreboard, results and notebooks below `root`, each paper at its budgets of `budgets`, best first.

    Of each notebook, the first of `scopes` is shown that has been executed. Figures and tables of pages go
    beside their sources, into `sources`.
    """

    params: Params
    budgets: Mapping[str, Sequence[str]]
    sources: Path
    scopes: tuple[str, ...]
    root: Path = Path()

    @cached_property
    def results(self) -> dict[str, Results]:
        """Budget -> its finished runs."""
        named = dict.fromkeys(name for budgets in self.budgets.values() for name in budgets)
        return {name: loader_runs.load(name, self.root) for name in named}

    @cached_property
    def board(self) -> Scoreboard:
        """As `python -m replicate scoreboard` wrote it. Raises UserError when it has not."""
        return scoreboard.findings(self.budgets, self.root)

    def claims(self, paper: str) -> pd.DataFrame:
        return self.board.claims[self.board.claims["paper"] == paper]

    def numbers(self, paper: str) -> pd.DataFrame:
        return self.board.numbers[self.board.numbers["paper"] == paper]

    def runs(self, paper: str, budget: str) -> list[Run]:
        """The finished runs of a paper at a budget, of its numbers and of its claims, loaders included."""
        found = self.results[budget].runs
        claims = (claim for name, claim in published.claims().items() if name.partition(".")[0] == paper)
        used = tables.runs_named(paper).union(*(evidence.runs_of(claim, found) for claim in claims))
        return [run for run in found.values() if run.paper == paper or run.name in used]

    def notebooks(self) -> dict[str, Path]:
        """Name -> file of every notebook, executed where it has been: notebooks link to one another."""
        found = {path.stem: path for path in sorted((ROOMS.parent / "notebooks").glob("*.ipynb"))}
        for budget in reversed(list(self.results)):
            for scope in reversed(self.scopes):
                folder = self.root / "executed" / budget / scope
                found |= {
                    path.stem: path for path in sorted(folder.glob("*.ipynb")) if self._shows(path, budget)
                }
        return found

    def _shows(self, path: Path, budget: str) -> bool:
        return budget in self.budgets.get(path.stem, (budget,))

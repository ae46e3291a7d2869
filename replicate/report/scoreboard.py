"""The scoreboard: every published number with its status, every claim with its verdict, totals per paper.

`tables/<budget>/scoreboard.csv` has one line a number, `claims.csv` one a claim. `docs/results.md` carries
the totals of the project's findings between two markers. `findings` in params.yaml names the budgets of each
paper. A claim is shown at the budget that ran most of its checks, a printed table at the one that ran most of
its numbers, the first named where several did.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from replicate.config import published
from replicate.errors import UserError
from replicate.report import checks, loader_runs, tables, verdicts, wording
from replicate.report import summary as summary_tables
from replicate.report.page import words
from replicate.report.quantities import Reader
from replicate.report.results import Results

ERRATA = "errata.csv"
NUMBERS, CLAIMS, TOP1, SUMMARY = "scoreboard.csv", "claims.csv", "top1.csv", "summary.json"
COLUMNS = ["id", "paper", "table", *tables.COLUMNS[1:]]
NUMERIC = ("ours", "ours_low", "ours_high", "effect", "low", "high", "df", "own_low", "own_high")
VERDICTS = checks.VERDICTS
DECIDED = (checks.REPRODUCED, checks.OPPOSITE, checks.OPPOSITE_AT_SCALE)
"""Verdicts that are findings: neither computed nor from synthetic images."""

START, END = "<!-- scoreboard -->", "<!-- /scoreboard -->"
PAGE, ROOM = Path("docs/results.md"), "papers/{paper}/README.md"


@dataclass(frozen=True)
class Scoreboard:
    """Numbers and claims, a line each; `budgets` maps papers to their budgets."""

    budgets: Mapping[str, Sequence[str]]
    numbers: pd.DataFrame
    claims: pd.DataFrame

    @property
    def scale(self) -> str:
        """The budget, or the budgets, for a sentence."""
        return " or ".join(self._names)

    @property
    def is_mixed(self) -> bool:
        """Whether lines stand here at different budgets."""
        return len(self._names) > 1

    @property
    def _names(self) -> dict[str, None]:
        return dict.fromkeys(name for named in self.budgets.values() for name in named)

    @property
    def totals(self) -> pd.DataFrame:
        """How many numbers of each paper have which status; statuses that no number has are left out."""
        return _counts(self.numbers, "status", tables.STATUSES)

    @property
    def verdicts(self) -> pd.DataFrame:
        """How many claims of each paper have which verdict."""
        return _counts(self.claims, "verdict", VERDICTS)

    @property
    def meaning(self) -> dict[str, str]:
        """What the statuses mean that numbers here have."""
        meaning = words()["statuses"]
        return {status: meaning[status] for status in self.totals.columns if status in meaning}


def build(results: Results) -> Scoreboard:
    """Judge every claim and find the status of every number."""
    claims = verdicts.all_claims(results)
    numbers = [tables.cells(paper, results, claims).assign(paper=paper) for paper in published.papers()]
    budgets = dict.fromkeys(published.papers(), (results.budget,))
    return Scoreboard(budgets, pd.concat(numbers, ignore_index=True)[COLUMNS], claims)


def assemble(boards: Mapping[str, Scoreboard], budgets: Mapping[str, Sequence[str]]) -> Scoreboard:
    """One scoreboard of several. `boards` maps budgets to them, `budgets` papers to budgets, best first.

    A claim comes from the board that ran most of its checks. All numbers of a printed table come from the
    board that ran most of them, so that a table compares like with like. The first budget wins a tie.
    """
    numbers, claims = [], []
    for paper in published.papers():
        named = [(budget, boards[budget]) for budget in budgets[paper]]
        found = [
            [board.numbers.assign(budget=budget) for budget, board in named],
            [board.claims for _, board in named],
        ]
        found = [[frame[frame["paper"] == paper] for frame in frames] for frames in found]
        numbers.append(
            _fullest(found[0], ["table", "panel"], lambda frame: frame["status"] != tables.NOT_RUN)
        )
        claims.append(_fullest(found[1], ["claim"], lambda frame: frame["ran"]))
    joined = [pd.concat(frames, ignore_index=True) for frames in (numbers, claims)]
    return Scoreboard({paper: tuple(budgets[paper]) for paper in published.papers()}, *joined)


def _fullest(
    frames: Sequence[pd.DataFrame], keys: list[str], ran: Callable[[pd.DataFrame], pd.Series]
) -> pd.DataFrame:
    """The lines of each group of `keys` from the frame with the highest sum of `ran`, else from the first."""
    counts = pd.concat([ran(one).groupby([one[key] for key in keys]).sum() for one in frames], axis=1)
    best = pd.Series(counts.to_numpy().argmax(axis=1), counts.index, name="best")
    parts = [one.join(best, on=keys).query("best == @place") for place, one in enumerate(frames)]
    return pd.concat(parts).loc[frames[0].index].drop(columns="best")


def findings(budgets: Mapping[str, Sequence[str]], root: str | Path = ".") -> Scoreboard:
    """The scoreboard of the project's findings. Raises UserError when one of its parts is missing."""
    return assemble({name: read(name, root) for named in budgets.values() for name in named}, budgets)


def read(budget: str, root: str | Path = ".") -> Scoreboard:
    """A scoreboard that was written before. Raises UserError when there is none."""
    folder = Path(root) / "tables" / budget
    blank = dict.fromkeys(NUMERIC, "")
    options = {"dtype": {"published": str}, "keep_default_na": False, "na_values": blank}
    try:
        numbers, claims = (pd.read_csv(folder / name, **options) for name in (NUMBERS, CLAIMS))
    except FileNotFoundError as error:
        raise UserError(
            f"{error.filename}: no such file; `python -m replicate budget {budget}` and then "
            "`python -m replicate scoreboard` write it"
        ) from None
    return Scoreboard(dict.fromkeys(published.papers(), (budget,)), numbers, claims)


def write(
    budget: str, root: str | Path = ".", shown: Mapping[str, Sequence[str]] | None = None
) -> Scoreboard:
    """Build the scoreboard of a budget and write its CSV, the errata and PAGE's totals.

    `shown` maps papers to the budgets of their findings. PAGE changes only when this budget is among
    them and the others' scoreboards exist.
    """
    root = Path(root)
    results = loader_runs.load(budget, root)
    board = build(results)
    folder = root / "tables" / budget
    folder.mkdir(parents=True, exist_ok=True)
    for frame, name in ((board.numbers, NUMBERS), (board.claims, CLAIMS), (top1(results), TOP1)):
        frame.to_csv(folder / name, index=False, lineterminator="\n")
    (folder / SUMMARY).write_text(json.dumps(counts(board), indent=1) + "\n", encoding="utf-8")
    tables.write_frame(summary_tables.errata(), root / "tables" / ERRATA)
    shown_on, others = root / PAGE, {name for named in (shown or {}).values() for name in named}
    if (
        budget in others
        and shown_on.exists()
        and all((root / "tables" / one / CLAIMS).exists() for one in others)
    ):
        update_pages(root, findings(shown, root))
    return board


def top1(results: Results) -> pd.DataFrame:
    """The accuracy of every finished evaluation: run, top1 and its 95 % interval, for `dvc plots`."""
    runs = [run for run in results.runs.values() if "top1" in run.per_seed[0]]
    reader = Reader(results)
    lines = sorted((run.name, *reader.estimate(f"{run.name}/top1")[:3]) for run in runs)
    return pd.DataFrame(lines, columns=["run", "top1", "low", "high"]).round(3)


def counts(board: Scoreboard) -> dict[str, dict[str, int]]:
    """How many numbers have which status and how many claims which verdict, for `dvc metrics`."""
    frames = {"numbers": board.totals, "claims": board.verdicts}
    return {
        name: {key: int(count) for key, count in frame.loc["all"].items()} for name, frame in frames.items()
    }


def summary(board: Scoreboard) -> str:
    """Totals and verdicts per paper in Markdown, as PAGE shows them."""
    count, claims = len(board.numbers), len(board.claims)
    text = f"{count:,} published numbers, {claims} claims; runs at the budget {board.scale}:\n\n"
    text += tables.markdown(texts(board.totals)) + "\n" + tables.markdown(verdict_counts(board))
    return text + decided(board)


def decided(board: Scoreboard) -> str:
    """The claims that runs on real images decided, with effect and regime, in Markdown; empty without any."""
    shown = board.claims[board.claims["verdict"].isin(DECIDED)]
    lines = [
        f"- **{line['verdict']}**: {wording.found_text(line)} ({_tested(line)})."
        + f" Note: {line['note']}." * bool(line["note"] and line["verdict"] in checks.OPPOSING)
        for line in shown.to_dict("records")
    ]
    return "\nDecided by runs:\n\n" + "\n".join(lines) + "\n" if lines else ""


def _tested(line: Mapping[str, Any]) -> str:
    """The check that an effect is of, where a claim has several, and for what it holds."""
    several = len(published.claims()[line["claim"]]["checks"]) > 1
    return "; ".join([f"`{line['check']}`"] * several + [line["regime"]])


def update_pages(root: Path, board: Scoreboard) -> None:
    """Write the findings into PAGE and into the README of every paper's room below `root`."""
    update_page(root / PAGE, summary(board))
    for paper in published.papers():
        room = root / ROOM.format(paper=paper)
        if room.exists():
            update_page(room, room_summary(board, paper))


def room_summary(board: Scoreboard, paper: str) -> str:
    """A paper's verdicts in Markdown: counted, then those that runs decided."""
    claims = board.claims[board.claims["paper"] == paper]
    found = claims["verdict"].value_counts()
    counted = ", ".join(f"{found[one]} {one}" for one in VERDICTS if one in found)
    own = Scoreboard(board.budgets, board.numbers, claims)
    at = " or ".join(f"`{budget}`" for budget in board.budgets[paper])
    return f"{len(claims)} claims at the budget {at}: {counted}.\n{decided(own)}"


def update_page(path: str | Path, shown: str) -> None:
    """Replace the text between the page's markers. Raises UserError when a marker is missing."""
    path = Path(path)
    text = path.read_text(encoding="utf-8")
    before, marker, rest = text.partition(START)
    _, end, after = rest.partition(END)
    if not marker or not end:
        raise UserError(f"{path}: lacks the markers {START} and {END}, between which its totals stand")
    path.write_text(f"{before}{START}\n{shown}{END}{after}", encoding="utf-8")


def _counts(frame: pd.DataFrame, column: str, order: Sequence[str]) -> pd.DataFrame:
    counts = pd.crosstab(frame["paper"], frame[column])
    rows = [paper for paper in published.papers() if paper in counts.index]
    counts = counts.loc[rows, [name for name in order if name in counts.columns]]
    counts.loc["all"] = counts.sum()
    return counts.assign(total=counts.sum(axis=1))


def texts(counts: pd.DataFrame) -> pd.DataFrame:
    """Totals as texts, papers by their titles."""
    shown = counts.astype(int).astype(str)
    shown.insert(0, "paper", [published.papers().get(paper, paper) for paper in counts.index])
    return shown.reset_index(drop=True)


def verdict_counts(board: Scoreboard) -> pd.DataFrame:
    """Counts of verdicts as texts, with each paper's budget where they differ."""
    shown = texts(board.verdicts)
    if board.is_mixed:
        named = [" or ".join(board.budgets.get(paper, ())) for paper in board.verdicts.index]
        shown.insert(1, "budget", named)
    return shown

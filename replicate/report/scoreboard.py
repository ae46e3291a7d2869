"""The scoreboard: every published number with its status, every claim with its verdict, totals per paper.

`tables/<budget>/scoreboard.csv` has one line a number, `claims.csv` one a claim; `scoreboard.md` and
`executed/<budget>/scoreboard.html` are for reading. The README carries, between two markers, the totals of the project's findings: of
each paper those of the budget that `findings` in params.yaml names.
"""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from replicate import intervals
from replicate.config import published
from replicate.errors import UserError
from replicate.report import loader_runs, tables, verdicts
from replicate.report.page import page
from replicate.report.page import table as html_table
from replicate.report.results import Results

NUMBERS, CLAIMS, TOP1, SUMMARY = "scoreboard.csv", "claims.csv", "top1.csv", "summary.json"
COLUMNS = ["id", "paper", "table", *tables.COLUMNS[1:]]
VERDICTS = (verdicts.HOLDS, verdicts.FAILS, verdicts.UNDECIDED, verdicts.NOT_RUN)
MEANING = {
    tables.EXACT: "computed without training, and equal at the printed precision",
    tables.ROUNDING: "computed from the paper's own rounded numbers; what rounding allows includes the printed number",
    tables.TREND: "run at this budget's scale; the claim that the number carries holds",
    tables.DIFFERS: "run at this budget's scale, and the claim that the number carries fails; or counted on our model, and not what is printed",
    tables.UNDECIDED: "run at this budget's scale; the interval of the claim's test reaches over its bound",
    tables.CONTRADICTION: "computed, and not what is printed; the number shown is that of our run where it has one, the computed one is in the note",
    tables.CITED: "quoted by the paper from other work, or a description; not rerun here",
    tables.NOT_RUN: "has a run in params.yaml that has not finished at this budget",
    tables.NEEDS_SCALE: "needs the paper's own data and scale: budget `paper`",
    tables.NOT_BUILT: "detection and segmentation are not part of this workbook",
    tables.SMOKE: "the smoke budget exercises the pipeline and finds nothing",
}
START, END = "<!-- scoreboard -->", "<!-- /scoreboard -->"


@dataclass(frozen=True)
class Scoreboard:
    """Numbers (one line a published number) and claims (one line a claim); `budgets` says of each paper at which budget."""

    budgets: Mapping[str, str]
    numbers: pd.DataFrame
    claims: pd.DataFrame

    @property
    def scale(self) -> str:
        """The budget, or the budgets, for a sentence."""
        return " or ".join(dict.fromkeys(self.budgets.values()))

    @property
    def is_mixed(self) -> bool:
        """Whether papers stand here at different budgets."""
        return len(set(self.budgets.values())) > 1

    @property
    def totals(self) -> pd.DataFrame:
        """How many numbers of each paper have which status; statuses that nothing has are left out."""
        return _counts(self.numbers, "status", tables.STATUSES)

    @property
    def verdicts(self) -> pd.DataFrame:
        """How many claims of each paper have which verdict."""
        return _counts(self.claims, "verdict", VERDICTS)


def build(results: Results) -> Scoreboard:
    """Judge every claim and find the status of every number."""
    claims = verdicts.all_claims(results)
    judged = dict(zip(claims["claim"], claims["verdict"], strict=True))
    numbers = [tables.cells(paper, results, judged).assign(paper=paper) for paper in published.papers()]
    return Scoreboard(dict.fromkeys(published.papers(), results.budget), pd.concat(numbers, ignore_index=True)[COLUMNS], claims)


def assemble(boards: Mapping[str, Scoreboard]) -> Scoreboard:
    """One scoreboard of each paper's lines from its own board; `boards` maps papers to them."""
    parts = [[frame[frame["paper"] == paper] for frame in (board.numbers, board.claims)] for paper, board in boards.items()]
    numbers, claims = (pd.concat(frames, ignore_index=True) for frames in zip(*parts, strict=True))
    return Scoreboard({paper: board.budgets[paper] for paper, board in boards.items()}, numbers, claims)


def findings(budgets: Mapping[str, str], root: str | Path = ".") -> Scoreboard:
    """The scoreboard of the project's findings from those written before. Raises UserError when one of them was not."""
    boards = {budget: read(budget, root) for budget in set(budgets.values())}
    return assemble({paper: boards[budgets[paper]] for paper in published.papers()})


def _is_written(budget: str, root: Path) -> bool:
    return all((root / "tables" / budget / name).exists() for name in (NUMBERS, CLAIMS))


def read(budget: str, root: str | Path = ".") -> Scoreboard:
    """A scoreboard that was written before. Raises UserError when there is none."""
    folder = Path(root) / "tables" / budget
    try:
        numbers, claims = (_read(folder / name) for name in (NUMBERS, CLAIMS))
    except FileNotFoundError as error:
        raise UserError(f"{error.filename}: no such file; `python -m replicate scoreboard` writes it") from None
    return Scoreboard(dict.fromkeys(published.papers(), budget), numbers, claims)


def write(budget: str, root: str | Path = ".", shown: Mapping[str, str] | None = None) -> Scoreboard:
    """Build the scoreboard of a budget from `results/` and write its CSV, Markdown and HTML, and the README's totals.

    `shown` is the budget of each paper's findings: the README is renewed when this budget is among them, so that a run at another one
    does not change what the project shows, and when the others' scoreboards have been written.
    """
    root = Path(root)
    results = loader_runs.load(budget, root)
    board = build(results)
    folder = root / "tables" / budget
    folder.mkdir(parents=True, exist_ok=True)
    board.numbers.to_csv(folder / NUMBERS, index=False, lineterminator="\n")
    board.claims.to_csv(folder / CLAIMS, index=False, lineterminator="\n")
    (folder / "scoreboard.md").write_text(markdown(board), encoding="utf-8")
    top1(results).to_csv(folder / TOP1, index=False, lineterminator="\n")
    (folder / SUMMARY).write_text(json.dumps(counts(board), indent=1) + "\n", encoding="utf-8")
    target = root / "executed" / budget / "scoreboard.html"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(html_page(board, [paper for paper in published.papers() if (target.parent / "papers" / f"{paper}.html").exists()]), "utf-8")
    readme = root / "README.md"
    if shown and budget in shown.values() and readme.exists() and all(_is_written(other, root) for other in shown.values()):
        update_readme(readme, findings(shown, root))
    return board


def top1(results: Results) -> pd.DataFrame:
    """The accuracy of every finished evaluation: run, top1 and its 95 % interval, for `dvc plots`."""
    found = {name: intervals.mean(list(run.values("top1").values())) for name, run in results.runs.items() if "top1" in run.per_seed[0]}
    lines = [(name, one.value, one.low, one.high) for name, one in sorted(found.items())]
    return pd.DataFrame(lines, columns=["run", "top1", "low", "high"]).round(3)


def counts(board: Scoreboard) -> dict[str, dict[str, int]]:
    """How many numbers have which status and how many claims which verdict, for `dvc metrics`."""
    return {
        "numbers": {status: int(count) for status, count in board.totals.loc["all"].items()},
        "claims": {verdict: int(count) for verdict, count in board.verdicts.loc["all"].items()},
    }


def summary(board: Scoreboard) -> str:
    """Totals and verdicts per paper in Markdown, as the README shows them."""
    count, claims = len(board.numbers), len(board.claims)
    text = f"{count:,} published numbers, {claims} claims; runs at the budget {board.scale}:\n\n"
    return text + tables.markdown(texts(board.totals)) + "\n" + tables.markdown(verdict_counts(board))


def update_readme(path: str | Path, board: Scoreboard) -> None:
    """Replace what stands between the README's markers. Raises UserError when a marker is missing."""
    path = Path(path)
    text = path.read_text(encoding="utf-8")
    before, after = _around_block(path, text)
    path.write_text(f"{before}{_block(board)}{after}", encoding="utf-8")


def readme_is_current(path: str | Path, board: Scoreboard) -> bool:
    """Whether the README's totals are those of `board`."""
    text = Path(path).read_text(encoding="utf-8")
    before, after = _around_block(Path(path), text)
    return text == f"{before}{_block(board)}{after}"


def _block(board: Scoreboard) -> str:
    return f"{START}\n{summary(board)}{END}"


def markdown(board: Scoreboard) -> str:
    """The whole scoreboard on one Markdown page."""
    parts = [f"# Scoreboard, budget {board.scale}", "", summary(board), "## What the statuses mean", ""]
    parts += [f"- *{status}*: {MEANING[status]}" for status in board.totals.columns if status in MEANING]
    for paper in published.papers():
        claims = board.claims[board.claims["paper"] == paper]
        numbers = board.numbers[board.numbers["paper"] == paper]
        parts += ["", f"## {published.papers()[paper]}", "", "### Claims", "", tables.markdown(_claims(claims)), "### Numbers", ""]
        for name, table in numbers.groupby("table", sort=False):
            parts += [f"#### {_place(name)}", "", tables.markdown(tables.display(table))]
    return "\n".join(parts)


def html_page(board: Scoreboard, pages: Sequence[str] = ()) -> str:
    """The whole scoreboard as one page of HTML; `pages` are the papers that have a page of their own beside it."""
    links = "".join(f'<a href="papers/{paper}.html">{html.escape(published.papers()[paper])}</a>' for paper in pages)
    return page(f"Scoreboard, {board.scale}", html_body(board), f"<nav>{links}</nav>" if links else "")


def html_body(board: Scoreboard) -> str:
    """Totals, every claim and every number, to stand within a page."""
    parts = [f"<h1>Scoreboard</h1><p>Every published number and every claim; runs at the budget <b>{html.escape(board.scale)}</b>.</p>"]
    parts += ["<h2>Numbers</h2>", html_table(texts(board.totals)), "<h2>Claims</h2>", html_table(verdict_counts(board))]
    meaning = "".join(f"<li><i>{status}</i>: {html.escape(MEANING[status])}</li>" for status in board.totals.columns if status in MEANING)
    parts.append(f"<details><summary>what the statuses mean</summary><ul>{meaning}</ul></details>")
    for paper in published.papers():
        claims = board.claims[board.claims["paper"] == paper]
        title = html.escape(f"{published.papers()[paper]}, budget {board.budgets[paper]}")
        parts += [f'<h2 id="{paper}">{title}</h2>', html_table(_claims(claims))]
        parts += numbers_html(board.numbers[board.numbers["paper"] == paper])
    return "\n".join(parts)


def numbers_html(numbers: pd.DataFrame) -> list[str]:
    """Every number of a paper, a folded table for each of its tables; the last column says why a number stands alone."""
    parts = []
    for name, table in numbers.groupby("table", sort=False):
        shown = tables.display(table).assign(why=table["why"].to_numpy())
        parts.append(f"<details><summary>{_place(name)}, {len(table)} numbers</summary>{html_table(shown)}</details>")
    return parts


def _read(path: Path) -> pd.DataFrame:
    measured = ("ours", "ours_low", "ours_high", "effect", "low", "high")
    return pd.read_csv(path, dtype={"published": str}, keep_default_na=False, na_values=dict.fromkeys(measured, ""))


def _counts(frame: pd.DataFrame, column: str, order: Sequence[str]) -> pd.DataFrame:
    counts = frame.groupby("paper")[column].value_counts().unstack(fill_value=0)
    counts = counts.reindex(index=[paper for paper in published.papers() if paper in counts.index])
    counts = counts[[name for name in order if name in counts.columns]]
    counts.loc["all"] = counts.sum()
    return counts.assign(sum=counts.sum(axis=1))


def texts(counts: pd.DataFrame) -> pd.DataFrame:
    """Totals as texts, papers by their titles."""
    shown = counts.astype(int).astype(str)
    shown.insert(0, "paper", [published.papers().get(paper, paper) for paper in counts.index])
    return shown.reset_index(drop=True)


def verdict_counts(board: Scoreboard) -> pd.DataFrame:
    """How many claims of each paper have which verdict, as texts; with each paper's budget where they differ."""
    shown = texts(board.verdicts)
    if board.is_mixed:
        shown.insert(1, "budget", [board.budgets.get(paper, "") for paper in board.verdicts.index])
    return shown


def _claims(claims: pd.DataFrame) -> pd.DataFrame:
    shown = claims.assign(
        claim=[name.partition(".")[2].replace("_", " ") for name in claims["claim"]],
        effect=[verdicts.effect_text(line) for line in claims.to_dict("records")],
        seeds=[str(count) if count else "" for count in claims["seeds"]],
    )
    return shown[["claim", "statement", "verdict", "check", "effect", "seeds", "note"]]


def _place(name: str) -> str:
    kind, _, number = name.partition("_")
    return f"{kind.capitalize()} {number}".strip()


def _around_block(path: Path, text: str) -> tuple[str, str]:
    start = text.find(START)
    end = text.find(END, start)
    if start < 0 or end < 0:
        raise UserError(f"{path}: lacks the markers {START} and {END}, between which its totals stand")
    return text[:start], text[end + len(END) :]

"""The papers' tables as they are printed: settings down, quantities across, the paper's number beside ours.

`papers/<key>/values.csv` has one number a line, keyed by its setting. Here settings that no row needs go to
the caption, and a setting that is printed across goes to the columns.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from replicate.config import published
from replicate.report.colours import kind_of

WIDEST, FULL, ENOUGH, SPARSE = 8, 0.95, 0.6, 0.35
"""Most columns of a setting that is printed across; shares of filled cells. A sparser table is a list."""


@dataclass(frozen=True)
class Grid:
    """One printed table or panel: `texts` and `kinds` (of `colours.kind_of`) have one shape.

    `stub` names the columns of `texts` that hold settings, `shared` is what all rows have in common. `budget`
    is that of our numbers; "" where there are none.
    """

    name: str
    title: str
    shared: str
    stub: tuple[str, ...]
    texts: pd.DataFrame
    kinds: pd.DataFrame
    budget: str = ""

    def csv(self) -> str:
        return self.texts.to_csv(index=False, lineterminator="\n")

    def latex(self) -> str:
        """LaTeX for the package booktabs."""
        return self._table().as_latex()

    def html(self) -> str:
        """The table with cells coloured by the status of their number, through the site's style sheet."""
        from great_tables import loc, style

        table = self._table()
        for kind in sorted(set(self.kinds.to_numpy().ravel()) - {""}):
            for column in self.kinds:
                rows = [place for place, one in enumerate(self.kinds[column]) if one == kind]
                if rows:
                    table = table.tab_style(
                        style.css(f"background-color: var(--{kind})"), loc.body(columns=column, rows=rows)
                    )
        return table.as_raw_html()

    def _table(self) -> Any:
        from great_tables import GT

        return GT(self.texts).cols_align("right").cols_align("left", columns=list(self.stub))


def grids(numbers: pd.DataFrame) -> Iterator[Grid]:
    """The grids of one paper, from its lines of the scoreboard, in the paper's order."""
    for (table, panel), lines in numbers.groupby(["table", "panel"], sort=False):
        yield _grid(table, panel, lines.to_dict("records"))


def cell_text(line: Mapping[str, Any]) -> str:
    """The paper's number and ours: "84.9 / 40.4 ± 1.5"; the paper's alone where there is none of ours."""
    printed, ours = line["published"], line["ours"]
    if math.isnan(ours):
        return printed
    asked = 2 if ":" in printed else len(printed.partition(".")[2])
    needed = 1 - math.floor(math.log10(abs(ours))) if ours and abs(ours) < 1 else 0
    digits = min(max(asked, needed), 6)
    half = (line["ours_high"] - line["ours_low"]) / 2 if line["seeds"] else math.nan
    spread = f" ± {half:,.{digits}f}" if half > 0 else ""
    return f"{printed} / {ours:,.{digits}f}{spread}"


def _grid(table: str, panel: str, lines: list[dict[str, Any]]) -> Grid:
    settings = [_setting(line["row"]) for line in lines]
    columns = [line["column"] for line in lines]
    keys, shared = _keys(settings, columns)
    places = [_place(one, keys, "") for one in settings]
    across = _across(places, columns, keys)
    heads = [_head(column, one.get(across, "")) for column, one in zip(columns, settings, strict=True)]
    rows = [_place(one, keys, across) for one in settings]
    stub = tuple(words(key) for key in keys if key != across)
    if len(lines) < SPARSE * len(set(rows)) * len(set(heads)):
        shared, stub, heads = {}, ("where", "what"), ["number"] * len(lines)
        rows = [(_listed(one), words(column)) for one, column in zip(settings, columns, strict=True)]
    texts, kinds = {}, {}
    for row, head, line in zip(rows, heads, lines, strict=True):
        texts.setdefault(row, {})[head] = cell_text(line)
        kinds.setdefault(row, {})[head] = kind_of(line)
    wide = list(dict.fromkeys(heads))
    shown = pd.DataFrame([[*row, *(cells.get(h, "") for h in wide)] for row, cells in texts.items()])
    tints = pd.DataFrame([[cells.get(head, "") for head in wide] for cells in kinds.values()], columns=wide)
    name = f"{table}_{panel}".rstrip("_")
    shown = shown.set_axis([*stub, *wide], axis=1)
    trained = any(line["seeds"] for line in lines)
    budget = lines[0].get("budget", "") if trained else ""
    return Grid(name, place(table, panel), _listed(shared), stub, shown, tints, budget)


def _keys(settings: Sequence[Mapping[str, str]], columns: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """The settings that tell rows apart, and those that all rows share; what a column says is neither."""
    every = list(dict.fromkeys(key for one in settings for key in one))
    shared = {key: settings[0].get(key, "") for key in every if len({one.get(key) for one in settings}) == 1}
    keys = [key for key in every if key not in shared]
    for key in reversed(keys):
        rest = [other for other in keys if other != key]
        told = {(column, one.get(key)) for column, one in zip(columns, settings, strict=True)}
        said = len(told) == len(set(columns)) and len(set(columns)) > 1
        given = {one[key] for one in settings if key in one}
        if (said or len(given) == 1) and _is_unique([_place(one, rest, "") for one in settings], columns):
            keys = rest
            if len(given) == 1:
                shared[key] = given.pop()
    return keys or every[:1], {key: value for key, value in shared.items() if keys or key != every[0]}


def _across(places: Sequence[tuple[str, ...]], columns: Sequence[str], keys: Sequence[str]) -> str:
    """The setting to print across: the one that leaves fewest rows of a well filled table; "" for none."""
    kinds = len(set(columns))
    fill = len(places) / (len(set(places)) * kinds)
    if len(keys) < 2 or (kinds > 1 and fill > FULL):
        return ""
    best, rows = "", len(set(places))
    for index, key in enumerate(keys):
        left = {place[:index] + place[index + 1 :] for place in places}
        heads = {(column, place[index]) for column, place in zip(columns, places, strict=True)}
        filled = len(places) / (len(left) * len(heads))
        if len(heads) <= WIDEST and filled >= ENOUGH and len(left) < rows:
            best, rows = key, len(left)
    return best


def _setting(row: str) -> dict[str, str]:
    return {key: value.replace("_", " ") for key, value in published.setting(row).items()}


def _listed(setting: Mapping[str, str]) -> str:
    return ", ".join(f"{words(key)} {value}" for key, value in setting.items())


def _place(setting: Mapping[str, str], keys: Sequence[str], without: str) -> tuple[str, ...]:
    return tuple(setting.get(key, "") for key in keys if key != without)


def _is_unique(places: Sequence[tuple[str, ...]], columns: Sequence[str]) -> bool:
    return len(set(zip(places, columns, strict=True))) == len(places)


def _head(column: str, value: str) -> str:
    return f"{words(column)}, {value}" if value else words(column)


def place(table: str, panel: str) -> str:
    """Where a paper prints a number: "Table 1 (a)"."""
    return words(table).capitalize() + f" ({panel})" * bool(panel)


def words(name: str) -> str:
    """A key of the papers' data in words: "ft_top1" -> "fine-tuned top-1"."""
    known = {"ft": "fine-tuned", "lin": "linear", "llrd": "LLRD", "top1": "top-1", "top5": "top-5"}
    known |= {"img": "images", "ap": "AP", "miou": "mIoU", "macc": "mAcc", "gpu": "GPU", "gb": "GB"}
    return " ".join(known.get(part, part) for part in name.split("_"))

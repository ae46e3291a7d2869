"""The papers' tables with our numbers beside theirs, written as CSV, Markdown and LaTeX.

No number is typed here: `papers/<key>/mapping.yaml` leads from a printed number to a run and a metric, and
`computed.yaml` to a function. Every printed number is in its table, with a status.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from replicate.config import published
from replicate.intervals import Estimate
from replicate.report import checks, computed, verdicts
from replicate.report.quantities import NotRun, Reader
from replicate.report.results import Results

EXACT, ROUNDING, CONTRADICTION = computed.EXACT, computed.ROUNDING, computed.CONTRADICTION
TREND, DIFFERS, UNDECIDED = "trend", computed.DIFFERS, checks.UNDECIDED
SMOKE, NOT_RUN = "smoke run, no finding", "not run at this budget"
CITED, NEEDS_SCALE, NOT_BUILT = "cited from elsewhere", "needs scale", "not built"
STATUSES = (EXACT, ROUNDING, TREND, DIFFERS, UNDECIDED, CONTRADICTION, CITED, NOT_RUN, NEEDS_SCALE)
STATUSES += (NOT_BUILT, SMOKE)
IDENTITY_BUDGET = "paper"
COLUMNS = [
    "id",
    "panel",
    "row",
    "column",
    "published",
    "ours",
    "ours_low",
    "ours_high",
    "seeds",
    "df",
    "pooled",
]
COLUMNS += ["status", "unit", "run", "claim", "why"]
SHOWN = ["row", "column", "published", "ours", "seeds", "df", "pooled", "status"]


def cells(paper: str, results: Results, judged: Mapping[str, str] | None = None) -> pd.DataFrame:
    """Every printed number of a paper beside ours: `COLUMNS`, `table` and `value`.

    `judged` maps claims to their verdicts; by default they are judged here.
    """
    if judged is None:
        claims = verdicts.all_claims(results, [paper])
        judged = dict(zip(claims["claim"], claims["verdict"], strict=True))
    reader = Reader(results)
    lines = [_line(cell, reader, judged) for cell in published.cells({"paper": paper})]
    return pd.DataFrame(lines, columns=None if lines else ["table", *COLUMNS])


def write(paper: str, made: pd.DataFrame, folder: str | Path) -> list[Path]:
    """Write a paper's `cells` to `<folder>/<paper>/<table>.{csv,md,tex}`; returns the CSV files."""
    written = []
    for name, table in made.groupby("table", sort=False):
        path = Path(folder) / paper / f"{name}.csv"
        write_frame(table[COLUMNS], path, shown=display(table))
        written.append(path)
    return written


def write_frame(frame: pd.DataFrame, path: Path, shown: pd.DataFrame | None = None) -> None:
    """Write a frame as CSV and Markdown, the latter as it is `shown` to readers, and then as LaTeX too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    frame.to_csv(path, index=False, lineterminator="\n")
    path.with_suffix(".md").write_text(markdown(frame if shown is None else shown))
    if shown is not None:
        path.with_suffix(".tex").write_text(latex(shown))


def display(table: pd.DataFrame) -> pd.DataFrame:
    """A table for reading: only what varies of the settings, our number with its interval."""
    shown = table.assign(row=_labels(table), ours=[_number(line) for line in table.to_dict("records")])
    for name in ("seeds", "df", "pooled"):
        shown[name] = [f"{count:.3g}" if count > 0 else "" for count in table[name]]
    return shown[SHOWN].reset_index(drop=True)


def markdown(table: pd.DataFrame) -> str:
    """A table of texts in Markdown, without its index."""
    texts = table.astype(str).replace(r"\|", r"\\|", regex=True)
    return texts.to_markdown(index=False, disable_numparse=True) + "\n"


def latex(table: pd.DataFrame) -> str:
    """A table of texts in LaTeX, for the package booktabs, without its index."""
    columns = "ll" + "r" * (len(table.columns) - 3) + "l"
    styler = (
        table.style.hide(axis="index").format(escape="latex").format_index(escape="latex", axis="columns")
    )
    return styler.to_latex(hrules=True, column_format=columns)


def fill(quantity: Any, setting: Mapping[str, str]) -> Any:
    """A quantity with `{keys}` filled from a setting; 0.65 becomes 65, 0.9 becomes 90."""
    if isinstance(quantity, str):
        return quantity.format(**{key: _digits(value) for key, value in setting.items()})
    if isinstance(quantity, list):
        return [fill(part, setting) for part in quantity]
    if isinstance(quantity, dict):
        return {key: fill(part, setting) for key, part in quantity.items()}
    return quantity


def runs_named(paper: str) -> set[str]:
    """Every run that the paper's mapping leads to."""
    rules = published.mapped(paper)
    pairs = [(cell, rules.get(cell["id"], {})) for cell in published.cells({"paper": paper})]
    quantities = [fill(rule["ours"], published.setting(one["row"])) for one, rule in pairs if "ours" in rule]
    return runs_in(quantities)


def runs_in(quantity: Any) -> set[str]:
    """Every run that a quantity reads, the points of its sweeps included."""
    if isinstance(quantity, str):
        sweep = published.sweeps().get(quantity)
        return set(sweep.points.values()) if sweep else {quantity.partition("/")[0]}
    parts = (
        quantity.values() if isinstance(quantity, dict) else quantity if isinstance(quantity, list) else []
    )
    return set().union(*(runs_in(part) for part in parts))


def _line(cell: dict[str, Any], reader: Reader, judged: Mapping[str, str]) -> dict[str, Any]:
    line = {key: cell[key] for key in ("id", "table", "panel", "row", "column", "unit", "value")}
    line["published"] = cell["printed"] if cell["relation"] == "=" else cell["relation"] + cell["printed"]
    line |= {
        "ours": math.nan,
        "ours_low": math.nan,
        "ours_high": math.nan,
        "seeds": 0,
        "df": math.nan,
        "pooled": 0,
        "run": "",
        "claim": "",
    }
    rule = published.mapped(cell["paper"]).get(cell["id"], {})
    found = computed.numbers(cell["paper"]).get(cell["id"])
    measured = {} if "ours" not in rule else _measured(cell, rule, reader, judged)
    if found is None:
        return (
            line
            | {"status": rule.get("status", NEEDS_SCALE), "why": rule.get("why", cell["note"])}
            | measured
        )
    if (
        found.status == CONTRADICTION and measured
    ):  # a run's number keeps its place, the computed one goes to the note
        why = "; ".join(part for part in (found.note, measured.get("why", "")) if part)
        return line | measured | {"status": CONTRADICTION, "why": why}
    value, low, high = found.range
    return line | {
        "ours": value,
        "ours_low": low,
        "ours_high": high,
        "status": found.status,
        "why": found.note,
    }


def _measured(
    cell: Mapping[str, Any], rule: Mapping[str, Any], reader: Reader, judged: Mapping[str, str]
) -> dict[str, Any]:
    quantity = fill(rule["ours"], published.setting(cell["row"]))
    claim = rule.get("claim", "")
    named = {"run": ", ".join(sorted(runs_in(quantity))), "claim": claim}
    try:
        found = reader.estimate(quantity)
    except NotRun as error:
        return named | {"status": NOT_RUN, "why": f"not run: {error}{_price(error.missing)}"}
    status = _status(cell, found, reader.results.budget, judged.get(claim, checks.NOT_RUN))
    numbers = {"ours": found.value, "ours_low": found.low, "ours_high": found.high, "seeds": found.seeds}
    return named | numbers | {"df": found.df, "pooled": found.pooled, "status": status}


def _price(runs: list[str]) -> str:
    """What the missing runs would cost at the paper's own scale, with what they start from."""
    names = dict.fromkeys(place.partition("/")[0] for place in runs)
    known = [prices()[name] for name in names if name in prices()]
    return f"; at the paper's scale {sum(known):.3g} A100-hours by the planner" if known else ""


@functools.cache
def prices() -> dict[str, float]:
    """Run -> A100-hours at the paper's scale, its pre-training included, as `plan --page` wrote them."""
    path = published.ROOMS.parent / "benchmarks" / "results" / "plan_paper.csv"
    return pd.read_csv(path, index_col="run")["a100_hours_in_all"].to_dict() if path.exists() else {}


def _status(cell: Mapping[str, Any], found: Estimate, budget: str, verdict: str) -> str:
    """At the papers' own scale the number itself is compared; below it, the claim that it carries."""
    if budget in verdicts.NO_FINDING:
        return SMOKE
    if budget != IDENTITY_BUDGET:
        return {checks.HOLDS: TREND, checks.FAILS: DIFFERS}.get(verdict, UNDECIDED)
    half = cell["unit_last_digit"] / 2
    if abs(found.value - cell["value"]) <= half:
        return EXACT
    if not found.has_interval:
        return UNDECIDED
    return TREND if found.low - half <= cell["value"] <= found.high + half else DIFFERS


def _digits(value: str) -> str:
    """0.65 -> 65, 0.825 -> 825, 0.9 -> 90; anything else as it is."""
    try:
        number = float(value)
    except ValueError:
        return value
    return f"{number:.6f}"[2:].rstrip("0").ljust(2, "0") if 0 < number < 1 else value


def _labels(table: pd.DataFrame) -> list[str]:
    settings = [published.setting(row) for row in table["row"]]
    keys = list(dict.fromkeys(key for setting in settings for key in setting))
    varying = [
        key for key in keys if len({setting[key] for setting in settings if key in setting}) > 1
    ] or keys[:1]
    texts = [", ".join(f"{key}={setting[key]}" for key in varying if key in setting) for setting in settings]
    panels = [f"({panel}) " if panel else "" for panel in table["panel"]]
    return [panel + text for panel, text in zip(panels, texts, strict=True)]


def _number(line: Mapping[str, Any]) -> str:
    """Our number with as many decimals as the paper prints, and enough for two significant digits of ours."""
    value, ends, printed = line["ours"], (line["ours_low"], line["ours_high"]), line["published"]
    if math.isnan(value):
        return ""
    asked = 2 if ":" in printed else len(printed.partition(".")[2]) if "GB" not in printed else 0
    needed = 1 - math.floor(math.log10(abs(value))) if value and abs(value) < 1 else 0
    digits = min(max(asked, needed), 6)
    low, high = (f"{end:.{digits}f}" for end in ends)
    bounded = all(map(math.isfinite, ends)) and low != high
    return f"{value:.{digits}f}" + (f" [{low}, {high}]" if bounded else "")

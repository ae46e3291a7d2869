"""The papers' tables with our numbers beside theirs: `published/` joined with results, written as CSV, Markdown and LaTeX.

No number is typed here: `published/mapping/<paper>.yaml` leads from a printed number to a run and a metric, and
`published/computed.yaml` to a function. Every printed number is in its table, with a status that says what stands beside it.
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
from replicate.report import computed, verdicts
from replicate.report.quantities import NotRun, Reader
from replicate.report.results import Results

EXACT, ROUNDING, CONTRADICTION = computed.EXACT, computed.ROUNDING, computed.CONTRADICTION
TREND, DIFFERS, UNDECIDED = "trend", computed.DIFFERS, verdicts.UNDECIDED
SMOKE, NOT_RUN = "smoke run, no finding", "not run at this budget"
CITED, NEEDS_SCALE, NOT_BUILT = "cited from elsewhere", "needs scale", "not built"
STATUSES = (EXACT, ROUNDING, TREND, DIFFERS, UNDECIDED, CONTRADICTION, CITED, NOT_RUN, NEEDS_SCALE, NOT_BUILT, SMOKE)
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
    "status",
    "unit",
    "run",
    "claim",
    "why",
]
SHOWN = ["row", "column", "published", "ours", "seeds", "status"]


def cells(paper: str, results: Results, judged: Mapping[str, str] | None = None) -> pd.DataFrame:
    """Every printed number of a paper beside ours; one line a number, with the columns `COLUMNS` and `table`.

    `judged` maps claims to their verdicts, for a caller that has judged them already.
    """
    frame = published.values()
    frame = frame[frame["paper"] == paper]
    rules = published.mapping(paper)
    named = {rule["claim"] for rule in rules if "claim" in rule}
    if judged is None:
        judged = {name: verdicts.judge(published.claims()[name], results).verdict for name in named}
    numbers = computed.numbers(paper)
    reader = Reader(results, published.sweeps())
    lines = [_line(cell, rules, reader, judged, numbers) for cell in frame.to_dict("records")]
    return pd.DataFrame(lines)


def write(paper: str, results: Results, folder: str | Path, made: pd.DataFrame | None = None) -> list[Path]:
    """Write every table of a paper to `<folder>/<paper>/<table>.{csv,md,tex}`; returns the CSV files.

    `made` are the paper's `cells`, for a caller that has them already.
    """
    folder = Path(folder) / paper
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, table in (cells(paper, results) if made is None else made).groupby("table", sort=False):
        path = folder / f"{name}.csv"
        table[COLUMNS].to_csv(path, index=False, lineterminator="\n")
        readable = display(table)
        path.with_suffix(".md").write_text(markdown(readable))
        path.with_suffix(".tex").write_text(latex(readable))
        written.append(path)
    return written


def one(paper: str, table: str, results: Results) -> pd.DataFrame:
    """One table for reading: what varies in its settings, what is printed, ours with its interval."""
    frame = cells(paper, results)
    return display(frame[frame["table"] == table])


def display(table: pd.DataFrame) -> pd.DataFrame:
    """A table as people read it: only what varies of the settings, our number and its interval in one text."""
    shown = table.assign(row=_labels(table), ours=[_number(line) for line in table.to_dict("records")])
    shown["seeds"] = [str(count) if count else "" for count in table["seeds"]]
    return shown[SHOWN].reset_index(drop=True)


def markdown(table: pd.DataFrame) -> str:
    """A table of texts in Markdown."""
    head = "| " + " | ".join(table.columns) + " |\n|" + "---|" * len(table.columns) + "\n"
    lines = ("| " + " | ".join(str(text).replace("|", "\\|") for text in line) + " |\n" for line in table.itertuples(index=False))
    return head + "".join(lines)


def latex(table: pd.DataFrame) -> str:
    """A table of texts in LaTeX, for the package booktabs."""
    lines = [" & ".join(_escaped(text) for text in line) + r" \\" for line in table.itertuples(index=False)]
    head = " & ".join(_escaped(name) for name in table.columns) + r" \\"
    columns = "ll" + "r" * (len(table.columns) - 3) + "l"
    return "\n".join([rf"\begin{{tabular}}{{{columns}}}", r"\toprule", head, r"\midrule", *lines, r"\bottomrule", r"\end{tabular}", ""])


def fill(quantity: Any, setting: Mapping[str, str]) -> Any:
    """A quantity with `{keys}` filled from a number's setting; 0.65 is written 65, 0.9 is written 90, as in the names of runs."""
    if isinstance(quantity, str):
        return quantity.format(**{key: _digits(value) for key, value in setting.items()}) if "{" in quantity else quantity
    if isinstance(quantity, list):
        return [fill(part, setting) for part in quantity]
    if isinstance(quantity, dict):
        return {key: fill(part, setting) for key, part in quantity.items()}
    return quantity


def runs_named(paper: str) -> set[str]:
    """Every run that the paper's mapping leads to."""
    named: set[str] = set()
    for cell in published.values().query("paper == @paper").to_dict("records"):
        rule = _rule(cell, published.mapping(paper))
        if "ours" in rule:
            named |= _runs(fill(rule["ours"], published.setting(cell["row"])))
    return named


def _line(cell: dict[str, Any], rules, reader: Reader, judged: Mapping[str, str], numbers: pd.DataFrame) -> dict[str, Any]:
    line = {"id": cell["id"], "table": cell["table"], "panel": cell["panel"], "row": cell["row"], "column": cell["column"]}
    relation = "" if cell["relation"] == "=" else cell["relation"]
    line |= {"published": f"{relation}{cell['printed']}", "unit": cell["unit"], "value": cell["value"]}
    line |= {
        "ours": math.nan,
        "ours_low": math.nan,
        "ours_high": math.nan,
        "seeds": 0,
        "run": "",
        "claim": "",
        "why": cell["note"],
    }
    rule = _rule(cell, rules)
    if cell["id"] in numbers.index:
        found = numbers.loc[cell["id"]]
        if found.status == CONTRADICTION and "ours" in rule:
            return line | _beside_a_contradiction(_measured(cell, rule, reader, judged), found.note)
        return line | {
            "ours": found.ours,
            "ours_low": found.low,
            "ours_high": found.high,
            "status": found.status,
            "why": found.note,
        }
    line["why"] = rule.get("why", cell["note"])
    if "ours" not in rule:
        return line | {"status": rule.get("status", NEEDS_SCALE)}
    return line | _measured(cell, rule, reader, judged)


def _beside_a_contradiction(measured: dict[str, Any], note: str) -> dict[str, Any]:
    """A run's number keeps its place though the paper prints two: the recomputed one, or the other printed one, goes to the note."""
    return measured | {"status": CONTRADICTION, "why": "; ".join(part for part in (note, measured.get("why", "")) if part)}


def _rule(cell: Mapping[str, Any], rules: list[dict[str, Any]]) -> dict[str, Any]:
    return next((rule for rule in rules if published.matches(cell, rule["match"])), {})


def _measured(cell: Mapping[str, Any], rule: Mapping[str, Any], reader: Reader, judged: Mapping[str, str]) -> dict[str, Any]:
    quantity = fill(rule["ours"], published.setting(cell["row"]))
    named = {"run": ", ".join(sorted(_runs(quantity))), "claim": rule.get("claim", "")}
    try:
        found = reader.estimate(quantity)
    except NotRun as error:
        return named | {"status": NOT_RUN, "why": f"not run: {error}{_price(error.missing)}"}
    numbers = {"ours": found.value, "ours_low": found.low, "ours_high": found.high, "seeds": found.seeds}
    return named | numbers | {"status": _status(cell, found, reader.results.budget, judged.get(rule.get("claim", ""), verdicts.NOT_RUN))}


def _price(runs: list[str]) -> str:
    """What the runs that are missing would cost at the paper's own scale, with what they start from."""
    known = [prices()[name] for name in dict.fromkeys(place.partition("/")[0] for place in runs) if name in prices()]
    return f"; at the paper's scale {sum(known):.3g} A100-hours by the planner" if known else ""


@functools.cache
def prices() -> dict[str, float]:
    """Run -> A100-hours at the paper's scale, what it starts from included, as `python -m replicate plan --readme` wrote them."""
    path = published.ROOMS.parent / "benchmarks" / "results" / "plan_paper.csv"
    return pd.read_csv(path, index_col="run")["a100_hours_in_all"].to_dict() if path.exists() else {}


def _status(cell: Mapping[str, Any], found: Estimate, budget: str, verdict: str) -> str:
    """At the papers' own scale the number itself is compared; below it, the claim that it carries."""
    if budget in verdicts.NO_FINDING:
        return SMOKE
    if budget == IDENTITY_BUDGET:
        half = cell["unit_last_digit"] / 2
        if abs(found.value - cell["value"]) <= half:
            return EXACT
        if not found.has_interval:
            return UNDECIDED
        return TREND if found.low - half <= cell["value"] <= found.high + half else DIFFERS
    return {verdicts.HOLDS: TREND, verdicts.FAILS: DIFFERS}.get(verdict, UNDECIDED)


def _runs(quantity: Any) -> set[str]:
    if isinstance(quantity, str):
        sweep = published.sweeps().get(quantity)
        return set(sweep.points.values()) if sweep else {quantity.partition("/")[0]}
    parts = quantity.values() if isinstance(quantity, dict) else quantity if isinstance(quantity, list) else []
    return set().union(*(_runs(part) for part in parts))


def _digits(value: str) -> str:
    """0.65 -> 65, 0.825 -> 825, 0.9 -> 90; anything else as it is."""
    try:
        number = float(value)
    except ValueError:
        return value
    if not 0 < number < 1:
        return value
    return f"{number:.6f}"[2:].rstrip("0").ljust(2, "0")


def _labels(table: pd.DataFrame) -> list[str]:
    settings = [published.setting(row) for row in table["row"]]
    keys = list(dict.fromkeys(key for setting in settings for key in setting))
    varying = [key for key in keys if len({setting[key] for setting in settings if key in setting}) > 1] or keys[:1]
    texts = [", ".join(f"{key}={setting[key]}" for key in varying if key in setting) for setting in settings]
    panels = [f"({panel}) " if panel else "" for panel in table["panel"]]
    return [panel + text for panel, text in zip(panels, texts, strict=True)]


def _number(line: Mapping[str, Any]) -> str:
    value, low, high = line["ours"], line["ours_low"], line["ours_high"]
    if math.isnan(value):
        return ""
    digits = _decimals(line["published"], value)
    text = f"{value:.{digits}f}"
    if not (math.isfinite(low) and math.isfinite(high)) or f"{low:.{digits}f}" == f"{high:.{digits}f}":
        return text
    return f"{text} [{low:.{digits}f}, {high:.{digits}f}]"


def _decimals(printed: str, value: float) -> int:
    """As many decimals as the paper prints, and enough for two significant digits of ours."""
    asked = 2 if ":" in printed else len(printed.partition(".")[2]) if "GB" not in printed else 0
    needed = 1 - math.floor(math.log10(abs(value))) if value and abs(value) < 1 else 0
    return min(max(asked, needed), 6)


_LATEX = {"\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}"}
_LATEX |= {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}"}


def _escaped(text: Any) -> str:
    return "".join(_LATEX.get(letter, letter) for letter in str(text))

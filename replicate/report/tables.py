"""The papers' tables with our numbers beside theirs, written as CSV, Markdown and LaTeX.

No number is typed here: `papers/<key>/mapping.yaml` leads from a printed number to a run and a metric, and
`computed.yaml` to a function. Every printed number is in its table, with a status.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from replicate.config import published
from replicate.intervals import Estimate
from replicate.report import checks, computed, verdicts
from replicate.report.quantities import NotRun, Reader
from replicate.report.results import Results

TRAINED, MEASURED = "trained", "measured"
"""What gave our number: a training, or a loader's measurement."""

DERIVED, ARITHMETIC, QUOTED = computed.DERIVED, computed.ARITHMETIC, "quoted from elsewhere"
NOT_RUN, NOT_BUILT, NO_VERDICT = checks.NOT_RUN, "not built", checks.NO_VERDICT
FOUND = ("reproduced", "opposite", "inconclusive")
DIFFERS = "differs"
"""Of a trained number at the papers' own scale: the interval excludes what is printed."""

STATUSES = tuple(f"{kind}: {found}" for kind in (TRAINED, MEASURED) for found in (*FOUND, DIFFERS))
STATUSES += (checks.SHOWN, checks.OPPOSITE_SYNTHETIC, DERIVED, ARITHMETIC, QUOTED, NOT_RUN, NOT_BUILT)
STATUSES += (NO_VERDICT,)
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
COLUMNS += ["status", "agreement", "erratum", "unit", "run", "claim", "regime", "why"]
SHOWN = ["row", "column", "published", "ours", "seeds", "df", "pooled", "status", "agreement"]


def cells(paper: str, results: Results, claims: pd.DataFrame | None = None) -> pd.DataFrame:
    """Every printed number of a paper beside ours: `COLUMNS`, `table` and `value`.

    `claims` are those of `verdicts.all_claims`; by default they are judged here.
    """
    claims = verdicts.all_claims(results, [paper]) if claims is None else claims
    judged = {line["claim"]: line for line in claims.to_dict("records")}
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
    """A table for reading: only what varies of the settings, our number with its interval.

    Where a number is opposite, a last column says for which regime.
    """
    shown = table.assign(row=_labels(table), ours=[_number(line) for line in table.to_dict("records")])
    for name in ("seeds", "df", "pooled"):
        shown[name] = [f"{count:.3g}" if count > 0 else "" for count in table[name]]
    filled = ["regime"] * bool((shown["regime"] != "").any())
    return shown[SHOWN + filled].reset_index(drop=True)


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


def paired(paper: str) -> Iterator[tuple[dict[str, Any], Any]]:
    """The paper's printed numbers that have a quantity of ours beside them, each with that quantity."""
    rules = published.mapped(paper)
    for cell in published.cells({"paper": paper}):
        rule = rules.get(cell["id"], {})
        if "ours" in rule:
            yield cell, fill(rule["ours"], published.setting(cell["row"]))


def runs_named(paper: str) -> set[str]:
    """Every run that the paper's mapping leads to."""
    return runs_in([quantity for _, quantity in paired(paper)])


def runs_in(quantity: Any) -> set[str]:
    """Every run that a quantity reads, the points of its sweeps included."""
    if isinstance(quantity, str):
        sweep = published.sweeps().get(quantity)
        return set(sweep.points.values()) if sweep else {quantity.partition("/")[0]}
    parts = (
        quantity.values() if isinstance(quantity, dict) else quantity if isinstance(quantity, list) else []
    )
    return set().union(*(runs_in(part) for part in parts))


Judged = Mapping[str, Mapping[str, Any]]
"""Claim -> its line of `verdicts.all_claims`."""


def _line(cell: dict[str, Any], reader: Reader, judged: Judged) -> dict[str, Any]:
    line = {key: cell[key] for key in ("id", "table", "panel", "row", "column", "unit", "value")}
    line["published"] = cell["printed"] if cell["relation"] == "=" else cell["relation"] + cell["printed"]
    line |= dict.fromkeys(("ours", "ours_low", "ours_high", "df"), math.nan)
    line |= {"seeds": 0, "pooled": 0} | dict.fromkeys(("run", "claim", "agreement", "erratum", "regime"), "")
    rule = published.mapped(cell["paper"]).get(cell["id"], {})
    found = computed.numbers(cell["paper"]).get(cell["id"])
    measured = {} if "ours" not in rule else _measured(cell, rule, reader, judged)
    if found is None:
        return line | {"status": rule.get("status", NOT_RUN), "why": rule.get("why", cell["note"])} | measured
    line |= {"agreement": found.agreement}
    if found.agreement == computed.DIFFERS:
        line["erratum"] = published.erratum_of().get(cell["id"], {}).get("grade", "")
    if (
        found.agreement == computed.DIFFERS and measured
    ):  # a run's number keeps its place, with this in the note
        why = "; ".join(part for part in (found.note, measured.get("why", "")) if part)
        return line | measured | {"why": why}
    numbers = dict(zip(("ours", "ours_low", "ours_high"), found.range, strict=True))
    return line | numbers | {"status": found.source, "why": found.note}


def _measured(
    cell: Mapping[str, Any], rule: Mapping[str, Any], reader: Reader, judged: Judged
) -> dict[str, Any]:
    quantity = fill(rule["ours"], published.setting(cell["row"]))
    claim = rule.get("claim", "")
    runs = runs_in(quantity)
    named = {"run": ", ".join(sorted(runs)), "claim": claim}
    try:
        found = reader.estimate(quantity)
    except NotRun as error:
        return named | {"status": NOT_RUN, "why": f"not run: {error}{_price(error.missing)}"}
    kind = _kind(runs)
    verdict = judged.get(claim, {}).get("verdict", "")
    drawn = any(reader.results.is_synthetic(name) for name in runs if name in reader.results)
    if drawn and verdict not in (checks.SHOWN, checks.OPPOSITE_SYNTHETIC):
        verdict = ""  # the claim was decided by other runs, on real images
    status = _status(cell, found, reader.results.budget, verdict, kind)
    numbers = {"ours": found.value, "ours_low": found.low, "ours_high": found.high, "seeds": found.seeds}
    opposes = status.endswith(FOUND[1]) or status == checks.OPPOSITE_SYNTHETIC
    regime = judged[claim]["regime"] if opposes else ""
    return named | numbers | {"df": found.df, "pooled": found.pooled, "status": status, "regime": regime}


def _kind(runs: set[str]) -> str:
    """What gave a number: a training, or a loader's measurement."""
    return MEASURED if all(name.startswith("loader_") for name in runs) else TRAINED


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


def _status(cell: Mapping[str, Any], found: Estimate, budget: str, verdict: str, kind: str) -> str:
    """At the papers' own scale the number itself is compared; below it, the claim that it carries."""
    if budget in verdicts.NO_FINDING:
        return NO_VERDICT
    if budget == checks.FULL_SCALE:
        return f"{kind}: {_at_full_scale(cell, found)}"
    if verdict in (checks.SHOWN, checks.OPPOSITE_SYNTHETIC):
        return verdict
    agrees = verdict in checks.AGREEING
    return f"{kind}: {FOUND[0] if agrees else FOUND[1] if verdict in checks.OPPOSING else FOUND[2]}"


def _at_full_scale(cell: Mapping[str, Any], found: Estimate) -> str:
    half = cell["unit_last_digit"] / 2
    if abs(found.value - cell["value"]) <= half:
        return FOUND[0]
    if not found.has_interval:
        return FOUND[2]
    return FOUND[0] if found.low - half <= cell["value"] <= found.high + half else DIFFERS


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

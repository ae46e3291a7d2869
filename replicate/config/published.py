"""The papers' numbers, recipes, claims and errata, read from their rooms (`papers/<key>/`).

A row of `values.csv` is one printed number. `row` holds the setting as `key=value;key=value`. `printed` is
the number as the paper prints it: its digits say how exact it is. `relation` is "=", or "~" (about), ">"
(over), "<" (under) where the paper rounds in words.
"""

from __future__ import annotations

import fnmatch
import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from replicate.config.rooms import ROOMS
from replicate.config.yaml_file import read_yaml
from replicate.errors import UserError

COLUMNS = (
    "id",
    "paper",
    "table",
    "panel",
    "row",
    "column",
    "value",
    "printed",
    "relation",
    "unit",
    "flag",
    "note",
)
CLAIM_KEYS = (
    "id",
    "statement",
    "source",
    "size",
    "test",
    "checks",
    "exact",
    "stand_in",
    "caveat",
    "untested",
)
RELEASED_KEYS = ("setting", "paper", "code", "file", "ours")
ANY = "*"
GRADES = ("material", "rounding", "wording")
"""Of errata: what a reader would act on, a small difference in a digit, a text that numbers contradict."""


@dataclass(frozen=True)
class Sweep:
    """A curve over one setting: `points` maps the setting's values to the runs of a claim.

    Every finished run whose name fits the pattern `runs` joins in, at the value of its setting `by`.
    """

    points: dict[float, str]
    runs: str = ""
    by: str = ""

    @classmethod
    def read(cls, entry: Mapping[Any, Any]) -> Sweep:
        points = entry.get("points", entry)
        return cls({float(x): run for x, run in points.items()}, **entry.get("more", {}))


@functools.cache
def papers() -> dict[str, str]:
    """key -> title of every paper with a room."""
    return {path.parent.name: read_yaml(path)["title"] for path in sorted(ROOMS.glob("*/runs.yaml"))}


@functools.cache
def by_year() -> dict[str, str]:
    """`papers()` for a reader: the oldest first, as later ones build on it."""
    years = {key: read_yaml(ROOMS / key / "runs.yaml").get("year", 9999) for key in papers()}
    return dict(sorted(papers().items(), key=lambda one: years[one[0]]))


@functools.cache
def values() -> pd.DataFrame:
    """All printed numbers, indexed by id; `unit_last_digit` is what a number's last digit is worth.

    Raises UserError for a file that lacks a column, repeats an id, or holds a value that is not a number.
    """
    frame = pd.concat([_values_of(paper) for paper in papers()], ignore_index=True)
    if not frame["id"].is_unique:
        twice = frame["id"][frame["id"].duplicated()].iloc[0]
        raise UserError(f"papers/*/values.csv: the id {twice} appears twice")
    return frame.set_index("id", drop=False)


def _values_of(paper: str) -> pd.DataFrame:
    path = ROOMS / paper / "values.csv"
    try:
        frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; every paper's room has one") from None
    absent = [name for name in COLUMNS if name not in frame]
    if absent:
        raise UserError(f"{path}: lacks the column {', '.join(absent)}")
    numbers = pd.to_numeric(frame["value"], errors="coerce")
    if numbers.isna().any():
        raise UserError(f"{path}: the value of {frame['id'][numbers.isna()].iloc[0]} is not a number")
    return frame.assign(value=numbers, unit_last_digit=frame["printed"].map(last_digit).astype(float))


def last_digit(printed: str) -> float:
    """One unit of the last printed digit: "83.6" -> 0.1, "150" -> 1, "102:35" (hours and minutes) -> 1/60."""
    if ":" in printed:
        return 1 / 60
    if printed.endswith("GB/s"):
        return 100.0
    fraction = printed.partition(".")[2]
    return 10.0 ** -len(fraction)


@functools.cache
def setting(row: str) -> dict[str, str]:
    """The setting of a row: "backbone=ViT-B;llrd=0.65" -> {"backbone": "ViT-B", "llrd": "0.65"}."""
    return dict(part.split("=", 1) for part in row.split(";"))


def matches(cell: Mapping[str, Any], condition: Mapping[str, Any]) -> bool:
    """Whether a number fits a condition on its columns (table, column, ...) and on the keys of its setting.

    A condition's value is one text, a list of them, or "*" (the key exists). Numbers compare as numbers.
    """
    keys = setting(cell["row"])
    for key, wanted in condition.items():
        if not _fits(cell[key] if key in COLUMNS else keys.get(key), wanted):
            return False
    return True


def cells(condition: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every number that fits the condition, as a dictionary of its columns."""
    place = {key: value for key in ("paper", "table") if isinstance(value := condition.get(key), str)}
    return [cell for cell in _cells_of(**place) if matches(cell, condition)]


def select(condition: Mapping[str, Any]) -> pd.DataFrame:
    """Every number that fits the condition."""
    return values().loc[[cell["id"] for cell in cells(condition)]]


def one(condition: Mapping[str, Any]) -> dict[str, Any]:
    """The one number that fits the condition. Raises UserError for none or several."""
    found = cells(condition)
    if len(found) != 1:
        raise UserError(f"papers/*/values.csv: {len(found)} numbers fit {dict(condition)}, where one should")
    return found[0]


@functools.cache
def _cells_of(paper: str | None = None, table: str | None = None) -> list[dict[str, Any]]:
    if table is not None:
        return [cell for cell in _cells_of(paper) if cell["table"] == table]
    frame = values()
    return frame[frame["paper"] == paper if paper else slice(None)].to_dict("records")


@functools.cache
def recipes() -> dict[str, dict[str, Any]]:
    """paper -> recipe -> hyper-parameters as printed; None where the paper is silent."""
    return {paper: _read(paper, "recipe.yaml", {}) for paper in papers()}


@functools.cache
def claims() -> dict[str, dict[str, Any]]:
    """claim id -> {paper, statement, source, size, test, checks, exact, stand_in, caveat, untested}.

    Raises UserError for an unknown key: a misspelt `stand_in` would let a stand-in decide the claim.
    """
    found = {}
    for paper in papers():
        for number, claim in enumerate(_read(paper, "claims.yaml", {}).get("claims", []), 1):
            if unknown := [key for key in claim if key not in CLAIM_KEYS]:
                name, known = claim.get("id", f"number {number}"), ", ".join(CLAIM_KEYS)
                where = f"papers/{paper}/claims.yaml: claim {name}"
                raise UserError(f"{where}: unknown key {unknown[0]!r}; a claim has {known}")
            found[claim["id"]] = claim
    return found


@functools.cache
def sweeps() -> dict[str, Sweep]:
    """The curves that the claims are about, by name."""
    entries = (_read(paper, "claims.yaml", {}).get("sweeps", {}) for paper in papers())
    return {name: Sweep.read(entry) for part in entries for name, entry in part.items()}


@functools.cache
def errata() -> list[dict[str, Any]]:
    """paper, grade, place, printed, found, note and numbers of every erratum, the gravest grade first.

    `numbers` are patterns of the ids of printed numbers. Raises UserError for an unknown grade.
    """
    found = []
    for paper in papers():
        for entry in _read(paper, "errata.yaml", []):
            if entry.get("grade") not in GRADES:
                where = f"papers/{paper}/errata.yaml: {entry.get('place')}"
                raise UserError(f"{where}: grade {entry.get('grade')!r} is none of {', '.join(GRADES)}")
            found.append({"paper": paper, "numbers": []} | entry)
    return sorted(found, key=lambda entry: GRADES.index(entry["grade"]))


@functools.cache
def erratum_of() -> dict[str, dict[str, Any]]:
    """Number -> the erratum that covers it."""
    pairs = [(pattern, entry) for entry in errata() for pattern in entry["numbers"]]
    return {
        name: entry
        for pattern, entry in pairs
        for name in values()["id"]
        if fnmatch.fnmatchcase(name, pattern)
    }


@functools.cache
def notes() -> list[dict[str, str]]:
    """paper ("between" for two), kind, place, printed, found, note: scans, explained and between papers."""
    own = [{"paper": paper} | entry for paper in papers() for entry in _read(paper, "notes.yaml", [])]
    return own + (read_yaml(ROOMS / "notes.yaml") or [])


@functools.cache
def released() -> list[dict[str, str]]:
    """`RELEASED_KEYS` of every setting where a paper (`of`) and released code differ, or code alone tells.

    Raises UserError for an entry that lacks a key or has another.
    """
    found = []
    for paper in papers():
        for entry in _read(paper, "released.yaml", []):
            if wrong := set(RELEASED_KEYS) ^ set(entry):
                where = f"papers/{paper}/released.yaml: {entry.get('setting')}"
                known = ", ".join(RELEASED_KEYS)
                raise UserError(f"{where}: {min(wrong)!r} is missing or unknown; an entry has {known}")
            found.append({"of": paper} | entry)
    return found


@functools.cache
def computed() -> list[dict[str, Any]]:
    """The rules that name the function for each number that needs no training."""
    found = []
    for paper in papers():
        for rule in _read(paper, "computed.yaml", []):
            found.append(rule | {"match": {"paper": paper} | rule["match"]})
    return found


@functools.cache
def mapping(paper: str) -> list[dict[str, Any]]:
    """The rules that lead from a paper's numbers to our runs."""
    return _read(paper, "mapping.yaml", [])


@functools.cache
def mapped(paper: str) -> dict[str, dict[str, Any]]:
    """Number -> the first rule of `mapping` that it fits; a number that fits none is left out."""
    return _first_rules(paper, mapping(paper))


@functools.cache
def recomputed(paper: str) -> dict[str, dict[str, Any]]:
    """Number -> the first rule of `computed` that it fits; a number that fits none is left out."""
    return _first_rules(paper, [rule for rule in computed() if rule["match"]["paper"] == paper])


def _first_rules(paper: str, rules: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    found = {
        cell["id"]: next((rule for rule in rules if matches(cell, rule["match"])), None)
        for cell in _cells_of(paper)
    }
    return {name: rule for name, rule in found.items() if rule is not None}


def _read(paper: str, name: str, fallback: Any) -> Any:
    path = ROOMS / paper / name
    return (read_yaml(path) or fallback) if path.exists() else fallback


def _fits(value: str | None, wanted: Any) -> bool:
    if value is None or wanted == ANY:
        return value is not None
    options = wanted if isinstance(wanted, list | tuple) else [wanted]
    return value in options or any(_same_number(value, option) for option in options)


@functools.lru_cache(maxsize=None, typed=True)
def _same_number(left: Any, right: Any) -> bool:
    try:
        return float(left) == float(right)
    except (TypeError, ValueError):
        return str(left) == str(right)


def texts(value: Any) -> Iterator[str]:
    """Every text within a check or a quantity: names of runs, sweeps and functions."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from texts(part)

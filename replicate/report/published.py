"""The papers' numbers, recipes, claims and contradictions, read from `published/`.

Every row of `values.csv` is one printed number. `row` holds the setting as `key=value;key=value`; `printed` is the number as the
paper prints it, which says to how many digits; `relation` is "=" or, where the paper rounds in words, "~" (about), ">" (over),
"<" (under).
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from replicate.errors import UserError

FOLDER = Path(__file__).resolve().parents[2] / "published"
PAPERS = ("efficient_learners", "efficient_mae", "mae", "fastmim", "dailymae")
COLUMNS = ("id", "paper", "table", "panel", "row", "column", "value", "printed", "relation", "unit", "flag", "note")
CLAIM_KEYS = ("id", "statement", "source", "size", "test", "checks", "exact", "stand_in", "caveat")
ANY = "*"


@dataclass(frozen=True)
class Sweep:
    """A curve over one setting: `points` leads from its values to the runs that a claim speaks of.

    Runs that fit the pattern `runs` belong to it as well, at the value of their setting `by`.
    """

    points: dict[float, str]
    runs: str = ""
    by: str = ""

    @classmethod
    def read(cls, entry: Mapping[Any, Any]) -> Sweep:
        points = entry.get("points", entry)
        return cls({float(x): run for x, run in points.items()}, **entry.get("more", {}))


@functools.cache
def values() -> pd.DataFrame:
    """All printed numbers, indexed by id, in the papers' order; `unit_last_digit` is what a number's last digit is worth.

    Raises UserError for a file that lacks a column, repeats an id or holds something that is no number.
    """
    path = FOLDER / "values.csv"
    try:
        frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; it comes with the repository") from None
    absent = [name for name in COLUMNS if name not in frame]
    if absent:
        raise UserError(f"{path}: lacks the column {', '.join(absent)}")
    if not frame["id"].is_unique:
        raise UserError(f"{path}: the id {frame['id'][frame['id'].duplicated()].iloc[0]} appears twice")
    numbers = pd.to_numeric(frame["value"], errors="coerce")
    if numbers.isna().any():
        raise UserError(f"{path}: the value of {frame['id'][numbers.isna()].iloc[0]} is no number")
    frame["unit_last_digit"] = [last_digit(printed) for printed in frame["printed"]]
    frame["value"] = numbers
    return frame.set_index("id", drop=False)


def last_digit(printed: str) -> float:
    """What one unit of the last printed digit is worth: "83.6" -> 0.1, "150" -> 1, "102:35" (hours and minutes) -> 1/60."""
    if ":" in printed:
        return 1 / 60
    if printed.endswith("GB/s"):
        return 100.0
    fraction = printed.partition(".")[2]
    return 10.0 ** -len(fraction)


@functools.cache
def setting(row: str) -> dict[str, str]:
    """The setting of a row, "backbone=ViT-B;llrd=0.65" -> {"backbone": "ViT-B", "llrd": "0.65"}."""
    return dict(part.split("=", 1) for part in row.split(";"))


def matches(cell: Mapping[str, Any], condition: Mapping[str, Any]) -> bool:
    """Whether a number fits a condition on its columns (table, column, ...) and on the keys of its setting.

    A condition's value is one text, a list of them, or "*" (the key is there). Numbers compare as numbers: 0.9 fits "0.90".
    """
    keys = setting(cell["row"])
    return all(_fits(keys.get(key) if key not in COLUMNS else cell[key], wanted) for key, wanted in condition.items())


def select(condition: Mapping[str, Any]) -> pd.DataFrame:
    """Every number that fits the condition."""
    frame = values()
    for name in ("paper", "table", "column"):
        if isinstance(condition.get(name), str):
            frame = frame[frame[name] == condition[name]]
    return frame[[matches(cell, condition) for cell in frame.to_dict("records")]]


def one(condition: Mapping[str, Any]) -> pd.Series:
    """The one number that fits the condition. Raises UserError when none or several do."""
    found = select(condition)
    if len(found) != 1:
        raise UserError(f"published/values.csv: {len(found)} numbers fit {dict(condition)}, where one should")
    return found.iloc[0]


@functools.cache
def recipes() -> dict[str, dict[str, Any]]:
    """paper -> recipe -> hyper-parameters, as printed; None where the paper is silent."""
    return _read("recipes.yaml")


@functools.cache
def claims() -> dict[str, dict[str, Any]]:
    """claim id -> {statement, source, size, test, checks, exact, stand_in, caveat}; the 75 claims.

    Raises UserError for a key that no claim has: a misspelt `stand_in` would let what stands in decide.
    """
    found = _read("claims.yaml")["claims"]
    for number, claim in enumerate(found, 1):
        if unknown := [key for key in claim if key not in CLAIM_KEYS]:
            name = claim.get("id", f"number {number}")
            raise UserError(f"{FOLDER / 'claims.yaml'}: claim {name}: unknown key {unknown[0]!r}; a claim has {', '.join(CLAIM_KEYS)}")
    return {claim["id"]: claim for claim in found}


@functools.cache
def sweeps() -> dict[str, Sweep]:
    """The curves that the claims speak of, by name."""
    return {name: Sweep.read(entry) for name, entry in _read("claims.yaml")["sweeps"].items()}


@functools.cache
def contradictions() -> list[dict[str, str]]:
    """{paper, kind, place, printed, recomputed, note} of every contradiction."""
    return _read("contradictions.yaml")


@functools.cache
def computed() -> list[dict[str, Any]]:
    """The rules that name, for numbers that need no training, the function that computes them."""
    return _read("computed.yaml")


@functools.cache
def mapping(paper: str) -> list[dict[str, Any]]:
    """The rules that lead from a paper's numbers to our runs."""
    path = f"mapping/{paper}.yaml"
    return _read(path) if (FOLDER / path).exists() else []


def _read(name: str) -> Any:
    path = FOLDER / name
    try:
        return yaml.load(path.read_text(), Loader=_Loader)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; it comes with the repository") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None


def _fits(value: str | None, wanted: Any) -> bool:
    if value is None:
        return False
    if wanted == ANY:
        return True
    options = wanted if isinstance(wanted, list | tuple) else [wanted]
    return any(value == str(option) or _same_number(value, option) for option in options)


def _same_number(left: Any, right: Any) -> bool:
    try:
        return float(left) == float(right)
    except (TypeError, ValueError):
        return False


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
    """YAML with `1.5e-4` as a number, which YAML 1.1 reads as text."""


_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789"))


def texts(value: Any) -> Iterator[str]:
    """Every text within a check or a quantity: names of runs, sweeps and functions."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from texts(part)

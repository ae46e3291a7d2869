"""Published numbers that need no training: each is recomputed and compared with what is printed.

`papers/<key>/computed.yaml` names the function for a number. A function takes the printed cell and the
arguments of its rule, and returns a `Range`. The functions here start from the paper's other printed numbers
and carry their rounding along. What only one paper needs, mostly from first principles, are the `FUNCTIONS`
of `replicate/papers/<key>.py`; a claim that needs no training names one of the paper's `ANSWERS`.
"""

from __future__ import annotations

import functools
import importlib.util
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from replicate.config import published
from replicate.errors import UserError
from replicate.report import analytic
from replicate.report.ranges import Range, agrees, printed

Cell = Mapping[str, Any]
Where = Mapping[str, Any]
"""A condition on another number of the same paper."""

EQUAL, ROUNDING, DIFFERS, COUNTED = "equal", "within rounding", "differs", "counted otherwise"
"""How a recomputed number agrees with the printed one; `COUNTED`: the paper does not say how it counts."""

DERIVED, ARITHMETIC = "derived from architecture", "arithmetic check"
"""What a number follows from: the model and its masks, or the paper's other numbers and formulas."""


@dataclass(frozen=True)
class Computed:
    """A recomputed number, how it agrees with the printed one, what it follows from, and how it was found."""

    range: Range
    agreement: str
    source: str
    note: str


@dataclass(frozen=True)
class Answer:
    """Whether a claim holds by computation: the number that decides it, and by how much it does.

    margin    above 0 agrees with the claim; in `unit`, 0 being what `against` names
    """

    holds: bool | None
    value: float
    note: str
    margin: float
    unit: str
    against: str = ""


@functools.cache
def numbers(paper: str) -> dict[str, Computed]:
    """id -> every number of a paper that computed.yaml has a rule for."""
    rules = published.recomputed(paper)
    return {
        cell["id"]: compute(cell, rules[cell["id"]])
        for cell in published.cells({"paper": paper})
        if cell["id"] in rules
    }


def compute(cell: Cell, rule: Mapping[str, Any]) -> Computed:
    """The number recomputed by a rule. Raises UserError for a function that does not exist."""
    function = _named("FUNCTIONS", FUNCTIONS, rule["function"], "papers/*/computed.yaml")
    found = function(cell, **rule.get("arguments", {}))
    central = agrees(Range.exact(found.value), cell) and found.low <= found.value <= found.high
    agreement = EQUAL if central else ROUNDING if agrees(found, cell) else rule.get("otherwise", DIFFERS)
    source = DERIVED if rule["function"] in own("DERIVED") | {"parameters": None} else ARITHMETIC
    why = rule.get("note", "")
    if "{encoder" in why:  # millions of parameters without the classifier's last layer
        why = why.format(encoder=analytic.parameters(published.setting(cell["row"])["backbone"])[0])
    return Computed(found, agreement, source, _note(found, cell, agreement, why))


def answer(function: str, **arguments: Any) -> Answer:
    """Decide a claim by computation. Raises UserError for a function that does not exist."""
    return _named("ANSWERS", {}, function, "papers/*/claims.yaml")(**arguments)


def _named(registry: str, shared: Mapping[str, Callable], name: str, file: str) -> Callable:
    known = shared | own(registry)
    if name not in known:
        raise UserError(f"{file}: no function '{name}'; known: {', '.join(known)}")
    return known[name]


@functools.cache
def own(registry: str) -> dict[str, Callable]:
    """What the papers' own modules register under a name: "FUNCTIONS" or "ANSWERS"."""
    found: dict[str, Callable] = {}
    for paper in published.papers():
        module = f"replicate.papers.{paper}"
        if importlib.util.find_spec(module) is not None:
            found |= {one.__name__: one for one in getattr(importlib.import_module(module), registry, ())}
    return found


def _note(found: Range, cell: Cell, agreement: str, why: str) -> str:
    is_wide = math.isfinite(found.high - found.low) and found.high - found.low > 1e-6 * max(
        1.0, abs(found.value)
    )
    value = f"computed {found.value:.4g}" + (f" ({found.low:.4g} to {found.high:.4g})" if is_wide else "")
    return "; ".join(part for part in (value, why, cell["note"] if agreement == DIFFERS else "") if part)


def within(
    condition: Where, tolerance: float | None = None, relative: float | None = None, unit: str = "%"
) -> Answer:
    """Whether every printed number that fits the condition is within a tolerance of the computed one.

    `relative` is a share of the printed number, and then the unit is percent.
    """
    worst, ours, theirs = 0.0, math.nan, math.nan
    cells = published.cells(condition)
    for cell in cells:
        value = numbers(cell["paper"])[cell["id"]].range.value
        distance = abs(value - cell["value"]) / (relative * abs(cell["value"]) if relative else tolerance)
        if distance >= worst:
            worst, ours, theirs = distance, value, cell["value"]
    reach = 100 * relative if relative else tolerance
    note = f"{len(cells)} numbers; largest deviation: {ours:.4g} against {theirs:g}"
    return Answer(worst <= 1, ours, note, reach * (1 - worst), unit, f"a tolerance of {reach:g}")


def sibling(cell: Cell, where: Where) -> Cell:
    """Another number of the same paper.

    Keys of `where` that belong to a setting select by setting; without any, the row stays the same. `same:
    [key, ...]` keeps those keys of the cell's own setting.
    """
    where = dict(where)
    kept = {key: published.setting(cell["row"])[key] for key in where.pop("same", [])}
    base = {key: cell[key] for key in ("paper", "table", "column")}
    if not (set(where) | set(kept)) - {"paper", "table", "panel", "column"}:
        base["row"] = cell["row"]
    return published.one(base | kept | where)


def sum_of(cell: Cell, parts: Sequence[Where]) -> Range:
    """The sum of several numbers."""
    return sum((printed(sibling(cell, part)) for part in parts), Range.exact(0))


def total(cell: Cell, columns: Sequence[str]) -> Range:
    """The sum of columns of the same row."""
    return sum_of(cell, [{"column": column} for column in columns])


def per(cell: Cell, column: str, key: str) -> Range:
    """A column of the same row divided by a number of its setting (hours by epochs)."""
    return printed(sibling(cell, {"column": column})) / float(published.setting(cell["row"])[key])


def share(cell: Cell, column: str, whole: float) -> Range:
    """A count of the same row as a share of all."""
    return Range.exact(sibling(cell, {"column": column})["value"] / whole)


def above(cell: Cell, where: Where) -> Range:
    """Anything larger than another number by at least the last printed digit."""
    other = sibling(cell, where)["value"]
    return Range(other, other + cell["unit_last_digit"], math.inf)


def below(cell: Cell, where: Where, or_equal: bool = False) -> Range:
    """Anything smaller than another number by at least the last printed digit, or no larger."""
    other = sibling(cell, where)["value"]
    return Range(other, -math.inf, other if or_equal else other - cell["unit_last_digit"])


def elsewhere(cell: Cell, where: Where) -> Range:
    """The same number as another table or sentence prints it: equal at the coarser of the two roundings."""
    other = sibling(cell, where)
    return (
        printed(other) if other["unit_last_digit"] > cell["unit_last_digit"] else Range.exact(other["value"])
    )


def constant(cell: Cell, value: float) -> Range:
    """Plain arithmetic on numbers of the sentence itself, done in the rule."""
    return Range.exact(value)


def recipe(cell: Cell, recipe: str, key: str) -> Range:
    """A setting, against the paper's recipe; `{name}` in either is filled from the cell's own setting."""
    keys = published.setting(cell["row"])
    value: Any = published.recipes()[cell["paper"]][recipe.format(**keys)]
    for part in key.format(**keys).split("."):
        value = value[int(part) - 1] if part.isdigit() else value[part]
    return Range.exact(value)


def parameters(cell: Cell, whole: bool = False) -> Range:
    """Millions of parameters, of the encoder or with its classifier: the printed one, else the larger.

    `whole` counts the classifier, as part of the fine-tuned model; a paper may cut its digits where others
    round.
    """
    counts = analytic.parameters(published.setting(cell["row"])["backbone"])
    if whole:
        return Range(counts[1], counts[1] - cell["unit_last_digit"] / 2, counts[1])
    ranges = [Range.exact(count) for count in counts]
    return next((count for count in ranges if agrees(count, cell)), ranges[-1])


def _formula(formula: Callable[..., Range]) -> Callable[..., Range]:
    """A function of a cell: conditions among its arguments become the numbers that they find."""

    def function(cell: Cell, **arguments: Any) -> Range:
        found: dict[str, Range] = {}
        for key, value in arguments.items():
            if isinstance(value, Mapping):
                other = sibling(cell, value)
                arguments[key] = found.setdefault(other["id"], printed(other))
        return formula(**arguments)

    return function


FORMULAS: dict[str, Callable[..., Range]] = {
    "ratio": lambda of, over: of / over,
    "percentage": lambda of, over: 100 * (of / over),
    "product": lambda factor, of, over: factor * (of / over),
    "multiple": lambda of, by: of * by,
    "reduction": lambda to, of, factor=1.0: 100 * (1 - factor * (to / of)),
    "increase": lambda of, over: 100 * (of / over - 1),
    "difference": lambda of, minus: of - minus,
    "gap": lambda of, minus: abs(of - minus),
}
"""Of the paper's other numbers: `of`, `over`, `to` and `minus` are conditions on them."""

_SHARED = (sum_of, total, per, share, above, below, elsewhere, constant, recipe, parameters)
FUNCTIONS: dict[str, Callable[..., Range]] = {one.__name__: one for one in _SHARED}
FUNCTIONS |= {name: _formula(formula) for name, formula in FORMULAS.items()}

"""Published numbers that need no training: each is recomputed by a function and compared with what is printed.

`published/computed.yaml` leads from numbers to functions. A function gets the printed cell and its rule's arguments and returns a
`Range`: either from the paper's other printed numbers (ratios, sums, differences), whose rounding it carries along, or from first
principles (LLRD, crops, masks, multiply-adds, parameters). `answer` serves the claims that are decided in the same way.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from replicate.config import published
from replicate.errors import UserError
from replicate.report import analytic
from replicate.report.ranges import Range, agrees, printed

Cell = Mapping[str, Any]
EXACT, ROUNDING, CONTRADICTION = "exact", "exact within rounding", "contradiction in the paper"
DIFFERS = "differs"


@dataclass(frozen=True)
class Computed:
    """What a number is by computation, and whether that is what is printed."""

    range: Range
    status: str
    note: str


@dataclass(frozen=True)
class Answer:
    """Whether a claim holds by computation (None: it needs runs that are not there), and the number that says so."""

    holds: bool | None
    value: float
    note: str


def compute(cell: Cell) -> Computed | None:
    """The number recomputed, or None when no rule of computed.yaml speaks of it."""
    for rule in published.computed():
        if published.matches(cell, rule["match"]):
            return _apply(cell, rule)
    return None


@functools.cache
def numbers(paper: str) -> pd.DataFrame:
    """id, ours, low, high, status, note of every number of a paper that a rule recomputes; computed once a process."""
    lines = []
    for cell in published.values().query("paper == @paper").to_dict("records"):
        found = compute(cell)
        if found is not None:
            lines.append((cell["id"], found.range.value, found.range.low, found.range.high, found.status, found.note))
    return pd.DataFrame(lines, columns=["id", "ours", "low", "high", "status", "note"]).set_index("id")


def all_numbers() -> pd.DataFrame:
    """`numbers` of all papers."""
    return pd.concat([numbers(paper) for paper in published.papers()])


def _apply(cell: Cell, rule: Mapping[str, Any]) -> Computed:
    arguments = rule.get("arguments", {})
    if rule["function"] not in FUNCTIONS:
        raise UserError(f"published/computed.yaml: no function '{rule['function']}'; there are {', '.join(FUNCTIONS)}")
    found = FUNCTIONS[rule["function"]](cell, **arguments)
    central = agrees(Range.exact(found.value), cell) and found.low <= found.value <= found.high
    status = EXACT if central else ROUNDING if agrees(found, cell) else rule.get("otherwise", CONTRADICTION)
    return Computed(found, status, _note(found, cell, status, _filled(rule.get("note", ""), cell)))


def _filled(note: str, cell: Cell) -> str:
    """`{encoder}` in a note stands for the millions of parameters without the classifier's last layer."""
    return note.format(encoder=analytic.parameters(published.setting(cell["row"]))[0]) if "{encoder" in note else note


def _note(found: Range, cell: Cell, status: str, why: str) -> str:
    spread = math.isfinite(found.high - found.low) and found.high - found.low > 1e-6 * max(1.0, abs(found.value))
    value = f"computed {found.value:.4g}" + (f" ({found.low:.4g} to {found.high:.4g})" if spread else "")
    return "; ".join(part for part in (value, why, cell["note"] if status == CONTRADICTION else "") if part)


# ---- from other printed numbers


def sibling(cell: Cell, where: Mapping[str, Any]) -> Cell:
    """Another number of the same paper. `where` overrides: keys of a setting select by setting, else the row stays the same.

    `same: [key, ...]` keeps those keys of the cell's own setting.
    """
    where = dict(where)
    kept = {key: published.setting(cell["row"])[key] for key in where.pop("same", [])}
    base = {"paper": cell["paper"], "table": cell["table"], "column": cell["column"]}
    keys = set(where) | set(kept)
    if not keys - {"paper", "table", "panel", "column"}:
        base["row"] = cell["row"]
    return published.one({**base, **kept, **where}).to_dict()


def ratio(cell: Cell, of: Mapping[str, Any], over: Mapping[str, Any]) -> Range:
    """of / over."""
    upper, lower = sibling(cell, of), sibling(cell, over)
    return Range.exact(1) if upper["id"] == lower["id"] else printed(upper) / printed(lower)


def percentage(cell: Cell, of: Mapping[str, Any], over: Mapping[str, Any]) -> Range:
    """100 * of / over."""
    return Range.exact(100) * ratio(cell, of, over)


def reduction(cell: Cell, to: Mapping[str, Any], of: Mapping[str, Any], factor: float = 1.0) -> Range:
    """What is saved from `of` to `factor * to`, in percent."""
    return Range.exact(100) * (Range.exact(1) - Range.exact(factor) * ratio(cell, to, of))


def increase(cell: Cell, of: Mapping[str, Any], over: Mapping[str, Any]) -> Range:
    """How much `of` is more than `over`, in percent."""
    return Range.exact(100) * (ratio(cell, of, over) - Range.exact(1))


def difference(cell: Cell, of: Mapping[str, Any], minus: Mapping[str, Any]) -> Range:
    """of - minus."""
    return printed(sibling(cell, of)) - printed(sibling(cell, minus))


def gap(cell: Cell, of: Mapping[str, Any], minus: Mapping[str, Any]) -> Range:
    """The size of a difference, whatever its sign."""
    found = difference(cell, of, minus)
    return found if found.value >= 0 else Range(-found.value, -found.high, -found.low)


def sum_of(cell: Cell, parts: list[Mapping[str, Any]]) -> Range:
    """The sum of several numbers."""
    found = Range.exact(0)
    for part in parts:
        found = found + printed(sibling(cell, part))
    return found


def total(cell: Cell, columns: list[str]) -> Range:
    """The sum of columns of the same row."""
    found = Range.exact(0)
    for column in columns:
        found = found + printed(sibling(cell, {"column": column}))
    return found


def per(cell: Cell, column: str, key: str) -> Range:
    """A column of the same row divided by a number of its setting (hours by epochs)."""
    return printed(sibling(cell, {"column": column})) / Range.exact(float(published.setting(cell["row"])[key]))


def share(cell: Cell, column: str, whole: float) -> Range:
    """A count of the same row as a share of all."""
    return Range.exact(sibling(cell, {"column": column})["value"] / whole)


def above(cell: Cell, where: Mapping[str, Any]) -> Range:
    """Anything larger than another number by at least the last printed digit."""
    other = sibling(cell, where)["value"]
    return Range(other, other + cell["unit_last_digit"], math.inf)


def below(cell: Cell, where: Mapping[str, Any], or_equal: bool = False) -> Range:
    """Anything smaller than another number by at least the last printed digit, or no larger."""
    other = sibling(cell, where)["value"]
    return Range(other, -math.inf, other if or_equal else other - cell["unit_last_digit"])


def multiple(cell: Cell, of: Mapping[str, Any], by: float) -> Range:
    """A printed number times an exact one."""
    return printed(sibling(cell, of)) * Range.exact(by)


def product(cell: Cell, factor: float, of: Mapping[str, Any], over: Mapping[str, Any]) -> Range:
    """factor * of / over."""
    return Range.exact(factor) * ratio(cell, of, over)


def elsewhere(cell: Cell, where: Mapping[str, Any]) -> Range:
    """The same number as another table or sentence of the paper prints it: equal at the coarser of the two roundings."""
    other = sibling(cell, where)
    return printed(other) if other["unit_last_digit"] > cell["unit_last_digit"] else Range.exact(other["value"])


def constant(cell: Cell, value: float) -> Range:
    """Plain arithmetic on numbers of the sentence itself, done in the rule."""
    return Range.exact(value)


def stages_time(cell: Cell, shares: Mapping[str, float]) -> Range:
    """A staged run's time from the times of fixed-size runs of the same table: sum of share * time."""
    found = Range.exact(0)
    for scheme, share in shares.items():
        found = found + Range.exact(share) * printed(sibling(cell, {"scheme": scheme, "same": ["platform"]}))
    return found


def recipe(cell: Cell, recipe: str, key: str) -> Range:
    """A setting, against the paper's recipe; `{name}` in either is filled from the cell's own setting."""
    keys = published.setting(cell["row"])
    value: Any = published.recipes()[cell["paper"]][recipe.format(**keys)]
    for part in key.format(**keys).split("."):
        value = value[int(part) - 1] if part.isdigit() else value[part]
    return Range.exact(value)


def parameters(cell: Cell, whole: bool = False) -> Range:
    """Millions of parameters, of the encoder alone or with its classifier: the count that is printed, else the larger.

    `whole` counts the classifier, as what is fine-tuned; a paper may cut its digits where others round.
    """
    if whole:
        count = analytic.parameters(published.setting(cell["row"]))[1]
        return Range(count, count - cell["unit_last_digit"] / 2, count)
    counts = [Range.exact(count) for count in analytic.parameters(published.setting(cell["row"]))]
    return next((count for count in counts if agrees(count, cell)), counts[-1])


def from_principle(name: str) -> Callable[..., Range]:
    """A function of replicate/report/analytic.py, which sees the cell's setting rather than its neighbours."""

    def function(cell: Cell, **arguments: Any) -> Range:
        return getattr(analytic, name)(published.setting(cell["row"]), **arguments)

    return function


FUNCTIONS: dict[str, Callable[..., Range]] = {
    "ratio": ratio,
    "percentage": percentage,
    "reduction": reduction,
    "increase": increase,
    "difference": difference,
    "gap": gap,
    "sum_of": sum_of,
    "total": total,
    "share": share,
    "above": above,
    "below": below,
    "per": per,
    "multiple": multiple,
    "product": product,
    "elsewhere": elsewhere,
    "constant": constant,
    "stages_time": stages_time,
    "recipe": recipe,
    "parameters": parameters,
} | {name: from_principle(name) for name in analytic.FUNCTIONS}


def answer(function: str, **arguments: Any) -> Answer:
    """Decide a claim by computation. Raises UserError for a function that does not exist."""
    if function not in ANSWERS:
        raise UserError(f"published/claims.yaml: no computation '{function}'; there are {', '.join(ANSWERS)}")
    return ANSWERS[function](**arguments)


def within(condition: Mapping[str, Any], tolerance: float | None = None, relative: float | None = None) -> Answer:
    """Whether every printed number that fits the condition is within a tolerance of what is computed."""
    worst, ours, theirs = 0.0, math.nan, math.nan
    cells = published.select(condition).to_dict("records")
    for cell in cells:
        value = compute(cell).range.value
        gap = abs(value - cell["value"]) / (relative * abs(cell["value"]) if relative else tolerance)
        if gap >= worst:
            worst, ours, theirs = gap, value, cell["value"]
    return Answer(worst <= 1, ours, f"{len(cells)} numbers; the farthest is {ours:.4g}, printed {theirs:g}")


def efficient_learners_total_factor_is_smaller() -> Answer:
    """The total factor of Table 4 (pre-training and fine-tuning) against the pre-training factor, from the printed hours."""
    table = {"paper": "efficient_learners", "table": "table_4"}
    dear, cheap = {"method": "MAE-B", "mask_ratio": 0.75}, {"method": "ours", "mask_ratio": 0.9}
    pre, whole = (
        printed(published.one(table | dear | {"column": column})) / printed(published.one(table | cheap | {"column": column}))
        for column in ("pretrain_hours", "total_hours")
    )
    return Answer(whole.high < pre.low / 2, whole.value / pre.value, f"pre-training {pre.value:.1f}x, in all {whole.value:.1f}x")


ANSWERS: dict[str, Callable[..., Answer]] = {
    "efficient_learners_total_factor_is_smaller": efficient_learners_total_factor_is_smaller,
    "neighbour_fractions": lambda tolerance: within({"paper": "efficient_mae", "column": "masked_patches_with_visible_neighbour"}, tolerance),
    "decoded_patch_counts": lambda tolerance: within({"paper": "efficient_mae", "column": "num_patches"}, tolerance),
    "efficient_mae_multiply_adds": lambda relative: within(
        {"paper": "efficient_mae", "table": "table_3", "column": "gflops", "method": ["MAE", "EfficientMAE"]}, relative=relative
    ),
    "p2dist_grows_with_mask_ratio": lambda: Answer(*analytic.p2dist_grows_with_mask_ratio()),
    "mask_token_flops_ratio_above_3": lambda: Answer(*analytic.mask_token_flops_ratio_above_3()),
}

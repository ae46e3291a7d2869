"""Runs for a terminal: all of them with their state, or one with recipe, result and published numbers."""

from __future__ import annotations

import json
import textwrap
from collections import defaultdict
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd

from replicate.config import TokenizerRun, published
from replicate.errors import UserError
from replicate.names import closest
from replicate.report import evidence, results, tables
from replicate.report.quantities import Reader

if TYPE_CHECKING:
    from replicate.config import Params

HERE, KEPT, BOXED, NOT_RUN = "finished here", "kept in measured", "in weights/", "not run"
COLUMNS = 100
NAMED = 8
"""Published numbers, claims or evaluations of a run beyond these are counted, not named."""
SCORES = {"top1": " %", "ap_box": "", "ap_mask": "", "miou": " %", "val_loss": "", "loss": ""}
"""The metrics that a run is judged by, with their units."""


class Beside(NamedTuple):
    """A printed number, and the quantity of ours that stands beside it."""

    cell: dict[str, Any]
    quantity: Any


def listed(params: Params, word: str = "") -> str:
    """The runs of which a line holds `word`: name, paper, published tables, state at the active budget.

    Raises UserError, with the closest names, when there is none.
    """
    found, numbers = results.load(params.budget, params=params), numbers_of()
    below = _below(params)
    lines = [
        (name, run.paper, _tables(name, numbers, below), state(params, name, found))
        for name, run in sorted(params.runs.items(), key=lambda one: _place(one[1]))
    ]
    lines = [line for line in lines if word.lower() in " ".join(line).lower()]
    if not lines:
        raise UserError(f"no run has '{word}' in its line{closest(word, params.runs)}")
    frame = pd.DataFrame(lines, columns=["run", "paper", "published in", "state"])
    room = COLUMNS - 6 - sum(frame[name].str.len().max() for name in ("run", "paper", "state"))
    frame["published in"] = [textwrap.shorten(text, room, placeholder=" …") for text in frame["published in"]]
    return f"{render(frame)}\n{len(lines)} of {len(params.runs)} runs, at budget {params.budget}"


def _place(run: Any) -> tuple[int, bool]:
    """By paper, the oldest first, and each paper's tokenizers last."""
    return list(published.by_year()).index(run.paper), isinstance(run, TokenizerRun)


def render(frame: pd.DataFrame) -> str:
    """A table for a terminal: texts to the left, numbers to the right."""
    texts = [name for name in frame if not pd.api.types.is_numeric_dtype(frame[name])]
    widths = {name: max(len(name), *map(len, frame[name])) for name in texts}
    formats = {name: f"{{:<{width}}}".format for name, width in widths.items()}
    titled = frame.rename(columns={name: name.ljust(width) for name, width in widths.items()})
    text = titled.to_string(
        index=False, na_rep="", formatters={name.ljust(widths[name]): how for name, how in formats.items()}
    )
    return "\n".join(line.rstrip() for line in text.splitlines())


def state(params: Params, name: str, found: results.Results) -> str:
    """Where a run's numbers are at the active budget."""
    if (params.results_folder(name) / "metrics.json").exists():
        return HERE
    return KEPT if name in found else BOXED if params.box(name) else NOT_RUN


def numbers_of() -> dict[str, list[Beside]]:
    """Run -> the printed numbers that the papers' mappings put beside it."""
    found = defaultdict(list)
    for paper in published.papers():
        for cell, quantity in tables.paired(paper):
            for run in tables.runs_in(quantity):
                found[run].append(Beside(cell, quantity))
    return found


def described(params: Params, name: str) -> str:
    """A run's recipe as stated and at the active budget, its result, and what it stands beside.

    Raises UserError, with the closest names, for an unknown run.
    """
    run, found = params.run(name), results.load(params.budget, params=params)
    kind = getattr(run, "protocol", "tokenizer" if isinstance(run, TokenizerRun) else "pre-training")
    parts = [f"{name}: {kind} of {params.papers[run.paper]}"]
    parts += [f"starts from {up}: {state(params, up, found)}" for up in [params.upstream_of(name)] if up]
    parts += [f"{state(params, name, found)} at budget {params.budget}", *_measured(name, found)]
    below = [f"{one} ({state(params, one, found)})" for one in _below(params)[name]]
    parts += ["", _recipe(params, name)]
    parts += _block("starts here", below)
    parts += _block("published", [_beside(one, name, found) for one in numbers_of()[name]])
    claims = [one for one in published.claims().values() if name in evidence.runs_of(one, params.runs)]
    parts += _block("claims that need it", [f"{one['id']}: {one['statement']}" for one in claims])
    return "\n".join(parts)


def _below(params: Params) -> dict[str, list[str]]:
    """Run -> the runs that start from its weights."""
    found = defaultdict(list)
    for name in params.runs:
        found[params.upstream_of(name)].append(name)
    return found


def _tables(name: str, numbers: dict[str, list[Beside]], below: dict[str, list[str]]) -> str:
    """The tables of a run's numbers, or of those of the runs that start from it."""
    own = numbers.get(name) or [one for run in below.get(name, ()) for one in numbers.get(run, ())]
    return ", ".join(dict.fromkeys(one.cell["table"] for one in own))


def _measured(name: str, found: results.Results) -> list[str]:
    """A line a score: mean over seeds with its 95 % interval."""
    if name not in found:
        return []
    reader, known = Reader(found), found.runs[name].per_seed[0]
    seeds = len(found.runs[name].seeds)
    counted = f"{seeds} seed{'s' * (seeds > 1)}"
    return [
        f"{metric} {reader.text(f'{name}/{metric}')}{SCORES.get(metric, '')}, {counted}"
        for metric in [score for score in SCORES if score in known] or known
    ]


def _recipe(params: Params, name: str) -> str:
    """The settings that the run states, or that the budget changes, as a table."""
    run, resolved = params.run(name), params.resolve(name)
    stated, now = run.model_dump(mode="json"), resolved.model_dump(mode="json")
    named = run.model_dump(exclude_defaults=True, exclude={"paper"})
    keys = [key for key in stated if key in named or stated[key] != now[key]]
    lines = [
        row
        for key in keys
        for row in zip_longest(
            [key], *(textwrap.wrap(_text(v[key]), 34) for v in (stated, now)), fillvalue=""
        )
    ]
    return render(pd.DataFrame(lines, columns=["setting", "as stated", f"at {params.budget}"]))


def _text(value: Any) -> str:
    return (
        f"{value:g}" if isinstance(value, float) else value if isinstance(value, str) else json.dumps(value)
    )


def _beside(one: Beside, name: str, found: results.Results) -> str:
    """A printed number, ours, and the setting that it is printed for."""
    cell, runs = one.cell, sorted(tables.runs_in(one.quantity) - {name})
    ours = Reader(found).text(one.quantity, missing="not run")
    more = f" (with {', '.join(runs)})" * bool(runs)
    printed = cell["printed"] if cell["relation"] == "=" else cell["relation"] + cell["printed"]
    setting = cell["row"].replace(";", ", ")
    return f"{cell['table']}, {cell['column']}: {printed} {cell['unit']}; ours {ours}{more}; {setting}"


def _block(title: str, lines: list[str]) -> list[str]:
    """A title and its first NAMED lines, wrapped; nothing for none."""
    shown = lines[:NAMED] + [f"and {len(lines) - NAMED} more"] * (len(lines) > NAMED)
    wrapped = [textwrap.fill(line, COLUMNS, initial_indent="  ", subsequent_indent="    ") for line in shown]
    return ["", f"{title}:", *wrapped] if lines else []

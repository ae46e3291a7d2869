"""What a run has logged, as a table: `python -m replicate log RUN`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pandas as pd

from replicate.errors import UserError
from replicate.pipeline.launch import context_of
from replicate.pipeline.store import store_of
from replicate.report.run_list import COLUMNS
from replicate.trainers.session import open_session

if TYPE_CHECKING:
    from replicate.config import Params


def log_of(params: Params, name: str) -> pd.DataFrame:
    """What the run's seeds have logged: a line an epoch, and one every half minute within it.

    Raises UserError when nothing has been logged at the active budget with this code and data.
    """
    budget, data = params.budget_named(), params.data_folder(params.run(name).dataset)
    if not (data / "manifest.json").exists():
        why = f"its images, {data}, are not written yet"
        raise UserError(f"run {name} has no log at budget {params.budget}: {why}")
    with open_session(params.machine, budget.precision, budget.loader) as session:
        context = context_of(params, name, session)
        if context.box:
            raise UserError(f"run {name} comes from {context.box.weights}, so it has no log")
        logs = [(seed, store_of(context, seed).log_path) for seed in range(context.seeds)]
    rows = [
        {"seed": seed} | json.loads(line)
        for seed, path in logs
        for line in (path.read_text().splitlines() if path.exists() else ())
    ]
    if not rows:
        why = "it has not started with this code and data, or began within the last half minute"
        raise UserError(f"run {name} has no log at budget {params.budget}: {why}")
    return pd.DataFrame(rows)


def render(log: pd.DataFrame) -> str:
    """A log for a terminal; one that is too wide goes on below, with seed and epoch again."""
    shown = log.set_index([name for name in ("seed", "epoch") if name in log])
    formats = dict.fromkeys(shown, _number)
    return shown.to_string(na_rep="", sparsify=False, formatters=formats, line_width=COLUMNS)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value == round(value) else f"{value:.5g}"

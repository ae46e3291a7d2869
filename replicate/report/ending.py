"""What `make repro` says at its end: whether pre-training pays here, and the clearest of the claims."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from replicate.report import checks, results
from replicate.report.quantities import Reader
from replicate.report.wording import found_text, measured_text, verdict_text

if TYPE_CHECKING:
    from replicate.config import Params

CLAIMS = 2
"""Claims that are printed after the gain over random weights."""
DECIDED = (checks.REPRODUCED, checks.OPPOSITE, checks.SHOWN, checks.OPPOSITE_SYNTHETIC)


def lines(params: Params, root: Path = Path()) -> Iterator[str]:
    """A line a result of the active budget; nothing for what has not run."""
    found = results.load(params.budget, root / "results", params=params)
    if gain := pretraining_gain(params, Reader(found)):
        yield gain
    table = root / "tables" / params.budget / "claims.csv"
    if table.exists():
        yield from clearest(pd.read_csv(table, keep_default_na=False, na_values={}))


def pretraining_gain(params: Params, reader: Reader) -> str:
    """The best fine-tuning of a pre-training over the best of random weights, with its interval."""
    tuned = {n: run for n, run in params.evaluate_runs.items() if run.protocol == "finetune"}
    means = {name: reader.estimate(name).value for name in tuned if name in reader.results}
    starts = {name: params.pretrain_runs[tuned[name].pretrain] for name in means}
    from_random = [name for name, start in starts.items() if not start.epochs and not start.weights]
    trained = [name for name, start in starts.items() if start.epochs]
    if not from_random or not trained:
        return ""
    best, scratch = (max(names, key=means.__getitem__) for names in (trained, from_random))
    found = reader.estimate({"minus": [best, scratch]})
    line = {"effect": found.value, "low": found.low, "high": found.high, "unit": "points"}
    means_text = f"{means[best]:.1f} % ({best}) against {means[scratch]:.1f} % ({scratch})"
    return f"Best pre-training over random weights: {measured_text(line)}, {means_text}"


def clearest(claims: pd.DataFrame) -> Iterator[str]:
    """The decided claims that are farthest beyond their interval, of different papers."""
    for name in ("effect", "low", "high"):
        claims[name] = pd.to_numeric(claims[name], errors="coerce")
    decided = claims[claims["verdict"].isin(DECIDED) & (claims["high"] > claims["low"])]
    clear = (decided["effect"].abs() / (decided["high"] - decided["low"])).sort_values(ascending=False)
    ordered = decided.loc[clear.index].drop_duplicates("paper").head(CLAIMS)
    for line in ordered.to_dict("records"):
        verdict = verdict_text(line)
        yield f"{verdict[0].upper()}{verdict[1:]}: {found_text(line)}"

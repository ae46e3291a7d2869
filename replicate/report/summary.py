"""Small tables of our own results: differences between runs, and the points of a figure's curves, each with its interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import pandas as pd

from replicate import intervals
from replicate.config import published
from replicate.report import computed, tables
from replicate.report.quantities import NotRun, Reader
from replicate.report.results import Run

if TYPE_CHECKING:
    from replicate.config import Params

COLUMNS = ["left", "right", "difference", "low", "high", "seeds"]
HEADLINES = ("top1", "val_loss", "loss", "images_per_second")
"""What a run is summed up by: the first of these that it reports."""


def contrasts(reader: Reader, pairs: Mapping[str, tuple[str, str]]) -> pd.DataFrame:
    """One line a pair of runs: both means, left - right in points and its 95 % interval; blank where a run has not finished."""
    lines = {name: _contrast(reader, *pair) for name, pair in pairs.items()}
    return pd.DataFrame.from_dict(lines, orient="index", columns=COLUMNS)


def finished(runs: Sequence[Run]) -> pd.DataFrame:
    """One line a finished run: its number with a 95 % interval over seeds, and what made it."""
    return pd.DataFrame([_line(run) for run in runs])


def _line(run: Run) -> dict[str, object]:
    metric = next((name for name in HEADLINES if name in run.per_seed[0]), "")
    ours = low = high = ""
    if metric:
        found = intervals.mean(list(run.values(metric).values()))
        ours = f"{found.value:.4g}"
        low, high = (f"{bound:.4g}" if found.has_interval else "" for bound in (found.low, found.high))
    made, versions = run.provenance, run.provenance.get("versions", {})
    return {
        "run": run.name,
        "metric": metric,
        "ours": ours,
        "ours_low": low,
        "ours_high": high,
        "seeds": len(run.seeds),
        "per_seed": " ".join(f"{value:.4g}" for value in run.values(metric).values()) if metric else "",
        "device": made.get("device", ""),
        "torch": versions.get("torch", ""),
        "timm": versions.get("timm", ""),
        "revision": str(made.get("git", {}).get("revision", ""))[:12] + (" with changes" if made.get("git", {}).get("dirty") else ""),
        "data": str(made.get("manifest_sha256", ""))[:12],
        "train_seconds": f"{seconds:.0f}" if (seconds := 3600 * sum(one.get("train_hours", 0) for one in run.per_seed)) else "",
    }


def recomputed(cells: pd.DataFrame) -> pd.DataFrame:
    """The printed numbers of a paper that computation contradicts: printed, computed, and how.

    `cells` is what `replicate.report.tables.cells` gives. No training enters: the values come from the paper's other numbers or from
    first principles.
    """
    found = cells[cells["status"] == tables.CONTRADICTION]
    place = found["table"].str.replace("_", " ").str.capitalize() + found["panel"].map(lambda panel: f" ({panel})" if panel else "")
    numbers = computed.all_numbers().loc[found["id"]]
    rows = [", ".join(f"{name}={value}" for name, value in published.setting(row).items()) for row in found["row"]]
    shown = found.assign(place=place, row=rows, computed=[f"{value:.4g}" for value in numbers["ours"]], how=numbers["note"].tolist())
    shown = shown.rename(columns={"column": "what", "published": "printed"})
    return shown[["place", "row", "what", "printed", "computed", "how"]].set_index("place").rename_axis(None)


RECIPE = [
    "backbone",
    "mask_ratio",
    "decoder_depth",
    "decoder_width",
    "target",
    "epochs",
    "warmup_epochs",
    "batch_size",
    "base_lr",
    "min_lr",
    "weight_decay",
    "betas",
    "layer_decay",
    "drop_path",
    "label_smoothing",
    "mixup",
    "cutmix",
    "auto_augment",
    "random_erasing",
    "crop_scale",
]


def recipes(params: Params, runs: Sequence[str]) -> pd.DataFrame:
    """The recipes of some runs in their paper's own numbers: a line a setting, a column a run, blank where a run has no such setting."""
    columns = {name: params.run(name).model_dump() for name in runs}
    lines = {key: [_setting(run.get(key, "")) for run in columns.values()] for key in RECIPE}
    return pd.DataFrame.from_dict(lines, orient="index", columns=list(columns))


def _setting(value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(_setting, value))
    return f"{value:g}" if isinstance(value, float) else "off" if value is None else str(value)


def _contrast(reader: Reader, left: str, right: str) -> list[str]:
    try:
        means = [reader.estimate(run).value for run in (left, right)]
        found = reader.estimate({"minus": [left, right]})
    except NotRun as error:
        return [f"not run: {error}", "", "", "", "", ""]
    bounds = [f"{bound:+.1f}" if found.has_interval else "" for bound in (found.low, found.high)]
    return [*(f"{mean:.1f}" for mean in means), f"{found.value:+.1f}", *bounds, str(found.seeds)]

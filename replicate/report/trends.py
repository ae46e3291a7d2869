"""Each contrast at every budget that ran it, beside the value that its paper prints.

A contrast is what a check compares: left minus right, or left over right. The horizontal axis counts the
images that its pre-trainings saw, because that is what separates the budgets most.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from replicate.config import PretrainRun, published
from replicate.report import evidence, wording
from replicate.report.checks import reader_of
from replicate.report.quantities import DEFAULT_METRIC, NotRun
from replicate.report.results import Results, Run
from replicate.report.style import MARKERS, PALETTE, PAPER, REFERENCE, Figure, new
from replicate.report.tables import paired

if TYPE_CHECKING:
    from replicate.config import Params
    from replicate.intervals import Estimate

RATIOS = ("ratio_above", "ratio_below")
IMAGENET = 1_281_167
"""Training images of ImageNet-1k, an epoch at the papers' scale."""
COLUMNS = ["claim", "contrast", "budget", "model", "images", "steps", "value", "low", "high", "unit"]
COLUMNS += ["printed", "printed_images"]
TOWARDS, AWAY, NONE = "towards the paper", "away from the paper", "no trend beyond noise"
ACROSS, SIDE = 3, 2.3  # panels a row; inches


@cache
def printed() -> Results:
    """The papers' own numbers as if they were runs, each under the run that stands beside it."""
    found: dict[str, dict[str, float]] = {}
    for paper in published.papers():
        for cell, quantity in paired(paper):
            if isinstance(quantity, str) and quantity not in published.sweeps():
                run, _, metric = quantity.partition("/")
                found.setdefault(run, {}).setdefault(metric or DEFAULT_METRIC, float(cell["value"]))
    runs = {name: Run("", name, Path(), (0,), (numbers,)) for name, numbers in found.items()}
    return Results("paper", runs)


def contrasts(paper: str, results: Mapping[str, Results], params: Params) -> pd.DataFrame:
    """One line a contrast and budget, `COLUMNS`; `printed` is NaN where the paper prints no such value.

    A contrast without an interval at a budget is left out there, and so is one without a pre-training.
    """
    lines = []
    for name, claim in published.claims().items():
        for spec in (one for one in claim["checks"] if name.startswith(f"{paper}.") and "left" in one):
            value = value_of(spec, printed())
            says = {"claim": name, "contrast": wording.contrast(spec), "unit": wording.unit(spec)}
            says["printed"] = value.value if value else math.nan
            says["printed_images"] = _images_of(spec, params)
            for budget, of in results.items():
                found = value_of(spec, of)
                if found and found.has_interval:
                    ends = {"value": found.value, "low": found.low, "high": found.high}
                    lines.append(says | ends | {"budget": budget} | _scale(spec, of))
    found = pd.DataFrame(lines, columns=COLUMNS)
    return found[found["images"] > 0].drop_duplicates(["contrast", "budget"])


def value_of(spec: Mapping[str, Any], results: Results) -> Estimate | None:
    """Left minus right, or left over right, with its interval; None where a run or a number is missing."""
    reader = reader_of(spec, results)
    try:
        joint = "over" if spec["kind"] in RATIOS else "minus"
        return reader.evaluate(reader.linear({joint: [spec["left"], spec["right"]]}))
    except NotRun:
        return None


def _scale(spec: dict[str, Any], results: Results) -> dict[str, Any]:
    """Model, images and steps of the longest pre-training that a contrast rests on."""
    runs = evidence.pretrainings(spec, results)
    if not runs:
        return {"model": "", "images": 0, "steps": 0}
    run = max(runs, key=evidence.images_seen)
    images = evidence.images_seen(run)
    steps = round(images / run.resolved["batch_size"])
    return {"model": evidence.model_text(run.resolved), "images": images, "steps": steps}


def _images_of(spec: dict[str, Any], params: Params) -> int:
    """Images that the longest of these pre-trainings sees at the paper's scale."""
    named = [params.run(name) for name in evidence.runs_of({"checks": [spec]}, params.runs)]
    starts = [params.run(run.pretrain) for run in named if hasattr(run, "pretrain")]
    epochs = [run.epochs for run in (*named, *starts) if isinstance(run, PretrainRun)]
    return round(IMAGENET * max(epochs, default=0))


def trend(lines: pd.DataFrame) -> str:
    """What a contrast's budgets say, from the fewest images to the most; empty for one budget, or no paper.

    The change between these two has the interval of two independent estimates.
    """
    ordered = lines.sort_values("images")
    first, last = ordered.iloc[0], ordered.iloc[-1]
    if last["images"] == first["images"] or math.isnan(last["printed"]):
        return ""
    change = last["value"] - first["value"]
    reach = math.hypot(*((one["high"] - one["low"]) / 2 for one in (first, last)))
    if abs(change) <= reach:
        return NONE
    return TOWARDS if change * (last["printed"] - first["value"]) > 0 else AWAY


def table(found: pd.DataFrame) -> pd.DataFrame:
    """Contrasts for reading, one line a contrast and budget."""
    says = {tuple(key): trend(lines) for key, lines in found.groupby(["claim", "contrast"], sort=False)}
    rows = [
        {
            "claim": line["claim"].partition(".")[2].replace("_", " "),
            "contrast": line["contrast"],
            "budget": line["budget"],
            "ours": _signed(wording.measured_text(line | {"effect": line["value"]}), line["unit"]),
            "the paper": ""
            if math.isnan(line["printed"])
            else _signed(f"{line['printed']:+.3g} {line['unit']}", line["unit"]),
            "trend": says[line["claim"], line["contrast"]],
            "images seen": f"{line['images']:,}",
            "steps": f"{line['steps']:,}",
            "model": line["model"],
        }
        for line in found.to_dict("records")
    ]
    shown = pd.DataFrame(rows)
    return shown if shown["trend"].any() else shown.drop(columns="trend")


def _signed(text: str, unit: str) -> str:
    """A difference with its sign; a ratio without."""
    return text.removeprefix("+") if unit == "x" else text


def panels(found: pd.DataFrame) -> Iterator[pd.DataFrame]:
    """The contrasts that several budgets ran."""
    for _, lines in found.groupby(["claim", "contrast"], sort=False):
        if lines["budget"].nunique() > 1:
            yield lines


def draw(found: pd.DataFrame) -> Figure:
    """A panel a contrast: our values with intervals against images seen, and the paper's at the far right."""
    shown = list(panels(found))
    rows = math.ceil(len(shown) / ACROSS)
    figure, axes = new(rows, ACROSS, width=ACROSS * SIDE, height=rows * SIDE)
    budgets = list(dict.fromkeys(found["budget"]))
    for panel, lines in zip(axes.ravel(), shown, strict=False):
        for line in lines.itertuples():
            index = budgets.index(line.budget)
            reach = [[line.value - line.low], [line.high - line.value]]
            style = {"color": PALETTE[index], "marker": MARKERS[index], "capsize": 3, "linestyle": ""}
            panel.errorbar(line.images, line.value, yerr=np.clip(reach, 0, None), label=line.budget, **style)
        if not math.isnan(lines["printed"].iloc[0]):
            paper = lines[["printed_images", "printed"]].iloc[0]
            panel.plot(*paper, "D", color=PAPER, label="the paper")
        panel.axhline(float(lines["unit"].iloc[0] == "x"), color=REFERENCE, linewidth=1)
        panel.set(xscale="log", ylabel=lines["unit"].iloc[0])
        claim = lines["claim"].iloc[0].partition(".")[2].replace("_", " ")
        panel.set_title("\n".join([claim, *textwrap.wrap(lines["contrast"].iloc[0], 34)]), fontsize=7)
    for panel in axes.ravel()[len(shown) :]:
        panel.set_axis_off()
    pairs = [pair for panel in axes.ravel() for pair in zip(*panel.get_legend_handles_labels(), strict=True)]
    handles = {label: one for one, label in pairs}
    figure.supxlabel("images seen in pre-training", fontsize="medium")
    figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=len(handles))
    return figure

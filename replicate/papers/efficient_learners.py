"""MAE Are Secretly Efficient Learners: LLRD curves, costs, recipes, searches, computed numbers."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from replicate import intervals
from replicate.config import published
from replicate.report import analytic, figures
from replicate.report.computed import Answer, Cell
from replicate.report.figures import ACCURACY, new
from replicate.report.lens import setting_text
from replicate.report.quantities import NotRun, Reader
from replicate.report.ranges import Range, printed
from replicate.report.style import OURS, PALETTE, PAPER, REFERENCE, WIDTH, Figure

if TYPE_CHECKING:
    from replicate.config import Params
    from replicate.report.book import Book

KEY = "efficient_learners"
RECIPE = ("backbone", "mask_ratio", "decoder_depth", "decoder_width", "target", "epochs", "warmup_epochs")
RECIPE += ("batch_size", "base_lr", "min_lr", "weight_decay", "betas", "layer_decay", "drop_path")
RECIPE += ("label_smoothing", "mixup", "cutmix", "auto_augment", "random_erasing", "crop_scale")
SEARCHES = ["searched on", "recommended", "fine-tuning images"]
SEARCHES += ["full set at the recommended", "full set at the default 0.65"]


def decoder_share(cell: Cell) -> Range:
    """Percentage of ViT-B's multiply-adds that the eight-block decoder takes (sec 4)."""
    macs = analytic.mae_macs("ViT-B", float(published.setting(cell["row"])["mask_ratio"]))
    return Range.exact(100 * macs.decoder / macs.total)


def first_block_rate(cell: Cell) -> Range:
    """The first block's learning rate against the last block's, in percent (sec 1)."""
    from replicate.schedules.layer_decay import layer_scales

    scales = layer_scales(12, float(published.setting(cell["row"])["llrd"]))
    return Range.exact(100 * scales[1] / scales[12])


def efficient_learners_total_factor_is_smaller() -> Answer:
    """Table 4's factor in all against that of pre-training alone, from the printed hours."""
    table = {"paper": KEY, "table": "table_4"}
    full = table | {"method": "MAE-B", "mask_ratio": 0.75}
    light = table | {"method": "ours", "mask_ratio": 0.9}
    columns = [{"column": "pretrain_hours"}, {"column": "total_hours"}]
    pre, whole = (printed(published.one(full | one)) / printed(published.one(light | one)) for one in columns)
    note = f"pre-training {pre.value:.1f}x, in all {whole.value:.1f}x"
    margin = pre.low / 2 - whole.high
    return Answer(margin > 0, whole.value, note, margin, "x", "half of pre-training's factor")


FUNCTIONS = DERIVED = (decoder_share, first_block_rate)
ANSWERS = (efficient_learners_total_factor_is_smaller,)


def recipes(params: Params, runs: Sequence[str]) -> pd.DataFrame:
    """The recipes of some runs in their paper's own numbers: a line a setting, a column a run."""
    columns = {name: params.run(name).model_dump() for name in runs}
    lines = {key: [_setting(run.get(key, "")) for run in columns.values()] for key in RECIPE}
    return pd.DataFrame.from_dict(lines, orient="index", columns=list(columns))


def _setting(value: Any) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(_setting, value))
    return f"{value:g}" if isinstance(value, float) else "" if value == "" else setting_text(value)


def pretraining_costs(
    params: Params, reader: Reader, recipes: Mapping[str, tuple[str, Mapping[str, Any]]]
) -> pd.DataFrame:
    """Cost of each recipe relative to the last one: a line a recipe, a column a way to count (Table 4).

    `recipes` maps a legend to the run and to the condition that finds its printed hours. NaN where a run has
    not finished.
    """
    lines = {}
    for label, (name, condition) in recipes.items():
        stated, here = params.run(name), params.resolve(name, reader.results.budget)
        lines[label] = {
            "paper (hours)": published.one(condition)["value"],
            "multiply-adds, paper's numbers": stated.epochs * analytic.run_macs(stated),
            "multiply-adds, this budget": here.epochs * analytic.run_macs(here),
            "measured here": reader.value(f"{name}/train_hours"),
        }
    frame = pd.DataFrame.from_dict(lines, orient="index")
    return frame / frame.iloc[-1]


def searches(book: Book, default_run: str) -> pd.DataFrame:
    """A line a search of the paper: where it searched, and the decay that it recommends with its interval.

    Then the images of one epoch on the subset against the full set, and the accuracy of the recommended decay
    there beside that of the run at the default decay. Blank where not run.
    """
    names = [name for name, search in book.params.searches.items() if search.paper == book.paper]
    lines = {name: _search(book, name, default_run) for name in names}
    return pd.DataFrame.from_dict(lines, orient="index", columns=SEARCHES)


def _search(book: Book, name: str, default_run: str) -> list[str]:
    search = book.params.searches[name]
    if book.scope != "full":
        return [search.dataset, f"in the grid: make grid TARGET=search@{name}", "", "", ""]
    folder = book.root / book.params.search_folder(name, book.results.budget)
    found, applied = (_content(folder / file) for file in ("search.json", "applied.json"))
    if found is None:
        return [search.dataset, f"not run: python -m replicate search llrd {name}", "", "", ""]
    manifests = [_content(book.images(name) / "manifest.json") for name in (search.dataset, search.full)]
    images = [one["splits"]["train"]["images"] for one in manifests if one]
    return [
        search.dataset,
        _bounded(found["recommended"], "layer_decay", "g"),
        f"{images[0]:,} of {images[1]:,}" if len(images) == 2 else "",
        _bounded(applied, "top1", ".1f") if applied else "",
        book.reader.text(default_run, digits=1),
    ]


def _bounded(found: Mapping[str, Any], key: str, form: str) -> str:
    low, high = found["low"], found["high"]
    bounded = low is not None and low == low
    return format(found[key], form) + (f" [{format(low, form)}, {format(high, form)}]" if bounded else "")


def _content(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text()) if path.exists() else None


def llrd_curve(
    reader: Reader, sweeps: Mapping[str, str], published: Mapping[str, tuple[float, float]] | None = None
) -> Figure:
    """Accuracy against layer-wise learning-rate decay, with each sweep's best place (Figures 2a, 3).

    `sweeps` maps legends to sweeps; the title names those that have not finished. `published` maps legends to
    the paper's best decay and its gain over 0.65 in points, drawn beside ours in a second panel.
    """
    figure, axes = new(1, 2 if published else 1, width=WIDTH * (1.5 if published else 1.0))
    left = axes[0, 0]
    missing = figures.draw_sweeps(left, reader, sweeps)
    for index, (label, sweep) in enumerate(sweeps.items()):
        if label not in missing:
            best = intervals.argmax(reader.curve(sweep)).value
            left.axvline(best, color=PALETTE[index], linestyle=":", linewidth=1)
    left.set(xlabel="layer-wise learning-rate decay", ylabel=ACCURACY)
    if len(missing) < len(sweeps):
        left.legend()
    if published:
        _gains(axes[0, 1], reader, sweeps, {label: gain for label, (_, gain) in published.items()})
    return figure


def _gains(
    axes, reader: Reader, sweeps: Mapping[str, str], published: Mapping[str, float], default=0.65
) -> None:
    """The gain of each sweep's best point over the default decay, the paper's beside ours."""
    for place, (label, sweep) in enumerate(sweeps.items()):
        if label in published:
            axes.bar(place - 0.2, published[label], 0.38, color=PAPER, label="paper" if not place else None)
        try:
            found = reader.estimate({"minus": [{"best": sweep}, reader.points(sweep)[default]]})
        except NotRun:
            continue
        reach = found.half_width if found.has_interval else 0.0
        label = "ours" if not place else None
        axes.bar(place + 0.2, found.value, 0.38, yerr=reach, capsize=3, color=OURS, label=label)
    axes.axhline(0, color=REFERENCE, linewidth=0.8)
    axes.set_xticks(range(len(sweeps)), [label.replace(", ", "\n") for label in sweeps])
    axes.set(ylabel="gain over the default (points)", title=f"best LLRD against {default:g}")
    axes.legend()


def comparison(table: pd.DataFrame, xlabel: str) -> Figure:
    """One column of a table, `Book.compared`: the paper on the left, ours with intervals on the right."""
    figure, axes = figures.beside(table)
    figures.draw_beside(axes[0], table, table["label"])
    for axis in axes[0]:
        axis.set(xlabel=xlabel, ylabel=ACCURACY)
        axis.margins(x=0.25, y=0.2)
    return figure


def cost_bars(costs: pd.DataFrame) -> Figure:
    """Cost of each recipe relative to the cheapest; `costs` is `pretraining_costs` (Table 4)."""
    figure, axes = figures.one(height=0.9 + 0.75 * len(costs))
    width = 0.8 / len(costs.columns)
    for index, (name, column) in enumerate(costs.items()):
        places = np.arange(len(costs)) + (index - (len(costs.columns) - 1) / 2) * width
        bars = axes.barh(places, column, width, color=PALETTE[index], label=name)
        axes.bar_label(bars, ["" if math.isnan(one) else f" {one:.1f}" for one in column], fontsize="small")
    axes.set_yticks(range(len(costs)), costs.index)
    axes.invert_yaxis()
    axes.set(xscale="log", xlabel="pre-training cost relative to the cheapest recipe")
    axes.margins(x=0.15)
    axes.legend(loc="best")
    return figure

"""DailyMAE: recipes, crops, costs of schedules, both online probes, loaders, computed numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import pandas as pd

from replicate.config import published
from replicate.report import analytic
from replicate.report.computed import Cell, sibling
from replicate.report.quantities import Reader
from replicate.report.ranges import Range, printed
from replicate.schedules import perceptual

if TYPE_CHECKING:
    from replicate.config import Params, PretrainRun
    from replicate.report.book import Book

KEY = "dailymae"
SCHEMES = ("s1", "s2", "s3", "s4", "s5", "s6")
FIXED = ("224", "192", "160")
IMAGENET_IMAGES = 1281167
RECIPE = {
    "batch_size": "batch size",
    "peak_lr": "learning rate",
    "layer_decay": "layer-wise lr decay",
    "weight_decay": "weight decay",
    "warmup_epochs": "warm-up epochs",
    "epochs": "epochs",
    "auto_augment": "augmentation",
    "mask_ratio": "mask ratio",
}
PRINTED = {"peak_lr": "lr", "auto_augment": "augmentation"}
PROBES = {"training batches, as the paper": "probe_train_top1", "validation images": "probe_top1"}
STEPS = {  # Table 13: what is timed -> its name with whole images, and with crop decode
    "decode": ("decode", "crop_decode"),
    "resize": ("decode+crop_resize", "crop_decode+resize"),
    "simple": ("decode+crop_resize+simple", "crop_decode+resize+simple"),
}


def perceptual_ratio(cell: Cell) -> Range:
    """E[sigma] of a stage's crops (Eq. 2)."""
    setting = published.setting(cell["row"])
    return Range.exact(perceptual.perceptual_ratio(*_sides(setting)))


def apparent_size(cell: Cell) -> Range:
    """The paper's E[h / sigma] of a stage's crops, in pixels (Eq. 1)."""
    setting = published.setting(cell["row"])
    return Range.exact(perceptual.apparent_size(int(setting["res"]), *_sides(setting)))


def _sides(setting: Mapping[str, str]) -> tuple[float, float]:
    return float(setting["sigma_minus"]), float(setting["sigma_plus"])


def loader_hours(cell: Cell, images_per_second: float, epochs: int, least: bool = False) -> Range:
    """Hours of so many epochs of ImageNet-1k at a loader's rate; with `least`, anything from there on."""
    hours = IMAGENET_IMAGES * epochs / images_per_second / 3600
    return Range(hours, hours, math.inf if least else hours)


def stages_time(cell: Cell, shares: Mapping[str, float]) -> Range:
    """A staged run's time from the times of fixed-size runs of the same table: sum of share * time."""
    runs = {scheme: sibling(cell, {"scheme": scheme, "same": ["platform"]}) for scheme in shares}
    return sum((share * printed(runs[scheme]) for scheme, share in shares.items()), Range.exact(0))


FUNCTIONS = (perceptual_ratio, apparent_size, loader_hours, stages_time)


def _cell(table: str, **condition: Any) -> dict[str, Any]:
    return published.one({"paper": KEY, "table": table, **condition})


def _frame(lines: Mapping[str, Mapping[str, Any]], columns: Iterable[str] | None = None) -> pd.DataFrame:
    return pd.DataFrame.from_dict(lines, orient="index", columns=columns and list(columns))


def recipes(params: Params) -> pd.DataFrame:
    """Table 1: what the paper prints beside what the runs state, in the paper's own numbers."""
    columns = {}
    for recipe, run in (("finetune", "daily_ft_224"), ("pretrain", "daily_224")):
        stated, paper = params.run(run), published.recipes()[KEY][recipe]
        columns[f"{recipe}, printed"] = {
            text: _text(paper.get(PRINTED.get(key, key))) for key, text in RECIPE.items()
        }
        columns[f"{recipe}, {run}"] = {
            text: _text(getattr(stated, key, None)) for key, text in RECIPE.items()
        }
    return pd.DataFrame(columns)


def crops() -> pd.DataFrame:
    """Table 8 recomputed: printed, by the paper's formulas, two thirds of them, true E[h / sigma]."""
    lines = {}
    for row in published.select({"paper": KEY, "table": "table_8"})["row"].unique():
        setting = published.setting(row)
        (low, high), size = _sides(setting), int(setting["res"])
        ratio, apparent = perceptual.perceptual_ratio(low, high), perceptual.apparent_size(size, low, high)
        lines[f"{size} px, sigma {low:g} to {high:g}"] = {
            "E[sigma] printed": _cell("table_8", row=row, column="e_sigma")["printed"],
            "Eq. 2": f"{ratio:.4f}",
            "2/3 of it": f"{2 / 3 * ratio:.3f}",
            "E[h/sigma] printed": _cell("table_8", row=row, column="e_h_over_sigma")["printed"],
            "Eq. 1": f"{apparent:.1f}",
            "2/3 of it ": f"{2 / 3 * apparent:.1f}",
            "true E[h/sigma]": f"{perceptual.expected_apparent_size(size, low, high):.1f}",
        }
    return _frame(lines)


def relative_cost(run: PretrainRun, fixed: PretrainRun) -> dict[str, float]:
    """A run's patch tokens and multiply-adds, without the online probe, over the fixed run's."""
    cost, base = _cost(run), _cost(fixed)
    return {key: cost[key] / base[key] for key in base}


def _cost(run: PretrainRun) -> dict[str, float]:
    patch_size = analytic.run_sizes(run)["patch_size"]
    found = {"tokens": 0.0, "multiply-adds": 0.0}
    for (size, ratio), share in stage_shares(run).items():
        found["tokens"] += share * run.epochs * (size // patch_size) ** 2
        at_stage = run.model_copy(update={"image_size": size, "mask_ratio": ratio})
        found["multiply-adds"] += share * run.epochs * analytic.run_macs(at_stage)
    return found


def stage_shares(run: PretrainRun) -> dict[tuple[int, float], float]:
    """(image size, mask ratio) -> share of the epochs that a run spends there."""
    found: dict[tuple[int, float], float] = {}
    begin = 0.0
    for stage in run.stages:
        view = (
            stage.image_size or run.image_size,
            run.mask_ratio if stage.mask_ratio is None else stage.mask_ratio,
        )
        found[view] = found.get(view, 0.0) + stage.until - begin
        begin = stage.until
    return found or {(run.image_size, run.mask_ratio): 1.0}


def schedule_costs(params: Params, reader: Reader, steps: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """Table 11's run times as shares of fixed 224's, counted and measured in several ways.

    By tokens and by multiply-adds (with the authors' stage ends, and with thirds), printed, by ViT-B's own
    steps with their quartiles, and by this budget's runs with the interval over seeds. `steps` are the lines
    of `benchmarks/schedules.py` by run.
    """
    fixed, base, lines = params.run("daily_224"), printed_hours("224"), {}
    for scheme in (*FIXED[1:], *SCHEMES):
        run, equal = f"daily_{scheme}", f"daily_{scheme}_thirds"
        own = relative_cost(params.run(run), fixed)
        thirds = relative_cost(params.run(equal), fixed)["multiply-adds"] if scheme in SCHEMES else math.nan
        here = [{"over": [f"{name}/train_hours", "daily_224/train_hours"]} for name in (run, equal)]
        lines[scheme] = {
            "tokens": _percent(own["tokens"]),
            "multiply-adds": _percent(own["multiply-adds"]),
            "multiply-adds, equal stages": _percent(thirds),
            "printed time": _percent(printed_hours(scheme) / base),
            "steps of ViT-B": _step_share(steps.get(run)),
            "steps of ViT-B, equal stages": _step_share(steps.get(equal)),
            "runs here": reader.text(here[0], 100),
            "runs here, equal stages": reader.text(here[1], 100),
        }
    return _frame(lines)


def inferred_stages() -> pd.DataFrame:
    """Stage lengths that Table 11's times imply if an epoch takes its fixed-size run's time.

    s2 and s3 hold the same stages in opposite order, so their difference is (last - first share) * (T224 -
    T160); s5's is its middle share. T192 and T160 are shorter than the paper's own loader allows
    (`loader_hours` of computed.yaml). So this is no finding about stages: it shows that no stage lengths
    reconcile the printed times.
    """
    long, middle, short = (printed_hours(scheme) for scheme in FIXED)
    s2, s3, s5 = (printed_hours(scheme) for scheme in ("s2", "s3", "s5"))
    lean = (s2 - s3) / (long - short)
    first = (1 - lean) / 3
    shares = {
        "from the times": (first, first, first + lean),
        "authors' code": (0.25, 0.25, 0.5),
        "equal stages": (1 / 3, 1 / 3, 1 / 3),
    }
    middles = ((long - s5) / (long - middle), 0.25, 1 / 3)
    columns = {}
    for (name, parts), share in zip(shares.items(), middles, strict=True):
        stages = " / ".join(f"{100 * part:.0f}" for part in parts)
        hours = sum(part * time for part, time in zip(parts, (short, middle, long), strict=True))
        columns[name] = [stages, f"{100 * share:.0f}", f"{hours:.2f}"]
    columns["printed"] = ["", "", f"{s2:.2f}"]
    rows = ["s2 against s3: stages (% of epochs)", "s5: its 192-pixel stage (% of epochs)"]
    return pd.DataFrame(columns, index=[*rows, "s2 in hours by those stages"])


def printed_hours(scheme: str) -> float:
    """Table 11's run time of a scheme ("224" ... "s6")."""
    return _cell("table_11", column="runtime_hours", scheme=scheme)["value"]


def split_speedup(reader: Reader) -> pd.DataFrame:
    """The abstract's factor of 5.8 in two steps: from an image folder to records, then the palindrome.

    Printed (two machines) and here (one).
    """
    stages = {
        "folder, 224": ("daily_folder_224", {"data": "IF"}),
        "records, 224": ("daily_224", {"data": "500_95", "config": "fixed"}),
        "records, s5": ("daily_s5", {"config": "s5"}),
    }
    table = {"column": "runtime_hours", "stage": "pretrain", "epochs": 800}
    hours = {name: _cell("table_2", **table, **condition)["value"] for name, (_, condition) in stages.items()}
    names, lines = list(stages), {}
    for what, (left, right) in {"loader": (0, 1), "schedule": (1, 2), "both": (0, 2)}.items():
        pair = names[left], names[right]
        here = {"over": [f"{stages[name][0]}/train_hours" for name in pair]}
        ratio = f"{hours[pair[0]] / hours[pair[1]]:.2f}"
        lines[what] = {"from": pair[0], "to": pair[1], "printed": ratio, "here": reader.text(here)}
    return _frame(lines)


def probes(reader: Reader) -> pd.DataFrame:
    """Tables 11 and 12: the online probe as printed, on our training batches, on validation images.

    A scheme's second line is the same scheme with equal stages, of which the paper prints nothing.
    """
    lines = {}
    for scheme in ("224", *SCHEMES):
        columns = ("online_probe_top1", "ft_top1")
        probe, tuned = (_cell("table_11", scheme=scheme, column=column)["printed"] for column in columns)
        lines[scheme] = _probe(reader, f"daily_{scheme}", probe, tuned)
        if scheme in SCHEMES:
            lines[f"{scheme}, equal stages"] = _probe(reader, f"daily_{scheme}_thirds", "", "")
    return _frame(lines)


def _probe(reader: Reader, run: str, probe: str, tuned: str) -> dict[str, str]:
    return {
        "probe, printed": probe,
        "training batches": reader.text(f"{run}/probe_train_top1"),
        "validation images": reader.text(f"{run}/probe_top1"),
        "fine-tuned, printed": tuned,
        "fine-tuned": reader.text(f"{run}_ft"),
    }


def stage_contrasts() -> dict[str, tuple[str, str]]:
    """Each scheme fine-tuned after the authors' stage ends and after equal stages, for `Book.contrasts`."""
    words = "the authors' stage ends over equal stages"
    return {f"{scheme}: {words}": (f"daily_{scheme}_ft", f"daily_{scheme}_thirds_ft") for scheme in SCHEMES}


def codec_contrasts() -> dict[str, tuple[str, str]]:
    """What could lower FFCV's accuracy, for `Book.contrasts`: its decoder's DCT, and all but the resize."""
    found = {}
    for stored in ("256_90", "256_95", "500_90", "500_95"):
        pair = f"daily_val_{stored}", f"daily_val_{stored}_accurate"
        found[f"turbo, fast DCT over accurate, {stored}"] = pair
    for quality in (100, 95, 90):
        pair = f"daily_val_none_{quality}", f"daily_val_pil_none_{quality}"
        found[f"turbo over pillow, no resize, quality {quality}"] = pair
    return found


def compression(reader: Reader) -> pd.DataFrame:
    """Table 4 and more: file size and speed of compressions, relative to 500_95, printed and ours."""
    from replicate.cost.loader_cases import COMPRESSIONS, MORE

    lines = {}
    for name in ("folder", *COMPRESSIONS, *MORE):
        run, base = f"loader_{name}", "loader_500_95"
        ratios = [
            {"over": [f"{run}/{kind}", f"{base}/{kind}"]} for kind in ("file_bytes", "images_per_second")
        ]
        lines["image folder" if name == "folder" else name] = {
            "size, printed": _printed_ratio(run, "file_size_gb"),
            "size": reader.text(ratios[0]),
            "speed, printed": _printed_ratio(run, "throughput_img_s"),
            "speed": reader.text(ratios[1]),
            "images/s": reader.text(f"{run}/images_per_second", digits=0),
        }
    return _frame(lines)


def _table_4(column: str) -> dict[str, float]:
    """Table 4's numbers by the loader that they are of, `loader_500_95` or `loader_folder`."""
    found = {}
    for cell in published.cells({"paper": KEY, "table": "table_4", "column": column}):
        setting = published.setting(cell["row"])
        is_folder = setting["res"] == "IF"
        found["loader_folder" if is_folder else f"loader_{setting['res']}_{setting['quality']}"] = cell[
            "value"
        ]
    return found


def _printed_ratio(run: str, column: str) -> str:
    table = _table_4(column)
    return f"{table[run] / table['loader_500_95']:.2f}" if run in table else ""


def decomposition(reader: Reader) -> pd.DataFrame:
    """Table 13: images per second after each step, and the gain of crop decode there, printed and ours."""
    lines = {"read only": {"full": reader.text("loader_step_read/images_per_second", digits=0)}}
    for name, steps in STEPS.items():
        full, crop = (_cell("table_13", step=step)["value"] for step in steps)
        sides = [f"loader_step_{side}_{name}/images_per_second" for side in ("crop", "full")]
        lines[f"+ {name}"] = {
            "full": reader.text(sides[1], digits=0),
            "crop": reader.text(sides[0], digits=0),
            "gain": reader.text({"over": sides}),
            "gain, printed": f"{crop / full:.2f}",
        }
    return _frame(lines).fillna("")


def epoch_minutes(reader: Reader, labels: Mapping[str, str]) -> pd.DataFrame:
    """Figure 1: minutes of an ImageNet-1k epoch through loaders (legend -> run), here and printed.

    Printed minutes follow from Table 4's rate on the authors' machine; NaN where there is none.
    """
    images, rates, lines = _cell("figure_1", column="images")["value"], _table_4("throughput_img_s"), {}
    for label, run in labels.items():
        here, theirs = reader.value(f"{run}/images_per_second"), rates.get(run, math.nan)
        if not (math.isnan(here) and math.isnan(theirs)):
            lines[label] = [here, theirs, images / here / 60, images / theirs / 60]
    return _frame(lines, ["images/s", "images/s, printed", "minutes", "minutes, printed"])


def probe_curves(book: Book, runs: Mapping[str, str]) -> dict[str, dict[str, pd.DataFrame]]:
    """Figure 2: of each of the two probes, mean accuracy against minutes of training, one curve a run.

    Against epochs where a run's times were not kept, since two axes would not compare.
    """
    histories = {label: book.results.history(run) for label, run in runs.items() if run in book.results}
    timed = all("seconds" in history for history in histories.values() if not history.empty)
    return {probe: _probe_curves(histories, metric, timed) for probe, metric in PROBES.items()}


def _probe_curves(histories: Mapping[str, pd.DataFrame], metric: str, timed: bool) -> dict[str, pd.DataFrame]:
    found = {}
    for label, history in histories.items():
        if metric not in history:
            continue
        place = history.groupby("seed")["seconds"].cumsum() / 60 if timed else history["epoch"] + 1
        curve = history.assign(place=place).dropna(subset=[metric]).groupby("epoch")[["place", metric]].mean()
        found[label] = curve.set_index("place").rename_axis("minutes of training" if timed else "epochs")
    return found


def _step_share(step: Mapping[str, Any] | None) -> str:
    """A scheme's time by a benchmark's line, whose ratio is the fixed run's time over the scheme's."""
    if step is None:
        return ""
    middle, *quartiles = (f"{100 / value:.0f}" for value in (step["ratio"], *reversed(step["spread"])))
    return f"{middle} % ({' to '.join(quartiles)})"


def _percent(value: float) -> str:
    return "" if math.isnan(value) else f"{100 * value:.0f} %"


def _text(value: Any) -> str:
    return "" if value is None else f"{value:g}" if isinstance(value, int | float) else str(value)

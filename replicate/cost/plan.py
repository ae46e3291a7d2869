"""What runs will cost before anything is spent: `python -m replicate plan [RUN ...] [--budget paper] [--device h200]`.

Device-hours are multiply-adds over what the device sustains (`replicate.cost.rates`); several devices are taken to share a run evenly. Scoring,
optimiser steps and what runs beside a model (an online probe, a teacher, a tokenizer) are counted, the loader is not: a plan says instead how many
images a second it has to deliver.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from replicate.config import EvaluateRun, PretrainRun, TokenizerRun, published
from replicate.cost.kinds import ImageCost, evaluate_cost, pretrain_cost, tokenizer_cost
from replicate.cost.rates import Rates
from replicate.errors import UserError
from replicate.loaders.sources import count_images, source_folder
from replicate.schedules.stages import view_at

if TYPE_CHECKING:
    from replicate.config import Dataset, Params

IMAGENET = {"train": 1_281_167, "val": 50_000}
IMAGENET_CLASSES = 1000
PHOTOS = {"train": 2400, "val": 1200, "classes": 12}
EVALUATIONS = 10
USABLE = 0.9  # of a device's memory; the rest is fragmentation and the libraries' own


@dataclass(frozen=True)
class DataSize:
    """Images and classes of a data set, and the bytes of its `.beton` files; `assumed` where the source is not there to be counted."""

    train: int
    val: int
    classes: int
    bytes: float
    assumed: bool


def plan(params: Params, names: list[str], budget: str, rates: Rates, devices: int = 1) -> pd.DataFrame:
    """One line a run: what it is, costs and needs. `names` empty means every run, headline and grid, and the tokenizers.

    Raises UserError for an unknown run or budget.
    """
    chosen = names or list(params.runs)
    sizes = {name: data_size(params, name, budget) for name in params.datasets}
    return pd.DataFrame([_line(params, name, budget, rates, devices, sizes[params.run(name).dataset]) for name in chosen]).set_index("run")


def data_size(params: Params, name: str, budget: str) -> DataSize:
    """What a data set holds: from its manifest, from the source's folders, or as the papers' ImageNet-1k has it."""
    manifest = params.data_folder(name, budget) / "manifest.json"
    if manifest.exists():
        content = json.loads(manifest.read_text())
        split = content["splits"]
        stored = sum(record["bytes"] for record in split.values())
        return DataSize(split["train"]["images"], split["val"]["images"], len(content["class_names"]), stored, False)
    return _expected(params.dataset(name, budget))


def beton_bytes(images: int, resolution: int | None, quality: int) -> float:
    """Bytes of `images` photographs: DailyMAE's Table 4 for the nearest resolution and quality that it lists, scaled by area where none is near."""
    table = published.select({"paper": "dailymae", "table": "table_4", "column": "file_size_gb"})
    known = {}
    for row, value in zip(table["row"], table["value"], strict=True):
        setting = published.setting(row)
        if setting["res"].isdigit():
            known[int(setting["res"]), int(setting["quality"])] = value * 1e9 / IMAGENET["train"]
    side = resolution or 1000
    nearest = min(known, key=lambda key: (abs(math.log(key[0] / side)), abs(key[1] - quality)))
    area = (min(side, nearest[0]) / nearest[0]) ** 2
    return images * known[nearest] * area


def totals(lines: pd.DataFrame) -> pd.DataFrame:
    """Runs, multiply-adds and device-hours of each paper and of all."""
    grouped = lines.groupby("paper", sort=False)
    frame = pd.DataFrame(
        {
            "runs": grouped.size(),
            "exa_macs": grouped["exa_macs"].sum(),
            "device_hours": grouped["device_hours"].sum(),
            "hours": grouped["hours"].sum(),
            "memory_gib": grouped["memory_gib"].max(),
            "images_s": grouped["images_s"].max(),
        }
    )
    everything = frame.sum()
    everything[["memory_gib", "images_s"]] = frame[["memory_gib", "images_s"]].max()
    frame.loc["all"] = everything
    return frame.astype({"runs": int})


def render(frame: pd.DataFrame) -> str:
    """A table for a terminal: three digits that count, thousands apart."""
    shown = frame.copy()
    for name in shown.columns:
        if pd.api.types.is_float_dtype(shown[name]):
            shown[name] = [_short(value) for value in shown[name]]
    return shown.to_string()


def _short(value: float) -> str:
    if not math.isfinite(value):
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _expected(dataset: Dataset) -> DataSize:
    source = source_folder(dataset.source)
    photos = dataset.source == "photos"
    found = None if photos else _counted(source)
    base = PHOTOS if photos else found or IMAGENET | {"classes": IMAGENET_CLASSES}
    classes = dataset.classes or max(2, round(base["classes"] * dataset.class_fraction))
    share = 1.0 if photos else classes / base["classes"]
    train = round((dataset.train_images or base["train"] * share) * dataset.fraction)
    val = dataset.val_images or round(base["val"] * share)
    longest = {"train": dataset.train.resolution, "val": dataset.val.resolution}
    if photos:
        longest = dict.fromkeys(longest, dataset.image_size)
    stored = beton_bytes(train, longest["train"], dataset.train.quality) + beton_bytes(val, longest["val"], dataset.val.quality)
    return DataSize(train, val, classes, stored, not photos and found is None)


def _counted(source: Path) -> dict[str, int] | None:
    if not (source / "train").is_dir():
        return None
    return count_images(source)


def _line(params: Params, name: str, budget: str, rates: Rates, devices: int, data: DataSize) -> dict[str, Any]:
    run, lens = params.resolve(name, budget), params.budget_named(budget)
    values = 4 if lens.precision == "float32" else 2
    source = params.resolve(run.pretrain, budget) if isinstance(run, EvaluateRun) else run
    seeds = 1 if isinstance(run, TokenizerRun) else lens.seeds
    stages = _views(run)
    epochs = list(stages.values())
    frozen = {"teacher": _teacher(params, run, budget), "tokenizer": _tokenizer(params, run, budget)}
    views = [_view_cost(run, source, frozen, view, data.classes, values) for view in stages]
    seconds = macs = 0.0
    for view, cost, count in zip(stages, views, epochs, strict=True):
        images = count * _trained_images(data.train, view.batch_size)
        macs += images * cost.macs
        seconds += images * rates.seconds(cost.macs, cost.activations, cost.calls / max(1, view.batch_size))
    probed = sum(count * cost.probe for count, cost in zip(_probe_scores(run, stages), views, strict=True))
    scored = _scored_images(run, data) * views[-1].forward + data.val * probed
    macs, seconds = macs + scored, seconds + rates.seconds(scored)
    held, memory = _memory(views, run.batch_size // devices or 1, rates.memory, params.machine.micro_batch)
    hours = seeds * seconds / 3600
    rate = sum(count * _trained_images(data.train, 1) for count in epochs) * devices / seconds if sum(epochs) else math.nan
    return {
        "run": name,
        "paper": run.paper,
        "kind": _kind(run),
        "backbone": getattr(source, "backbone", "convolutions"),
        "epochs": run.epochs,
        "batch": run.batch_size,
        "gmacs": views[-1].forward / 1e9,
        "params_m": max(view.parameters for view in views) / 1e6,
        "micro_batch": held,
        "memory_gib": memory / 2**30,
        "images_s": rate,
        "exa_macs": seeds * macs / 1e18,
        "device_hours": hours,
        "hours": hours / devices,
        "data_gb": data.bytes / 1e9,
    }


def _kind(run: Any) -> str:
    return run.protocol if isinstance(run, EvaluateRun) else "tokenizer" if isinstance(run, TokenizerRun) else "pretrain"


def _views(run: Any) -> dict[Any, int]:
    """The stages of a run with their numbers of epochs; a run without training has one view of no epochs."""
    counted: dict[Any, int] = {} if run.epochs else {view_at(run, 0): 0}
    for epoch in range(run.epochs):
        view = view_at(run, epoch)
        counted[view] = counted.get(view, 0) + 1
    return counted


def _teacher(params: Params, run: Any, budget: str) -> tuple[EvaluateRun, PretrainRun] | None:
    """What a distillation learns from: a fine-tuning, and the pre-training that it started from."""
    if not getattr(run, "teacher", None):
        return None
    tuning = params.resolve(run.teacher, budget)
    return tuning, params.resolve(tuning.pretrain, budget)


def _tokenizer(params: Params, run: Any, budget: str) -> TokenizerRun | None:
    """What gives a pre-training the tokens that it predicts."""
    place = getattr(run, "tokenizer", None)
    return params.resolve(place.rpartition("/")[2], budget) if place else None


def _probe_scores(run: Any, stages: dict[Any, int]) -> list[int]:
    """How many times each stage of a run ends an epoch with its online probe scored on the validation images, as the trainer does it."""
    if not getattr(run, "online_probe", False):
        return [0] * len(stages)
    from replicate.trainers.pretrain import PROBE_SCORES

    period = max(1, run.epochs // PROBE_SCORES)
    scored = Counter(view_at(run, epoch) for epoch in range(run.epochs) if (epoch + 1) % period == 0 or epoch + 1 == run.epochs)
    return [scored[view] for view in stages]


def _view_cost(run: Any, source: PretrainRun, frozen: dict[str, Any], view: Any, classes: int, values: int) -> ImageCost:
    update = {"image_size": view.image_size} | ({"mask_ratio": view.mask_ratio} if isinstance(run, PretrainRun) else {})
    seen = run.model_copy(update=update)
    if isinstance(run, TokenizerRun):
        return tokenizer_cost(seen, values)
    return pretrain_cost(seen, values, classes, **frozen) if source is run else evaluate_cost(seen, source, classes, values)


def _trained_images(images: int, batch: int) -> int:
    return max(images // batch, 1) * batch


def _scored_images(run: Any, data: DataSize) -> int:
    """Images that the model takes forward only: the validation loss of a pre-training, a classifier's ten scorings, all features of a k-NN."""
    if not isinstance(run, EvaluateRun):
        return data.val
    return data.train + data.val if run.protocol == "knn" else min(EVALUATIONS, max(run.epochs, 1)) * data.val


def _memory(views: list[ImageCost], share: int, device: float | None, setting: int | None) -> tuple[int, float]:
    """(images that a device holds at once, bytes): its whole share of the batch, or the largest part of it that fits."""
    state = max(view.state_bytes for view in views)
    image = max(view.activations for view in views)
    held = min(share, setting or share)
    if device is not None:
        fits = int((USABLE * device - state) // max(image, 1))
        if fits < 1:
            return 0, state + image
        parts = math.ceil(held / fits)
        while held % parts:
            parts += 1
        held //= parts
    return held, state + held * image


def published_hours(params: Params, lines: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """The papers' printed hours beside each plan's, for every printed time that a run of ours stands for (`published/mapping`).

    `lines` maps a column's name to a plan; it is in GPU-hours where the paper prints those, else in hours on all of its devices. The papers'
    hours are those of their own machines, named in `hardware`.
    """
    rows = []
    for paper in published.papers():
        for cell in published.select({"paper": paper}).to_dict("records"):
            run = _timed_run(paper, cell, params)
            if run is not None:
                setting = published.setting(cell["row"])
                column, unit = ("device_hours", "GPU-hours") if cell["unit"] == "gpu_hours" else ("hours", "h")
                planned = {name: frame.loc[run, column] for name, frame in lines.items() if run in frame.index}
                place, printed = cell["table"].replace("_", " "), f"{cell['printed']} {unit}"
                rows.append({"paper": paper, "where": place, "run": run, "printed": printed, "hardware": setting.get("hardware", ""), **planned})
    return pd.DataFrame(rows)


def _timed_run(paper: str, cell: dict[str, Any], params: Params) -> str | None:
    from replicate.report.tables import fill

    if not cell["unit"].endswith("hours"):
        return None
    rule = next((rule for rule in published.mapping(paper) if published.matches(cell, rule.get("match", {}))), None)
    quantity = rule and fill(rule.get("ours"), published.setting(cell["row"]))
    if not isinstance(quantity, str) or not quantity.endswith("/train_hours"):
        return None
    run = quantity.partition("/")[0]
    return run if run in params.pretrain_runs or run in params.evaluate_runs else None


MACHINES = {"8 x A100": ("a100", 8), "1 x H200": ("h200", 1)}
START, END = "<!-- plan -->", "<!-- /plan -->"


def update_readme(path: Path, params: Params) -> None:
    """Write the plan of the papers' own budget between the README's markers, and `PRICES` beside it. Raises UserError when a marker is missing."""
    text = path.read_text(encoding="utf-8")
    if START not in text or END not in text:
        raise UserError(f"{path}: lacks the markers {START} and {END}, between which the plan stands")
    before, after = text[: text.index(START) + len(START)], text[text.index(END) :]
    lines = _on_machines(params)
    path.write_text(f"{before}\n{readme_block(params, lines)}\n{after}", encoding="utf-8")
    write_prices(params, path.parent / PRICES, lines["8 x A100"])


def _on_machines(params: Params) -> dict[str, pd.DataFrame]:
    from replicate.cost.rates import rates_of

    return {name: plan(params, [], "paper", rates_of(device), devices) for name, (device, devices) in MACHINES.items()}


def readme_block(params: Params, lines: dict[str, pd.DataFrame] | None = None) -> str:
    """Two tables in Markdown: totals per paper on 8 A100 and on one H200, and the papers' printed hours beside the planned ones.

    `lines` are the plans of `MACHINES`, for a caller that has them.
    """
    from replicate.cost.rates import DEVICES

    machines, lines = MACHINES, lines or _on_machines(params)
    sums = {name: totals(frame) for name, frame in lines.items()}
    first = next(iter(sums.values()))
    table = pd.DataFrame({"runs": first["runs"], "10^18 multiply-adds": first["exa_macs"].map(_short)})
    for name, frame in sums.items():
        table[f"GPU-hours, {name}"] = frame["device_hours"].map(_short)
        table[f"days, {name}"] = (frame["hours"] / 24).map(_short)
    beside = published_hours(params, lines).drop_duplicates(["paper", "run", "printed"])
    units = beside["printed"].str.rsplit(" ", n=1).str[-1]
    for name in machines:
        beside[name] = [f"{_short(value)} {unit}" for value, unit in zip(beside[name], units, strict=True)]
    shares = ", ".join(f"{DEVICES[device].efficiency:.0%} of the {DEVICES[device].name}'s peak" for device, _ in machines.values())
    size = data_size(params, "full", "paper")
    return "\n".join(
        [
            f"Every run of `params.yaml` at the `paper` budget, at an assumed {shares} (`--efficiency` takes your own); the `.beton` files take",
            f"{size.bytes / 1e9:.0f} GB. By `python -m replicate plan --readme`.",
            "",
            _markdown(table.rename_axis("paper").reset_index()),
            "",
            "<details><summary>Hours that the papers print, each on its own machine, beside the plan's in the same unit</summary>",
            "",
            _markdown(beside),
            "",
            "</details>",
        ]
    )


def _markdown(frame: pd.DataFrame) -> str:
    head = "| " + " | ".join(map(str, frame.columns)) + " |\n|" + "---|" * len(frame.columns)
    return "\n".join([head, *("| " + " | ".join(map(str, row)) + " |" for row in frame.itertuples(index=False))])


PRICES = Path("benchmarks/results/plan_paper.csv")
"""What every run costs at the papers' own scale, as `plan --readme` wrote it: counting all runs takes half a minute, reading them none."""


def write_prices(params: Params, path: Path, lines: pd.DataFrame) -> None:
    """Write A100-hours and 10^18 multiply-adds of every run of a plan, alone and with what it starts from."""
    rows = []
    for name, line in lines.iterrows():
        needed, upstream = [name], params.upstream_of(name)
        while upstream:
            needed, upstream = [*needed, upstream], params.upstream_of(upstream)
        hours, macs = (lines.loc[needed, column].sum() for column in ("device_hours", "exa_macs"))
        rows.append((name, f"{line['device_hours']:.3g}", f"{hours:.3g}", f"{line['exa_macs']:.3g}", f"{macs:.3g}"))
    frame = pd.DataFrame(rows, columns=["run", "a100_hours", "a100_hours_in_all", "exa_macs", "exa_macs_in_all"])
    path.parent.mkdir(parents=True, exist_ok=True)
    frame.to_csv(path, index=False, lineterminator="\n")

"""What runs will cost: `python -m replicate plan [RUN ...] [--budget paper] [--device h200]`.

Device-hours are multiply-adds over what the device sustains (`replicate.cost.rates`). Devices that share a
run split it evenly. A plan counts training, scoring, and what runs beside a model; the loader is not counted.
Instead a plan says how many images a second the loader must deliver.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING, Any

import pandas as pd

from replicate.config import DenseRun, EvaluateRun, PretrainRun, TokenizerRun
from replicate.cost.data_size import DataSize, data_size
from replicate.cost.image_cost import ImageCost
from replicate.cost.rates import Rates
from replicate.cost.runs import evaluate_cost, pretrain_cost, tokenizer_cost
from replicate.schedules.probe import scores_probe
from replicate.schedules.scoring import scored_epochs
from replicate.schedules.stages import View, view_at

if TYPE_CHECKING:
    from replicate.config import Params, Run

SHOWN = ("kind", "epochs", "batch", "gmacs", "params_m", "micro_batch", "memory_gib", "images_s", "hours")
"""Columns that a terminal has room for; a CSV file has all."""
USABLE = 0.9
"""Share of a device's memory; the rest goes to fragmentation and libraries."""


def plan(params: Params, names: list[str], budget: str, rates: Rates, devices: int = 1) -> pd.DataFrame:
    """One line a run: what it is, costs and needs. Without `names`, every run.

    Columns: gmacs (10^9 multiply-adds of scoring an image), params_m (10^6), micro_batch (images on a device
    at once), memory_gib, images_s (what the loader must deliver), exa_macs (10^18, all seeds), device_hours,
    hours, data_gb. Raises UserError for an unknown run or budget.
    """
    sizes = {name: data_size(params, name, budget) for name in params.datasets}
    lines = [
        _line(params, name, budget, rates, devices, sizes[params.run(name).dataset])
        for name in names or params.runs
    ]
    return pd.DataFrame(lines).set_index("run")


def totals(lines: pd.DataFrame) -> pd.DataFrame:
    """Runs, multiply-adds and hours of each paper and of all; memory and loader rate are the largest."""
    summed, largest = ["exa_macs", "device_hours", "hours"], ["memory_gib", "images_s"]
    grouped = lines.groupby("paper", sort=False)
    frame = pd.concat([grouped.size().rename("runs"), grouped[summed].sum(), grouped[largest].max()], axis=1)
    frame.loc["all"] = pd.concat([frame[["runs", *summed]].sum(), frame[largest].max()])
    return frame.astype({"runs": int})


def render(frame: pd.DataFrame) -> str:
    """A table for a terminal, with three significant digits."""
    return frame.to_string(float_format=short)


def short(value: float) -> str:
    """Three significant digits with thousands separators; "-" for NaN."""
    if not math.isfinite(value):
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _line(
    params: Params, name: str, budget: str, rates: Rates, devices: int, data: DataSize
) -> dict[str, Any]:
    run, lens = params.resolve(name, budget), params.budget_named(budget)
    source = params.resolve(run.pretrain, budget) if isinstance(run, EvaluateRun) else run
    stages = _stages(run)
    bytes_per_value = 4 if lens.precision == "float32" else 2
    costs = [_cost(params, run, source, view, data.classes, bytes_per_value, budget) for view in stages]
    labelled, seconds, macs = _labelled_images(run, data), 0.0, 0.0
    for (view, epochs), cost in zip(stages.items(), costs, strict=True):
        images = _seen_images(run, epochs, labelled, view.batch_size)
        macs += images * cost.macs
        seconds += images * rates.seconds(cost.macs, cost.activations, cost.calls / max(1, view.batch_size))
    scored = _scored_images(run, data) * costs[-1].forward
    scored += data.val * sum(
        times * cost.probe for times, cost in zip(_probe_scores(run, stages), costs, strict=True)
    )
    macs, seconds = macs + scored, seconds + rates.seconds(scored)
    held, memory = _memory(costs, run.batch_size // devices or 1, rates.memory, params.machine.micro_batch)
    seeds = 0 if params.box(name, budget) else params.seeds(name, budget)
    hours = seeds * seconds / 3600
    return {
        "run": name,
        "paper": run.paper,
        "kind": _kind(run),
        "backbone": getattr(source, "backbone", "convolutions"),
        "epochs": _epochs(run, labelled),
        "batch": run.batch_size,
        "gmacs": costs[-1].forward / 1e9,
        "params_m": max(cost.parameters for cost in costs) / 1e6,
        "micro_batch": held,
        "memory_gib": memory / 2**30,
        "images_s": _epochs(run, labelled) * labelled * devices / seconds if seconds else math.nan,
        "exa_macs": seeds * macs / 1e18,
        "device_hours": hours,
        "hours": hours / devices,
        "data_gb": data.bytes / 1e9,
    }


def _kind(run: Run) -> str:
    if isinstance(run, EvaluateRun):
        return run.protocol
    return "tokenizer" if isinstance(run, TokenizerRun) else "pretrain"


def _stages(run: Run) -> dict[View, int]:
    """The stages of a run with their epochs; a run without training has one stage of no epochs."""
    return Counter(view_at(run, epoch) for epoch in range(run.epochs)) or {view_at(run, 0): 0}


def _cost(
    params: Params, run: Run, source: PretrainRun, view: View, classes: int, bytes_per_value: int, budget: str
) -> ImageCost:
    """The cost of one image in one stage."""
    seen = run.model_copy(update={"image_size": view.image_size})
    if isinstance(run, TokenizerRun):
        return tokenizer_cost(seen, bytes_per_value)
    if isinstance(run, EvaluateRun):
        return evaluate_cost(seen, source, classes, bytes_per_value)
    teacher = tokenizer = None
    if run.teacher:
        tuning = params.resolve(run.teacher, budget)
        teacher = tuning, params.resolve(tuning.pretrain, budget)
    if run.tokenizer:
        tokenizer = params.resolve(run.tokenizer, budget)
    seen = seen.model_copy(update={"mask_ratio": view.mask_ratio})
    return pretrain_cost(seen, bytes_per_value, classes, teacher, tokenizer)


def _probe_scores(run: Run, stages: dict[View, int]) -> list[int]:
    """How many epochs of each stage end with a scoring of the online probe."""
    if not getattr(run, "online_probe", False):
        return [0] * len(stages)
    scored = Counter(view_at(run, epoch) for epoch in range(run.epochs) if scores_probe(epoch, run.epochs))
    return [scored[view] for view in stages]


def _whole_batches(images: int, batch_size: int) -> int:
    """Images of an epoch without the last, smaller batch."""
    return max(images // batch_size, 1) * batch_size


def _seen_images(run: Run, epochs: int, labelled: int, batch_size: int) -> int:
    """Images of a stage, counted again in every epoch; a dense run may state iterations instead."""
    if isinstance(run, DenseRun):
        return run.total_steps(labelled) * run.batch_size if _trains(run) else 0
    return epochs * _whole_batches(labelled, batch_size)


def _epochs(run: Run, labelled: int) -> int:
    """Passes over the training images, rounded where a run states iterations."""
    if isinstance(run, DenseRun) and run.iterations:
        return round(run.iterations * run.batch_size / labelled) if _trains(run) else 0
    return run.epochs


def _trains(run: DenseRun) -> bool:
    return run.protocol in ("detect", "segment")


def _scored_images(run: Run, data: DataSize) -> int:
    """Images scored forward: for a validation loss, a classifier's accuracy, or the features of a k-NN."""
    if not isinstance(run, EvaluateRun):
        return data.val
    labelled = _labelled_images(run, data)
    if run.protocol in ("knn", "dense_knn", "dense_linear"):
        return labelled + data.val
    if isinstance(run, DenseRun):
        return data.val
    return max(len(scored_epochs(run, labelled, data.val)), 1) * data.val


def _labelled_images(run: Run, data: DataSize) -> int:
    """The training images of a run: all of them, or as many as an evaluation takes of each class."""
    labels = getattr(run, "labels_per_class", None)
    return min(data.train, labels * data.classes) if labels else data.train


def _memory(
    costs: list[ImageCost], share: int, device_memory: float | None, micro_batch: int | None
) -> tuple[int, float]:
    """(images on a device at once, bytes): its share of the batch, or the largest even part that fits."""
    state, image = max(cost.state_bytes for cost in costs), max(cost.activations for cost in costs)
    held = min(share, micro_batch or share)
    if device_memory is not None:
        fits = int((USABLE * device_memory - state) // max(image, 1))
        if fits < 1:
            return 0, state + image
        parts = math.ceil(held / fits)
        while held % parts:
            parts += 1
        held //= parts
    return held, state + held * image

"""Schedules: each layer's learning rate under layer-wise decay, and stages of resolution and mask ratio with
their cost.

MAE Are Secretly Efficient Learners Eq. 1 (LLRD); FastMIM section 4.2 and DailyMAE Tables 8 to 10 (resolution
stages).
"""

from __future__ import annotations

import ipywidgets as widgets
import matplotlib as mpl
import numpy as np

from replicate.config import PretrainRun, Stage
from replicate.cost.runs import pretrain_cost
from replicate.explore.panel import choice, real, whole
from replicate.explore.runs import parameters
from replicate.report.root import repository
from replicate.report.style import HEATMAP, OURS, PALETTE, REFERENCE, WIDTH, Figure, new
from replicate.schedules.layer_decay import layer_scales
from replicate.schedules.lr import warmup_cosine
from replicate.schedules.stages import view_at

FIXED, PROGRESSIVE, PALINDROME = "fixed", "progressive", "palindrome"
PARTS = 5
DEPTHS = {"ViT-B, 12 blocks": 12, "ViT-L, 24 blocks": 24, "ViT-H, 32 blocks": 32}
BASE = "mae_base"
PATCH = 16


def controls() -> dict[str, widgets.Widget]:
    return {
        "depth": choice(list(DEPTHS.items()), 12, "backbone"),
        "llrd": real(0.5, 1.0, 0.05, 0.65, "LLRD"),
        "warmup": real(0.0, 0.5, 0.05, 0.05, "warm-up, share"),
        "schedule": choice(schedules(), PALINDROME, "stages"),
        "low": whole(64, 224, 128, "lowest pixels", PATCH),
        "high": whole(64, 224, 224, "highest pixels", PATCH),
        "mask_start": real(0.5, 0.95, 0.05, 0.75, "mask ratio, first"),
        "mask_end": real(0.5, 0.95, 0.05, 0.75, "mask ratio, last"),
    }


def schedules() -> list[str]:
    """The shapes that the sliders bound, and the papers' pre-trainings with stages."""
    staged = [name for name, run in parameters(repository()).pretrain_runs.items() if run.stages]
    return [FIXED, PROGRESSIVE, *staged, PALINDROME]


def stages(
    schedule: str, low: int, high: int, mask_start: float, mask_end: float, patch: int = PATCH
) -> tuple[Stage, ...]:
    """Five equal stages in whole patches: fixed at `high`, rising, or falling and rising. Mask ratio from
    first to last.
    """
    low, high = min(low, high), max(low, high)
    sizes = {
        FIXED: np.full(PARTS, high),
        PROGRESSIVE: np.linspace(low, high, PARTS),
        PALINDROME: low + (high - low) * np.abs(np.linspace(-1, 1, PARTS)),
    }[schedule]
    ends, ratios = np.arange(1, PARTS + 1) / PARTS, np.linspace(mask_start, mask_end, PARTS)
    return tuple(
        Stage(until=float(end), image_size=int(round(size / patch) * patch), mask_ratio=float(ratio))
        for end, size, ratio in zip(ends, sizes, ratios, strict=True)
    )


def run_of(schedule: str, low: int, high: int, mask_start: float, mask_end: float) -> PretrainRun:
    """A paper's run with stages, or MAE's own recipe with the sliders' stages."""
    runs = parameters(repository()).pretrain_runs
    if schedule in runs:
        return runs[schedule]
    staged = {"stages": stages(schedule, low, high, mask_start, mask_end)}
    return runs[BASE].model_copy(update=staged | {"image_size": max(low, high), "mask_ratio": mask_start})


def epoch_costs(run: PretrainRun) -> np.ndarray:
    """Multiply-adds of one image at every epoch, forward and backward, of the model alone."""
    alone = run.model_copy(update={"stages": (), "online_probe": False, "objective": "reconstruction"})
    known: dict[tuple[int, float], float] = {}
    costs = []
    for epoch in range(run.epochs):
        view = view_at(run, epoch)
        shape = view.image_size, view.mask_ratio
        if shape not in known:
            seen = alone.model_copy(update={"image_size": shape[0], "mask_ratio": shape[1]})
            known[shape] = pretrain_cost(seen, bytes_per_value=2).macs
        costs.append(known[shape])
    return np.array(costs)


def draw(
    depth: int,
    llrd: float,
    warmup: float,
    schedule: str,
    low: int,
    high: int,
    mask_start: float,
    mask_end: float,
) -> Figure:
    """Above: a fine-tuning's learning rates by layer, and their scales. Below: the stages, and what an epoch
    costs.
    """
    figure, axes = new(2, 2, width=WIDTH * 1.6, height=6.4)
    _layers(*axes[0], depth, llrd, warmup)
    _stages(*axes[1], run_of(schedule, low, high, mask_start, mask_end))
    return figure


def caption(
    depth: int,
    llrd: float,
    warmup: float,
    schedule: str,
    low: int,
    high: int,
    mask_start: float,
    mask_end: float,
) -> str:
    """The two numbers that the pictures are about."""
    run = run_of(schedule, low, high, mask_start, mask_end)
    return (
        f"At LLRD {llrd:g} the embeddings learn at {layer_scales(depth, llrd)[0]:.2%} of the head's rate. "
        f"The stages ({schedule}) cost {_share(run):.0%} of the largest size throughout."
    )


def _share(run: PretrainRun) -> float:
    """Cost of a run's stages over that of its largest size throughout."""
    largest = max(view_at(run, epoch).image_size for epoch in range(run.epochs))
    fixed = run.model_copy(update={"stages": (), "image_size": largest, "epochs": 1})
    return float(epoch_costs(run).mean() / epoch_costs(fixed)[0])


def _layers(rates, scales, depth: int, llrd: float, warmup: float, epochs: int = 100) -> None:
    times = np.linspace(0, epochs, 401)
    factors = layer_scales(depth, llrd)
    colours = mpl.colormaps[HEATMAP](np.linspace(0, 1, len(factors)))
    shape = {"peak": 1.0, "epochs": epochs, "warmup_epochs": warmup * epochs}
    rate = np.array([warmup_cosine(at, **shape) for at in times])
    for factor, colour in zip(factors, colours, strict=True):
        rates.plot(times, 100 * factor * rate, color=colour, linewidth=1)
    title = "embeddings dark, head bright"
    rates.set(xlabel="share of the fine-tuning (%)", ylabel="learning rate (% of the peak)", title=title)
    scales.bar(range(len(factors)), [100 * factor for factor in factors], color=colours)
    title = f"embeddings learn at {factors[0]:.2%}"
    scales.set(
        yscale="log", xlabel="layer: 0 embeddings, last norm and head", ylabel="scale (%)", title=title
    )


def _stages(sizes, prices, run: PretrainRun) -> None:
    epochs = np.arange(run.epochs)
    seen = [view_at(run, epoch) for epoch in epochs]
    sizes.step(epochs, [view.image_size for view in seen], color=OURS, where="post")
    sizes.set(xlabel="epoch", ylabel="resolution (pixels)", title="resolution; mask ratio dashed")
    ratios = sizes.twinx()
    ratios.step(epochs, [view.mask_ratio for view in seen], color=PALETTE[3], where="post", linestyle="--")
    ratios.set(ylabel="mask ratio", ylim=(0, 1))
    costs = epoch_costs(run)
    largest = {"stages": (), "image_size": max(view.image_size for view in seen), "epochs": 1}
    fixed = epoch_costs(run.model_copy(update=largest))[0]
    prices.fill_between(epochs, costs / 1e9, step="post", color=OURS, alpha=0.4)
    prices.axhline(fixed / 1e9, color=REFERENCE, linestyle="--", label="the largest size throughout")
    title = f"{costs.mean() / fixed:.0%} of the cost of the largest size throughout"
    prices.set(xlabel="epoch", ylabel="multiply-adds an image (G)", title=title)
    prices.set_ylim(0)
    prices.legend()

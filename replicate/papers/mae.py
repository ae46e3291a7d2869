"""Masked Autoencoders: costs of a step, ablation figures, images under masks, computed numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from replicate.config import published
from replicate.report import analytic, figures
from replicate.report.computed import Answer, Cell
from replicate.report.figures import ACCURACY, new
from replicate.report.quantities import NotRun, Reader
from replicate.report.ranges import Range
from replicate.report.style import REFERENCE, WIDTH, Figure

if TYPE_CHECKING:
    from replicate.config import Params
    from replicate.report.book import Book

Rows = Sequence[Mapping[str, np.ndarray]]
PATCHES = 196


def decoder_per_token(cell: Cell) -> Range:
    """Multiply-adds of the decoder's blocks against ViT-L's, at equally many tokens, in percent (sec 4.1)."""
    from replicate.cost.macs import block_macs

    setting = published.setting(cell["row"])
    depth, width = int(setting["decoder_depth"]), int(setting["decoder_width"])
    return Range.exact(100 * depth * block_macs(1 + PATCHES, width) / (24 * block_macs(1 + PATCHES, 1024)))


def mask_token_cost(cell: Cell) -> Range:
    """Multiply-adds with mask tokens in the encoder over those without (Table 1c)."""
    return Range.exact(_mask_token_ratio(float(published.setting(cell["row"])["mask_ratio"])))


def visible_patches(cell: Cell) -> Range:
    """Patches left by random masking."""
    from replicate.masking import num_visible

    setting = published.setting(cell["row"])
    return Range.exact(num_visible(int(setting["patches"]), float(setting["mask_ratio"])))


def mask_token_flops_ratio_above_3() -> Answer:
    """Whether mask tokens in ViT-L's encoder cost more than three times the multiply-adds at 75 %."""
    ratio = _mask_token_ratio(0.75)
    return Answer(ratio > 3, ratio, f"{ratio:.2f} times the multiply-adds", ratio - 3, "x", "a bound of 3 x")


def _mask_token_ratio(mask_ratio: float) -> float:
    full, sparse = (analytic.mae_macs("ViT-L", mask_ratio, None, tokens).total for tokens in (True, False))
    return full / sparse


FUNCTIONS = DERIVED = (decoder_per_token, mask_token_cost, visible_patches)
ANSWERS = (mask_token_flops_ratio_above_3,)


def model_costs(params: Params, reader: Reader, runs: Mapping[str, str]) -> pd.DataFrame:
    """The cost of a pre-training step: a line a run, legend -> name; factors relative to the first.

    Multiply-adds of an image's forward pass and activations kept for its backward pass (float32) are
    computed, at the paper's sizes and at this budget's. Seconds, and on a GPU the allocator's peak, are
    measured. NaN where a run has not finished.
    """
    frame = pd.DataFrame({label: _model_cost(params, reader, run) for label, run in runs.items()}).T
    for column in ("multiply-adds (G)", "activations (MB)", "seconds an epoch here"):
        factor = frame[column] / frame[column].iloc[0]
        frame.insert(frame.columns.get_loc(column) + 1, f"{column.partition(' (')[0]}, factor", factor)
    return frame.dropna(axis="columns", how="all")


def _model_cost(params: Params, reader: Reader, name: str) -> dict[str, float]:
    from replicate.cost.parameters import mae_parameters

    stated, here = params.run(name), params.resolve(name, reader.results.budget)
    on_gpu = name in reader.results and reader.results.runs[name].device.startswith("cuda")
    return {
        "multiply-adds (G)": analytic.run_macs(stated) / 1e9,
        "parameters (M)": mae_parameters(**analytic.run_sizes(stated)).total / 1e6,
        "activations (MB)": _activations(stated),
        "multiply-adds here (M)": analytic.run_macs(here) / 1e6,
        "activations here (MB)": _activations(here),
        "seconds an epoch here": reader.value(f"{name}/seconds_per_epoch"),
        "GPU peak here (GB)": reader.value(f"{name}/peak_memory_bytes") / 2**30 if on_gpu else math.nan,
    }


def _activations(run: Any) -> float:
    from replicate.config.lens import DECODER_HEAD_WIDTH
    from replicate.cost.memory import mae_activation_bytes

    heads = max(1, run.decoder_width // DECODER_HEAD_WIDTH)
    sizes = analytic.run_sizes(run) | {"mask_ratio": run.mask_ratio, "decoder_num_heads": heads}
    return mae_activation_bytes(**sizes) / 2**20


def speedups(
    params: Params, reader: Reader, pairs: Mapping[str, tuple[str, str, Mapping[str, Any]]]
) -> pd.DataFrame:
    """How many times faster the second run of each pair is than the first (Table 2).

    `pairs` maps a legend to (slow run, fast run, condition that finds the paper's factor). The factor is in
    the paper's hours, by multiply-adds, and measured here with its interval.
    """
    lines = {}
    for label, (slow, fast, condition) in pairs.items():
        macs = [analytic.run_macs(params.run(run)) for run in (slow, fast)]
        here = [analytic.run_macs(params.resolve(run, reader.results.budget)) for run in (slow, fast)]
        times = {"over": [f"{slow}/seconds_per_epoch", f"{fast}/seconds_per_epoch"]}
        lines[label] = {
            "paper": f"{published.one(condition)['value']:g}",
            "multiply-adds": f"{macs[0] / macs[1]:.2f}",
            "multiply-adds here": f"{here[0] / here[1]:.2f}",
            "measured here": reader.text(times, digits=2, missing="not run: {}"),
        }
    return pd.DataFrame(lines).T


def sweep_panels(
    reader: Reader,
    sweeps: Mapping[str, str],
    xlabel: str,
    references: Mapping[str, Mapping[str, str]] | None = None,
    log: bool = False,
) -> Figure:
    """A panel for each sweep, title -> sweep (Figures 5, 7 and 9); an empty one when not run.

    `references` maps a panel's title to {legend: run}, drawn as horizontal lines. `log`: places grow by
    factors.
    """
    figure, axes = new(1, len(sweeps), width=WIDTH * (0.75 + 0.55 * (len(sweeps) - 1)))
    for axis, (title, sweep) in zip(axes[0], sweeps.items(), strict=True):
        axis.set(title=title, xlabel=xlabel, ylabel=ACCURACY)
        try:
            places = figures.curve(axis, reader, sweep, "ours", least=2)
        except NotRun:
            axis.set(title=f"{title}: not run", xticks=[], yticks=[])
            continue
        if log:
            axis.set_xscale("log", base=2)
            axis.set_xticks(places, [f"{x:g}" for x in places])
            axis.minorticks_off()
        for legend, run in (references or {}).get(title, {}).items():
            if run in reader.results:
                value = reader.estimate(run).value
                axis.axhline(value, color=REFERENCE, linestyle="--", linewidth=1, label=legend)
                axis.legend()
    return figure


def ablation(table: pd.DataFrame) -> Figure:
    """A panel of Table 1, `Book.compared`: fine-tuning above, linear probing below; ours right."""
    named = {"ft_top1": "fine-tuning", "lin_top1": "linear probing"}
    parts = {name: table[table["column"] == column] for column, name in named.items()}
    parts = {name: part for name, part in parts.items() if len(part)}
    figure, axes = figures.beside(table, len(parts), height=2.5 * len(parts))
    for line, (name, part) in zip(axes, parts.items(), strict=True):
        figures.draw_beside(line, part, [label.replace("_", "\n") for label in part["label"]], linestyle=":")
        for axis in line:
            title = f"{name}, {axis.get_title(loc='left')}"
            axis.set(title=title, ylabel="top-1 (%)", xlim=(-0.5, len(part) - 0.5))
            axis.tick_params(axis="x", labelsize="small")
    return figure


def at_ratios(book: Book, run: str, ratios: Sequence[float], images: int = 4) -> Figure | None:
    """The same images at several mask ratios through one model (Figure 4); None without weights."""
    if not book.has_weights(run):
        return None
    found = {f"{ratio:.0%}": _reconstructed(book, run, images, ratio) for ratio in ratios}
    return figures.reconstructions(joined(found))


def side_by_side(book: Book, runs: Mapping[str, str], images: int = 3) -> Figure | None:
    """The same images through several runs, each with its own mask (Figure 6)."""
    found = {label: _reconstructed(book, run, images) for label, run in runs.items() if book.has_weights(run)}
    return figures.reconstructions(joined(found)) if found else None


def _reconstructed(book: Book, run: str, images: int, mask_ratio: float | None = None) -> Rows:
    from replicate.report.reconstruct import reconstruct

    options = {"budget": book.results.budget, "images": images, "root": book.root}
    return reconstruct(book.params, run, mask_ratio=mask_ratio, **options)


def joined(found: Mapping[str, Rows]) -> list[dict[str, np.ndarray]]:
    """Several reconstructions of the same images side by side: original, then masked and predicted."""
    from replicate.report.reconstruct import BORROWED, MASKED, ORIGINAL, PREDICTED

    rows = []
    for image in zip(*found.values(), strict=True):
        row = {ORIGINAL: image[0][ORIGINAL]}
        for label, views in zip(found, image, strict=True):
            predicted = PREDICTED if PREDICTED in views else BORROWED
            row |= {f"{label},\n{title}": views[title] for title in (MASKED, predicted)}
        rows.append(row)
    return rows

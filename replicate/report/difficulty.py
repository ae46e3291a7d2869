"""Reconstruction difficulty for Efficient MAE's notebook: P2Dist over random masks, the error by it, and the marks of Table 4."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from replicate import intervals
from replicate.config import published
from replicate.report import analytic
from replicate.report.quantities import NotRun, Reader

if TYPE_CHECKING:
    from replicate.config import Params

PAPER = "efficient_mae"
SIDE, PATCH = 14, 16
MASKS = 4096
BIN = 4.0
PREFIX = "loss_p2dist_"
BETAS = (9.0, 13.0, 26.0, math.inf)


@functools.cache
def distances(mask_ratio: float, metric: str = "p2dist", side: int = SIDE) -> np.ndarray:
    """The difficulty (masks, masked patches) of every masked patch of 4,096 random masks on a square grid of 16-pixel patches."""
    import torch

    from replicate.difficulty import difficulty
    from replicate.masking import random_masking

    noise = torch.rand(MASKS, side**2, generator=torch.Generator().manual_seed(0))
    mask = random_masking(noise, mask_ratio).mask
    return difficulty(mask, (side, side), PATCH, metric)[mask > 0].view(MASKS, -1).numpy()


def patch_counts(mask_ratios: Sequence[float]) -> pd.DataFrame:
    """Masked patches an image by P2Dist, in bins of 4 pixels named by their middle; a column a mask ratio (Figure 2, upper part)."""
    numbers = {ratio: np.bincount((distances(ratio) / BIN).astype(int).ravel()) / MASKS for ratio in mask_ratios}
    most = max(map(len, numbers.values()))
    middles = (np.arange(most) + 0.5) * BIN
    return pd.DataFrame({ratio: np.pad(count, (0, most - len(count))) for ratio, count in numbers.items()}, index=middles)


def error_by_p2dist(reader: Reader, runs: Mapping[str, tuple[str, float]]) -> dict[str, pd.DataFrame]:
    """A pre-training's error on validation images by P2Dist (Figure 2, lower part); runs that have not finished are left out.

    `runs` maps a legend to a run and a gamma: errors are multiplied by d**-gamma, scaled to a mean factor of 1 over the masked patches
    of the run's mask ratio, as the run's loss would weigh them; gamma 0 leaves them as they are. Columns value, low, high.
    """
    found = {}
    for label, (run, gamma) in runs.items():
        if run in reader.results:
            curve = _errors(reader, run)
            found[label] = curve.mul(_factor(curve.index.to_numpy(), gamma, reader.results.runs[run].run["mask_ratio"]), axis=0)
    return found


def _errors(reader: Reader, run: str) -> pd.DataFrame:
    per_seed = reader.results.runs[run].per_seed
    names = [name for name in per_seed[0] if name.startswith(PREFIX) and all(name in one for one in per_seed)]
    lines = {float(name.removeprefix(PREFIX)): intervals.mean([one[name] for one in per_seed])[:3] for name in names}
    return pd.DataFrame.from_dict(lines, orient="index", columns=["value", "low", "high"], dtype=float).sort_index()


def _factor(middles: np.ndarray, gamma: float, mask_ratio: float) -> np.ndarray:
    if not gamma:
        return np.ones(len(middles))
    return middles**-gamma / (distances(mask_ratio) ** -gamma).mean()


def flatness(curves: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """How much dearer hard patches are: the error of the last bin over the first one's, and the rank correlation with P2Dist."""
    lines = {
        label: [f"{curve['value'].iloc[-1] / curve['value'].iloc[0]:.2f}", f"{intervals.spearman(curve.index, curve['value']):.2f}"]
        for label, curve in curves.items()
        if len(curve) > 1
    }
    return pd.DataFrame.from_dict(lines, orient="index", columns=["hardest over easiest", "rank correlation with P2Dist"])


def ratio_sweep(reader: Reader, runs: Mapping[str, str], ratios: Sequence[float]) -> pd.DataFrame:
    """Accuracy and multiply-adds against the mask ratio, the paper's and ours (Figure 1, Table 4).

    `runs` maps the paper's name of a method to the pattern of its runs, "emae_{}_ft". One line a method and ratio; ours is NaN where
    the run has not finished.
    """
    lines = []
    for method, pattern in runs.items():
        for ratio in ratios:
            both = {"df": 1, "dm": 1} if method == "EfficientMAE" else {}
            cells = published.select({"paper": PAPER, "table": "table_4", "mask_ratio": ratio, "method": method, **both})
            printed = {column: cells[cells["column"] == column]["value"] for column in ("top1", "gflops")}
            ours = _estimate(reader, pattern.format(round(100 * ratio)))
            setting = {"backbone": "ViT-L", "mask_ratio": str(ratio), "dm": str(int(method == "EfficientMAE"))}
            macs = analytic.multiply_adds(setting).value
            lines.append([method, ratio, *(float(found.iloc[0]) if len(found) else math.nan for found in printed.values()), macs, *ours])
    return pd.DataFrame(lines, columns=["method", "mask_ratio", "top1", "gflops", "multiply_adds", "ours", "low", "high"])


def _estimate(reader: Reader, run: str) -> tuple[float, float, float]:
    try:
        return reader.estimate(run)[:3]
    except NotRun:
        return math.nan, math.nan, math.nan


def swapped_marks() -> pd.DataFrame:
    """Table 4's two rows with one mark at ratio 0.85: what is printed, and what each reading of the marks computes or is elsewhere.

    Multiply-adds from first principles; accuracies as Table 8 prints them for DFLoss alone (no threshold, row b) and for decoder masking
    alone (beta 26, row a).
    """
    table = {"paper": PAPER, "table": "table_4", "mask_ratio": 0.85}
    alone = {mark: _alone(mark) for mark in ("DF", "DM")}
    lines = {}
    for mark, other, condition in (("DF", "DM", {"df": 1, "dm": 0}), ("DM", "DF", {"df": 0, "dm": 1})):
        cells = {column: published.one(table | condition | {"column": column})["printed"] for column in ("gflops", "top1")}
        lines[f"{mark} marked"] = [
            cells["gflops"],
            f"{alone[mark]['gflops']:.1f}",
            f"{alone[other]['gflops']:.1f}",
            cells["top1"],
            alone[mark]["top1"],
            alone[other]["top1"],
        ]
    columns = ["GFLOPs printed", "as marked", "exchanged", "accuracy printed", "as marked (Table 8)", "exchanged (Table 8)"]
    return pd.DataFrame.from_dict(lines, orient="index", columns=columns)


def _alone(mark: str) -> dict[str, Any]:
    setting = {"backbone": "ViT-L", "mask_ratio": "0.85", "dm": str(int(mark == "DM"))}
    row = {"panel": "a", "beta": 26} if mark == "DM" else {"panel": "b", "beta": "None"}
    printed = published.one({"paper": PAPER, "table": "table_8", "column": "top1", **row})["printed"]
    return {"gflops": analytic.multiply_adds(setting).value, "top1": printed}


def exact_and_approximate(mask_ratio: float = 0.85) -> pd.DataFrame:
    """Masked patches within each beta of Table 8: printed, by exact P2Dist (Eq. 1), by Algorithm 1; expectations over random masks."""
    lines = {}
    for beta in BETAS:
        name = "None" if math.isinf(beta) else f"{beta:g}"
        printed = published.one({"paper": PAPER, "table": "table_8", "column": "num_patches", "beta": name})["printed"]
        counts = [f"{(distances(mask_ratio, metric) <= beta).sum(1).mean():.1f}" for metric in ("p2dist", "p2dist_approx")]
        lines[f"beta {name}"] = [printed, *counts]
    return pd.DataFrame.from_dict(lines, orient="index", columns=["printed", "exact (Eq. 1)", "Algorithm 1"])


def visible_neighbours(mask_ratios: Sequence[float] = (0.75, 0.85, 0.9)) -> pd.DataFrame:
    """Percentage of masked patches with a visible one in their 3 x 3 neighbourhood: printed, expected, and counted over masks."""
    lines = {}
    for ratio in mask_ratios:
        cell = published.one({"paper": PAPER, "column": "masked_patches_with_visible_neighbour", "mask_ratio": ratio})
        counted = 100 * np.isfinite(distances(ratio, "neighbours_3x3")).mean()
        expected = analytic.neighbours_visible({"mask_ratio": str(ratio)}).value
        lines[f"mask ratio {ratio:g}"] = [cell["printed"], f"{expected:.1f}", f"{counted:.1f}"]
    return pd.DataFrame.from_dict(lines, orient="index", columns=["printed", "expected", f"over {MASKS:,} masks"])


def savings(params: Params, reader: Reader, pairs: Mapping[str, tuple[str, str]]) -> pd.DataFrame:
    """What the method saves of plain MAE's pre-training step: multiply-adds, the memory that autograd keeps, and time, in percent.

    `pairs` maps a legend to (the method's run, plain MAE's run). Multiply-adds are those of the paper's own numbers; memory and time
    are measured at this budget, blank where a run has not finished.
    """
    lines = {}
    for label, (ours, plain) in pairs.items():
        macs = [_macs(params.run(run)) for run in (ours, plain)]
        measured = [_saved(reader, f"{ours}/{metric}", f"{plain}/{metric}") for metric in ("activation_gb", "seconds_per_epoch")]
        lines[label] = [f"{100 * (1 - macs[0] / macs[1]):.0f}", *measured]
    return pd.DataFrame.from_dict(lines, orient="index", columns=["multiply-adds, %", "memory here, %", "time here, %"])


def _macs(run: Any) -> float:
    from replicate.config.backbones import vit_backbone
    from replicate.cost.macs import mae_macs

    sizes = vit_backbone(run.backbone, **run.backbone_kwargs).kwargs
    side = run.image_size // sizes["patch_size"]
    kept = None
    if run.decoder_beta:
        kept = float((distances(run.mask_ratio, run.difficulty, side) <= run.decoder_beta).sum(1).mean())
    decoder = {"decoder_embed_dim": run.decoder_width, "decoder_depth": run.decoder_depth}
    return mae_macs(image_size=run.image_size, mask_ratio=run.mask_ratio, kept=kept, **sizes, **decoder).total


def _saved(reader: Reader, ours: str, plain: str) -> str:
    try:
        found = reader.estimate({"over": [ours, plain]})
    except NotRun:
        return ""
    text = f"{100 * (1 - found.value):.0f}"
    return text + (f" [{100 * (1 - found.high):.0f}, {100 * (1 - found.low):.0f}]" if found.has_interval else "")

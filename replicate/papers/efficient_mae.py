"""Efficient MAE: P2Dist over random masks, the error by it, Table 4's marks, computed numbers."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from replicate import intervals
from replicate.config import published
from replicate.report import analytic
from replicate.report.computed import Answer, Cell, within
from replicate.report.quantities import Reader
from replicate.report.ranges import Range

if TYPE_CHECKING:
    from torch import Tensor

    from replicate.config import Params

KEY = "efficient_mae"
SIDE, PATCH, PATCHES = 14, 16, 196
MASKS = 2048
EXPECTED = published.ROOMS / KEY / "expected.csv"
"""What Algorithm 1 gives over so many masks; it takes half a minute, so that git holds it."""

BIN = 4.0
PREFIX = "loss_p2dist_"
BETAS = (9.0, 13.0, 26.0, math.inf)
BETA = 26.0
"""The paper's threshold of decoder masking."""


@functools.cache
def distances(mask_ratio: float, metric: str = "p2dist", side: int = SIDE, masks: int = MASKS) -> Tensor:
    """Difficulty (masks, masked patches) of the masked patches of random masks, 16-pixel patches."""
    import torch

    from replicate.difficulty import difficulty
    from replicate.masking import random_masking

    noise = torch.rand(masks, side**2, generator=torch.Generator().manual_seed(0))
    mask = random_masking(noise, mask_ratio).mask
    return difficulty(mask, (side, side), PATCH, metric)[mask > 0].view(masks, -1)


def multiply_adds(cell: Cell) -> Range:
    """GFLOPs of a pre-training forward pass as the papers count them (Tables 1, 3, 4).

    Mask ratio 0 is the encoder alone. Decoder masking (`dm=1`, or the full method) decodes the patches that
    beta 26 keeps.
    """
    setting = published.setting(cell["row"])
    masks = setting["dm"] == "1" if "dm" in setting else setting.get("method") == "EfficientMAE"
    return _gflops(setting["backbone"], float(setting["mask_ratio"]), masks)


def _gflops(backbone: str, ratio: float, decoder_masking: bool) -> Range:
    if not decoder_masking:
        macs = analytic.mae_macs(backbone, ratio)
        return Range.exact((macs.encoder if ratio == 0 else macs.total) / 1e9)
    kept = _kept(BETA, ratio, 16 if backbone.endswith("/14") else SIDE)
    return Range(*(analytic.mae_macs(backbone, ratio, count).total / 1e9 for count in kept))


def neighbours_visible(cell: Cell) -> Range:
    """Expected percentage of masked patches with a visible 3 x 3 neighbour (sec 3.3)."""
    return Range.exact(100 * _seen(1, float(published.setting(cell["row"])["mask_ratio"])))


def patches_decoded(cell: Cell) -> Range:
    """Masked patches that a difficulty metric or a threshold beta leaves to decode (Tables 5 and 8)."""
    setting = published.setting(cell["row"])
    ratio = float(setting["mask_ratio"])
    masked = PATCHES - _visible(ratio)
    metric = setting.get("difficulty_metric", "p2dist")
    if metric == "p2dist":
        beta = setting.get("beta", f"{BETA:g}")
        return Range.exact(masked) if beta == "None" else _kept(float(beta), ratio)
    reach = {"visible_patches_in_3x3": 1, "sum_inverse_distance_5x5": 2}.get(metric, SIDE)
    return Range.exact(masked * _seen(reach, ratio))


def _visible(mask_ratio: float) -> int:
    from replicate.masking import num_visible

    return num_visible(PATCHES, mask_ratio)


@functools.cache
def _seen(reach: int, mask_ratio: float) -> float:
    """Expected share of masked patches with a visible one within `reach` rows and columns.

    Given that a patch is masked, its n neighbours are all masked with probability C(L-1-n, V) / C(L-1, V).
    """
    visible = _visible(mask_ratio)
    lengths = [min(place + reach, SIDE - 1) - max(place - reach, 0) + 1 for place in range(SIDE)]
    blind = 0.0
    for row in lengths:
        for column in lengths:
            blind += math.comb(PATCHES - row * column, visible) / math.comb(PATCHES - 1, visible)
    return 1 - blind / PATCHES


def _kept(beta: float, mask_ratio: float, side: int = SIDE) -> Range:
    """Expected masked patches with P2Dist (Algorithm 1) of at most beta, two standard errors either way.

    ViT-H's 16 x 16 grid of 14-pixel patches keeps its beta in pixels at P = 16.
    """
    return _expected().get((mask_ratio, side, beta)) or simulate(mask_ratio, side, beta)


def simulate(mask_ratio: float, side: int, beta: float | None, masks: int = MASKS) -> Range:
    """Masked patches an image within beta, or without beta their mean P2Dist, over random masks."""
    found = distances(mask_ratio, "p2dist_approx", side, masks).double()
    per_mask = found.mean(1) if beta is None else (found <= beta).sum(1).double()
    mean, error = float(per_mask.mean()), 2 * float(per_mask.std()) / math.sqrt(masks)
    return Range(mean, mean - error, mean + error)


@functools.cache
def _expected() -> dict[tuple[float, int, float | None], Range]:
    """(mask ratio, side, beta) -> what `simulate` gave, from `papers/efficient_mae/expected.csv`."""
    frame = pd.read_csv(EXPECTED).replace({math.nan: None})
    return {
        (line["mask_ratio"], line["side"], line["beta"]): Range(line["mean"], line["low"], line["high"])
        for line in frame.to_dict("records")
    }


def write_expected() -> None:
    """Simulate every line of `expected.csv` again: half a minute."""
    lines = [[*key, *simulate(*key)] for key in _expected()]
    columns = ["mask_ratio", "side", "beta", "mean", "low", "high"]
    pd.DataFrame(lines, columns=columns).to_csv(EXPECTED, index=False, lineterminator="\n")


def neighbour_fractions(tolerance: float) -> Answer:
    """Whether the printed shares of masked patches with a visible neighbour are the expected ones."""
    where = {"paper": KEY, "column": "masked_patches_with_visible_neighbour"}
    return within(where, tolerance, unit="points")


def decoded_patch_counts(tolerance: float) -> Answer:
    """Whether the printed numbers of decoded patches are the expected ones."""
    return within({"paper": KEY, "column": "num_patches"}, tolerance, unit="patches")


def efficient_mae_multiply_adds(relative: float) -> Answer:
    """Whether the GFLOPs of Table 3 are those counted."""
    table = {"paper": KEY, "table": "table_3", "column": "gflops", "method": ["MAE", "EfficientMAE"]}
    return within(table, relative=relative)


def p2dist_grows_with_mask_ratio() -> Answer:
    """Whether mean P2Dist of masked patches rises over 0.75, 0.85, 0.9."""
    keys = [(ratio, SIDE, None) for ratio in (0.75, 0.85, 0.9)]
    means = [(_expected().get(key) or simulate(*key)).value for key in keys]
    note = "mean P2Dist " + ", ".join(f"{mean:.1f}" for mean in means) + " pixels"
    smallest = min(right - left for left, right in pairwise(means))
    return Answer(smallest > 0, means[-1] / means[0], note, smallest, "pixels a step")


FUNCTIONS = DERIVED = (multiply_adds, neighbours_visible, patches_decoded)
ANSWERS = (neighbour_fractions, decoded_patch_counts, efficient_mae_multiply_adds)
ANSWERS += (p2dist_grows_with_mask_ratio,)


def patch_counts(mask_ratios: Sequence[float]) -> pd.DataFrame:
    """Masked patches an image by P2Dist, in bins named by their middle; a column a mask ratio."""
    binned = {ratio: (distances(ratio) / BIN).long().flatten() for ratio in mask_ratios}
    most = 1 + max(int(bins.max()) for bins in binned.values())
    numbers = {ratio: bins.bincount(minlength=most).numpy() / MASKS for ratio, bins in binned.items()}
    return pd.DataFrame(numbers, index=(np.arange(most) + 0.5) * BIN)


def error_by_p2dist(reader: Reader, runs: Mapping[str, tuple[str, float]]) -> dict[str, pd.DataFrame]:
    """A pre-training's error on validation images by P2Dist (Figure 2); columns value, low, high.

    `runs` maps a legend to a run and a gamma; unfinished runs are left out. Errors are multiplied by
    d**-gamma, scaled to a mean factor of 1 over the masked patches at the run's mask ratio, as the run's loss
    would weigh them.
    """
    found = {}
    for label, (name, gamma) in runs.items():
        if name in reader.results:
            run = reader.results.runs[name]
            names = [
                key
                for key in run.per_seed[0]
                if key.startswith(PREFIX) and all(key in one for one in run.per_seed)
            ]
            lines = {
                float(key.removeprefix(PREFIX)): intervals.mean(list(run.values(key).values()))[:3]
                for key in names
            }
            curve = pd.DataFrame.from_dict(
                lines, orient="index", columns=["value", "low", "high"], dtype=float
            )
            factor = _factor(curve.index.to_numpy(), gamma, run.run["mask_ratio"])
            found[label] = curve.mul(factor, axis=0).sort_index()
    return found


def _factor(middles: np.ndarray, gamma: float, mask_ratio: float) -> np.ndarray:
    if not gamma:
        return np.ones(len(middles))
    return middles**-gamma / float((distances(mask_ratio) ** -gamma).mean())


def flatness(curves: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Error of the hardest bin over that of the easiest, and the rank correlation of error and P2Dist."""
    lines = {}
    for label, curve in curves.items():
        if len(curve) > 1:
            value = curve["value"]
            ratio, rank = value.iloc[-1] / value.iloc[0], intervals.spearman(curve.index, value)
            lines[label] = [f"{ratio:.2f}", f"{rank:.2f}"]
    columns = ["hardest over easiest", "rank correlation with P2Dist"]
    return pd.DataFrame.from_dict(lines, orient="index", columns=columns)


def ratio_sweep(reader: Reader, runs: Mapping[str, str], ratios: Sequence[float]) -> pd.DataFrame:
    """Accuracy and multiply-adds against the mask ratio, the paper's and ours (Figure 1, Table 4).

    `runs` maps the paper's name of a method to the pattern of its runs, "emae_{}_ft". One line a method and
    ratio; ours is NaN where the run has not finished.
    """
    lines = []
    for method, pattern in runs.items():
        full = method == "EfficientMAE"
        for ratio in ratios:
            condition = {"paper": KEY, "table": "table_4", "mask_ratio": ratio, "method": method}
            cells = published.cells(condition | ({"df": 1, "dm": 1} if full else {}))
            printed = {cell["column"]: cell["value"] for cell in reversed(cells)}
            run = pattern.format(round(100 * ratio))
            ours = reader.estimate(run)[:3] if run in reader.results else [math.nan] * 3
            macs = _gflops("ViT-L", ratio, full).value
            lines.append([method, ratio, printed.get("top1"), printed.get("gflops"), macs, *ours])
    columns = ["method", "mask_ratio", "top1", "gflops", "multiply_adds", "ours", "low", "high"]
    return pd.DataFrame(lines, columns=columns).astype(dict.fromkeys(columns[1:], float))


def swapped_marks() -> pd.DataFrame:
    """Table 4's two rows with one mark at ratio 0.85, by each reading of the marks.

    Multiply-adds from first principles; accuracies as Table 8 prints them for DFLoss alone (no threshold, row
    b) and for decoder masking alone (beta 26, row a).
    """
    table = {"paper": KEY, "table": "table_4", "mask_ratio": 0.85}
    row = {"DF": {"panel": "b", "beta": "None"}, "DM": {"panel": "a", "beta": 26}}
    alone = {}
    for mark, condition in row.items():
        accuracy = published.one({"paper": KEY, "table": "table_8", "column": "top1", **condition})["printed"]
        alone[mark] = f"{_gflops('ViT-L', 0.85, mark == 'DM').value:.1f}", accuracy
    lines = {}
    for mark, other in (("DF", "DM"), ("DM", "DF")):
        marked = table | {"df": int(mark == "DF"), "dm": int(mark == "DM")}
        printed = [published.one(marked | {"column": column})["printed"] for column in ("gflops", "top1")]
        columns = zip(printed, alone[mark], alone[other], strict=True)
        lines[f"{mark} marked"] = [text for column in columns for text in column]
    columns = ["GFLOPs printed", "as marked", "exchanged"]
    columns += ["accuracy printed", "as marked (Table 8)", "exchanged (Table 8)"]
    return pd.DataFrame.from_dict(lines, orient="index", columns=columns)


def exact_and_approximate(mask_ratio: float = 0.85) -> pd.DataFrame:
    """Masked patches within each beta of Table 8: printed, by exact P2Dist (Eq. 1), by Algorithm 1."""
    lines = {}
    for beta in BETAS:
        name = "None" if math.isinf(beta) else f"{beta:g}"
        where = {"paper": KEY, "table": "table_8", "column": "num_patches", "beta": name}
        metrics = ("p2dist", "p2dist_approx")
        counts = [f"{(distances(mask_ratio, metric) <= beta).sum() / MASKS:.1f}" for metric in metrics]
        lines[f"beta {name}"] = [published.one(where)["printed"], *counts]
    return pd.DataFrame.from_dict(lines, orient="index", columns=["printed", "exact (Eq. 1)", "Algorithm 1"])


def visible_neighbours(mask_ratios: Sequence[float] = (0.75, 0.85, 0.9)) -> pd.DataFrame:
    """Percentage of masked patches with a visible 3 x 3 neighbour: printed, expected, and counted."""
    lines = {}
    for ratio in mask_ratios:
        where = {"paper": KEY, "column": "masked_patches_with_visible_neighbour", "mask_ratio": ratio}
        counted = 100 * float(distances(ratio, "neighbours_3x3").isfinite().float().mean())
        lines[f"mask ratio {ratio:g}"] = [
            published.one(where)["printed"],
            f"{100 * _seen(1, ratio):.1f}",
            f"{counted:.1f}",
        ]
    return pd.DataFrame.from_dict(
        lines, orient="index", columns=["printed", "expected", f"over {MASKS:,} masks"]
    )


def savings(params: Params, reader: Reader, pairs: Mapping[str, tuple[str, str]]) -> pd.DataFrame:
    """Savings over plain MAE's pre-training step, in percent: multiply-adds, memory and time.

    `pairs` maps a legend to (the method's run, plain MAE's run). Multiply-adds are those of the paper's own
    numbers; memory and time are measured at this budget, blank where a run has not finished.
    """
    lines = {}
    for label, (ours, plain) in pairs.items():
        macs = [_macs(params.run(run)) for run in (ours, plain)]
        kinds = ("activation_gb", "seconds_per_epoch")
        measured = [_saved(reader, {"over": [f"{run}/{kind}" for run in (ours, plain)]}) for kind in kinds]
        lines[label] = [f"{100 * (1 - macs[0] / macs[1]):.0f}", *measured]
    columns = ["multiply-adds, %", "memory here, %", "time here, %"]
    return pd.DataFrame.from_dict(lines, orient="index", columns=columns)


def _macs(run: Any) -> float:
    if not run.decoder_beta:
        return analytic.run_macs(run)
    side = run.image_size // analytic.run_sizes(run)["patch_size"]
    kept = (distances(run.mask_ratio, run.difficulty, side) <= run.decoder_beta).sum() / MASKS
    return analytic.run_macs(run, float(kept))


def _saved(reader: Reader, over: dict[str, Any]) -> str:
    value = reader.value(over)
    if math.isnan(value):
        return ""
    found = reader.estimate(over)
    text, *ends = (f"{100 * (1 - number):.0f}" for number in (found.value, found.high, found.low))
    return f"{text} [{', '.join(ends)}]" if found.has_interval else text

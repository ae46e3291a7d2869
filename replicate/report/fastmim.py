"""What FastMIM's figures draw beyond those of every paper: targets at two resolutions, HOG predictions, sweeps and the committed benchmark."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from replicate import targets
from replicate.errors import UserError
from replicate.loaders.pixels import denormalise, normalise
from replicate.models.build import build_pretraining_model
from replicate.models.weights import load_weights
from replicate.patches import unpatchify
from replicate.report import figures
from replicate.report.glyphs import hog_image
from replicate.report.quantities import NotRun
from replicate.report.reconstruct import BORROWED, MASKED, PREDICTED, sample_images
from replicate.report.style import HEATMAP, OURS, PAPER, REFERENCE, Figure
from replicate.targets.hog import CELL, dense_hog
from replicate.targets.similarity import reduced, similarities

if TYPE_CHECKING:
    from replicate.config import PretrainRun
    from replicate.report.book import Book

BENCHMARKS = ("benchmarks/results/fastmim_step.json", "benchmarks/results/fastmim_step_cuda.json")
"""Of a CPU and of a GPU."""

INVARIANCE = "benchmarks/results/hog_invariance.json"
KINDS, MEASURES = {"pixels": "pixel", "HOG": "hog"}, {"PSNR, dB": "psnr", "SSIM": "ssim"}

BACKBONES = {
    "ViT-B": "vit",
    "Swin-B": "swin",
    "Swin-L": "swin_l",
    "Twins-L": "twins",
    "PVTv1-L": "pvt_v1_l",
    "PVTv2-B2": "pvt",
    "PVTv2-B5": "pvt_v2_b5",
    "ConvNeXt-T": "convnext",
    "ConvNeXt-B": "convnext_b",
    "ConvNeXtV2-B": "convnextv2",
    "CMT-S": "cmt_s",
    "CMT-B": "cmt_b",
}
AGAINST_SCRATCH = {name: (f"fastmim_{short}_hog_128_ft", f"fastmim_{short}_scratch_ft") for name, short in BACKBONES.items()}
"""Table 4: of each backbone the run that FastMIM came before, and the one trained from scratch."""

INPUT, TRUTH, HOG_PREDICTED = "input", "HOG", "HOG prediction"
GLYPH = 16  # pixels a side that one cell's star is drawn with


def benchmark(book: Book) -> pd.DataFrame:
    """The committed step times and memory (Figure 2, Table 3), of a CPU and of a GPU where one was measured: what FastMIM needs, what each
    framework needs, and the second divided by the first, ours and as published.

    `published` is a ratio of hours an epoch, or for memory the range that section 5.1 states. Raises UserError when nothing was measured.
    """
    paths = [book.root / path for path in BENCHMARKS]
    lines = [line for path in paths if path.exists() for line in json.loads(path.read_text())]
    if not lines:
        raise UserError(f"{paths[0]}: no such file; `python benchmarks/fastmim_step.py` measures it")
    frame = pd.DataFrame(lines)[["name", "case", "ratio", "published", "machine"]]
    kind, other = frame["name"].str.split(": FastMIM vs ", n=1, expand=True).T.to_numpy()
    words = {"step": "time of a step", "activations": "memory for the backward pass", "peak memory": "peak memory"}
    frame["published"] = [_range(value) for value in frame["published"]]
    frame.insert(0, "measure", [words.get(name, name) for name in kind])
    for place, (column, side) in enumerate((("FastMIM needs", "ours"), ("it needs", "theirs")), start=3):
        frame.insert(place, column, [_amount(line[side], line["unit"]) for line in lines])
    return frame.assign(name=other).rename(columns={"name": "against", "ratio": "ours"})


def invariance_on_photographs(book: Book) -> pd.DataFrame:
    """The committed likeness of 224-pixel photographs and themselves at 128 (Figures 3, 8 and 9): one line a measure, pixels beside HOG.

    Raises UserError when nothing was measured.
    """
    path = book.root / INVARIANCE
    if not path.exists():
        raise UserError(f"{path}: no such file; `python benchmarks/hog_invariance.py --images FOLDER` measures it")
    [row] = json.loads(path.read_text())
    lines = {name: {kind: _with_bounds(row[f"{measure}_{key}"]) for kind, key in KINDS.items()} for name, measure in MEASURES.items()}
    return pd.DataFrame.from_dict(lines, orient="index").rename_axis(f"{row['images']} photographs, {row['case']}")


def _with_bounds(found: Mapping[str, float]) -> str:
    return "{mean:.3g} [{low:.3g}, {high:.3g}]".format(**found)


def _amount(value: float, unit: str) -> str:
    """Seconds, or bytes in units that can be read."""
    if unit == "bytes/image":
        return f"{value / 2**20:.1f} MiB an image"
    return f"{value / 2**30:.2f} GiB" if unit == "bytes" else f"{value:.3g} {unit}"


def benchmark_bars(table: pd.DataFrame) -> Figure:
    """Figure 2: each framework's time (memory) divided by FastMIM's; a line where the paper prints (or reads off) a ratio."""
    measures = list(dict.fromkeys(table["measure"]))
    figure, axes = figures.new(1, len(measures), width=4.6 * len(measures), height=1.2 + 0.45 * len(table) / len(measures), sharey=False)
    for axis, measure in zip(axes[0], measures, strict=True):
        part = table[table["measure"] == measure].reset_index(drop=True)
        axis.barh(part.index, part["ours"], color=OURS, height=0.6, label="here")
        for place, text in part["published"].items():
            ends = [float(end) for end in str(text).split(" to ")] if text else []
            axis.plot(ends[:1] + ends[-1:], [place] * len(ends[:1] + ends[-1:]), color=PAPER, marker="|", markersize=14, linewidth=2)
        axis.axvline(1, color=REFERENCE, linewidth=0.8)
        axis.set_yticks(part.index, [f"{line.against}, {_short(line.case)}" for line in part.itertuples()])
        axis.invert_yaxis()
        axis.set(title=measure, xlabel="times FastMIM's (marks: the paper)")
    return figure


def _short(case: str) -> str:
    """The backbone of a measured case, and its device where that is a GPU."""
    return case.split(" at ")[0] + (", GPU" if case.endswith(", cuda") else "")


def _range(value: object) -> str:
    if isinstance(value, list):
        return " to ".join(f"{end:g}" for end in value)
    return "" if value is None or (isinstance(value, float) and np.isnan(value)) else f"{value:.2f}"


def curves(book: Book, sweeps: Mapping[str, Mapping[float, str]], xlabel: str, ylabel: str = figures.ACCURACY) -> Figure | None:
    """Several sweeps on one axis, each a legend -> {place: run}; a sweep with fewer than two finished runs is named in the title.

    None where that is every one of them.
    """
    figure, axes = figures.new()
    axis, missing = axes[0, 0], []
    for index, (label, points) in enumerate(sweeps.items()):
        try:
            figures.curve(axis, book.reader.curve(points, least=2), label, index)
        except NotRun:
            missing.append(label)
    if len(missing) == len(sweeps):
        return None
    axis.set(xlabel=xlabel, ylabel=ylabel, title=f"not run here: {', '.join(missing)}" if missing else "")
    axis.legend()
    return figure


def over_epochs(book: Book, backbone: str, sizes: Sequence[int], epochs: Sequence[int], usual: Mapping[str, int]) -> dict[str, dict[int, str]]:
    """Figure 4's curves: legend -> {epochs: run}, of the runs that params.yaml states. A run's name leaves out its target's `usual` epochs."""
    curves = {}
    for target, label in {"pixel": "pixels", "hog": "HOG"}.items():
        for size in sizes:
            names = {e: f"fastmim_{backbone}_{target}_{size}" + ("_ft" if e == usual[target] else f"_ep{e}_ft") for e in epochs}
            curves[f"{label}, {size} px"] = {e: name for e, name in names.items() if name in book.params.runs}
    return curves


def losses(book: Book, runs: Mapping[str, str]) -> Figure | None:
    """A panel of Figure 7: training losses of some runs, legend -> run; None where none of them left its history."""
    histories = book.histories(list(runs.values()))
    found = {label: histories[run] for label, run in runs.items() if run in histories and not histories[run].empty}
    return figures.loss_curves(found) if found else None


def grid_search(book: Book, panels: Mapping[str, str], rates: Mapping[str, float], decays: Sequence[float]) -> Figure:
    """Figure 6: accuracy over learning rate and LLRD, a panel a title -> prefix of its runs, PREFIX_lr_05_llrd_65 and so on."""
    figure, axes = figures.new(1, len(panels), width=3.6 * len(panels), height=3.2)
    for axis, (title, prefix) in zip(axes[0], panels.items(), strict=True):
        values = np.array([[_mean(book, f"{prefix}_lr_{rate}_llrd_{round(decay * 100)}") for decay in decays] for rate in rates])
        axis.imshow(np.ma.masked_invalid(values), cmap=HEATMAP, aspect="auto")
        for row, column in np.ndindex(values.shape):
            text = f"{values[row, column]:.1f}" if np.isfinite(values[row, column]) else "not run"
            axis.text(column, row, text, ha="center", va="center", bbox={"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 1.5})
        axis.set_xticks(range(len(decays)), [f"{decay:g}" for decay in decays])
        axis.set_yticks(range(len(rates)), [f"{rate:g}" for rate in rates.values()])
        axis.set(title=title, xlabel="layer-wise learning-rate decay", ylabel="base learning rate")
    return figure


def _mean(book: Book, run: str) -> float:
    try:
        return book.reader.estimate(run).value
    except NotRun:
        return float("nan")


def targets_at_two_resolutions(book: Book, full: str, low: str, images: int = 4, seed: int = 0) -> Figure | None:
    """Figures 3, 8 and 9: pixels and HOG of the same photographs at the image sizes of two runs, with PSNR and SSIM between them.

    None where the run's images are not here.
    """
    big, small = (book.params.resolve(name, book.results.budget) for name in (full, low))
    batch = _batch(book, big, images, seed)
    if batch is None:
        return None
    cell = small.target_options.get("cell", CELL)
    scores = similarities(batch, small.image_size, cell)
    views = {
        f"pixels, {big.image_size} px": batch,
        f"pixels, {small.image_size} px": reduced(batch, small.image_size),
        f"HOG, {big.image_size} px": drawn(dense_hog(batch, cell)),
        f"HOG, {small.image_size} px": drawn(dense_hog(reduced(batch, small.image_size), cell)),
    }
    shown = {title: _pictures(view, batch.shape[-1]) for title, view in views.items()}
    figure = figures.reconstructions([{title: view[k] for title, view in shown.items()} for k in range(len(batch))])
    for k in range(len(batch)):
        for column, kind in ((1, "pixel"), (3, "hog")):
            text = f"{scores[f'psnr_{kind}'][k]:.1f} dB, SSIM {scores[f'ssim_{kind}'][k]:.2f}"
            figure.axes[4 * k + column].text(0.5, -0.02, text, transform=figure.axes[4 * k + column].transAxes, ha="center", va="top", size=7)
    return figure


def predictions(book: Book, pixel_run: str, hog_run: str, images: int = 4, seed: int = 0) -> Figure | None:
    """Figures 10 and 11: masked image, input, what the pixel run predicts, its HOG, what the HOG run predicts, under the same masks.

    Visible units are not part of the loss, so predictions there mean nothing. None where a run or its weights are not here. Raises
    UserError when the two runs do not mask the same units.
    """
    found = [_predicted(book, name, images, seed) for name in (pixel_run, hog_run)]
    if None in found:
        return None
    (batch, pixel, pixel_target, run), (other, hog, hog_target, _) = found
    if batch.shape != other.shape or not torch.equal(pixel.mask, hog.mask):
        raise UserError(f"runs {pixel_run} and {hog_run} do not mask the same units: compare runs of one image size, unit and ratio")
    size = batch.shape[-1]
    hidden = F.interpolate(pixel.mask.unflatten(1, pixel.grid)[:, None], size=(size, size))
    values = unpatchify(pixel_target.unnormalise(pixel.pred, batch), run.patch_size, pixel.grid)
    views = {
        MASKED: batch.float() / 255 * (1 - hidden) + 0.5 * hidden,
        INPUT: batch,
        BORROWED if pixel_target.norm_pix else PREDICTED: denormalise(values).float() / 255,
        TRUTH: drawn(hog_target.to_dense(hog_target(batch), hog.grid)),
        HOG_PREDICTED: drawn(hog_target.to_dense(hog.pred, hog.grid)),
    }
    shown = {title: _pictures(view, size) for title, view in views.items()}
    return figures.reconstructions([{title: view[k] for title, view in shown.items()} for k in range(len(batch))])


def drawn(cells: Tensor) -> Tensor:
    """Histograms (N, 3, 9, h, w) -> (N, 1, h * 16, w * 16) glyphs in 0..1, mean over the colours."""
    glyphs = hog_image(cells.mean(dim=1), GLYPH)[:, None]
    return glyphs / glyphs.amax(dim=(1, 2, 3), keepdim=True).clamp(min=1e-6)


def _predicted(book: Book, name: str, images: int, seed: int):
    """(uint8 images, Prediction, target, run) of a finished run, or None."""
    run = book.params.resolve(name, book.results.budget)
    weights = book.root / book.params.results_folder(name, book.results.budget) / "weights" / f"seed{seed}.safetensors"
    batch = _batch(book, run, images, seed)
    if batch is None or not weights.exists():
        return None
    target = targets.build(run.target, run.patch_size, **run.target_options)
    model = build_pretraining_model(run, target.dim)
    model.load_state_dict(load_weights(weights))
    noise = torch.rand(len(batch), model.num_patches, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        return batch, model.eval()(normalise(batch), noise), target, run


def _batch(book: Book, run: PretrainRun, images: int, seed: int) -> Tensor | None:
    folder = book.root / book.params.data_folder(run.dataset, book.results.budget)
    return sample_images(folder, run.image_size, images) if (folder / "val.beton").exists() else None


def _pictures(view: Tensor, size: int) -> np.ndarray:
    """(N, 1 or 3, h, w), uint8 or in 0..1, -> (N, H, W, 3) in 0..1, enlarged to at least `size` pixels without smoothing."""
    values = view.float() / 255 if view.dtype == torch.uint8 else view
    if values.shape[-1] < size:
        values = F.interpolate(values, size=(size, size))
    return values.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).clamp(0, 1).numpy()

"""FastMIM's figures: benchmark, losses, grid search, targets at two resolutions, predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F

from replicate.errors import UserError
from replicate.loaders.pixels import denormalise, normalise
from replicate.patches import unpatchify
from replicate.report import figures, reconstruct
from replicate.report.glyphs import hog_glyphs
from replicate.report.reconstruct import BORROWED, HOG, HOG_PREDICTED, MASKED, PREDICTED
from replicate.report.style import HEATMAP, OURS, PAPER, REFERENCE, Figure
from replicate.targets.hog import CELL, dense_hog
from replicate.targets.similarity import reduced, similarities

if TYPE_CHECKING:
    from torch import Tensor

    from replicate.config import PretrainRun
    from replicate.report.book import Book

INPUT = "input"


def benchmark_bars(table: pd.DataFrame) -> Figure:
    """Figure 2: each framework's time or memory over FastMIM's; marks for printed ratios."""
    measures = list(dict.fromkeys(table["measure"]))
    height = 1.2 + 0.45 * len(table) / len(measures)
    figure, axes = figures.new(1, len(measures), width=4.6 * len(measures), height=height, sharey=False)
    for axis, measure in zip(axes[0], measures, strict=True):
        part = table[table["measure"] == measure].reset_index(drop=True)
        axis.barh(part.index, part["ours"], color=OURS, height=0.6, label="here")
        for place, text in part["published"].items():
            ends = [float(end) for end in text.split(" to ")] if text else []
            axis.plot(ends, [place] * len(ends), color=PAPER, marker="|", markersize=14, linewidth=2)
        axis.axvline(1, color=REFERENCE, linewidth=0.8)
        axis.set_yticks(part.index, [f"{line.against}, {_short(line.case)}" for line in part.itertuples()])
        axis.invert_yaxis()
        axis.set(title=measure, xlabel="times FastMIM's (marks: the paper)")
    return figure


def _short(case: str) -> str:
    """The backbone of a measured case, and its device where that is a GPU."""
    return case.split(" at ")[0] + (", GPU" if case.endswith(", cuda") else "")


def losses(book: Book, runs: Mapping[str, str]) -> Figure | None:
    """A panel of Figure 7: training losses, legend -> run; None without any history."""
    histories = book.histories(list(runs.values()))
    found = {label: histories[run] for label, run in runs.items() if run in histories and len(histories[run])}
    return figures.loss_curves(found) if found else None


def grid_search(
    book: Book, panels: Mapping[str, str], rates: Mapping[str, float], decays: Sequence[float]
) -> Figure:
    """Figure 6: accuracy over learning rate and LLRD; `panels` maps titles to prefixes of runs."""
    figure, axes = figures.new(1, len(panels), width=3.6 * len(panels), height=3.2)
    box = {"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 1.5}
    for axis, (title, prefix) in zip(axes[0], panels.items(), strict=True):
        runs = [[f"{prefix}_lr_{rate}_llrd_{round(decay * 100)}" for decay in decays] for rate in rates]
        values = np.array([[book.reader.value(run) for run in line] for line in runs])
        axis.imshow(np.ma.masked_invalid(values), cmap=HEATMAP, aspect="auto")
        for row, column in np.ndindex(values.shape):
            text = f"{values[row, column]:.1f}" if np.isfinite(values[row, column]) else "not run"
            axis.text(column, row, text, ha="center", va="center", bbox=box)
        axis.set_xticks(range(len(decays)), [f"{decay:g}" for decay in decays])
        axis.set_yticks(range(len(rates)), [f"{rate:g}" for rate in rates.values()])
        axis.set(title=title, xlabel="layer-wise learning-rate decay", ylabel="base learning rate")
    return figure


def targets_at_two_resolutions(book: Book, full: str, low: str, images: int = 4) -> Figure | None:
    """Figures 3, 8 and 9: pixels and HOG of photographs at the image sizes of two runs.

    None where the run's images are not here.
    """
    big, small = (book.params.resolve(name, book.results.budget) for name in (full, low))
    batch = _batch(book, big, images)
    if batch is None:
        return None
    cell = small.target_options.get("cell", CELL)
    scores = similarities(batch, small.image_size, cell)
    shrunk = reduced(batch, small.image_size)
    figure = _drawn(
        {
            f"pixels, {big.image_size} px": batch,
            f"pixels, {small.image_size} px": shrunk,
            f"HOG, {big.image_size} px": hog_glyphs(dense_hog(batch, cell)),
            f"HOG, {small.image_size} px": hog_glyphs(dense_hog(shrunk, cell)),
        },
        batch.shape[-1],
    )
    for k in range(len(batch)):
        for column, kind in ((1, "pixel"), (3, "hog")):
            axis = figure.axes[4 * k + column]
            text = f"{scores[f'psnr_{kind}'][k]:.1f} dB, SSIM {scores[f'ssim_{kind}'][k]:.2f}"
            axis.text(0.5, -0.02, text, transform=axis.transAxes, ha="center", va="top", size=7)
    return figure


def predictions(book: Book, pixel_run: str, hog_run: str, images: int = 4) -> Figure | None:
    """Figures 10 and 11: masked image, input, pixels as predicted, HOG, HOG as predicted.

    Both runs get the same masks. Visible units are not part of the loss, so predictions there mean nothing.
    None where a run or its weights are not here. Raises UserError when the two runs do not mask the same
    units.
    """
    found = [_predicted(book, name, images) for name in (pixel_run, hog_run)]
    if None in found:
        return None
    (batch, pixel, pixel_target, run), (other, hog, hog_target, _) = found
    if batch.shape != other.shape or not torch.equal(pixel.mask, hog.mask):
        both = f"runs {pixel_run} and {hog_run}"
        raise UserError(f"{both} do not mask the same units: compare runs of one image size, unit and ratio")
    size = batch.shape[-1]
    hidden = F.interpolate(pixel.mask.unflatten(1, pixel.grid)[:, None], size=(size, size))
    values = unpatchify(pixel_target.unnormalise(pixel.pred, batch), run.patch_size, pixel.grid)
    views = {
        MASKED: batch.float() / 255 * (1 - hidden) + 0.5 * hidden,
        INPUT: batch,
        BORROWED if pixel_target.norm_pix else PREDICTED: denormalise(values).float() / 255,
        HOG: hog_glyphs(hog_target.to_dense(hog_target(batch), hog.grid)),
        HOG_PREDICTED: hog_glyphs(hog_target.to_dense(hog.pred, hog.grid)),
    }
    return _drawn(views, size)


def _predicted(book: Book, name: str, images: int) -> tuple[Tensor, Any, torch.nn.Module, PretrainRun] | None:
    """(uint8 images, Prediction, target, run) of a finished run, or None."""
    run = book.params.resolve(name, book.results.budget)
    batch = _batch(book, run, images)
    if batch is None or not book.weights(name).exists():
        return None
    model, target = reconstruct.load_model(run, book.weights(name))
    with torch.no_grad():
        return batch, model(normalise(batch), reconstruct.mask_noise(model, len(batch))), target, run


def _batch(book: Book, run: PretrainRun, images: int) -> Tensor | None:
    folder = book.images(run.dataset)
    if not (folder / "val.beton").exists():
        return None
    return reconstruct.sample_images(folder, run.image_size, images)


def _drawn(views: Mapping[str, Tensor], size: int) -> Figure:
    """A row an image, a column a view; title -> (N, 1 or 3, h, w), uint8 or in 0..1."""
    shown = {title: _pictures(view, size) for title, view in views.items()}
    rows = [dict(zip(shown, images, strict=True)) for images in zip(*shown.values(), strict=True)]
    return figures.reconstructions(rows)


def _pictures(view: Tensor, size: int) -> np.ndarray:
    """(N, 1 or 3, h, w), uint8 or in 0..1, -> (N, H, W, 3) in 0..1, enlarged to `size` pixels."""
    values = view.float() / 255 if view.dtype == torch.uint8 else view
    if values.shape[-1] < size:
        values = F.interpolate(values, size=(size, size))
    return values.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).clamp(0, 1).numpy()

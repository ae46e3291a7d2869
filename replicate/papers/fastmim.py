"""FastMIM: committed measurements beside printed ones, runs of its figures, computed numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from replicate.errors import UserError
from replicate.report import benchmarks
from replicate.report.computed import Cell
from replicate.report.ranges import Range

if TYPE_CHECKING:
    from replicate.report.book import Book

BENCHMARKS = ("benchmarks/results/fastmim_step.json", "benchmarks/results/fastmim_step_cuda.json")
"""On a CPU and on a GPU."""

INVARIANCE = "benchmarks/results/hog_invariance.json"
KINDS, MEASURES = {"pixels": "pixel", "HOG": "hog"}, {"PSNR, dB": "psnr", "SSIM": "ssim"}
WORDS = {"step": "time of a step", "activations": "memory for the backward pass"}
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
AGAINST_SCRATCH = {
    name: (f"fastmim_{key}_hog_128_ft", f"fastmim_{key}_scratch_ft") for name, key in BACKBONES.items()
}
"""Table 4: of each backbone the run after FastMIM's pre-training, and the one from scratch."""


def fewer_tokens(cell: Cell, from_side: int, to_side: int) -> Range:
    """How many percent fewer tokens a smaller grid has."""
    return Range.exact(100 * (1 - to_side**2 / from_side**2))


FUNCTIONS = DERIVED = (fewer_tokens,)


def benchmark(book: Book) -> pd.DataFrame:
    """The committed step times and memory (Figure 2, Table 3), on a CPU and, where it was measured, on a GPU.

    What FastMIM needs, what each framework needs, and the second divided by the first, ours and as published:
    `published` is a ratio of hours an epoch, or for memory the range of section 5.1. Raises UserError when
    nothing was measured.
    """
    lines = [_line(row) for path in BENCHMARKS for row in benchmarks.rows(book.root / path)]
    if not lines:
        raise UserError(
            f"{book.root / BENCHMARKS[0]}: no such file; `python benchmarks/fastmim_step.py` measures it"
        )
    return pd.DataFrame(lines)


def _line(row: Mapping[str, Any]) -> dict[str, Any]:
    kind, other = row["name"].split(": FastMIM vs ", 1)
    return {
        "measure": WORDS.get(kind, kind),
        "against": other,
        "case": row["case"],
        "FastMIM needs": _amount(row["ours"], row["unit"]),
        "it needs": _amount(row["theirs"], row["unit"]),
        "ours": row["ratio"],
        "published": _range(row["published"]),
        "machine": row["machine"],
    }


def _amount(value: float, unit: str) -> str:
    """Seconds, or bytes in readable units."""
    if unit == "bytes/image":
        return f"{value / 2**20:.1f} MiB an image"
    return f"{value / 2**30:.2f} GiB" if unit == "bytes" else f"{value:.3g} {unit}"


def _range(value: object) -> str:
    if isinstance(value, list):
        return " to ".join(f"{end:g}" for end in value)
    return "" if pd.isna(value) else f"{value:.2f}"


def invariance_on_photographs(book: Book) -> pd.DataFrame:
    """The committed similarity of 224-pixel photographs to themselves at 128, pixels beside HOG.

    One line a measure. Raises UserError when nothing was measured.
    """
    rows = benchmarks.rows(book.root / INVARIANCE)
    if not rows:
        command = "python benchmarks/hog_invariance.py --images FOLDER"
        raise UserError(f"{book.root / INVARIANCE}: no such file; `{command}` measures it")
    form = "{mean:.3g} [{low:.3g}, {high:.3g}]"
    lines = {
        name: {kind: form.format(**rows[0][f"{measure}_{key}"]) for kind, key in KINDS.items()}
        for name, measure in MEASURES.items()
    }
    place = f"{rows[0]['images']} photographs, {rows[0]['case']}"
    return pd.DataFrame.from_dict(lines, orient="index").rename_axis(place)


def over_epochs(
    book: Book, backbone: str, sizes: Sequence[int], epochs: Sequence[int], usual: Mapping[str, int]
) -> dict[str, dict[int, str]]:
    """Figure 4's curves: legend -> {epochs: run}, of the runs that the paper's room states.

    A run's name leaves out its target's `usual` epochs.
    """
    curves = {}
    for label, target in KINDS.items():
        for size in sizes:
            stem = f"fastmim_{backbone}_{target}_{size}"
            names = {e: stem + ("_ft" if e == usual[target] else f"_ep{e}_ft") for e in epochs}
            curves[f"{label}, {size} px"] = {e: name for e, name in names.items() if name in book.params.runs}
    return curves

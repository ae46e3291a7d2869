"""One look for every figure: plain ticks, dark grey, and colours that colour-blind readers can tell apart."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib import figure as mpl_figure
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.transforms import Bbox
from PIL import Image

# Okabe and Ito, "Color Universal Design" (2008): blue, bluish green, reddish purple, orange, sky blue, black.
# The last, vermilion, is for the papers' own numbers.
PALETTE = ["#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#D55E00"]
OURS, PAPER, REFERENCE = PALETTE[0], PALETTE[-1], "#767676"
MARKERS = ["o", "s", "^", "D", "v", "P", "X"]
HEATMAP = "cividis"
WIDTH, HEIGHT = 6.4, 3.8
DPI, SCREEN_DPI = 160, 84

INK = ".15"
_TICKS = {
    "color": INK,
    "labelsize": 9.9,
    "major.size": 6,
    "major.width": 1.25,
    "minor.size": 4,
    "minor.width": 1,
}
_SETTINGS = {
    "axes.axisbelow": True,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.labelsize": 10.8,
    "axes.linewidth": 1.25,
    "axes.prop_cycle": mpl.cycler(color=PALETTE),
    "font.size": 10.8,
    "grid.color": ".8",
    "grid.linewidth": 1,
    "legend.fontsize": 9.9,
    "legend.title_fontsize": 10.8,
    "lines.solid_capstyle": "round",
    "patch.edgecolor": "w",
    "patch.facecolor": PALETTE[0],
    "patch.force_edgecolor": True,
    "text.color": INK,
    **{f"{axis}tick.{key}": value for axis in "xy" for key, value in _TICKS.items()},
    "figure.figsize": (WIDTH, HEIGHT),
    "figure.dpi": 110,
    "savefig.dpi": DPI,
    "savefig.bbox": "tight",
    "axes.titlesize": "medium",
    "axes.titlelocation": "left",
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "lines.markersize": 6,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "svg.fonttype": "none",
    "pdf.fonttype": 42,
    "svg.hashsalt": "replicate",
}
_DATELESS = {
    ".svg": {"Date": None},
    ".pdf": {"CreationDate": None, "ModDate": None},
    ".png": {"Software": None},
}


class Figure(mpl_figure.Figure):
    """A figure that shows itself in a notebook, although no pyplot knows of it."""

    @property
    def description(self) -> str:
        """What is drawn, for readers who do not see it: each panel's title and axes."""
        panels = (_described(axes) for axes in self.axes)
        return "; ".join(dict.fromkeys(text for text in panels if text)) or "a grid of images"

    def _repr_png_(self) -> tuple[bytes, dict[str, str]]:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", metadata=_DATELESS[".png"])
        return buffer.getvalue(), {"alt": self.description}

    def quick_png(self, places: list[Bbox] | None = None, dpi: int = SCREEN_DPI) -> bytes:
        """The picture at screen resolution, for widgets: several times as fast as a page's.

        places: the axes' places in a figure of the same panels. They replace the search for a layout, which
        takes longer than drawing.
        """
        self.set_dpi(dpi)
        if places and len(places) == len(self.axes):
            self.set_layout_engine("none")
            for axes, place in zip(self.axes, places, strict=True):
                axes.set_position(place)
        canvas, buffer = FigureCanvasAgg(self), io.BytesIO()
        canvas.draw()
        Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3]).save(buffer, "png", compress_level=1)
        return buffer.getvalue()


def _described(axes: Axes) -> str:
    title = axes.get_title(loc="left") or axes.get_title()
    labels = " against ".join(label for label in (axes.get_ylabel(), axes.get_xlabel()) if label)
    return ": ".join(text for text in (title, labels) if text)


def set_theme() -> None:
    """Set the theme for this process; every drawing function calls it."""
    mpl.rcParams.update(_SETTINGS)


def new(
    rows: int = 1, columns: int = 1, width: float = WIDTH, height: float = HEIGHT, **options: Any
) -> tuple[Figure, np.ndarray]:
    """An empty figure with the theme and its axes (rows, columns)."""
    set_theme()
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def one(width: float = WIDTH, height: float = HEIGHT) -> tuple[Figure, Axes]:
    """An empty figure with the theme and its only axes."""
    figure, axes = new(width=width, height=height)
    return figure, axes[0, 0]


def save_figure(figure: Figure, stem: str | Path) -> list[Path]:
    """Write `<stem>.svg`, `.pdf` and `.png`; the same figure gives the same bytes."""
    stem = Path(stem)
    stem.parent.mkdir(parents=True, exist_ok=True)
    written = []
    with warnings.catch_warnings():
        # Whether placing a legend takes long depends on the machine, and the warning names its folders.
        warnings.filterwarnings("ignore", message='Creating legend with loc="best"')
        for suffix, metadata in _DATELESS.items():
            written.append(stem.with_name(stem.name + suffix))
            figure.savefig(written[-1], metadata=metadata)
    return written

"""One look for every figure: seaborn's theme, and colours that colour-blind readers can tell apart."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import matplotlib as mpl
from matplotlib import figure as mpl_figure
from matplotlib.axes import Axes

# Okabe and Ito, "Color Universal Design" (2008): blue, bluish green, reddish purple, orange, sky blue, black.
# The last, vermilion, is for the papers' own numbers.
PALETTE = ["#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#D55E00"]
OURS, PAPER, REFERENCE = PALETTE[0], PALETTE[-1], "#767676"
MARKERS = ["o", "s", "^", "D", "v", "P", "X"]
HEATMAP = "cividis"
WIDTH, HEIGHT = 6.4, 3.8
DPI = 160

_SETTINGS = {
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


def _described(axes: Axes) -> str:
    title = axes.get_title(loc="left") or axes.get_title()
    labels = " against ".join(label for label in (axes.get_ylabel(), axes.get_xlabel()) if label)
    return ": ".join(text for text in (title, labels) if text)


def set_theme() -> None:
    """Set the theme for this process; every drawing function calls it."""
    import seaborn as sns

    sns.set_theme(context="notebook", style="ticks", palette=PALETTE, font_scale=0.9)
    mpl.rcParams.update(_SETTINGS)


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

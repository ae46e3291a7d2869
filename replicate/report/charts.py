"""The site's own figures: what a paper's claims came to, and one of its tables with ours on the same axis."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.text import Text

from replicate.config import published
from replicate.report.colours import kind_of
from replicate.report.figures import new, one, reach
from replicate.report.style import OURS, PALETTE, PAPER, REFERENCE, Figure

COLOURS = {"good": PALETTE[1], "bad": PAPER, "open": REFERENCE}
ROW, EDGE, WIDTH = 0.28, 0.9, 6.0  # inches
FEWEST, MOST = 3, 12
"""Rows of a key figure."""

INK = {"light": "#222832", "dark": "#ced6dd"}


def save(figure: Figure, stem: Path) -> None:
    """Write `<stem>-light.svg` and `<stem>-dark.svg`, transparent."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    for theme, ink in INK.items():
        for text in figure.findobj(Text):
            text.set_color(ink)
        for axes in figure.axes:
            axes.tick_params(color=ink)
            axes.spines[:].set_color(ink)
        with mpl.rc_context({"svg.fonttype": "path"}):
            figure.savefig(f"{stem}-{theme}.svg", transparent=True, metadata={"Date": None})


def shown_claims(claims: pd.DataFrame) -> pd.DataFrame:
    """The claims that the figure shows: those with an effect and a unit, decided ones first."""
    kinds = claims["verdict"].map(kind_of)
    found = claims[claims["effect"].notna() & (claims["unit"] != "") & kinds.isin(list(COLOURS))]
    return found.loc[kinds[found.index].map(list(COLOURS).index).sort_values(kind="stable").index]


def effects(claims: pd.DataFrame) -> Figure:
    """`shown_claims`, a panel a unit: effect and interval; right of the line agrees with the claim."""
    units = [frame for _, frame in claims.groupby("unit", sort=False)]
    heights = [len(frame) + EDGE / ROW for frame in units]
    ratios = {"height_ratios": heights}
    figure, axes = new(len(units), width=WIDTH, height=ROW * sum(heights), gridspec_kw=ratios)
    for panel, frame in zip(axes[:, 0], units, strict=True):
        places = np.arange(len(frame))
        lengths = np.nan_to_num(np.array([frame["effect"] - frame["low"], frame["high"] - frame["effect"]]))
        for place, (kind, line) in enumerate(
            zip(frame["verdict"].map(kind_of), frame.itertuples(), strict=True)
        ):
            style = {"color": COLOURS[kind], "marker": "o", "capsize": 3}
            panel.errorbar(line.effect, place, xerr=lengths[:, [place]].clip(0), **style)
        panel.axvline(0, color=REFERENCE, linewidth=1)
        panel.set_yticks(places, [name.partition(".")[2].replace("_", " ") for name in frame["claim"]])
        panel.set_ylim(len(frame) - 0.5, -0.5)
        panel.set_xlabel(frame["unit"].iloc[0])
    return figure


def key_rows(numbers: pd.DataFrame) -> pd.DataFrame:
    """The rows of one printed column that most of our runs stand beside, each run once; too few give none.

    A column of percentages goes first: accuracy compares across scales, and memory or hours do not.
    """
    trained = numbers[(numbers["seeds"] > 0) & (numbers["table"] != "text")].drop_duplicates(
        ["table", "panel", "column", "run"]
    )
    groups = [frame for _, frame in trained.groupby(["table", "panel", "column", "unit"], sort=False)]
    enough = [frame for frame in groups if len(frame) >= FEWEST]
    best = max(enough, key=lambda one: ((one["unit"] == "percent").all(), len(one)), default=trained.head(0))
    return best.head(MOST)


def beside(rows: pd.DataFrame) -> Figure:
    """Paper and ours on one axis: each as its distance from its own mean over the same rows."""
    figure, axes = one(WIDTH, ROW * len(rows) + EDGE)
    places = np.arange(len(rows))
    printed = published.values().loc[rows["id"], "value"].to_numpy()
    axes.plot(printed - printed.mean(), places - 0.1, "s", color=PAPER, label="the paper")
    bars = {"xerr": reach(rows), "capsize": 3, "fmt": "o", "color": OURS, "label": "ours, 95 % interval"}
    axes.errorbar(rows["ours"] - rows["ours"].mean(), places + 0.1, **bars)
    axes.axvline(0, color=REFERENCE, linewidth=1)
    axes.set_yticks(places, labels(rows))
    axes.set_ylim(len(rows) - 0.5, -0.5)
    unit = rows["unit"].iloc[0].replace("percent", "points").replace("_", " ")
    axes.set_xlabel(f"distance from the mean of these rows ({unit})")
    figure.legend(loc="outside upper center", ncols=2)
    return figure


def labels(rows: pd.DataFrame) -> list[str]:
    """What tells rows apart, in words."""
    settings = [published.setting(row) for row in rows["row"]]
    keys = [key for key in settings[0] if len({one.get(key) for one in settings}) > 1]
    texts = [", ".join(f"{key} {one[key]}" for key in keys if key in one) for one in settings]
    return [text.replace("_", " ") for text in texts]

"""Every point of a figure's curves as a table: the place that a figure has among the tables."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

from replicate.report.quantities import NotRun, Reader

POINTS = ["curve", "place", "run", "published", "ours", "ours_low", "ours_high", "seeds", "status"]


def points(reader: Reader, sweeps: Mapping[str, str], cells: pd.DataFrame) -> pd.DataFrame:
    """Every point of some curves of a figure, one line a point with the columns `POINTS`: a figure's place among the tables.

    `sweeps` maps a curve's legend to the sweep; `cells` are the paper's numbers of the figure, for what it prints of its curves.
    """
    printed = dict(zip(cells["run"], cells["published"], strict=True))
    lines = []
    for label, sweep in sweeps.items():
        for place, run in sorted(reader.points(sweep).items()):
            line = {"curve": label, "place": place, "run": run, "published": printed.get(run, "")}
            lines.append(line | _point(reader, run))
    return pd.DataFrame(lines, columns=POINTS)


def point_texts(table: pd.DataFrame, place: str) -> pd.DataFrame:
    """Points for reading: one line a place on the axis, and for every curve ours with its interval, and what the paper prints."""
    shown = table.assign(text=[_point_text(line) for line in table.to_dict("records")])
    wide = shown.pivot(index="place", columns="curve", values=["text", "published"]).fillna("")
    columns = [(kind, curve) for curve in dict.fromkeys(table["curve"]) for kind in ("published", "text") if (wide[kind, curve] != "").any()]
    named = wide[columns]
    named.columns = [curve + (", printed" if kind == "published" else "") for kind, curve in columns]
    named.index = [f"{x:g}" for x in named.index]
    return named.rename_axis(place).reset_index()


def _point(reader: Reader, run: str) -> dict[str, Any]:
    try:
        found = reader.estimate(run)
    except NotRun:
        return {"ours": math.nan, "ours_low": math.nan, "ours_high": math.nan, "seeds": 0, "status": "not run at this budget"}
    return {"ours": found.value, "ours_low": found.low, "ours_high": found.high, "seeds": found.seeds, "status": "run"}


def _point_text(line: Mapping[str, Any]) -> str:
    if not line["seeds"]:
        return line["status"]
    bounded = math.isfinite(line["ours_low"]) and math.isfinite(line["ours_high"])
    return f"{line['ours']:.1f}" + (f" [{line['ours_low']:.1f}, {line['ours_high']:.1f}]" if bounded else "")

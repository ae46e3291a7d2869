"""Small tables: differences between runs, points of curves, runs, errata, software."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from replicate.config import published
from replicate.intervals import Estimate
from replicate.provenance import PAGE_SOURCES, git_state, machine, versions
from replicate.report import computed, tables
from replicate.report.quantities import NotRun, Reader
from replicate.report.results import Results, Run

CONTRASTS = ["left", "right", "difference", "low", "high", "seeds", "df", "pooled"]
POINTS = ["curve", "place", "run", "published", "ours", "ours_low", "ours_high", "seeds", "df", "pooled"]
POINTS += ["status"]
HEADLINES = ("top1", "ap_box", "miou", "val_loss", "loss", "images_per_second")
"""A run's headline number is the first of these that it reports."""
NOTHING = Estimate(math.nan, math.nan, math.nan, 0)


def contrasts(reader: Reader, pairs: Mapping[str, tuple[str, str]]) -> pd.DataFrame:
    """A line a pair of runs: both means, left - right in points and its 95 % interval."""
    lines = {name: _contrast(reader, *pair) for name, pair in pairs.items()}
    return pd.DataFrame.from_dict(lines, orient="index", columns=CONTRASTS)


def _contrast(reader: Reader, left: str, right: str) -> list[str]:
    try:
        means = [f"{reader.estimate(run).value:.1f}" for run in (left, right)]
        found = reader.estimate({"minus": [left, right]})
    except NotRun as error:
        return [f"not run: {error}", *[""] * (len(CONTRASTS) - 1)]
    bounds = [f"{bound:+.1f}" if found.has_interval else "" for bound in (found.low, found.high)]
    rests_on = [f"{found.df:.3g}" if found.has_interval else "", str(found.pooled)]
    return [*means, f"{found.value:+.1f}", *bounds, str(found.seeds), *rests_on]


def points(reader: Reader, sweeps: Mapping[str, str], cells: pd.DataFrame) -> pd.DataFrame:
    """Every point of a figure's curves, one line a point with the columns `POINTS`.

    `sweeps` maps a curve's legend to the sweep; `cells` are the paper's numbers of the figure.
    """
    printed = dict(zip(cells["run"], cells["published"], strict=True))
    lines = []
    for label, sweep in sweeps.items():
        for place, run in sorted(reader.points(sweep).items()):
            try:
                found, status = reader.estimate(run), "run"
            except NotRun:
                found, status = NOTHING, tables.NOT_RUN
            numbers = [*found[:4], found.df, found.pooled]
            lines.append([label, place, run, printed.get(run, ""), *numbers, status])
    return pd.DataFrame(lines, columns=POINTS)


def point_texts(table: pd.DataFrame, place: str) -> pd.DataFrame:
    """Points for reading: a line a place on the axis, two columns a curve, ours and printed."""
    shown = table.assign(text=[_point_text(line) for line in table.to_dict("records")])
    wide = shown.pivot(index="place", columns="curve", values=["text", "published"]).fillna("")
    both = [(kind, curve) for curve in dict.fromkeys(table["curve"]) for kind in ("published", "text")]
    columns = [pair for pair in both if (wide[pair] != "").any()]
    named = wide[columns].set_axis([name + ", printed" * (kind != "text") for kind, name in columns], axis=1)
    named.index = [f"{x:g}" for x in named.index]
    return named.rename_axis(place).reset_index()


def _point_text(line: Mapping[str, Any]) -> str:
    if not line["seeds"]:
        return line["status"]
    bounded = pd.notna(line["ours_low"]) and pd.notna(line["ours_high"])
    return f"{line['ours']:.1f}" + (f" [{line['ours_low']:.1f}, {line['ours_high']:.1f}]" if bounded else "")


def finished(runs: Sequence[Run], results: Results) -> pd.DataFrame:
    """One line a finished run of `results`: its number with a 95 % interval, and its provenance."""
    return pd.DataFrame([_line(run, Reader(results)) for run in runs])


def _line(run: Run, reader: Reader) -> dict[str, object]:
    metric = next((name for name in HEADLINES if name in run.per_seed[0]), "")
    values = list(run.values(metric).values()) if metric else []
    found = reader.estimate(f"{run.name}/{metric}") if metric else NOTHING
    texts = [f"{number:.4g}" if number == number else "" for number in (*found[:3], found.df)]
    made = run.provenance
    versions, git = made.get("versions", {}), made.get("git", {})
    seconds = 3600 * sum(one.get("train_hours", 0) for one in run.per_seed)
    return {
        "run": run.name,
        "metric": metric,
        **dict(zip(("ours", "ours_low", "ours_high", "df"), texts, strict=True)),
        "pooled": found.pooled,
        "seeds": len(run.seeds),
        "per_seed": " ".join(f"{value:.4g}" for value in values),
        "device": run.device,
        "torch": versions.get("torch", ""),
        "timm": versions.get("timm", ""),
        "revision": str(git.get("revision", ""))[:12] + " with changes" * bool(git.get("dirty")),
        "data": str(made.get("manifest_sha256", ""))[:12],
        "train_seconds": f"{seconds:.0f}" if seconds else "",
    }


def recomputed(cells: pd.DataFrame) -> pd.DataFrame:
    """The printed numbers of `tables.cells` that differ from a recomputation: printed, computed, and how.

    No training is involved: the values come from the paper's other numbers or from first principles.
    """
    lines = []
    for cell in cells[cells["agreement"] == computed.DIFFERS].to_dict("records"):
        found = computed.numbers(cell["id"].partition(".")[0])[cell["id"]]
        place = cell["table"].replace("_", " ").capitalize() + f" ({cell['panel']})" * bool(cell["panel"])
        row = ", ".join(f"{name}={value}" for name, value in published.setting(cell["row"]).items())
        lines.append([place, row, cell["column"], cell["published"], f"{found.range.value:.4g}", found.note])
    columns = ["place", "row", "what", "printed", "computed", "how"]
    return pd.DataFrame(lines, columns=columns).set_index("place").rename_axis(None)


ERRATA = ["paper", "grade", "place", "printed", "found", "note"]


def errata(paper: str | None = None) -> pd.DataFrame:
    """What we would send to a paper's authors, or of all papers, the gravest grade first."""
    found = [entry for entry in published.errata() if paper in (None, entry["paper"])]
    return pd.DataFrame(found, columns=ERRATA if paper is None else ERRATA[1:])


def released(paper: str) -> pd.DataFrame:
    """Settings where the released code differs from the paper or settles it, and what the runs take."""
    found = [entry for entry in published.released() if entry["of"] == paper]
    return pd.DataFrame(found, columns=list(published.RELEASED_KEYS))


def notes(paper: str) -> pd.DataFrame:
    """What looked wrong in a paper and is not: scanned badly, or explained."""
    found = [entry for entry in published.notes() if entry["paper"] == paper]
    return pd.DataFrame(found, columns=["place", "kind", "printed", "found", "note"])


def software() -> dict[str, str]:
    """What makes a page: git revision, machine and versions."""
    git, here = git_state(paths=PAGE_SOURCES), machine()
    return {
        "git revision": git["revision"][:12] + (" with changes" if git["dirty"] else ""),
        "machine": f"{here['system']} {here['architecture']}, {here['cores']} cores",
        "versions": ", ".join(f"{name} {version}" for name, version in versions().items() if version),
    }

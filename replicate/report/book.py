"""What a paper's notebook works with: the paper, the budget, its results, and where its tables and figures go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
from IPython.display import Markdown

from replicate.config import published
from replicate.provenance import PAGE_SOURCES, git_state, machine, versions
from replicate.report import costs, figures, loader_runs, points, results, style, summary, tables, verdicts
from replicate.report.lens import lens
from replicate.report.quantities import Reader

if TYPE_CHECKING:
    from replicate.config import Params

__all__ = ["Book", "figures", "costs"]

NOTHING_DRAWN = "*No picture: the runs or weights that it shows are not here at this budget.*"

# A notebook's tables are read, not skimmed: a cut name or a left-out line hides what was compared.
pd.set_option("display.max_colwidth", None)
pd.set_option("display.max_rows", None)


@dataclass(frozen=True)
class Book:
    """One paper at one budget. Shown in a notebook it says what made its numbers: versions, git revision, machine, runs.

    `budget` None is the active budget of params.yaml. `scope` "headline" reads the runs of the default pipeline alone, "full"
    those of the grid too, and what it writes lies in a folder "full" of its own. Files are read and written relative to `root`.
    """

    paper: str
    budget: str | None = None
    scope: str = "headline"
    root: Path = field(default_factory=lambda: repository())

    @cached_property
    def params(self) -> Params:
        from replicate.config import load

        return load(self.root / "params.yaml")

    @cached_property
    def results(self) -> results.Results:
        return loader_runs.load(self.budget or self.params.budget, self.root, grid=self.scope == "full")

    @cached_property
    def reader(self) -> Reader:
        """Reads quantities (runs, differences, sweeps) from the budget's results."""
        return Reader(self.results, published.sweeps())

    @cached_property
    def claims(self) -> pd.DataFrame:
        """The paper's claims with their verdicts."""
        return verdicts.all_claims(self.results, {n: c for n, c in published.claims().items() if n.startswith(f"{self.paper}.")})

    @cached_property
    def cells(self) -> pd.DataFrame:
        """Every printed number of the paper beside ours."""
        return tables.cells(self.paper, self.results, dict(zip(self.claims["claim"], self.claims["verdict"], strict=True)))

    def table(self, name: str, panel: str | None = None) -> pd.DataFrame:
        """One table, or one panel of it, as people read it."""
        return _titled(tables.display(self._cells_of(name, panel)), "row")

    def lens(self, runs: Sequence[str]) -> pd.DataFrame:
        """What the budget makes of some runs: "paper -> this budget"."""
        return lens(self.params, runs, self.results.budget)

    def compared(self, table: str, column: str | None, key: str, panel: str | None = None) -> pd.DataFrame:
        """The numbers of a table, a panel or one column, labelled by a key of their setting, for `figures.comparison` and `ablation`.

        Several keys, "mask_sampling, mask_ratio", make a label of several words.
        """
        found = self._cells_of(table, panel)
        found = found if column is None else found[found["column"] == column]
        keys = key.split(", ")
        labels = [" ".join(published.setting(row).get(key, "") for key in keys) for row in found["row"]]
        return found.assign(label=labels)

    def points(self, name: str, sweeps: Mapping[str, str], place: str) -> pd.DataFrame:
        """The points of a figure's curves, ours and what the paper prints of them; written as the table `<name>_points` too."""
        found = points.points(self.reader, sweeps, self._cells_of(name))
        shown = points.point_texts(found, place)
        path = self.folder("tables") / self.paper / f"{name}_points.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        found.to_csv(path, index=False, lineterminator="\n")
        path.with_suffix(".md").write_text(tables.markdown(shown))
        path.with_suffix(".tex").write_text(tables.latex(shown))
        return _titled(shown, place)

    def _cells_of(self, table: str, panel: str | None = None) -> pd.DataFrame:
        found = self.cells[self.cells["table"] == table]
        return found if panel is None else found[found["panel"] == panel]

    def reconstructions(self, run: str, images: int = 4, across: int = 1, views: Sequence[str] | None = None) -> style.Figure | None:
        """Some validation images through a finished run, `across` of them side by side, all views or those named; None where the
        run, or its weights, are not here.
        """
        from replicate.report.reconstruct import reconstruct

        if not self._drawable(run):
            return None
        rows = reconstruct(self.params, run, budget=self.results.budget, images=images, root=self.root)
        return figures.reconstructions([{name: row[name] for name in views or row} for row in rows], across)

    def at_ratios(self, run: str, ratios: Sequence[float], images: int = 4) -> style.Figure | None:
        """The same images at several mask ratios through one model (MAE, Figure 4); None where the run is not here."""
        from replicate.report.reconstruct import at_ratios

        if not self._drawable(run):
            return None
        return figures.reconstructions(at_ratios(self.params, run, ratios, budget=self.results.budget, images=images, root=self.root))

    def side_by_side(self, runs: Mapping[str, str], images: int = 3) -> style.Figure | None:
        """The same images through several runs, each with its own mask (MAE, Figure 6); those that are not here are left out."""
        from replicate.report.reconstruct import side_by_side

        here = {label: run for label, run in runs.items() if self._drawable(run)}
        if not here:
            return None
        return figures.reconstructions(side_by_side(self.params, here, budget=self.results.budget, images=images, root=self.root))

    def _drawable(self, run: str) -> bool:
        return run in self.results and self.results.runs[run].path.with_name("weights").exists()

    def histories(self, runs: Sequence[str]) -> dict[str, pd.DataFrame]:
        """Training histories of those of the runs that have finished."""
        return {name: self.results.history(name) for name in runs if name in self.results}

    def verdicts(self) -> pd.DataFrame:
        """The claims for reading: verdict, effect with its interval, seeds, and what would decide the open ones."""
        shown = self.claims.copy()
        shown["effect"] = [verdicts.effect_text(line) for line in shown.to_dict("records")]
        shown["seeds"] = [str(count) if count else "" for count in shown["seeds"]]
        return _titled(shown[["statement", "verdict", "check", "effect", "seeds", "note"]], "statement")

    def contradictions(self) -> pd.DataFrame:
        """Where the paper contradicts itself or its formulas."""
        found = pd.DataFrame(entry for entry in published.contradictions() if entry["paper"] == self.paper)
        return _titled(found[["place", "kind", "printed", "recomputed", "note"]], "place")

    def save_tables(self) -> list[Path]:
        """Write every table as CSV, Markdown and LaTeX under tables/<budget>/<paper>."""
        written = tables.write(self.paper, self.results, self.folder("tables"), self.cells)
        self.save_frame(summary.finished([run for run in self.results.runs.values() if run.paper == self.paper]), "runs")
        return written

    def save_frame(self, frame: pd.DataFrame, name: str) -> pd.DataFrame:
        """Write a frame as CSV and Markdown beside the paper's tables, and hand it back to be shown."""
        path = self.folder("tables") / self.paper / f"{name}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        frame.to_csv(path, index=False, lineterminator="\n")
        path.with_suffix(".md").write_text(tables.markdown(frame.astype(str)))
        return frame

    def contrasts(self, pairs: Mapping[str, tuple[str, str]], name: str = "contrasts") -> pd.DataFrame:
        """Differences between runs, {what: (left, right)}, each with its interval; also written as the table `name`."""
        return self.save_frame(summary.contrasts(self.reader, pairs).rename_axis("contrast").reset_index(), name)

    def save(self, figure: style.Figure | None, name: str) -> style.Figure | Markdown:
        """Write a figure as SVG, PDF and PNG under figures/<budget>/<paper>, and hand it back to be shown; for None, a line saying so."""
        if figure is None:
            return Markdown(NOTHING_DRAWN)
        style.save_figure(figure, self.folder("figures") / self.paper / name)
        return figure

    def folder(self, kind: str) -> Path:
        """Where this book's tables or figures lie: <kind>/<budget>, or <kind>/<budget>/full."""
        return self.root / kind / self.results.budget / ("full" if self.scope == "full" else "")

    def _repr_markdown_(self) -> str:
        git, here = git_state(paths=PAGE_SOURCES), machine()
        runs = [run for run in self.results.runs.values() if run.paper == self.paper]
        devices = sorted({str(run.provenance.get("device", "")) for run in runs})
        lines = {
            "budget": self.results.budget,
            "finished runs": f"{len(runs)}, on {', '.join(devices)}" if runs else "none",
            "git revision": git["revision"][:12] + (" with changes" if git["dirty"] else ""),
            "machine": f"{here['system']} {here['architecture']}, {here['cores']} cores",
            "versions": ", ".join(f"{name} {version}" for name, version in versions().items() if version),
        }
        return "| | |\n|---|---|\n" + "".join(f"| {key} | {value} |\n" for key, value in lines.items())


def _titled(frame: pd.DataFrame, column: str) -> pd.DataFrame:
    """A table whose lines are named by one of its columns."""
    return frame.set_index(column).rename_axis(None)


def repository() -> Path:
    """The folder that holds params.yaml: the working folder or the nearest one above it, else the one that this package is in."""
    for folder in (Path.cwd(), *Path.cwd().parents):
        if (folder / "params.yaml").exists():
            return folder
    return Path(__file__).resolve().parents[2]

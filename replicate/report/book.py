"""What a paper's notebook works with: results of a budget, and where tables and figures go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
from IPython.display import Markdown

from replicate.config import published
from replicate.report import figures, loader_runs, results, style, summary, tables, verdicts, wording
from replicate.report.lens import lens
from replicate.report.quantities import Reader
from replicate.report.root import repository

if TYPE_CHECKING:
    from replicate.config import Params

NOTHING_DRAWN = "*No picture: the runs or weights that it shows are not here at this budget.*"

# A notebook's tables are read, not skimmed: a cut name or a left-out line hides what was compared.
pd.set_option("display.max_colwidth", None)
pd.set_option("display.max_rows", None)


@dataclass(frozen=True)
class Book:
    """One paper at one budget. A notebook shows it as a table: versions, git revision, machine, runs.

    `budget` None is the active budget of params.yaml. `scope` "headline" reads the runs of the default
    pipeline alone, "full" those of the grid too, and writes into a folder "full". Files are read and written
    relative to `root`.
    """

    paper: str
    budget: str | None = None
    scope: str = "headline"
    root: Path = field(default_factory=repository)

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
        return Reader(self.results)

    @cached_property
    def claims(self) -> pd.DataFrame:
        """The paper's claims with their verdicts."""
        return verdicts.all_claims(self.results, [self.paper])

    @cached_property
    def cells(self) -> pd.DataFrame:
        """Every printed number of the paper beside ours."""
        return tables.cells(self.paper, self.results, self.claims)

    def table(self, name: str, panel: str | None = None) -> pd.DataFrame:
        """One table, or one panel of it, as people read it."""
        return _titled(tables.display(self._cells_of(name, panel)), "row")

    def lens(self, runs: Sequence[str]) -> pd.DataFrame:
        """What the budget changes of some runs: "paper -> this budget"."""
        return lens(self.params, runs, self.results.budget)

    def compared(self, table: str, column: str | None, key: str, panel: str | None = None) -> pd.DataFrame:
        """The numbers of a table, a panel or one column, labelled by a key of their setting.

        Several keys, "mask_sampling, mask_ratio", make a label of several words.
        """
        found = self._cells_of(table, panel)
        found = found if column is None else found[found["column"] == column]
        settings = map(published.setting, found["row"])
        labels = [" ".join(setting.get(key, "") for key in key.split(", ")) for setting in settings]
        return found.assign(label=labels)

    def points(self, name: str, sweeps: Mapping[str, str], place: str) -> pd.DataFrame:
        """The points of a figure's curves; also written as the table `<name>_points`."""
        found = summary.points(self.reader, sweeps, self._cells_of(name))
        shown = summary.point_texts(found, place)
        tables.write_frame(found, self._table_path(f"{name}_points"), shown)
        return _titled(shown, place)

    def _cells_of(self, table: str, panel: str | None = None) -> pd.DataFrame:
        found = self.cells[self.cells["table"] == table]
        return found if panel is None else found[found["panel"] == panel]

    def reconstructions(
        self, run: str, images: int = 4, across: int = 1, views: Sequence[str] | None = None
    ) -> style.Figure | None:
        """Validation images through a finished run, `across` of them side by side.

        None where the run, or its weights, are not here.
        """
        from replicate.report.reconstruct import reconstruct

        if not self.has_weights(run):
            return None
        rows = reconstruct(self.params, run, budget=self.results.budget, images=images, root=self.root)
        return figures.reconstructions([{name: row[name] for name in views or row} for row in rows], across)

    def predictions(self, run: str, images: int = 4) -> style.Figure | None:
        """Validation images through a finished detection or segmentation, the truth beside the prediction.

        None where the run, or its weights, are not here.
        """
        from replicate.report.dense import predictions

        if not self.has_weights(run):
            return None
        rows = predictions(self.params, run, budget=self.results.budget, images=images, root=self.root)
        return figures.reconstructions(rows)

    def weights(self, run: str, seed: int = 0) -> Path:
        """Where a run's weights lie at this budget."""
        folder = self.params.results_folder(run, self.results.budget)
        return self.root / folder / "weights" / f"seed{seed}.safetensors"

    def has_weights(self, run: str) -> bool:
        return run in self.results and self.results.runs[run].path.with_name("weights").exists()

    def images(self, dataset: str) -> Path:
        """Where a data set lies at this budget."""
        return self.root / self.params.data_folder(dataset, self.results.budget)

    def histories(self, runs: Sequence[str]) -> dict[str, pd.DataFrame]:
        """Training histories of the runs that have finished."""
        return {name: self.results.history(name) for name in runs if name in self.results}

    def verdicts(self) -> pd.DataFrame:
        """The claims for reading: verdict, effect with its interval, seeds and note."""
        shown = self.claims.copy()
        shown["verdict"] = [wording.verdict_text(line) for line in self.claims.to_dict("records")]
        shown["effect"] = [wording.effect_text(line) for line in shown.to_dict("records")]
        shown["seeds"] = [str(count) if count else "" for count in shown["seeds"]]
        return _titled(shown[["statement", "verdict", "check", "effect", "seeds", "note"]], "statement")

    def errata(self) -> pd.DataFrame:
        """What we would send to the paper's authors, the gravest grade first."""
        return _titled(summary.errata(self.paper), "place")

    def notes(self) -> pd.DataFrame:
        """What looked wrong and is not: scanned badly, or explained."""
        return _titled(summary.notes(self.paper), "place")

    def save_tables(self) -> list[Path]:
        """Write every table as CSV, Markdown and LaTeX under tables/<budget>/<paper>."""
        written = tables.write(self.paper, self.cells, self.folder("tables"))
        self.save_frame(summary.finished(self._own_runs(), self.results), "runs")
        return written

    def save_frame(self, frame: pd.DataFrame, name: str) -> pd.DataFrame:
        """Write a frame as CSV and Markdown beside the paper's tables; returns it."""
        tables.write_frame(frame, self._table_path(name))
        return frame

    def contrasts(self, pairs: Mapping[str, tuple[str, str]], name: str = "contrasts") -> pd.DataFrame:
        """Differences between runs, {what: (left, right)}; also written as the table `name`."""
        return self.save_frame(
            summary.contrasts(self.reader, pairs).rename_axis("contrast").reset_index(), name
        )

    def save(self, figure: style.Figure | None, name: str) -> style.Figure | Markdown:
        """Write a figure under figures/<budget>/<paper>; returns it, or a note for None."""
        if figure is None:
            return Markdown(NOTHING_DRAWN)
        style.save_figure(figure, self.folder("figures") / self.paper / name)
        return figure

    def folder(self, kind: str) -> Path:
        """Where this book's tables or figures lie: <kind>/<budget>, or <kind>/<budget>/full."""
        return self.root / kind / self.results.budget / ("full" if self.scope == "full" else "")

    def _table_path(self, name: str) -> Path:
        return self.folder("tables") / self.paper / f"{name}.csv"

    def _own_runs(self) -> list[results.Run]:
        return [run for run in self.results.runs.values() if run.paper == self.paper]

    def _repr_markdown_(self) -> str:
        runs = self._own_runs()
        devices = ", ".join(sorted({run.device for run in runs}))
        lines = {
            "budget": self.results.budget,
            "finished runs": f"{len(runs)}, on {devices}" if runs else "none",
        }
        lines |= summary.software()
        return tables.markdown(pd.DataFrame(lines.items(), columns=["", " "]))


def _titled(frame: pd.DataFrame, column: str) -> pd.DataFrame:
    """A table whose lines are named by one of its columns."""
    return frame.set_index(column).rename_axis(None)

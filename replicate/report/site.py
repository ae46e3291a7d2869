"""The site: one static folder that needs neither network nor server.

`executed/<budget>/site` shows one budget. `docs/site`, which git holds, shows the project's findings, each
paper at the budget that `findings` in params.yaml names. nbconvert renders the notebooks; the pages are in
`templates/`.
"""

from __future__ import annotations

import base64
import io
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from replicate.config import published
from replicate.errors import UserError
from replicate.report import evidence, loader_runs, notebook, scoreboard, summary, tables, verdicts, wording
from replicate.report.checks import KINDS, NOT_RUN
from replicate.report.lens import setting_text
from replicate.report.page import page, render, words
from replicate.report.results import Results, Run
from replicate.report.scoreboard import Scoreboard

if TYPE_CHECKING:
    from replicate.config import Params

SHARED = {"scoreboard": "Scoreboard", "methods": "Methods", "data": "Data", "provenance": "Provenance"}
PAGES = {"index": "Overview", **published.papers(), **SHARED}
SAMPLES, SAMPLE_SIDE = 12, 96
FULL = "full"
LOADER_PAPER = "dailymae"
"""The paper whose claims are about loaders."""

FINDINGS = Path("docs") / "site"


@dataclass(frozen=True)
class Site:
    """The pages of a site, made of scoreboard, results and data below `root`.

    `budgets` maps each paper to the budget that is shown, `folder` is where the pages go. Of each notebook,
    the first of `scopes` is shown that has been executed.
    """

    params: Params
    budgets: Mapping[str, str]
    folder: Path
    scopes: tuple[str, ...]
    root: Path = Path()

    @cached_property
    def results(self) -> dict[str, Results]:
        """Budget -> its finished runs."""
        return {one: loader_runs.load(one, self.root) for one in dict.fromkeys(self.budgets.values())}

    @cached_property
    def board(self) -> Scoreboard:
        boards = {budget: scoreboard.build(found) for budget, found in self.results.items()}
        return scoreboard.assemble({paper: boards[self.budgets[paper]] for paper in published.papers()})

    def runs(self, paper: str) -> list[Run]:
        """The finished runs of a paper, of its numbers and of its claims, loaders included."""
        found = self.results[self.budgets[paper]].runs
        claims = (claim for name, claim in published.claims().items() if name.partition(".")[0] == paper)
        used = tables.runs_named(paper).union(*(evidence.runs_of(claim, found) for claim in claims))
        return [run for run in found.values() if run.paper == paper or run.name in used]

    def executed(self, paper: str) -> Path | None:
        """A paper's executed notebook."""
        folders = [self.root / "executed" / self.budgets[paper] / scope for scope in self.scopes]
        return next((path for folder in folders if (path := folder / f"{paper}.ipynb").exists()), None)

    def write(self) -> list[Path]:
        """Write every page, replacing the folder; returns them."""
        bodies = {"index": index(self), **{paper: paper_page(self, paper) for paper in published.papers()}}
        bodies |= {"scoreboard": scoreboard.html_body(self.board), "methods": methods(self)}
        bodies |= {"data": data(self), "provenance": provenance(self)}
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        for name, body in bodies.items():
            title = PAGES[name] if self.board.is_mixed else f"{PAGES[name]}, {self.board.scale}"
            navigation = render("navigation.html", pages=PAGES, current=name)
            (self.folder / f"{name}.html").write_text(page(title, body, navigation), encoding="utf-8")
        return [self.folder / f"{name}.html" for name in bodies]


def of_budget(params: Params, budget: str, root: Path = Path()) -> Site:
    """The site of one budget, with the notebooks of the default pipeline."""
    folder = root / "executed" / budget / "site"
    return Site(params, dict.fromkeys(published.papers(), budget), folder, ("papers", FULL), root)


def of_findings(params: Params, root: Path = Path()) -> Site:
    """The site of the project's findings, with the full grid. Raises UserError without findings."""
    if not params.findings:
        raise UserError("params.yaml: `findings` is empty; it names each paper's budget")
    return Site(params, params.findings, root / FINDINGS, (FULL, "papers"), root)


def index(site: Site) -> str:
    """The overview: what was run, totals, and every claim by paper."""
    board = site.board
    notices = dict.fromkeys(notice for budget in site.results if (notice := _notice(site, budget)))
    return render(
        "index.html",
        board=board,
        runs=[_what_was_run(site, budget) for budget in site.results],
        notices=notices,
        claims=scoreboard.verdict_counts(board),
        totals=scoreboard.texts(board.totals),
        papers=[_paper(site, paper) for paper in published.papers()],
    )


def _notice(site: Site, budget: str) -> str:
    """A warning where a budget gives no verdict on a paper; empty for one with real images."""
    if budget in verdicts.NO_FINDING:
        return words()["notices"][budget]
    synthetic = site.params.budget_named(budget).data.get("source", "photos") == "photos"
    return words()["notices"]["synthetic"] if synthetic else ""


def _paper(site: Site, paper: str) -> dict[str, Any]:
    """A paper on the overview: its picture, its claims by verdict, and those not run."""
    own = site.board.claims[site.board.claims["paper"] == paper]
    order = own["verdict"].map(scoreboard.VERDICTS.index)
    lines = own.loc[order.sort_values(kind="stable").index].to_dict("records")
    for line in lines:
        # Of several computed numbers, the note names the largest deviation.
        is_computed = line["budget"] == verdicts.BY_COMPUTATION and line["note"]
        line |= {"name": line["claim"].partition(".")[2], "found": is_computed or wording.effect_text(line)}
        line["found"] = "; ".join(filter(None, (line["found"], line["stand_in"], line["regime"])))
    executed = site.executed(paper)
    return {
        "key": paper,
        "title": published.papers()[paper],
        "picture": executed and notebook.front(notebook.read(executed)),
        "run": [line for line in lines if line["verdict"] != NOT_RUN],
        "waiting": [line for line in lines if line["verdict"] == NOT_RUN],
    }


def _what_was_run(site: Site, budget: str) -> str:
    """Which papers a budget shows, and what was run at it."""
    papers = [paper for paper in published.papers() if site.budgets[paper] == budget]
    runs = [run for run in site.results[budget].runs.values() if run.paper in papers]
    named = [f"{published.papers()[paper]} {sum(run.paper == paper for run in runs)}" for paper in papers]
    if LOADER_PAPER in papers:
        loaders = sum(run.paper == loader_runs.PAPER for run in site.runs(LOADER_PAPER))
        named += [f"{loaders} loader measurements"] * bool(loaders)
    text = f"Runs at the budget {budget}: {', '.join(named)}"
    seeds = " or ".join(map(str, sorted({len(run.seeds) for run in runs})))
    devices = ", ".join(sorted({run.device for run in runs} - {""}))
    return f"{text}; {seeds} seeds each, on {devices}." if runs else f"{text}."


def paper_page(site: Site, paper: str) -> str:
    """A paper: each claim with its finding, the executed notebook, every number, errata."""
    board, executed = site.board, site.executed(paper)
    return render(
        "paper.html",
        title=published.papers()[paper],
        notice=_notice(site, site.budgets[paper]),
        claims=[
            _claim(site, line) for line in board.claims[board.claims["paper"] == paper].to_dict("records")
        ],
        notebook=notebook.body(notebook.read(executed)) if executed else "",
        numbers=board.numbers_of(paper),
        errata=summary.errata(paper),
    )


def _claim(site: Site, line: Mapping[str, Any]) -> dict[str, Any]:
    claim, budget = published.claims()[line["claim"]], site.budgets[line["paper"]]
    results = site.results[budget]
    outcomes = verdicts.checks(claim, results)
    computed = line["budget"] == verdicts.BY_COMPUTATION
    where = "by computation, without training" if computed else f"at the budget {line['budget']}"
    said = verdicts.remarks(claim, verdicts.together(outcomes), budget)
    used = [results.runs[name] for name in evidence.runs_of(claim, results.runs)]
    pairs = zip(claim["checks"], outcomes, strict=True)
    return claim | {
        "name": line["claim"].partition(".")[2],
        "verdict": line["verdict"],
        "found": "; ".join([where, *said]),
        "outcomes": [(one, verdicts.means(spec, results)) for spec, one in pairs],
        "scale": evidence.scale_of(used, results),
        "commands": evidence.commands(claim, site.params, budget),
    }


def methods(site: Site) -> str:
    """What the budgets change of the papers' recipes, and how a verdict is reached."""
    kinds = [(kind.replace("_", " "), (one.__doc__ or "").replace("`", "")) for kind, one in KINDS.items()]
    return render(
        "methods.html",
        board=site.board,
        lens=_lens(site),
        kinds=pd.DataFrame(kinds, columns=["check", "reproduced when"]),
        glossary=pd.DataFrame(words()["glossary"].items(), columns=["word", "means"]),
    )


def _lens(site: Site) -> pd.DataFrame:
    """What budgets change of the recipes: a line a setting, a column a budget."""
    budgets = {f"at {name}": site.params.budget_named(name) for name in site.results}
    identity = type(next(iter(budgets.values())))()
    columns = {
        title: [
            setting_text(value) if value != getattr(identity, key) else ""
            for key, value in budget.model_dump().items()
        ]
        for title, budget in budgets.items()
    }
    frame = pd.DataFrame({"what": [key.replace("_", " ") for key in identity.model_dump()]} | columns)
    return frame[(frame[list(columns)] != "").any(axis=1)]


def data(site: Site) -> str:
    """What each data set holds at each budget shown, with some of its pictures."""
    found = [dataset for budget in site.results for dataset in _datasets(site, budget)]
    return render("data.html", datasets=found)


def _datasets(site: Site, budget: str) -> list[dict[str, Any]]:
    """The data sets that a budget's runs used; that of the default pipeline where no run has finished."""
    params = site.params
    used = {params.run(name).dataset for name in site.results[budget].runs if name in params.runs} or {"full"}
    found = []
    for name in (name for name in params.datasets if name in used):
        folder = site.root / params.data_folder(name, budget)
        shown = {
            "name": name,
            "budget": budget,
            "source": params.dataset(name, budget).source,
            "splits": None,
        }
        if (folder / "manifest.json").exists():
            manifest = json.loads((folder / "manifest.json").read_text())
            rows = [
                (s, r["images"], f"{r['bytes'] / 1e6:.1f} MB", r["sha256"][:16])
                for s, r in manifest["splits"].items()
            ]
            shown["splits"] = pd.DataFrame(rows, columns=["split", "images", "stored", "sha256"])
            shown["classes"] = manifest["class_names"]
            shown["samples"] = _samples(folder) if (folder / "val.beton").exists() else ""
        found.append(shown)
    return found


def _samples(folder: Path) -> str:
    """Some validation images side by side, as PNG in base64."""
    from PIL import Image

    from replicate.report.reconstruct import sample_images

    shown = sample_images(folder, SAMPLE_SIDE, SAMPLES).permute(0, 2, 3, 1).numpy()
    buffer = io.BytesIO()
    Image.fromarray(np.concatenate(list(shown), axis=1)).save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def provenance(site: Site) -> str:
    """Where every number comes from: the software, the machines, and one line a run."""
    facts = summary.software() | {"published values": "papers/*/values.csv, checked against the papers"}
    papers = {
        f"{title}, budget {site.budgets[paper]}, {len(runs)} runs": summary.finished(
            runs, site.results[site.budgets[paper]]
        ).astype(str)
        for paper, title in published.papers().items()
        if (runs := site.runs(paper))
    }
    return render("provenance.html", facts=pd.DataFrame(facts.items(), columns=["what", "is"]), papers=papers)

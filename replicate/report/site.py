"""The book: one static folder that needs neither network nor server. `executed/<budget>/site` shows one budget; `docs/site`, which git
holds, shows the project's findings, each paper at the budget that `findings` in params.yaml names.

`index.html` with the totals and each paper's claims by verdict, a page a paper (its claims, the executed notebook with tables and
figures, every number, contradictions), `scoreboard.html`, `methods.html`, `data.html` and `provenance.html`. Notebooks are rendered by
nbconvert; the frame is `replicate.report.page`.
"""

from __future__ import annotations

import base64
import html
import io
import json
import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from replicate.config import published
from replicate.errors import UserError
from replicate.provenance import PAGE_SOURCES, git_state, machine, versions
from replicate.report import (
    loader_runs,
    notebook,
    rerun,
    results,
    scoreboard,
    summary,
    tables,
    texts,
    verdicts,
)
from replicate.report.page import page, table
from replicate.report.scale import scale_of
from replicate.report.scoreboard import MEANING, Scoreboard

if TYPE_CHECKING:
    from collections.abc import Mapping

    from replicate.config import Budget, Params

PAGES = {"index": "Overview", **published.papers(), "scoreboard": "Scoreboard", "methods": "Methods", "data": "Data", "provenance": "Provenance"}
SAMPLES, SAMPLE_SIDE = 12, 96
FULL = "full"
LOADER_PAPER = "dailymae"  # the one whose claims speak of loaders
FINDINGS = Path("docs") / "site"


@dataclass(frozen=True)
class Site:
    """What the pages are made of: scoreboard, results and data below `root`.

    `budgets` says of each paper at which budget it is shown, `folder` where the pages go, `scopes` whose notebooks are shown: the first
    that has been executed.
    """

    params: Params
    budgets: Mapping[str, str]
    folder: Path
    scopes: tuple[str, ...]
    root: Path = Path()

    @cached_property
    def results(self) -> dict[str, results.Results]:
        """Budget -> its finished runs."""
        return {budget: loader_runs.load(budget, self.root) for budget in dict.fromkeys(self.budgets.values())}

    @cached_property
    def board(self) -> Scoreboard:
        boards = {budget: scoreboard.build(found) for budget, found in self.results.items()}
        return scoreboard.assemble({paper: boards[self.budgets[paper]] for paper in published.papers()})

    def runs(self, paper: str) -> list[results.Run]:
        """The finished runs, at a paper's budget, that are its own or that its numbers and claims speak of; loaders are such."""
        found = self.results[self.budgets[paper]].runs
        claims = (claim for name, claim in published.claims().items() if name.partition(".")[0] == paper)
        used = tables.runs_named(paper).union(*(rerun.runs_of(claim, found) for claim in claims))
        return [run for run in found.values() if run.paper == paper or run.name in used]

    def executed(self, paper: str) -> Path | None:
        """A paper's executed notebook."""
        paths = (self.root / "executed" / self.budgets[paper] / scope / f"{paper}.ipynb" for scope in self.scopes)
        return next((path for path in paths if path.exists()), None)

    def write(self) -> list[Path]:
        """Write every page anew; returns them."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        bodies = {"index": index(self), **{paper: paper_page(self, paper) for paper in published.papers()}}
        bodies |= {"scoreboard": scoreboard.html_body(self.board), "methods": methods(self), "data": data(self), "provenance": provenance(self)}
        written = []
        for name, body in bodies.items():
            path = self.folder / f"{name}.html"
            title = PAGES[name] if self.board.is_mixed else f"{PAGES[name]}, {self.board.scale}"
            path.write_text(page(title, body, navigation(name)), encoding="utf-8")
            written.append(path)
        return written


def of_budget(params: Params, budget: str, root: Path = Path()) -> Site:
    """The site of one budget, with the notebooks of the default pipeline."""
    return Site(params, dict.fromkeys(published.papers(), budget), root / "executed" / budget / "site", ("papers", FULL), root)


def of_findings(params: Params, root: Path = Path()) -> Site:
    """The site of the project's findings, with the notebooks of the full grid. Raises UserError where params.yaml names none."""
    if not params.findings:
        raise UserError("params.yaml: `findings` is empty; it names each paper's budget")
    return Site(params, params.findings, root / FINDINGS, (FULL, "papers"), root)


def navigation(current: str) -> str:
    """Links to every page, the current one marked."""
    links = (
        f"<b>{html.escape(title)}</b>" if name == current else f'<a href="{name}.html">{html.escape(title)}</a>' for name, title in PAGES.items()
    )
    return f'<nav aria-label="pages">{" ".join(links)}</nav>'


def index(site: Site) -> str:
    """What this is, how it stands, and where to read on."""
    board = site.board
    lines = [
        "<h1>Replicating five papers on efficient masked image modelling</h1>",
        f"<p>{len(board.numbers):,} published numbers and {len(board.claims)} claims, each with what stands beside it here: computed, run at a "
        "smaller scale, or a reason why not. One harness runs all five papers; a <i>budget</i> is the lens through which a machine sees "
        "their recipes.</p>",
        *(f"<p>{_what_was_run(site, budget)}</p>" for budget in site.results),
        '<p>How runs are mapped to a budget and verdicts are reached: <a href="methods.html">methods</a>.</p>',
    ]
    lines += dict.fromkeys(_notice(site, budget) for budget in site.results)
    lines += ["<h2>Claims</h2>", table(scoreboard.verdict_counts(board)), "<h2>Numbers</h2>", table(scoreboard.texts(board.totals))]
    lines += [f"<details><summary>what the statuses mean</summary>{_meaning(board)}</details>"]
    lines += [_paper(site, paper) for paper in published.papers()]
    return "\n".join([*lines, "<h2>Run it</h2>", texts.RUN_IT, "<h2>Explore</h2>", texts.EXPLORE])


def _notice(site: Site, budget: str) -> str:
    """What a budget's verdicts are worth, where that is nothing; empty for one that sees images of the world."""
    if budget in verdicts.NO_FINDING:
        return f'<p class="notice">{texts.NO_FINDING}</p>'
    made_up = site.params.budget_named(budget).data.get("source", "photos") == "photos"
    return f'<p class="notice">{texts.MADE_UP}</p>' if made_up else ""


def _paper(site: Site, paper: str) -> str:
    """A paper on the overview: its picture and its claims by verdict, those not run folded away."""
    title, own = html.escape(published.papers()[paper]), site.board.claims[site.board.claims["paper"] == paper]
    parts = [f'<h2><a href="{paper}.html">{title}</a></h2>']
    executed = site.executed(paper)
    if executed is not None and (picture := notebook.front(notebook.read(executed))):
        png, described = picture
        parts.append(f'<img class="front" src="data:image/png;base64,{png}" alt="{html.escape(described or published.papers()[paper], quote=True)}">')
    run, waiting = own[own["verdict"] != verdicts.NOT_RUN], own[own["verdict"] == verdicts.NOT_RUN]
    order = dict(zip(scoreboard.VERDICTS, range(len(scoreboard.VERDICTS)), strict=True))
    parts.append(_claim_list(paper, run.sort_values("verdict", key=lambda column: column.map(order), kind="stable")))
    if len(waiting):
        parts.append(f"<details><summary>{len(waiting)} claims not run</summary>{_claim_list(paper, waiting)}</details>")
    return "\n".join(parts)


def _claim_list(paper: str, claims: pd.DataFrame) -> str:
    lines = []
    for line in claims.to_dict("records"):
        computed = line["budget"] == "by computation" and line["note"]  # of several numbers, the farthest is the one to name
        effect, anchor = html.escape(computed or verdicts.effect_text(line)), line["claim"].partition(".")[2]
        found = f'<span class="found">ours: {effect}</span>' if effect else ""
        lines.append(f'<li>{_verdict(line["verdict"])} <a href="{paper}.html#{anchor}">{html.escape(line["statement"])}</a> {found}</li>')
    return f'<ul class="claims">{"".join(lines)}</ul>'


def _verdict(verdict: str) -> str:
    return f'<span class="verdict {verdict.split()[0]}">{html.escape(verdict)}</span>'


def _what_was_run(site: Site, budget: str) -> str:
    """Which papers a budget shows, and what was run at it."""
    found = site.results[budget].runs.values()
    counts = {paper: sum(run.paper == paper for run in found) for paper in published.papers() if site.budgets[paper] == budget}
    loaders = sum(run.paper == loader_runs.PAPER for run in site.runs(LOADER_PAPER)) if site.budgets[LOADER_PAPER] == budget else 0
    named = [f"{html.escape(published.papers()[paper])} {count}" for paper, count in counts.items()] + [f"{loaders} loader measurements"] * bool(loaders)
    text = f"Runs at the budget <b>{html.escape(budget)}</b>: {', '.join(named)}"
    runs = [run for run in found if run.paper in counts]
    seeds = " or ".join(map(str, sorted({len(run.seeds) for run in runs})))
    devices = ", ".join(sorted({str(run.provenance.get("device", "")) for run in runs} - {""}))
    return f"{text}; {seeds} seeds each, on {html.escape(devices)}." if runs else f"{text}."


def _meaning(board: Scoreboard) -> str:
    known = (status for status in board.totals.columns if status in MEANING)
    return "<ul>" + "".join(f"<li><i>{status}</i>: {html.escape(MEANING[status])}</li>" for status in known) + "</ul>"


def paper_page(site: Site, paper: str) -> str:
    """A paper: each claim with what was found and how to run it again, the executed notebook, every number, contradictions."""
    numbers = site.board.numbers[site.board.numbers["paper"] == paper]
    executed = site.executed(paper)
    parts = [f"<h1>{html.escape(published.papers()[paper])}</h1>"]
    parts.append(_notice(site, site.budgets[paper]))
    parts.append('<p class="contents"><a href="#claims">claims</a> <a href="#notebook">notebook</a> <a href="#numbers">every number</a> ')
    parts.append('<a href="#contradictions">contradictions</a></p><h2 id="claims">Claims</h2>')
    parts += [_claim(site, line) for line in site.board.claims[site.board.claims["paper"] == paper].to_dict("records")]
    parts.append('<h2 id="notebook">Notebook</h2>')
    if executed is not None:
        parts.append(f'<div class="notebook">{notebook.body(notebook.read(executed))}</div>')
    else:
        parts.append("<p>This paper's notebook has not been executed at this budget.</p>")
    parts.append('<h2 id="numbers">Every number</h2>')
    parts += scoreboard.numbers_html(numbers)
    found = pd.DataFrame(entry for entry in published.contradictions() if entry["paper"] == paper)
    shown = found[["place", "kind", "printed", "recomputed", "note"]]
    return "\n".join([*parts, '<h2 id="contradictions">Where the paper contradicts itself</h2>', table(shown)])


def _claim(site: Site, line: dict) -> str:
    claim = published.claims()[line["claim"]]
    runs, budget = rerun.runs_of(claim, site.params.runs), site.budgets[line["paper"]]
    finished = site.results[budget].runs
    used = [finished[name] for name in rerun.runs_of(claim, finished)]
    where = "by computation, without training" if line["budget"] == "by computation" else f"at the budget {line['budget']}"
    checks = verdicts.checks(claim, site.results[budget])
    said = verdicts.remarks(claim, verdicts.together(checks), budget)
    again = rerun.benchmarks(claim) + rerun.commands(runs, site.params, budget, rerun.measures_loaders(claim))
    facts = {
        "the paper": html.escape(f"{claim['statement']} ({claim['source']})"),
        "tested by": html.escape(claim["test"]),
        "found": f"{_verdict(line['verdict'])} {html.escape('; '.join([where, *said]))}",
        "checks": _checks(claim, checks, site.results[budget]),
        "scale": html.escape(scale_of(used, site.params, budget)),
        "run it again": "<br>".join(f"<code>{html.escape(command)}</code>" for command in again),
    }
    rows = "".join(f"<dt>{name}</dt><dd>{text}</dd>" for name, text in facts.items() if text)
    name = line["claim"].partition(".")[2]
    return f'<section class="claim" id="{name}"><h3>{html.escape(name.replace("_", " "))}</h3><dl>{rows}</dl></section>'


def _checks(claim: dict, outcomes: list[verdicts.Outcome], found: results.Results) -> str:
    """Every check of a claim with its own verdict: the claim's is theirs taken together."""
    lines = []
    for spec, outcome in zip(claim["checks"], outcomes, strict=True):
        seeds = f"{outcome.seeds} {outcome.sample}s" if outcome.seeds else ""
        effect = verdicts.effect_text(vars(outcome))
        parts = (outcome.check.removeprefix("by computation: "), verdicts.means(spec, found), effect and f"effect {effect}", seeds, outcome.note)
        lines.append(f"<li>{_verdict(outcome.verdict)} {html.escape('; '.join(part for part in parts if part))}</li>")
    return f'<ul class="claims">{"".join(lines)}</ul>'


def methods(site: Site) -> str:
    """What the budget changes of the papers' recipes, and how a verdict is reached."""
    lens = _lens([site.params.budget_named(budget) for budget in site.results], list(site.results))
    tests = pd.DataFrame([(kind.replace("_", " "), (function.__doc__ or "").strip().replace("`", "")) for kind, function in verdicts.KINDS.items()])
    return "\n".join(
        [
            "<h1>Methods</h1>",
            "<h2>The budget is a lens</h2>",
            texts.LENS,
            table(lens) if len(lens) else "<p>This budget is the identity.</p>",
            "<h2>How a verdict is reached</h2>",
            texts.VERDICTS,
            table(tests.set_axis(["check", "holds when"], axis=1)),
            "<h2>Status of a number</h2>",
            _meaning(site.board),
            "<h2>What is not compared</h2>",
            texts.NOT_COMPARED,
            "<h2>Words</h2>",
            table(pd.DataFrame(texts.GLOSSARY.items(), columns=["word", "means"])),
        ]
    )


def _lens(budgets: list[Budget], names: list[str]) -> pd.DataFrame:
    """What budgets change of the papers' recipes: a line a setting, a column a budget, blank where it changes nothing."""
    identity = type(budgets[0])()
    dumped = [budget.model_dump() for budget in budgets]
    keys = [key for key in dumped[0] if any(one[key] != getattr(identity, key) for one in dumped)]
    lines = [(key.replace("_", " "), *(_words(one[key]) if one[key] != getattr(identity, key) else "" for one in dumped)) for key in keys]
    return pd.DataFrame(lines, columns=["what", *(f"at {name}" for name in names)])


def data(site: Site) -> str:
    """What each data set holds at each budget shown, with some of its pictures."""
    parts = ["<h1>Data</h1>"]
    for budget in site.results:
        parts += _datasets(site, budget)
    return "\n".join(parts)


def _datasets(site: Site, budget: str) -> list[str]:
    """The data sets that a budget's runs used; those of the default pipeline where none has finished."""
    parts = []
    used = {site.params.run(name).dataset for name in site.results[budget].runs if name in site.params.runs} or {"full"}
    for name in site.params.datasets:
        if name not in used:
            continue
        dataset = site.params.dataset(name, budget)
        folder = site.root / site.params.data_folder(name, budget)
        parts.append(f"<h2>{html.escape(name.replace('_', ' '))}, budget {html.escape(budget)}</h2>")
        parts.append(f"<p>Source: <code>{html.escape(dataset.source)}</code>.</p>")
        if dataset.source == "photos":
            parts.append(texts.PHOTOS)
        if not (folder / "manifest.json").exists():
            parts.append("<p>Not written on this machine: the numbers come from runs elsewhere, whose provenance names the data by its checksum.</p>")
            continue
        manifest = json.loads((folder / "manifest.json").read_text())
        rows = [(split, r["images"], f"{r['bytes'] / 1e6:.1f} MB", r["sha256"][:16]) for split, r in manifest["splits"].items()]
        parts.append(table(pd.DataFrame(rows, columns=["split", "images", "stored", "sha256"])))
        parts.append(f"<p>{len(manifest['class_names'])} classes: {html.escape(', '.join(manifest['class_names']))}.</p>")
        if (folder / "val.beton").exists():
            parts.append(f"<p>{_samples(folder)}</p>")
    return parts


def _samples(folder: Path) -> str:
    from PIL import Image

    from replicate.report.reconstruct import sample_images

    shown = sample_images(folder, SAMPLE_SIDE, SAMPLES).permute(0, 2, 3, 1).numpy()
    sheet = np.concatenate(list(shown), axis=1)
    buffer = io.BytesIO()
    Image.fromarray(sheet).save(buffer, format="PNG")
    encoded = base64.b64encode(buffer.getvalue()).decode()
    source = f"data:image/png;base64,{encoded}"
    return f'<span class="scroll"><img class="samples" src="{source}" alt="{len(shown)} validation images side by side"></span>'


def provenance(site: Site) -> str:
    """Where every number comes from: the software, the machines, and one line a run."""
    git, here = git_state(paths=PAGE_SOURCES), machine()
    facts = {
        "pages made by revision": git["revision"][:12] + (" with changes" if git["dirty"] else ""),
        "machine that made them": f"{here['system']} {here['architecture']}, {here['cores']} cores",
        "versions": ", ".join(f"{name} {version}" for name, version in versions().items() if version),
        "published values": "published/values.csv, re-checked against the papers' texts",
    }
    parts = ["<h1>Provenance</h1>", table(pd.DataFrame(facts.items(), columns=["what", "is"])), "<h2>Runs</h2>"]
    for paper in published.papers():
        if runs := site.runs(paper):
            title = f"{published.papers()[paper]}, budget {site.budgets[paper]}, {len(runs)} runs"
            parts += [f"<h3>{html.escape(title)}</h3>", table(summary.finished(runs).astype(str))]
    if not any(site.runs(paper) for paper in published.papers()):
        parts.append("<p>No run has finished at this budget.</p>")
    return "\n".join(parts)


def _words(value: object) -> str:
    if isinstance(value, dict):
        return "; ".join(f"{key}: {_words(part)}" for key, part in value.items())
    return ", ".join(map(str, value)) if isinstance(value, tuple | list) else f"{value:.4g}" if isinstance(value, float) else str(value)

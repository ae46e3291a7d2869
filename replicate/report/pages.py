"""The site's own pages in Markdown, with their figures and tables beside them (`templates/*.md`)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from replicate.config import published
from replicate.config.rooms import ROOMS
from replicate.report import charts, evidence, loader_runs, scoreboard, summary, trends, verdicts, wording
from replicate.report.checks import KINDS, check
from replicate.report.colours import KINDS as MARKS
from replicate.report.colours import kind_of
from replicate.report.grids import grids, place, words
from replicate.report.lens import setting_text
from replicate.report.page import render, text
from replicate.report.page import words as fixed
from replicate.report.plan_table import PRICES
from replicate.report.results import Results, Run
from replicate.report.shown import Shown

SHARED = ("scoreboard", "trends", "errata", "costs", "methods", "provenance")
DECIDED = ("good", "bad")
BETWEEN = "between"
"""The paper of an erratum that two papers share."""
SAMPLES, SAMPLE_SIDE = 12, 96
CHECK = ("verdict", "check", "means", "effect", "seeds", "note")
EFFECTS = (
    "Effects with 95 % intervals. Right of the line agrees with the paper. Grey is inconclusive: the "
    "interval holds 0, or another check is undecided or not run."
)
SCOREBOARD = ["paper", "place", "setting", "quantity", "published", "ours", "status", "run"]


def pages(site: Shown) -> dict[str, str]:
    """Name -> text of every page. Figures and tables go into the folder of the site's sources."""
    made = {"index": index(site)}
    for paper in published.papers():
        made |= {paper: paper_page(site, paper), f"{paper}_tables": tables_page(site, paper)}
    shared = {"scoreboard": scoreboard_page, "trends": trends_page, "errata": errata, "costs": costs}
    shared |= {"methods": methods, "provenance": provenance}
    return made | {name: page(site) for name, page in shared.items()}


def index(site: Shown) -> str:
    """The home page: what was found in a sentence, the map of verdicts, a card a paper."""
    verdicts_of = {paper: _ordered(site.claims(paper)) for paper in published.by_year()}
    names = sorted(site.notebooks())
    documents = sorted(path.stem for path in (site.sources / "docs").glob("*.md"))
    return render(
        "index.md",
        sentence=sentence(site),
        notices=_notices(site, site.results),
        papers=published.by_year(),
        claims=verdicts_of,
        counted={paper: counted(site.claims(paper)) for paper in verdicts_of},
        best={paper: next(iter(_decided(lines)), None) for paper, lines in verdicts_of.items()},
        legend=_verdicts(verdicts_of),
        shared=SHARED,
        taught=[name for name in names if name not in published.papers()],
        executed=[name for name in published.by_year() if name in names],
        documents=documents,
    )


def _verdicts(lines: Mapping[str, list[dict[str, Any]]]) -> list[tuple[str, str, str]]:
    """Mark, verdict and kind of every verdict on the map."""
    found = {(line["mark"], line["verdict"], line["kind"]) for part in lines.values() for line in part}
    return sorted(found, key=lambda one: (list(MARKS).index(one[2]), one[1]))


def sentence(site: Shown) -> str:
    """Such as "At proxies of 5,000 to 16,000 images, 12 of 75 claims are reproduced, ..."."""
    found = ",".join(site.board.claims["regime"].fillna(""))
    sizes = sorted({int(text.replace(",", "")) for text in re.findall(r"([\d,]+) images an epoch", found)})
    ends = dict.fromkeys((sizes[0], sizes[-1])) if sizes else ()
    of = f" of {' to '.join(f'{size:,}' for size in ends)} images" * bool(sizes)
    return f"At {'proxies' if len(ends) > 1 else 'a proxy'}{of}, {counted(site.board.claims)}."


def counted(claims: pd.DataFrame) -> str:
    """Such as "3 of 12 claims are reproduced, 1 opposite at proxy scale and 8 not run"."""
    if not len(claims):
        return "no claim is stated yet"
    counts = claims["verdict"].value_counts()
    parts = [f"{counts[verdict]} {verdict}" for verdict in scoreboard.VERDICTS if verdict in counts]
    first, _, verdict = parts[0].partition(" ")
    parts[0] = f"{first} of {len(claims)} claims {'is' if first == '1' else 'are'} {verdict}"
    return " and ".join(part for part in (", ".join(parts[:-1]), parts[-1]) if part)


def _notices(site: Shown, budgets: Iterable[str]) -> list[str]:
    """Warnings where a budget's verdicts are worth nothing."""
    found = dict.fromkeys(_notice(site, budget) for budget in budgets)
    return [one for one in found if one]


def _notice(site: Shown, budget: str) -> str:
    texts = fixed()["notices"]
    if budget in verdicts.NO_FINDING:
        return texts[budget]
    synthetic = site.params.budget_named(budget).data.get("source", "photos") == "photos"
    return texts["synthetic"] if synthetic else ""


def _ordered(claims: pd.DataFrame) -> list[dict[str, Any]]:
    """Claims for a page, decided ones first: each with its kind, mark, short name and effect in words."""
    lines = claims.to_dict("records")
    for line in lines:
        line |= {"kind": kind_of(line["verdict"]), "name": line["claim"].partition(".")[2]}
        line |= {"mark": MARKS[line["kind"]], "found": wording.effect_text(line)}
        line["said"] = wording.verdict_text(line)
        line["anchor"] = line["claim"].replace(".", "-").replace("_", "-")
    return sorted(lines, key=lambda line: list(MARKS).index(line["kind"]))


def _decided(lines: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    return (line for line in lines if line["kind"] in DECIDED)


def paper_page(site: Shown, paper: str) -> str:
    """A paper: thesis, our answer, figures, its claims from decided to not run."""
    lines = _ordered(site.claims(paper))
    groups = {"decided": [*_decided(lines)], "inconclusive": [], "waiting": []}
    for line in lines:
        if line["kind"] not in DECIDED:
            groups["inconclusive" if line["kind"] == "open" else "waiting"].append(line)
    for line in [*groups["decided"], *groups["inconclusive"]]:
        line |= _details(site, line)
    return render(
        "paper.md",
        paper=paper,
        title=published.papers()[paper],
        room=room(paper),
        notices=_notices(site, site.budgets[paper]),
        answer=f"{counted(site.claims(paper))}.",
        key=_key_figure(site, paper),
        effects=_effects_figure(site, paper),
        groups=groups,
        has_notebook=paper in site.notebooks(),
        errata=summary.errata(paper),
        released=summary.released(paper),
    )


def _effects_figure(site: Shown, paper: str) -> dict[str, str] | None:
    claims = charts.shown_claims(site.claims(paper))
    return _figure(site, f"{paper}-effects", charts.effects, claims, EFFECTS)


def _key_figure(site: Shown, paper: str) -> dict[str, str] | None:
    rows = charts.key_rows(site.numbers(paper))
    if not len(rows):
        return None
    what = f"{place(rows['table'].iloc[0], rows['panel'].iloc[0])}, {words(rows['column'].iloc[0])}"
    return _figure(
        site, f"{paper}-key", charts.beside, rows, f"{what}: the paper's numbers and ours on one axis."
    )


def _figure(site: Shown, name: str, draw: Any, frame: pd.DataFrame, caption: str) -> dict[str, str] | None:
    """A figure in the site's folder of figures; None where there is nothing to draw."""
    if not len(frame):
        return None
    charts.save(draw(frame), site.sources / "figures" / name)
    return {"path": f"figures/{name}", "caption": caption}


def room(paper: str) -> dict[str, str]:
    """A paper's README: "authors", "thesis" (the first paragraph about the paper) and "more" of it."""
    content = (ROOMS / paper / "README.md").read_text(encoding="utf-8")
    head, *sections = re.split(r"^## ", content, flags=re.MULTILINE)
    about = next((one for one in sections if one.startswith("The paper\n")), "").partition("\n")[2].strip()
    thesis, _, more = about.partition("\n\n")
    return {"authors": head.partition("\n")[2].strip(), "thesis": thesis, "more": more}


def _details(site: Shown, line: Mapping[str, Any]) -> dict[str, Any]:
    """What a claim rests on: its checks, their scale, and the commands that measure it again."""
    claim = published.claims()[line["claim"]]
    budget = line["budget"] if line["budget"] in site.results else site.budgets[line["paper"]][0]
    results = site.results[budget]
    facts = {"source": claim["source"], "tested by": claim["test"], "note": line["note"]}
    facts |= {"measured instead": line["stand_in"], "not tested": line["untested"], "scale": line["regime"]}
    return {
        "facts": pd.DataFrame([pair for pair in facts.items() if pair[1]], columns=["about", "the claim"]),
        "checks": pd.DataFrame([_check(spec, results) for spec in claim["checks"]]),
        "commands": evidence.commands(claim, site.params, budget),
    }


def _check(spec: dict[str, Any], results: Results) -> dict[str, str]:
    """A check in a line; a computed one, which may take seconds, without its answer, the claim's note."""
    if spec["kind"] == "computed":
        return dict.fromkeys(CHECK, "") | {"check": wording.describe(spec)}
    one = check(spec, results)
    effect, seeds = wording.effect_text(vars(one)), f"{one.seeds} {one.sample}s" if one.seeds else ""
    texts = (one.verdict, one.check, verdicts.means(spec, results), effect, seeds, one.note)
    return dict(zip(CHECK, texts, strict=True))


def tables_page(site: Shown, paper: str) -> str:
    """A paper's printed tables, cell by cell, each with its CSV and LaTeX."""
    folder = site.sources / "grids" / paper
    folder.mkdir(parents=True, exist_ok=True)
    shown = list(grids(site.numbers(paper)))
    for grid in shown:
        (folder / f"{grid.name}.csv").write_text(grid.csv(), encoding="utf-8")
        (folder / f"{grid.name}.tex").write_text(grid.latex(), encoding="utf-8")
    return render(
        "tables.md", paper=paper, title=published.papers()[paper], grids=shown, legend=_legend(site)
    )


def _legend(site: Shown) -> list[tuple[str, str]]:
    """Kind and status of every colour in the tables."""
    frame = site.board.numbers
    pairs = {(kind_of(line), line["status"]) for line in frame.drop_duplicates("status").to_dict("records")}
    differs = {("differs", "computed, and not equal")} if "agreement" in frame else set()
    return sorted(pairs | differs, key=lambda pair: (list(MARKS).index(pair[0]), pair[1]))


def scoreboard_page(site: Shown) -> str:
    """Every number, to filter and search."""
    numbers = site.board.numbers
    numbers.to_csv(site.sources / "scoreboard.csv", index=False)
    shown = numbers.assign(
        paper=numbers["paper"].map(published.papers()),
        place=[place(table, panel) for table, panel in zip(numbers["table"], numbers["panel"], strict=True)],
        setting=[row.replace(";", ", ").replace("_", " ").replace("=", " ") for row in numbers["row"]],
        quantity=numbers["column"].map(words),
        ours=[wording.short(value) if pd.notna(value) else "" for value in numbers["ours"]],
    )
    return render(
        "scoreboard.md",
        table=interactive(shown[SCOREBOARD].fillna(""), filters=True),
        totals=scoreboard.texts(site.board.totals),
        claims=scoreboard.verdict_counts(site.board),
        meaning=site.board.meaning,
    )


def interactive(frame: pd.DataFrame, filters: bool = False) -> str:
    """A table to search, sort and filter, with all that it needs on its page."""
    import itables
    from itables.javascript import generate_init_offline_itables_html

    bundle = Path(itables.__file__).parent / "html" / "dt_bundle.js"
    options = {"connected": False, "showIndex": False, "maxBytes": 0, "classes": "display compact"}
    options |= {"column_filters": "header"} if filters else {}
    options |= {"autoWidth": False}
    made = itables.to_html_datatable(frame, lengthMenu=[25, 50, 100, 500], **options)
    return generate_init_offline_itables_html(bundle) + made


def trends_page(site: Shown) -> str:
    """Each contrast at every budget that ran it, beside the paper's own value."""
    shown, several = [], False
    for paper, title in published.by_year().items():
        results = {budget: site.results[budget] for budget in site.budgets[paper]}
        found = trends.contrasts(paper, results, site.params)
        if len(found):
            panels = pd.concat([*trends.panels(found), found.head(0)])
            several |= bool(len(panels))
            caption = "Our values with intervals, and the paper's where it prints one."
            figure = _figure(site, f"{paper}-trends", trends.draw, panels, caption)
            shown.append((title, figure, interactive(trends.table(found))))
    return render("trends.md", papers=shown, several=several)


def errata(site: Shown) -> str:
    """Where the papers disagree with themselves, each other or arithmetic."""
    papers = published.by_year()
    found = {title: summary.errata(paper) for paper, title in papers.items()}
    explained = (papers | {BETWEEN: "Between papers"}).items()
    notes = {title: summary.notes(paper) for paper, title in explained}
    return render("errata.md", papers=found, notes=notes)


PRICED = {"a100_hours": "A100-hours", "exa_macs": "10^18 multiply-adds"}
PRICED |= {f"{name}_in_all": f"{title} in all" for name, title in PRICED.items()}


def costs(site: Shown) -> str:
    """What was spent on the runs that are shown, and what the papers' own scale would take."""
    spent = [_spent(title, budget, runs) for title, budget, runs in _runs(site)]
    prices = pd.read_csv(PRICES, index_col="run") if PRICES.exists() else pd.DataFrame()
    shown = prices.map(wording.short).rename(columns=PRICED).reset_index()
    return render("costs.md", spent=pd.DataFrame(spent), plan=interactive(shown) if len(shown) else "")


def _runs(site: Shown) -> Iterator[tuple[str, str, list[Run]]]:
    """(title, budget, finished runs) of every paper and budget that has any."""
    for paper, title in published.papers().items():
        for budget in site.budgets[paper]:
            if runs := [run for run in site.runs(paper, budget) if run.paper != loader_runs.PAPER]:
                yield title, budget, runs


def _spent(title: str, budget: str, runs: Sequence[Run]) -> dict[str, str]:
    hours = sum(run.provenance.get("wall_seconds") or 0 for run in runs) / 3600
    seeds = sum(len(run.seeds) for run in runs)
    known = {"hours of training": f"{hours:,.1f}" if hours else "not recorded"}
    return {"paper": title, "budget": budget, "runs": str(len(runs)), "with seeds": str(seeds)} | known


def methods(site: Shown) -> str:
    """What shrank, why, what it cannot show; the data; how a verdict is reached."""
    kinds = [
        (kind.replace("_", " "), " ".join((one.__doc__ or "").replace("`", "").split()))
        for kind, one in KINDS.items()
    ]
    return render(
        "methods.md",
        board=site.board,
        lens=_lens(site),
        datasets=[found for budget in site.results for found in _datasets(site, budget)],
        kinds=pd.DataFrame(kinds, columns=["check", "holds when"]),
        glossary=pd.DataFrame(fixed()["glossary"].items(), columns=["word", "means"]),
    )


def _lens(site: Shown) -> pd.DataFrame:
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


def _datasets(site: Shown, budget: str) -> Iterator[dict[str, Any]]:
    """The data sets that a budget's runs used; that of the default pipeline where no run has finished."""
    params = site.params
    used = {params.run(name).dataset for name in site.results[budget].runs if name in params.runs} or {"full"}
    for name in (name for name in params.datasets if name in used):
        folder = site.root / params.data_folder(name, budget)
        shown = {"name": name, "budget": budget, "source": params.dataset(name, budget).source}
        if (folder / "manifest.json").exists():
            manifest = json.loads((folder / "manifest.json").read_text())
            rows = [
                (split, f"{of['images']:,}", f"{of['bytes'] / 1e6:.1f} MB", of["sha256"][:16])
                for split, of in manifest["splits"].items()
            ]
            shown["splits"] = pd.DataFrame(rows, columns=["split", "images", "stored", "sha256"])
            shown["classes"] = class_names(manifest["class_names"])
            if (folder / "val.beton").exists():
                shown["samples"] = _samples(folder, site.sources / "figures" / f"{budget}-{name}.png")
        yield shown


def class_names(names: Sequence[str]) -> list[str]:
    """Names of classes in words: WordNet's ids, as in ImageNet's folders, through timm's list."""
    if not any(re.fullmatch(r"n\d{8}", name) for name in names):
        return [name.replace("_", " ") for name in names]
    from timm.data import ImageNetInfo

    info = ImageNetInfo("imagenet-22k")
    known = set(info.label_names())
    return [
        info.label_name_to_description(name).partition(",")[0] if name in known else name for name in names
    ]


def _samples(folder: Path, target: Path) -> str:
    """Some validation images side by side, as a file beside the pages; returns its place."""
    import numpy as np
    from PIL import Image

    from replicate.report.reconstruct import sample_images

    shown = sample_images(folder, SAMPLE_SIDE, SAMPLES).permute(0, 2, 3, 1).numpy()
    target.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.concatenate(list(shown), axis=1)).save(target)
    return f"figures/{target.name}"


def provenance(site: Shown) -> str:
    """Where every number comes from: the software, the machines, and one line a run."""
    facts = summary.software() | {"published values": "papers/*/values.csv, checked against the papers"}
    frames = [
        summary.finished(runs, site.results[budget]).assign(paper=title, budget=budget)
        for title, budget, runs in _runs(site)
    ]
    runs = (
        interactive(pd.concat(frames).astype(str)) if frames else text("No run has finished at this budget.")
    )
    return render("provenance.md", facts=pd.DataFrame(facts.items(), columns=["what", "is"]), runs=runs)

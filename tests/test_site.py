"""The static site: links and images resolve without network, claims list their commands."""

import base64
import html
import html.parser
import os
import re
import shutil
from pathlib import Path
from urllib.parse import unquote

import browser
import nbformat
import pytest

from replicate.config import load, published
from replicate.errors import UserError
from replicate.report import checks, evidence, scoreboard, site, verdicts, wording
from replicate.report.page import table as html_table

ROOT = Path(__file__).resolve().parents[1]
BUDGET = "tiny"


class Page(html.parser.HTMLParser):
    """Links, images, ids and tags of one page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path, self.links, self.images, self.ids, self.tags = path, [], [], set(), []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list) -> None:
        found = dict(attributes)
        self.tags.append(tag)
        self.ids |= {found["id"]} if found.get("id") else set()
        self.links += [found["href"]] if found.get("href") else []
        self.images += [found] if tag == "img" else []


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("project")
    shutil.copytree(ROOT / "measured", folder / "measured")
    executed = folder / "executed" / BUDGET / "papers" / "mae.ipynb"
    executed.parent.mkdir(parents=True)
    nbformat.write(notebook(), executed)
    written = site.of_budget(load(ROOT / "params.yaml"), BUDGET, folder).write()
    return {path.stem: Page(path) for path in written}


def notebook(title="The notebook of MAE"):
    book = nbformat.v4.new_notebook()
    picture = base64.b64encode(
        base64.b64decode(
            "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=="
        )
    ).decode()
    outputs = [
        nbformat.v4.new_output(
            "display_data", data={"image/png": picture}, metadata={"image/png": {"alt": "a dot"}}
        )
    ]
    drawn = nbformat.v4.new_code_cell("draw()", outputs=outputs, metadata={"tags": ["front"]})
    book.cells = [nbformat.v4.new_markdown_cell(f"# {title}"), drawn]
    return book


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """Two budgets on one site, and the notebook of one paper executed in both scopes at its own."""
    folder = tmp_path_factory.mktemp("mixed")
    for name in ("measured", "benchmarks"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("*.py"))
    for scope, title in (("papers", "headline"), ("full", "every run")):
        path = folder / "executed" / "brief" / scope / "mae.ipynb"
        path.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(notebook(title), path)
    params = load(ROOT / "params.yaml")
    shown = params.model_copy(
        update={"findings": dict.fromkeys(published.papers(), "brief") | {"efficient_learners": "tiny"}}
    )
    written = site.of_findings(shown, folder)
    return written, {path.stem: Page(path) for path in written.write()}


def test_each_paper_stands_at_its_own_budget(mixed):
    made, pages = mixed
    texts = {name: page.path.read_text() for name, page in pages.items()}
    assert pages["index"].path.parent.parts[-2:] == ("docs", "site")
    assert (
        "python -m replicate budget tiny" in texts["efficient_learners"]
        and "budget brief" not in texts["efficient_learners"]
    )
    assert (
        "python -m replicate budget brief" in texts["efficient_mae"]
        and "budget tiny" not in texts["efficient_mae"]
    )
    assert "every run" in texts["mae"] and "headline" not in texts["mae"], (
        "the full grid's notebook comes first"
    )
    assert "at tiny</th>" in texts["methods"] and "at brief</th>" in texts["methods"]
    assert "full, budget tiny" in texts["data"] and "full, budget brief" in texts["data"]


def test_runs_of_a_paper_are_those_that_its_numbers_and_claims_speak_of(mixed):
    made, pages = mixed
    names = {run.name for run in made.runs("dailymae")}
    assert {"loader_folder", "loader_500_95"} <= names
    text = pages["provenance"].path.read_text()
    assert f"DailyMAE, budget brief, {len(names)} runs" in text and "loader_500_95" in text
    assert {run.name for run in made.runs("efficient_learners")} >= {"light_90", "full_75_llrd_65"}


def test_every_finding_has_its_scale_and_its_commands(mixed):
    texts = {name: page.path.read_text() for name, page in mixed[1].items()}

    def claim(paper: str, name: str) -> str:
        return texts[paper].partition(f'id="{name}"')[2].partition("</section>")[0]

    trained = claim("efficient_mae", "high_mr_hurts_baseline")
    assert (
        "data/tiny-imagenet, 10 classes; 56 px; ViT 128 wide, 6 blocks, patch 8; "
        "pre-trained 9 epochs; evaluated after 3; 3 seeds; cpu" in trained
    )
    longest = claim("efficient_learners", "llrd_gain_shrinks_with_pretraining")
    assert "ViT 96 wide, 12 blocks, patch 8; pre-trained 24 or 34 epochs" in longest, (
        "so little tells the shortest from the longest here"
    )
    measured = claim("dailymae", "loader_bottleneck")
    assert (
        "python -m replicate bench loader --images FOLDER" in measured
        and "<dt>scale</dt><dd>167 images on" in measured
    )


def test_a_site_of_findings_needs_findings(tmp_path):
    with pytest.raises(UserError, match="`findings` is empty"):
        site.of_findings(load(ROOT / "params.yaml").model_copy(update={"findings": {}}), tmp_path)


@pytest.fixture(scope="module")
def committed():
    return {path.stem: Page(path) for path in sorted((ROOT / site.FINDINGS).glob("*.html"))}


def test_there_is_a_page_for_every_paper_and_for_what_they_share(pages):
    assert set(pages) == {"index", *published.papers(), "scoreboard", "methods", "data", "provenance"}
    assert "The notebook of MAE" in pages["mae"].path.read_text()


@pytest.mark.parametrize("which", ["pages", "committed"])
def test_every_link_and_image_resolves_without_network(which, request):
    pages = request.getfixturevalue(which)
    assert set(pages) == set(site.PAGES)
    for page in pages.values():
        for link in page.links:
            target, _, anchor = unquote(link).partition("#")
            if link.startswith("data:"):
                continue
            found = pages.get(Path(target).stem) if target else page
            assert found is not None and "://" not in link, f"{page.path.name}: {link}"
            assert not anchor or anchor in found.ids, f"{page.path.name}: {link}"
        for image in page.images:
            assert image["src"].startswith("data:image/") and image.get("alt"), page.path.name
        assert not {"script", "iframe", "video"} & set(page.tags)
        assert "@import" not in page.path.read_text() and "url(http" not in page.path.read_text()


def test_every_page_has_a_table_where_it_has_numbers(pages):
    for name, page in pages.items():
        assert name == "data" or "table" in page.tags, name


def test_a_papers_page_lists_each_claim_with_its_commands(pages):
    text = pages["efficient_learners"].path.read_text()
    own = [claim for name, claim in published.claims().items() if name.startswith("efficient_learners.")]
    assert text.count('<section class="claim"') == len(own) == 15
    assert text.count("<dt>run it again</dt>") == 15 and f"python -m replicate budget {BUDGET}" in text


def test_the_overview_shows_each_claim_once_and_a_papers_picture(pages):
    text = pages["index"].path.read_text()
    claims = [link for link in pages["index"].links if ".html#" in link]
    assert len(claims) == len(set(claims)) == len(published.claims())
    assert [image["alt"] for image in pages["index"].images] == [
        "a dot"
    ] and 'class="verdict reproduced"' in text


def front_cells(paper: str) -> list:
    cells = nbformat.read(ROOT / "notebooks" / f"{paper}.ipynb", as_version=4).cells
    return [cell for cell in cells if "front" in cell.metadata.get("tags", [])]


def test_every_papers_notebook_has_one_picture_for_the_overview():
    for paper in published.papers():
        tagged = front_cells(paper)
        assert len(tagged) == 1 and "book.save(" in tagged[0].source, paper


def test_the_committed_pages_name_no_folder_of_a_machine():
    for page in sorted((ROOT / "docs" / "site").glob("*.html")):
        assert not re.findall(r"/[\w./-]+\.py:\d+", re.sub(r"base64,[\w+/=]+", "", page.read_text())), (
            page.name
        )


def remarks_of(line: dict) -> list[str]:
    """What the scoreboard's note says that is no check's: a caveat, or that checks stand in."""
    claim = published.claims()[line["claim"]]
    wanted = (
        [claim["caveat"]]
        if "caveat" in claim
        else ["does not decide the statement"]
        if claim.get("stand_in")
        else []
    )
    return [remark for remark in wanted if line["verdict"] != checks.NOT_RUN]


def test_the_committed_pages_show_the_committed_scoreboard(committed):
    """`python -m replicate site --findings` ran after the last change of a verdict or a number."""
    params = load(ROOT / "params.yaml")
    board = scoreboard.findings(params.findings, ROOT)
    overview = committed["index"].path.read_text()
    for table in (scoreboard.texts(board.totals), scoreboard.verdict_counts(board)):
        rows = html_table(table).split("<tr>")[1:]
        assert all(row.partition("</tr>")[0] in overview for row in rows)
    for paper in published.papers():
        text = committed[paper].path.read_text()
        assert '<div class="notebook">' in text and "has not been executed" not in text, paper
        for line in board.claims[board.claims["paper"] == paper].to_dict("records"):
            section = text.partition(f'id="{line["claim"].partition(".")[2]}"')[2].partition("</section>")[0]
            assert (
                f">{line['verdict']}</span>" in section and html.escape(wording.effect_text(line)) in section
            ), line["claim"]
            assert all(html.escape(remark) in section for remark in remarks_of(line)), line["claim"]
            assert section.count("<li>") == len(published.claims()[line["claim"]]["checks"]), (
                "every check speaks"
            )


def test_no_smoke_run_is_among_the_findings():
    assert not set(load(ROOT / "params.yaml").findings.values()) & verdicts.NO_FINDING


def test_commands_name_stages_that_exist():
    params = load(ROOT / "params.yaml")
    for claim in published.claims().values():
        runs, commands = evidence.runs_of(claim, params.runs), evidence.commands(claim, params, "laptop")
        stages = [
            word for command in commands for word in command.replace("TARGET=", " ").split() if "@" in word
        ]
        assert {stage.partition("@")[2] for stage in stages} <= set(params.runs)
        if any(check["kind"] == "computed" for check in claim["checks"]) and not runs:
            assert commands == ["python -m replicate scoreboard"]
    assert evidence.runs_of(published.claims()["efficient_learners.llrd_peak"], params.runs)[0].startswith(
        "light_90_llrd_"
    )


def test_a_benchmark_is_among_the_commands_of_the_claim_that_it_decides():
    params, command = load(ROOT / "params.yaml"), "python benchmarks/fastmim_step.py"
    assert (ROOT / "benchmarks/fastmim_step.py").exists()
    assert evidence.commands(published.claims()["fastmim.speed_memory"], params, "laptop")[0] == command
    assert command not in evidence.commands(published.claims()["fastmim.transfer"], params, "laptop")


@pytest.mark.slow
@pytest.mark.parametrize("size", [browser.DESKTOP, browser.PHONE], ids=["desktop", "phone"])
def test_every_page_opens_in_a_browser_without_an_error(pages, size):
    """SITE_SCREENSHOTS is a folder for a picture of each page, SITE a site instead of the committed one."""
    if browser.find() is None:
        pytest.skip("no Chromium here")
    chosen = Path(os.environ.get("SITE", ROOT / site.FINDINGS)).resolve()
    paths = [*(page.path for page in pages.values()), *sorted(chosen.glob("*.html"))]
    with browser.Browser() as tab:
        for path in paths:
            for dark in (False, True):
                tab.open(path.as_uri(), size, dark)
                assert tab.errors == [], path.name
                assert tab.evaluate(
                    "[...document.images].every(image => image.complete && image.naturalWidth > 0)"
                ), path.name
                assert tab.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), (
                    f"{path.name} is wider than its window"
                )
                if folder := os.environ.get("SITE_SCREENSHOTS"):
                    tab.photograph(
                        Path(folder) / f"{path.parents[1].name}-{path.stem}-{size[0]}{'-dark' * dark}.png"
                    )

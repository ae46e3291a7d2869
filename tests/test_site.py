"""The site: Sphinx builds it without a warning, its links resolve without network, nothing empty is shown."""

import html
import html.parser
import importlib.util
import os
import re
import shutil
from pathlib import Path
from urllib.parse import unquote

import browser
import nbformat
import numpy as np
import pandas as pd
import pytest

from replicate.config import load, published
from replicate.errors import UserError
from replicate.report import charts, colours, evidence, grids, pages, scoreboard, site, tables, verdicts
from replicate.report.book import NOTHING_DRAWN

ROOT = Path(__file__).resolve().parents[1]
DOT = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=="
WIDTHS = (390, 768, 1440)
TALLEST = 15_000
STILL = "document.head.insertAdjacentHTML('beforeend', '<style>*{transition:none!important}</style>')"
LONGEST = 30
"""Words of a sentence."""


class Page(html.parser.HTMLParser):
    """Links, ids and what a page loads."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path, self.links, self.loads, self.ids, self.images = path, [], [], set(), []
        self.text = path.read_text(encoding="utf-8")
        self.feed(self.text)

    def handle_starttag(self, tag: str, attributes: list) -> None:
        found = dict(attributes)
        self.ids |= {found["id"]} if found.get("id") else set()
        self.links += [found["href"]] if tag == "a" and found.get("href") else []
        self.loads += [found["src"]] if found.get("src") else []
        self.loads += [found["href"]] if tag == "link" and found.get("rel") == "stylesheet" else []
        self.images += [found] if tag == "img" else []


def notebook():
    """A section with a picture and a formula, and one that drew nothing."""

    def cell(source, **data):
        outputs = [nbformat.v4.new_output("display_data", data=data)]
        return nbformat.v4.new_code_cell(source, outputs=outputs)

    book = nbformat.v4.new_notebook()
    book.cells = [
        nbformat.v4.new_markdown_cell("# The notebook of MAE\n\n$$\\frac{1}{|M|}\\sum_{i\\in M} x_i^2$$"),
        cell("draw()", **{"image/png": DOT}),
        nbformat.v4.new_markdown_cell("## Figure 9\n\nPartial fine-tuning."),
        cell("draw_more()", **{"text/markdown": NOTHING_DRAWN}),
    ]
    return book


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """What the site of the findings' first budget shows, and its pages by their place."""
    folder, budget = (
        tmp_path_factory.mktemp("project"),
        next(iter(load(ROOT / "params.yaml").findings.values()))[0],
    )
    shutil.copytree(ROOT / "measured" / budget, folder / "measured" / budget)
    (folder / "tables" / budget).mkdir(parents=True)
    for name in (scoreboard.NUMBERS, scoreboard.CLAIMS):
        shutil.copy(ROOT / "tables" / budget / name, folder / "tables" / budget)
    executed = folder / "executed" / budget / "papers" / "mae.ipynb"
    executed.parent.mkdir(parents=True)
    nbformat.write(notebook(), executed)
    shown = site.of_budget(load(ROOT / "params.yaml"), budget, folder)
    out = folder / "site"
    return shown, {str(path.relative_to(out)): Page(path) for path in site.write(shown, out)}


def test_sphinx_warns_of_nothing_and_pages_load_nothing_from_elsewhere(built, capfd):
    shown, found = built
    assert next(iter(found)) == "index.html"
    assert (shown.sources.parent / "warnings.txt").read_text() == ""
    for name, page in found.items():
        assert not [load for load in page.loads if "://" in load], name
        for image in page.images:
            assert image.get("alt") or image["src"].startswith("data:") or "notebooks/" in name, name


def test_every_link_resolves(built):
    found = {page.path.resolve(): page for page in built[1].values()}
    for page in built[1].values():
        for link in page.links + page.loads:
            target, _, anchor = unquote(link).partition("#")
            if re.match(r"(https?|data|mailto):", link) or "?" in target:
                continue
            path = (page.path.parent / target).resolve() if target else page.path.resolve()
            assert path.exists(), f"{page.path.name}: {link}"
            if anchor and path in found:
                assert anchor in found[path].ids, f"{page.path.name}: {link}"


def test_the_home_page_says_what_was_found(built):
    shown, found = built
    home = found["index.html"]
    assert pages.sentence(shown) in home.text
    table = home.text.partition('<table class="map">')[2].partition("</table>")[0]
    assert table.count("<td") == len(published.claims())
    assert table.count("<th") == len(published.papers())


def test_a_paper_opens_with_thesis_and_answer_and_folds_what_is_not_run(built):
    shown, found = built
    for paper in published.papers():
        text = found[f"{paper}.html"].text
        lines = pages._ordered(shown.claims(paper))
        waiting = sum(line["kind"] == "waiting" for line in lines)
        assert text.index("Our answer") < text.index("More</h2>" if "More</h2>" in text else "More")
        assert (f"Not run ({waiting})" in text) == bool(waiting)
        for line in lines:
            assert (f'id="{line["anchor"]}"' in text) == (line["kind"] != "waiting"), line["claim"]


def test_a_paper_shows_where_released_code_differs(built):
    for paper in published.papers():
        entries = [entry for entry in published.released() if entry["of"] == paper]
        text = html.unescape(built[1][f"{paper}.html"].text).replace("’", "'")
        assert f"The paper against released code ({len(entries)})" in text
        assert all(entry["setting"] in text for entry in entries), paper


def test_a_section_that_drew_nothing_is_in_a_folded_list(built):
    text = built[1]["notebooks/mae.html"].text
    assert "No picture" not in text and "Partial fine-tuning" not in text
    assert "Not run (1)" in text and "<li><p>Figure 9</p></li>" in text
    assert "draw()" not in text and "<math" in text and 'src="../_images/' in text


def test_printed_tables_have_their_files(built):
    shown, found = built
    for paper in published.papers():
        page = found[f"{paper}_tables.html"]
        ends = [Path(link).suffix for link in page.links if "_downloads" in link]
        printed = shown.numbers(paper).groupby(["table", "panel"]).ngroups
        assert ends.count(".csv") == ends.count(".tex") == printed == page.text.count('class="gt_table"')


def sentences(text: str, ends: str = ".!?"):
    """Sentences of Markdown, without code, tables and headings."""
    text = re.sub(r"^---\n.*?\n---\n|<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r"^ *```.*?^ *```$", "", text, flags=re.DOTALL | re.MULTILINE)
    kept = ["" if re.match(r"\s*(\||#|:|<|\(|    )", line) else line for line in text.split("\n")]
    text = re.sub(r"\n\s*([-*]|\d+\.) ", "\n\n", "\n".join(kept))
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text)
    for paragraph in re.split(r"\n\s*\n", text):
        yield from (part.split() for part in re.split(rf"(?<=[{ends}])[*_)\]]*\s+", paragraph))


def test_no_sentence_is_long(built):
    """In what is generated, a semicolon ends an item of a list of facts."""
    generated = [path.read_text() for path in built[0].sources.glob("*.md")]
    written = []
    for path in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        before, _, rest = path.read_text().partition(scoreboard.START)
        block, _, after = rest.partition(scoreboard.END)
        written += [before, after]
        generated.append(block)
    found = [one for text in written for one in sentences(text)]
    found += [one for text in generated for one in sentences(text, ".!?;")]
    assert [" ".join(one) for one in found if len(one) > LONGEST] == []


def line(row, column, printed, status="not run", table="table_1", **numbers):
    blank = {"ours": np.nan, "ours_low": np.nan, "ours_high": np.nan, "seeds": 0}
    return {
        "table": table,
        "panel": "",
        "row": row,
        "column": column,
        "published": printed,
        "status": status,
    } | (blank | numbers)


def grid(*lines):
    return next(grids.grids(pd.DataFrame(lines)))


def test_a_grid_has_settings_down_and_quantities_across():
    trained = {"ours": 40.44, "ours_low": 38.9, "ours_high": 41.9, "seeds": 3}
    made = grid(
        line("backbone=ViT-L;decoder_depth=1", "ft_top1", "84.8", "trained: reproduced", **trained),
        line("backbone=ViT-L;decoder_depth=1", "lin_top1", "65.5"),
        line("backbone=ViT-L;decoder_depth=8", "ft_top1", "84.9"),
        line("backbone=ViT-L;decoder_depth=8", "lin_top1", "73.5"),
    )
    assert made.title == "Table 1" and made.shared == "backbone ViT-L" and made.stub == ("decoder depth",)
    assert made.texts.to_numpy().tolist() == [["1", "84.8 / 40.4 ± 1.5", "65.5"], ["8", "84.9", "73.5"]]
    assert made.kinds.to_numpy().tolist() == [["good", "waiting"], ["waiting", "waiting"]]
    assert made.csv().splitlines()[0] == "decoder depth,fine-tuned top-1,linear top-1"
    assert "84.8 / 40.4 ± 1.5" in made.latex() and "var(--good)" in made.html()


def test_one_quantity_of_two_settings_is_printed_as_a_square():
    pairs = [(ratio, decay) for ratio in (75, 90) for decay in (65, 80, 85)]
    made = grid(
        *(line(f"mask_ratio={ratio};llrd={decay}", "top1", f"{ratio}{decay}") for ratio, decay in pairs)
    )
    assert list(made.texts) == ["mask ratio", "top-1, 65", "top-1, 80", "top-1, 85"]
    assert made.texts.to_numpy().tolist() == [["75", "7565", "7580", "7585"], ["90", "9065", "9080", "9085"]]


def test_a_setting_that_only_some_numbers_have_makes_no_row_of_its_own():
    made = grid(line("res=500", "file_size_gb", "20"), line("res=500;eval=val", "top1", "82.1"),
                line("res=256", "file_size_gb", "9"), line("res=256;eval=val", "top1", "81.0"))  # fmt: skip
    assert made.texts.to_numpy().tolist() == [["500", "20", "82.1"], ["256", "9", "81.0"]]


def test_every_printed_number_is_in_one_cell_of_a_grid():
    values = published.values().reset_index(drop=True)
    for paper in published.papers():
        own = values[values["paper"] == paper].assign(published=values["printed"], ours=np.nan, seeds=0)
        own = own.assign(ours_low=np.nan, ours_high=np.nan, status="not run")
        shown = [
            text for one in grids.grids(own) for text in one.texts[list(one.kinds)].to_numpy().ravel() if text
        ]
        assert sorted(shown) == sorted(own["printed"])


def test_every_verdict_and_status_has_its_colour():
    kinds = {word: colours.kind_of(word) for word in (*scoreboard.VERDICTS, *tables.STATUSES)}
    assert {kinds[word] for word in scoreboard.VERDICTS} >= {"good", "bad", "open", "waiting"}
    assert kinds["not run"] == "waiting" and "derived" in kinds.values()
    assert colours.kind_of({"status": "arithmetic check", "agreement": "differs"}) == "differs"


def test_a_key_figure_needs_three_of_our_runs():
    ours = {"ours": 40.0, "seeds": 2, "unit": "percent"}
    few = pd.DataFrame([line(f"d={n}", "top1", "80", run=f"r{n}", id=n, **ours) for n in range(2)])
    assert len(charts.key_rows(few)) == 0
    more = pd.concat([few, few.assign(run=["r2", "r3"], row=["d=2", "d=3"])], ignore_index=True)
    assert charts.labels(charts.key_rows(more)) == ["d 0", "d 1", "d 2", "d 3"]


def test_classes_are_named_in_words():
    assert pages.class_names(["n01443537", "n99999999"]) == ["goldfish", "n99999999"]
    assert pages.class_names(["red_dot"]) == ["red dot"]


def test_a_site_of_findings_needs_findings(tmp_path):
    with pytest.raises(UserError, match="`findings` is empty"):
        site.of_findings(load(ROOT / "params.yaml").model_copy(update={"findings": {}}), tmp_path)


def test_no_smoke_run_is_among_the_findings():
    shown = load(ROOT / "params.yaml").findings.values()
    assert not {name for named in shown for name in named} & verdicts.NO_FINDING


def test_each_paper_shows_the_runs_of_its_own_budget_loaders_included():
    params = load(ROOT / "params.yaml")
    shown = site.of_findings(params, ROOT)
    names = {run.name for run in shown.runs("dailymae", "brief")}
    assert {"loader_folder", "loader_500_95"} <= names
    assert set(shown.results) == {name for named in params.findings.values() for name in named}


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


def test_a_benchmark_is_among_the_commands_of_the_claim_that_it_decides():
    params, command = load(ROOT / "params.yaml"), "python benchmarks/fastmim_step.py"
    assert (ROOT / "benchmarks/fastmim_step.py").exists()
    assert evidence.commands(published.claims()["fastmim.speed_memory"], params, "laptop")[0] == command
    assert command not in evidence.commands(published.claims()["fastmim.transfer"], params, "laptop")


def page_paths(built) -> list[Path]:
    """The pages to look at: those of `built`, or of the site that the variable SITE names."""
    chosen = Path(os.environ["SITE"]).resolve() if "SITE" in os.environ else None
    paths = [page.path for page in built[1].values()] if chosen is None else sorted(chosen.rglob("*.html"))
    return [path for path in paths if "_static" not in path.parts]


def axe_script() -> str | None:
    """axe-core: the file that the variable AXE names, or the one in the package axe-core-python."""
    package = importlib.util.find_spec("axe_core_python")
    held = Path(package.origin).with_name("axe.min.js") if package else None
    path = Path(os.environ["AXE"]) if "AXE" in os.environ else held
    return path.read_text(encoding="utf-8") if path else None


@pytest.mark.slow
@pytest.mark.parametrize("width", [min(WIDTHS), max(WIDTHS)])
def test_axe_finds_no_fault(built, width):
    if browser.find() is None or (script := axe_script()) is None:
        pytest.skip("no Chromium or no axe-core here")
    listed = "axe.run().then(found => found.violations.map(v => v.id + ' ' + v.nodes.map(n => n.target)))"
    with browser.Browser() as tab:
        for path in page_paths(built):
            for dark in (False, True):
                tab.open(path.as_uri(), (width, 900), dark)
                tab.evaluate(STILL)  # a colour that is still changing would be judged halfway
                tab.evaluate(f"{script};1")
                assert tab.evaluate(listed) == [], f"{path.name}, {width} px{', dark' * dark}"


@pytest.mark.slow
@pytest.mark.parametrize("width", WIDTHS)
def test_every_page_fits_its_window(built, width):
    """SITE is another site to look at, SITE_SCREENSHOTS a folder for a picture of each of its pages."""
    if browser.find() is None:
        pytest.skip("no Chromium here")
    with browser.Browser() as tab:
        for path in page_paths(built):
            for dark in (False, True):
                tab.open(path.as_uri(), (width, 900), dark)
                assert [error for error in tab.errors if "theme mode" not in error] == [], path.name
                assert tab.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), path.name
                height = tab.evaluate("document.documentElement.scrollHeight")
                assert height <= TALLEST or width < max(WIDTHS) or path.stem == "scoreboard", path.name
                if folder := os.environ.get("SITE_SCREENSHOTS"):
                    tab.photograph(Path(folder) / f"{path.stem}-{width}{'-dark' * dark}.png")


def test_a_paper_without_claims_has_a_card():
    """What `paper new` makes states no claim yet."""
    assert pages.counted(pd.DataFrame({"verdict": []})) == "no claim is stated yet"

"""The site: pages of findings, the executed notebooks and docs/, made by Sphinx into one folder.

`executed/<budget>/site` shows one budget. `site/` shows the project's findings, each paper at the budgets
that `findings` in params.yaml names. The pages' sources go below `.replicate/site/`, by the templates of
`templates/`. Sphinx does the rest, with docs/conf.py; the pages need neither network nor server.
"""

from __future__ import annotations

import contextlib
import io
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import nbformat

from replicate.config import published
from replicate.config.rooms import ROOMS
from replicate.errors import UserError
from replicate.report import notebook
from replicate.report.book import NOTHING_DRAWN
from replicate.report.pages import pages
from replicate.report.shown import TAUGHT, Shown

if TYPE_CHECKING:
    from replicate.config import Params

REPOSITORY = ROOMS.parent
SOURCES = Path(".replicate") / "site"
FINDINGS = Path("site")
COPIED, LINKED = ("docs/*.md", "papers/README.md"), ("tables", "benchmarks", "params.yaml", "budgets.yaml")
"""Documents, and what they show or link to; all of it lies in the sources as in the repository."""


def of_budget(params: Params, budget: str, root: Path = Path()) -> Shown:
    """What the site of one budget shows, with the notebooks of the default pipeline."""
    budgets = dict.fromkeys(published.papers(), (budget,))
    return Shown(params, budgets, root / SOURCES / budget, ("papers", "full"), root)


def of_findings(params: Params, root: Path = Path()) -> Shown:
    """What the site of the findings shows, with the full grid. Raises UserError without findings."""
    if not params.findings:
        raise UserError("params.yaml: `findings` is empty; it names each paper's budgets")
    return Shown(params, params.findings, root / SOURCES / "findings", ("full", "papers"), root)


def write(shown: Shown, folder: Path) -> list[Path]:
    """Build the site in `folder`, which it replaces; returns its pages, the home page first.

    Raises UserError where Sphinx fails.
    """
    shutil.rmtree(shown.sources, ignore_errors=True)
    shown.sources.mkdir(parents=True)
    for path in (path for pattern in COPIED for path in REPOSITORY.glob(pattern)):
        target = shown.sources / path.relative_to(REPOSITORY)
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(path, target)
    for name in LINKED:
        (shown.sources / name).symlink_to((REPOSITORY / name).resolve())
    for name, path in shown.notebooks().items():
        _copy(path, shown.sources / "notebooks" / f"{name}.ipynb")
    for name, text in pages(shown).items():
        (shown.sources / f"{name}.md").write_text(text, encoding="utf-8")
    build = shown.sources.with_name(f"{shown.sources.name}-build")
    _sphinx(shown.sources, build)
    shutil.rmtree(folder, ignore_errors=True)
    shutil.move(build / "html", folder)
    shutil.rmtree(build)
    found = sorted(folder.rglob("*.html"), key=lambda path: (path.name != "index.html", path))
    return [path for path in found if "_static" not in path.parts]


def _copy(path: Path, target: Path) -> None:
    """A notebook for Sphinx: code is hidden unless the notebook teaches, and what was not drawn is a list."""
    copied = notebook.read(path)
    ran = any(cell.get("outputs") for cell in copied.cells)
    copied.metadata["mystnb"] = {"remove_code_source": ran and not target.name.startswith(TAUGHT)}
    sections: list[list[nbformat.NotebookNode]] = []
    for cell in copied.cells:
        if not sections or (cell.cell_type == "markdown" and cell.source.startswith("#")):
            sections.append([])
        sections[-1].append(cell)
    blank = [cells for cells in sections if _is_blank(cells)]
    kept = [cell for cells in sections if cells not in blank for cell in cells]
    copied.cells = [cell for cell in kept if not _is_blank([cell])]
    if blank:
        names = [cells[0].source.partition("\n")[0].lstrip("# ") for cells in blank]
        lines = "\n".join(f"- {name}" for name in names)
        text = f"## Not run here\n\n:::{{dropdown}} Not run ({len(names)})\n{lines}\n:::"
        copied.cells.append(nbformat.v4.new_markdown_cell(text))
    target.parent.mkdir(exist_ok=True)
    nbformat.write(copied, target)


def _is_blank(cells: list[nbformat.NotebookNode]) -> bool:
    """Whether cells have run and had nothing to draw."""
    shown = [out for cell in cells if cell.cell_type == "code" for out in cell.outputs]
    return bool(shown) and all(out.get("data", {}).get("text/markdown") == NOTHING_DRAWN for out in shown)


def _sphinx(source: Path, build: Path) -> None:
    """Pages in `build`/html, and by-products beside them."""
    try:
        from sphinx.cmd.build import build_main
    except ImportError:
        raise UserError("the site needs Sphinx: `make setup`, or `pip install 'replicate[site]'`") from None

    shutil.rmtree(build, ignore_errors=True)
    said = io.StringIO()
    options = ["-q", "-b", "html", "-c", str(REPOSITORY / "docs"), "-d", str(build / "doctrees")]
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        failed = build_main([*options, str(source), str(build / "html")])
    build.with_name("warnings.txt").write_text(said.getvalue(), encoding="utf-8")
    print(said.getvalue(), end="", file=sys.stderr)
    if failed:
        raise UserError(f"Sphinx could not build the site from {source}; its messages are above")

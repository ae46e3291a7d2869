"""Notebooks in the pipeline: stripped before anything depends on them, executed with names only, each rendered to a page."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import nbformat

from replicate.errors import UserError

SOURCES, EXECUTED = Path("executed/source"), Path("executed")
KERNEL = "python3"
CELL_TIMEOUT = 1800  # seconds
# A kernel warns that it talks over this machine's own loopback, which a user can do nothing about.
KERNEL_ARGUMENTS = ["--log-level=ERROR"]
# What Jupyter writes down about the machine that a notebook was last opened on; no content of it.
_SESSION_KEYS = ["metadata.kernelspec", "metadata.language_info", "metadata.widgets", "metadata.toc", "metadata.papermill"]


def strip(source: str | Path, destination: str | Path) -> None:
    """Write a notebook without outputs, execution counts and session metadata.

    Opening and saving it in JupyterLab leaves the copy as it was, so nothing that depends on it runs again. Raises UserError
    for a file that is missing or no notebook.
    """
    from nbstripout import strip_output

    notebook = read(source)
    stripped = strip_output(notebook, keep_output=False, keep_count=False, keep_id=True, extra_keys=_SESSION_KEYS)
    destination = Path(destination)
    destination.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(stripped, destination)


def execute(paper: str, budget: str, scope: str = "headline") -> Path:
    """Run a paper's stripped notebook and render it: `executed/<budget>/<paper>.ipynb` and `.html`; returns the page.

    The notebook gets the names `paper`, `budget` and `scope` ("headline", or "full" with the runs of the grid, whose page lies in
    `executed/<budget>/full/`) and reads every number through `replicate.config`. Raises UserError when a cell fails; the notebook
    with its traceback stays where it is.
    """
    import papermill
    from papermill.exceptions import PapermillExecutionError

    source = SOURCES / f"{paper}.ipynb"
    if not source.exists():
        strip(f"notebooks/{paper}.ipynb", source)
    target = EXECUTED / budget / ("full" if scope == "full" else "papers") / f"{paper}.ipynb"
    page = target.with_suffix(".html")
    target.parent.mkdir(parents=True, exist_ok=True)
    page.unlink(missing_ok=True)
    names = {"paper": paper, "budget": budget, "scope": scope}
    _accepts(source, names)
    options = {
        "kernel_name": KERNEL,
        "language": "python",
        "progress_bar": False,
        "execution_timeout": CELL_TIMEOUT,
        "extra_arguments": KERNEL_ARGUMENTS,
    }
    try:
        papermill.execute_notebook(str(source), str(target), parameters=names, **options)
    except PapermillExecutionError as error:
        raise UserError(f"{target}: cell [{error.exec_count}] failed with {error.ename}: {_one_line(error.evalue)}; it holds the traceback") from None
    page.write_text(render(read(target)), encoding="utf-8")
    return page


def render(notebook: nbformat.NotebookNode) -> str:
    """An executed notebook as one HTML page that needs nothing else: light or dark as the system is, readable on a phone."""
    from replicate.report.page import page

    return page(title(notebook), body(notebook))


def body(notebook: nbformat.NotebookNode) -> str:
    """An executed notebook as HTML to stand within a page; code is folded away."""
    from nbconvert import HTMLExporter

    from replicate.report.page import CODE_CELLS

    exporter = HTMLExporter(raw_template=CODE_CELLS, exclude_input_prompt=True, exclude_output_prompt=True)
    return exporter.from_notebook_node(notebook)[0]


def front(notebook: nbformat.NotebookNode) -> tuple[str, str] | None:
    """The picture that stands for a notebook, that of its cell tagged `front`: (PNG in base64, alternative text); None where it drew none."""
    tagged = (cell for cell in notebook.cells if "front" in cell.metadata.get("tags", []))
    outputs = (output for cell in tagged for output in cell.get("outputs", []) if "image/png" in output.get("data", {}))
    found = next(outputs, None)
    return found and (found["data"]["image/png"], found.get("metadata", {}).get("image/png", {}).get("alt", ""))


def title(notebook: nbformat.NotebookNode) -> str:
    """The text of the first heading."""
    for cell in notebook.cells:
        found = re.search(r"^# (.+)$", cell.source, re.MULTILINE) if cell.cell_type == "markdown" else None
        if found:
            return found[1].strip()
    return "Notebook"


def read(path: str | Path) -> nbformat.NotebookNode:
    """A notebook file. Raises UserError for one that is missing or broken."""
    try:
        return nbformat.read(path, as_version=4)
    except FileNotFoundError:
        raise UserError(f"{path}: no such notebook") from None
    except Exception as error:  # nbformat raises several unrelated types for files that are no notebooks
        raise UserError(f"{path}: not a Jupyter notebook ({_one_line(error)})") from None


def parameters(notebook: nbformat.NotebookNode) -> list[str]:
    """The names that the cell tagged `parameters` assigns."""
    tagged = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    return [name for cell in tagged for name in re.findall(r"^(\w+)\s*=", cell.source, re.MULTILINE)]


def _accepts(source: Path, names: dict[str, Any]) -> None:
    """papermill only warns of a name that a notebook does not know, and the notebook would then run on its defaults."""
    unknown = [name for name in names if name not in parameters(read(source))]
    if unknown:
        raise UserError(f"{source}: its cell tagged 'parameters' does not assign {', '.join(unknown)}")


def _one_line(error: object) -> str:
    return " ".join(str(error).split())[:200]

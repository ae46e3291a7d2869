"""Notebooks in the pipeline: stripped, and executed with names only."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import nbformat

from replicate.errors import UserError

SOURCES, EXECUTED = Path("executed/source"), Path("executed")
KERNEL = "python3"
CELL_TIMEOUT = 1800  # seconds
# A kernel warns that it talks over this machine's own loopback, and a user cannot change that.
KERNEL_ARGUMENTS = ["--log-level=ERROR"]


def strip(source: str | Path, destination: str | Path) -> None:
    """Write a notebook with nothing but its cells' sources, attachments and tags.

    Opening and saving the notebook in an editor leaves the copy unchanged, so nothing that depends on it
    runs again. Raises UserError for a file that is missing or no notebook.
    """
    cells = [_bare(cell, number) for number, cell in enumerate(read(source).cells)]
    destination = Path(destination)
    destination.parent.mkdir(parents=True, exist_ok=True)
    text = nbformat.writes(nbformat.v4.new_notebook(cells=cells)) + "\n"
    if not destination.exists() or destination.read_text(encoding="utf-8") != text:
        destination.write_text(text, encoding="utf-8")


def _bare(cell: nbformat.NotebookNode, number: int) -> nbformat.NotebookNode:
    source = cell.source.replace("\r\n", "\n")
    bare = nbformat.v4.new_code_cell(source) if cell.cell_type == "code" else None
    bare = bare or nbformat.from_dict({"cell_type": cell.cell_type, "metadata": {}, "source": source})
    bare.id = f"cell-{number}"
    if tags := cell.metadata.get("tags"):
        bare.metadata.tags = tags
    if attachments := cell.get("attachments"):
        bare.attachments = attachments
    return bare


def execute(paper: str, budget: str, scope: str = "headline") -> Path:
    """Run a paper's stripped notebook as `executed/<budget>/papers/<paper>.ipynb`; returns that.

    The notebook gets the names `paper`, `budget` and `scope` ("headline", or "full" with the runs of the
    grid, whose notebook lies in `executed/<budget>/full/`) and reads every number through `replicate.config`.
    Raises UserError when a cell fails; the notebook with its traceback stays on disk.
    """
    import papermill
    from papermill.exceptions import PapermillExecutionError

    from replicate.report.kernel import OwnKernel

    source = SOURCES / f"{paper}.ipynb"
    strip(f"notebooks/{paper}.ipynb", source)
    target = EXECUTED / budget / ("full" if scope == "full" else "papers") / f"{paper}.ipynb"
    target.parent.mkdir(parents=True, exist_ok=True)
    names = {"paper": paper, "budget": budget, "scope": scope}
    _refuse_unknown(source, names)
    options = {"kernel_name": KERNEL, "language": "python", "extra_arguments": KERNEL_ARGUMENTS}
    options |= {"progress_bar": False, "execution_timeout": CELL_TIMEOUT, "kernel_manager_class": OwnKernel}
    try:
        papermill.execute_notebook(str(source), str(target), parameters=names, **options)
    except PapermillExecutionError as error:
        failed = f"cell [{error.exec_count}] failed with {error.ename}: {_one_line(error.evalue)}"
        raise UserError(f"{target}: {failed}; it holds the traceback") from None
    return target


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


def _refuse_unknown(source: Path, names: dict[str, Any]) -> None:
    """papermill only warns of an unknown name, and the notebook would run on its defaults."""
    unknown = [name for name in names if name not in parameters(read(source))]
    if unknown:
        raise UserError(f"{source}: its cell tagged 'parameters' does not assign {', '.join(unknown)}")


def _one_line(error: object) -> str:
    return " ".join(str(error).split())[:200]

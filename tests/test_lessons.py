"""`start` and the lessons: they run, with the solutions of their exercises, and their parts are there."""

import ast
import re
from pathlib import Path

import matplotlib
import nbformat
import pytest
from jupyter_client.kernelspec import KernelSpecManager

from replicate.report.style import Figure

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = ROOT / "notebooks"
LESSONS = sorted(path.stem for path in NOTEBOOKS.glob("lesson_*.ipynb"))
TAUGHT = ("mae", "efficient_learners", "efficient_mae", "fastmim", "dailymae")
ALL = sorted(NOTEBOOKS.glob("*.ipynb"))


def cells(name, kind):
    book = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    return [cell.source for cell in book.cells if cell.cell_type == kind]


def solutions(name):
    """The code within the folded solutions."""
    folded = re.findall(r"<details>.*?</details>", "\n".join(cells(name, "markdown")), re.DOTALL)
    return [code for text in folded for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL)]


def run(name, monkeypatch):
    """Run a notebook's cells and solutions in this process; returns the value that each cell ends with."""
    monkeypatch.chdir(NOTEBOOKS)
    names, values = {}, []
    for source in [*cells(name, "code"), *solutions(name)]:
        tree = ast.parse(source)
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, name, "exec"), names)
        values.append(last and eval(compile(ast.Expression(last.value), name, "eval"), names))
    return values


@pytest.mark.parametrize("name", LESSONS)
def test_a_lesson_agrees_with_the_harness_and_its_solution_runs(name, monkeypatch):
    run(name, monkeypatch)


def test_start_draws_a_picture_for_each_of_its_six_ideas(monkeypatch):
    with matplotlib.rc_context():
        values = run("start", monkeypatch)
        pictures = [value._repr_png_()[0] for value in values if hasattr(value, "_repr_png_")]
    assert len(pictures) == 6 and all(png.startswith(b"\x89PNG") for png in pictures)
    assert sum(isinstance(value, Figure) for value in values) == 5


def test_every_paper_has_a_lesson():
    assert {f"lesson_{paper}" for paper in TAUGHT} <= set(LESSONS)


@pytest.mark.parametrize("name", LESSONS)
def test_a_lesson_is_short_and_has_equations_a_comparison_and_a_solution(name):
    code, text = cells(name, "code"), "\n".join(cells(name, "markdown"))
    lines = [line for source in code for line in source.splitlines() if line.strip()]
    assert 24 <= len(lines) <= 50
    assert "$$" in text and "## The harness does the same" in text and "## Exercise" in text
    assert any("assert" in source for source in code)
    assert solutions(name) and all("assert" in one for one in solutions(name))


@pytest.mark.parametrize("name", ["start", *LESSONS])
def test_links_lead_to_notebooks_that_are_there(name):
    links = re.findall(r"\]\(([\w/]+\.ipynb)\)", "\n".join(cells(name, "markdown")))
    assert links and all((NOTEBOOKS / link).exists() for link in links), links


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
def test_jupyter_finds_the_kernel_that_a_notebook_names(path):
    """Otherwise JupyterLab opens with "Select Kernel"."""
    kernel = nbformat.read(path, as_version=4).metadata.kernelspec.name
    assert kernel in KernelSpecManager().find_kernel_specs()

"""Notebooks are stripped and executed with names only; committed ones follow the rules."""

import ast
import json
import sys
from pathlib import Path

import nbformat
import pytest

from replicate.errors import UserError
from replicate.report import notebook

ROOT = Path(__file__).resolve().parents[1]
COMMITTED = sorted((ROOT / "notebooks").glob("*.ipynb"))
PIPELINE = [path for path in COMMITTED if (ROOT / "papers" / path.stem).is_dir()]


def make(*sources, tagged="budget = None\npaper = None\nscope = None"):
    book = nbformat.v4.new_notebook()
    book.cells = [
        nbformat.v4.new_markdown_cell("# A title"),
        nbformat.v4.new_code_cell(tagged, metadata={"tags": ["parameters"]}),
    ]
    book.cells += [nbformat.v4.new_code_cell(source) for source in sources]
    return book


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notebooks").mkdir()
    return tmp_path


def test_strip_removes_what_opening_and_saving_changes(tmp_path):
    book = make("1 + 1")
    nbformat.write(book, tmp_path / "a.ipynb")
    book.cells[2].execution_count = 7
    book.cells[2].outputs = [nbformat.v4.new_output("stream", text="2")]
    book.metadata = {
        "kernelspec": {"name": "mine", "display_name": "Mine"},
        "language_info": {"name": "python", "version": "3.99"},
    }
    nbformat.write(book, tmp_path / "b.ipynb")
    notebook.strip(tmp_path / "a.ipynb", tmp_path / "out" / "a.ipynb")
    notebook.strip(tmp_path / "b.ipynb", tmp_path / "out" / "b.ipynb")
    assert (tmp_path / "out/a.ipynb").read_bytes() == (tmp_path / "out/b.ipynb").read_bytes()
    assert notebook.read(tmp_path / "out/b.ipynb").cells[1].metadata.tags == ["parameters"]


def test_strip_keeps_sources_and_tags_whatever_an_editor_adds(tmp_path):
    """JupyterLab's timings and folded cells, VS Code's and Colab's marks, Windows' line ends."""
    book = make("first\nsecond")
    nbformat.write(book, tmp_path / "a.ipynb")
    cell = book.cells[2]
    cell.source = "first\r\nsecond"
    cell.id = "another"
    cell.metadata = {
        "collapsed": True,
        "scrolled": True,
        "execution": {"iopub.execute_input": "2026-01-01T00:00:00Z"},
        "vscode": {"languageId": "python"},
        "id": "colab",
        "jupyter": {"outputs_hidden": True},
    }
    book.cells[1].metadata["colab"] = {"base_uri": "here"}
    book.metadata = {"vscode": {"interpreter": {"hash": "1"}}, "colab": {"provenance": []}}
    nbformat.write(book, tmp_path / "b.ipynb")
    for name in ("a", "b"):
        notebook.strip(tmp_path / f"{name}.ipynb", tmp_path / "out" / f"{name}.ipynb")
    assert (tmp_path / "out/a.ipynb").read_bytes() == (tmp_path / "out/b.ipynb").read_bytes()
    assert notebook.read(tmp_path / "out/b.ipynb").cells[2].source == "first\nsecond"


def test_another_kernel_of_the_same_name_is_not_used(here, monkeypatch):
    kernel = here / "jupyter" / "kernels" / "python3"
    kernel.mkdir(parents=True)
    broken = {"argv": ["/bin/false", "{connection_file}"], "display_name": "Broken", "language": "python"}
    (kernel / "kernel.json").write_text(json.dumps(broken))
    monkeypatch.setenv("JUPYTER_PATH", str(here / "jupyter"))
    nbformat.write(make("import sys; print(sys.executable)"), here / "notebooks" / "own.ipynb")
    notebook.execute("own", "smoke")
    [printed] = notebook.read(here / "executed/smoke/papers/own.ipynb").cells[-1].outputs
    assert printed.text.strip() == sys.executable


@pytest.mark.parametrize(
    ("text", "words"),
    [(None, "no such notebook"), ("{", "not a Jupyter notebook"), ("[]", "not a Jupyter notebook")],
)
def test_what_is_no_notebook_is_named(tmp_path, text, words):
    if text is not None:
        (tmp_path / "a.ipynb").write_text(text)
    with pytest.raises(UserError, match=words) as error:
        notebook.strip(tmp_path / "a.ipynb", tmp_path / "b.ipynb")
    assert "\n" not in str(error.value) and not (tmp_path / "b.ipynb").exists()


def printed(path):
    return [out.text for cell in notebook.read(path).cells for out in cell.get("outputs", [])]


def test_execute_passes_names(here):
    nbformat.write(make("print(paper, budget)"), here / "notebooks/mae.ipynb")
    path = notebook.execute("mae", "smoke")
    assert path == Path("executed/smoke/papers/mae.ipynb") and printed(path) == ["mae smoke\n"]


def test_the_full_scope_has_a_folder_of_its_own_and_nothing_to_warn_of(here, capfd):
    nbformat.write(make("print(scope)"), here / "notebooks/mae.ipynb")
    path = notebook.execute("mae", "smoke", "full")
    assert "WARNING" not in capfd.readouterr().err
    assert path == Path("executed/smoke/full/mae.ipynb") and printed(path) == ["full\n"]


def test_a_failing_cell_stays_on_disk_with_its_traceback(here):
    nbformat.write(make("1 / 0"), here / "notebooks/mae.ipynb")
    failure = "executed/smoke/papers/mae.ipynb: cell \\[3\\] failed with ZeroDivisionError"
    with pytest.raises(UserError, match=failure):
        notebook.execute("mae", "smoke")
    assert "ZeroDivisionError" in Path("executed/smoke/papers/mae.ipynb").read_text()


def test_a_notebook_without_the_names_is_refused_before_it_runs(here):
    nbformat.write(
        make("print(1)", tagged="budgets = None\npaper = None\nscope = None"), here / "notebooks/mae.ipynb"
    )
    with pytest.raises(UserError, match="does not assign budget"):
        notebook.execute("mae", "smoke")


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.stem)
def test_committed_notebooks_are_stripped_and_readable(path):
    book = notebook.read(path)
    nbformat.validate(book)
    assert book.cells[0].cell_type == "markdown" and book.cells[0].source.startswith("# ")
    for cell in book.cells:
        if cell.cell_type != "code":
            continue
        assert cell.outputs == [] and cell.execution_count is None
        assert len(cell.source.splitlines()) <= 15, cell.source
        for node in ast.walk(ast.parse(cell.source)):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 5, node.name


@pytest.mark.parametrize("path", PIPELINE, ids=lambda path: path.stem)
def test_pipeline_notebooks_take_names_and_end_with_table_and_verdict(path):
    book = notebook.read(path)
    assert notebook.parameters(book) == ["budget", "paper", "scope"]
    code = [cell.source for cell in book.cells if cell.cell_type == "code"]
    assert "book" in code[1].splitlines()[-1], "versions, revision and device come first"
    assert "book.table(" in code[-2] and "book.verdicts()" in code[-1]

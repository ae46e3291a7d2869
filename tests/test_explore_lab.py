"""JupyterLab in a headless Chromium: notebooks run without a question, and a picture follows its slider."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import browser
import pytest

ROOT = Path(__file__).resolve().parents[1]
PICTURE = "document.querySelector('.jp-OutputArea .jupyter-widgets img')?.src"
CAPTION = "document.querySelector('.jp-OutputArea .jupyter-widgets figcaption')?.textContent"
QUESTION = "document.querySelectorAll('.jp-Dialog').length"
NOTEBOOK = "[...(window.jupyterapp?.shell.widgets('main') ?? [])].find(widget => widget.sessionContext)"
CODE = f"({NOTEBOOK}).content.model.toJSON().cells.filter(cell => cell.cell_type === 'code')"
SHOWN = ("image/png", "application/vnd.jupyter.widget-view+json")
RIGHT = 39
NOTEBOOKS = ("explore_masking", "explore_reconstruction", "start")


@pytest.fixture
def lab(tmp_path):
    """The address of a running JupyterLab without a token, on copies of the notebooks."""
    for name in NOTEBOOKS:
        shutil.copy(ROOT / "notebooks" / f"{name}.ipynb", tmp_path)
    for name in ("params.yaml", "budgets.yaml", "papers"):
        (tmp_path / name).symlink_to(ROOT / name)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "jupyter",
        "lab",
        "--no-browser",
        "--allow-root",
        f"--ServerApp.port={port}",
        "--ip=127.0.0.1",
    ]
    command += [
        "--IdentityProvider.token=",
        "--LabApp.expose_app_in_browser=True",
        f"--ServerApp.root_dir={tmp_path}",
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    server = subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    yield f"http://127.0.0.1:{port}/lab/tree"
    server.terminate()
    server.wait(30)


def opened(lab, name):
    """A tab with a notebook whose kernel is idle and whose cells have been started."""
    if browser.find() is None:
        pytest.skip("no Chromium here")
    tab = browser.Browser()
    tab.open_when_up(f"{lab}/{name}.ipynb")
    tab.wait_for(f"{NOTEBOOK}?.sessionContext?.session?.kernel?.status === 'idle'")
    assert tab.evaluate(QUESTION) == 0, "JupyterLab asks something before the notebook can run"
    tab.evaluate(f"jupyterapp.shell.activateById({NOTEBOOK}.id)")
    tab.evaluate("void jupyterapp.commands.execute('notebook:run-all-cells')")
    return tab


def photograph(tab, name):
    if folder := os.environ.get("SITE_SCREENSHOTS"):
        tab.photograph(Path(folder) / f"lab_{name}.png")


@pytest.mark.slow
def test_a_slider_moved_in_jupyterlab_changes_picture_and_caption(lab):
    with opened(lab, "explore_masking") as tab:
        before = tab.wait_for(PICTURE)
        said = tab.evaluate(CAPTION)
        tab.evaluate("document.querySelector('.noUi-handle').focus()")
        tab.press("ArrowRight", RIGHT)
        after = tab.wait_for(f"(({PICTURE}) !== {json.dumps(before)}) && {PICTURE}")
        assert after.startswith("data:image/png") and tab.evaluate(CAPTION) != said
        photograph(tab, "explore_masking")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "pictures"), [("start", 6), ("explore_reconstruction", 3)])
def test_a_notebook_runs_in_jupyterlab(lab, name, pictures):
    """JupyterLab draws only cells in view, so this asks its model of the notebook."""
    with opened(lab, name) as tab:
        tab.wait_for(f"{CODE}.every(cell => cell.execution_count)", patience=400)
        outputs = json.loads(tab.evaluate(f"JSON.stringify({CODE}.flatMap(cell => cell.outputs))"))
        assert [output for output in outputs if output["output_type"] == "error"] == []
        shown = [kind for output in outputs for kind in output.get("data", {}) if kind in SHOWN]
        assert len(shown) == pictures
        photograph(tab, name)

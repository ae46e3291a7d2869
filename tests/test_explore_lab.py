"""JupyterLab in a headless Chromium: moving a slider changes the picture beside it."""

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
PICTURE = (
    "document.querySelector('.jp-OutputArea .widget-output img, .jp-OutputArea .jupyter-widgets img')?.src"
)
NOTEBOOK = "[...(window.jupyterapp?.shell.widgets('main') ?? [])].find(widget => widget.sessionContext)"
RIGHT = 39


@pytest.fixture
def lab(tmp_path):
    """(address of a running JupyterLab without a token, its folder), on a copy of the notebook."""
    shutil.copy(ROOT / "notebooks" / "explore_masking.ipynb", tmp_path / "masking.ipynb")
    (tmp_path / "params.yaml").symlink_to(ROOT / "params.yaml")
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
    yield f"http://127.0.0.1:{port}/lab/tree/masking.ipynb"
    server.terminate()
    server.wait(30)


@pytest.mark.slow
def test_a_slider_moved_in_jupyterlab_changes_the_picture(lab, tmp_path):
    if browser.find() is None:
        pytest.skip("no Chromium here")
    with browser.Browser() as tab:
        tab.open_when_up(lab)
        tab.wait_for(f"{NOTEBOOK}?.sessionContext?.session?.kernel?.status === 'idle'")
        tab.evaluate(f"jupyterapp.shell.activateById({NOTEBOOK}.id)")
        tab.evaluate("jupyterapp.commands.execute('notebook:run-all-cells').then(() => true)")
        before = tab.wait_for(PICTURE)
        tab.evaluate("document.querySelector('.noUi-handle').focus()")
        tab.press("ArrowRight", RIGHT)
        assert tab.wait_for(f"(({PICTURE}) !== {json.dumps(before)}) && {PICTURE}").startswith(
            "data:image/png"
        )
        if folder := os.environ.get("SITE_SCREENSHOTS"):
            tab.photograph(Path(folder) / "lab.png")

"""A small project in a temporary folder, for tests that go through the command line."""

import os
import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]


ENVIRONMENT = {
    "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
    "OMP_NUM_THREADS": "1",
}


def write_params(
    folder: Path,
    *,
    budget: dict | None = None,
    data: dict | None = None,
    runs: dict | None = None,
    machine: dict | None = None,
    **settings,
) -> Path:
    """`params.yaml` and `budgets.yaml` at the smoke budget, one seed, with changes to budget, data, runs and
    machine.
    """
    content = read("params.yaml") | {"budget": "smoke", "runs": runs or {}} | settings
    content["machine"] |= {"workers": 1} | (machine or {})
    budgets = read("budgets.yaml")
    budgets["smoke"] |= {"seeds": 1} | (budget or {})
    budgets["smoke"]["data"] |= {"train_images": 128, "val_images": 48} | (data or {})
    (folder / "budgets.yaml").write_text(yaml.safe_dump(budgets))
    path = folder / "params.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def read(name: str) -> dict:
    """One of the repository's YAML files."""
    return yaml.safe_load((ROOT / name).read_text())


def start(folder: Path, *arguments: str, **options) -> subprocess.Popen:
    """`python -m replicate ARGUMENTS` in `folder`."""
    command = [sys.executable, "-m", "replicate", *arguments]
    return subprocess.Popen(
        command, cwd=folder, env=os.environ | ENVIRONMENT, stderr=subprocess.PIPE, text=True, **options
    )


def run(folder: Path, *arguments: str) -> str:
    """The same, awaited; returns what it printed on stderr and fails the test on any exit status but 0."""
    process = start(folder, *arguments)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return errors

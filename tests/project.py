"""A small project in a temporary folder, for tests that go through the command line."""

import os
import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]


ENVIRONMENT = {"PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])), "OMP_NUM_THREADS": "1"}


def write_params(
    folder: Path, *, budget: dict | None = None, data: dict | None = None, pretrain: dict | None = None, machine: dict | None = None
) -> Path:
    """`params.yaml` at the smoke budget, one seed, with changes to its numbers, its data, the run light_90 and the machine."""
    content = yaml.safe_load((ROOT / "params.yaml").read_text())
    content["budget"] = "smoke"
    content["budgets"]["smoke"] |= {"seeds": 1} | (budget or {})
    content["budgets"]["smoke"]["data"] |= {"train_images": 128, "val_images": 48} | (data or {})
    content["pretrain"]["light_90"] |= pretrain or {}
    content["machine"] |= {"workers": 1} | (machine or {})
    path = folder / "params.yaml"
    path.write_text(yaml.dump(content, Dumper=getattr(yaml, "CSafeDumper", yaml.SafeDumper)))
    return path


def start(folder: Path, *arguments: str, **options) -> subprocess.Popen:
    """`python -m replicate ARGUMENTS` in `folder`."""
    command = [sys.executable, "-m", "replicate", *arguments]
    return subprocess.Popen(command, cwd=folder, env=os.environ | ENVIRONMENT, stderr=subprocess.PIPE, text=True, **options)


def run(folder: Path, *arguments: str) -> str:
    """The same, awaited; returns what it printed on stderr and fails the test on any exit status but 0."""
    process = start(folder, *arguments)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return errors

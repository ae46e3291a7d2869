"""The repository that a notebook works in."""

from __future__ import annotations

from pathlib import Path


def repository() -> Path:
    """The nearest folder with params.yaml, from the working folder upwards; else this package's."""
    for folder in (Path.cwd(), *Path.cwd().parents):
        if (folder / "params.yaml").exists():
            return folder
    return Path(__file__).resolve().parents[2]

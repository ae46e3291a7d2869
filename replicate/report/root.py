"""The repository that a notebook works in."""

from __future__ import annotations

from pathlib import Path

from replicate.files import workbook


def repository() -> Path:
    """The nearest folder with params.yaml, from the working folder upwards; else this package's."""
    for folder in (Path.cwd(), *Path.cwd().parents):
        if (folder / "params.yaml").exists():
            return folder
    return workbook()

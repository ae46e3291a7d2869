"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from replicate.errors import UserError

_PACKAGE = Path(__file__).resolve().parent


def workbook() -> Path:
    """The folder with params.yaml, budgets.yaml and papers/: the checkout, or a wheel's own copy."""
    inside = _PACKAGE / "workbook"
    return inside if inside.is_dir() else _PACKAGE.parent


def atomic_write(path: Path, write: Callable[[Path], Any]) -> None:
    """Call `write(temporary_path)`, flush the file to disk and move it to `path`.

    Raises UserError when the disk is full or read-only; what was at `path` before stays.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        raise UserError(f"{path}: cannot be written: {error}; what was there before is unchanged") from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()

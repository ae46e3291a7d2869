"""Write a file so that readers see the old content or the new content, never a part of it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

from replicate.errors import UserError


def atomic_write(
    path: Path,
    write: Callable[[Path], object],
    failures: tuple[type[Exception], ...] = (OSError, RuntimeError),
) -> None:
    """Call `write(temporary_path)`, flush the file to disk and rename it to `path`. Creates missing folders.

    Raises UserError when `write` or the disk raises one of `failures`. `path` then keeps its old content.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        os.replace(temporary, path)
    except failures as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: cannot be written: {reason}; what was there before is unchanged") from None
    finally:
        # The temporary file may lie on a disk that rejects every change; report the first error only.
        with contextlib.suppress(OSError):
            temporary.unlink()

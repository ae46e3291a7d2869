"""The store of resumable runs: checkpoints and finished seeds, outside DVC's outputs, keyed by everything that decides a result.

DVC deletes a stage's outputs before it runs the stage, so what must survive a kill lies here. A key is a digest of the resolved run, the seed,
the data's manifest and the source files: a changed number or a changed line of code never meets an old checkpoint.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from replicate.errors import UserError

STORE = Path(".replicate/runs")


def run_key(**parts: Any) -> str:
    """A short digest of JSON-able parts."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:24]


class RunStore:
    """What is kept of one run and seed: a checkpoint while it trains, its results when it has finished."""

    def __init__(self, key: str, root: Path = STORE) -> None:
        self.folder = root / key

    @property
    def checkpoint_path(self) -> Path:
        return self.folder / "checkpoint.pt"

    @property
    def weights_path(self) -> Path:
        return self.folder / "weights.safetensors"

    @contextmanager
    def locked(self, what: str):
        """Hold the seed for this process. Raises UserError when another one is training it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / "lock", "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(f"{what} is being trained by another process; wait for it, or stop it first") from None
            yield

    @property
    def log_path(self) -> Path:
        return self.folder / "log.jsonl"

    def save_checkpoint(self, state: dict[str, Any], keep_last: int = 0, best: bool = False) -> None:
        """Write the checkpoint; a reader sees the old one or the new one, never half of one.

        keep_last: so many are kept under their epoch's number as well, the oldest go; best: this one is also the best so far.
        """
        atomic_write(self.checkpoint_path, lambda path: torch.save(state, path))
        if best:
            _link(self.checkpoint_path, self.folder / "best.pt")
        if keep_last:
            _link(self.checkpoint_path, self.folder / f"epoch{len(state['history']):05d}.pt")
            for old in sorted(self.folder.glob("epoch*.pt"))[:-keep_last]:
                old.unlink()

    def start_log(self, history: list[dict[str, float]]) -> None:
        """The log begins anew with the epochs that a checkpoint brought back."""
        atomic_write(self.log_path, lambda path: path.write_text("".join(json.dumps(row) + "\n" for row in history)))

    def log(self, row: dict[str, Any]) -> None:
        """Append a line, readable at once. A disk that is full costs the line, not the run: the history is in the checkpoint."""
        with contextlib.suppress(OSError), open(self.log_path, "a") as file:
            file.write(json.dumps(row) + "\n")

    def load_checkpoint(self, device: torch.device) -> dict[str, Any] | None:
        """The last checkpoint, or None when there is none. Raises UserError for one that cannot be read."""
        if not self.checkpoint_path.exists():
            return None
        try:
            return torch.load(self.checkpoint_path, map_location=device, weights_only=True)
        except Exception as error:
            raise UserError(f"{self.checkpoint_path}: this checkpoint cannot be read ({error}); delete it to start the run over") from None

    def finish(self, results: dict[str, Any]) -> None:
        """Record the seed's results and drop the checkpoint, which nothing needs any more."""
        atomic_write(self.folder / "finished.json", lambda path: path.write_text(json.dumps(results)))
        self.checkpoint_path.unlink(missing_ok=True)

    def finished(self) -> dict[str, Any] | None:
        path = self.folder / "finished.json"
        return json.loads(path.read_text()) if path.exists() else None


def _link(path: Path, name: Path) -> None:
    """`name` for the file's content from now on; a checkpoint is replaced, never written into, so the link keeps what it named."""
    name.unlink(missing_ok=True)
    try:
        os.link(path, name)
    except OSError:  # a file system without hard links
        shutil.copyfile(path, name)


def atomic_write(path: Path, write) -> None:
    """Call `write(temporary_path)`, flush it to disk and move it to `path`. Raises UserError when the disk is full or read-only."""
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
        with contextlib.suppress(OSError):  # it may lie where nothing can be written, and the first error is the one to tell
            temporary.unlink()

"""What a seed keeps on disk while it trains: a checkpoint, a log, and in the end its weights."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch

from replicate.errors import UserError
from replicate.files import atomic_write


class Checkpoints:
    """The folder of one run and seed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def checkpoint_path(self) -> Path:
        return self.folder / "checkpoint.pt"

    @property
    def weights_path(self) -> Path:
        return self.folder / "weights.safetensors"

    @property
    def log_path(self) -> Path:
        return self.folder / "log.jsonl"

    def save_checkpoint(self, state: dict[str, Any], keep_last: int = 0, best: bool = False) -> None:
        """Replace the checkpoint; a reader sees the old one or the new one.

        keep_last: keep so many under their epoch's number as well. best: link this one as `best.pt`.
        """
        atomic_write(self.checkpoint_path, lambda path: torch.save(state, path))
        if best:
            _link(self.checkpoint_path, self.folder / "best.pt")
        if keep_last:
            _link(self.checkpoint_path, self.folder / f"epoch{len(state['history']):05d}.pt")
            for old in sorted(self.folder.glob("epoch*.pt"))[:-keep_last]:
                old.unlink()

    def load_checkpoint(self, device: torch.device) -> dict[str, Any] | None:
        """The last checkpoint, or None. Raises UserError for one that cannot be read."""
        if not self.checkpoint_path.exists():
            return None
        try:
            return torch.load(self.checkpoint_path, map_location=device, weights_only=True)
        except Exception as error:
            advice = "delete it to start the run over"
            raise UserError(
                f"{self.checkpoint_path}: cannot read this checkpoint ({error}); {advice}"
            ) from None

    def start_log(self, history: list[dict[str, float]]) -> None:
        """Start the log over with the epochs that a checkpoint brought back."""
        rows = "".join(json.dumps(row) + "\n" for row in history)
        atomic_write(self.log_path, lambda path: path.write_text(rows))

    def log(self, row: dict[str, Any]) -> None:
        """Append a line. A full disk costs the line, not the run: the checkpoint holds the history."""
        with contextlib.suppress(OSError), open(self.log_path, "a") as file:
            file.write(json.dumps(row) + "\n")


def _link(path: Path, name: Path) -> None:
    """Give the file a second name. Checkpoints are replaced, so the link keeps its content."""
    name.unlink(missing_ok=True)
    try:
        os.link(path, name)
    except OSError:  # a file system without hard links
        shutil.copyfile(path, name)

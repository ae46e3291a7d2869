"""The store of resumable runs: checkpoints and finished seeds, outside DVC's outputs.

DVC deletes a stage's outputs before it runs the stage, so what must survive a kill lies here. The key digests
everything that decides a result: the resolved run, the seed, the data's manifest, the weights it starts from,
and the code.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import json
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from replicate.errors import UserError
from replicate.files import atomic_write
from replicate.loaders.manifest import sha256
from replicate.trainers.checkpoints import Checkpoints
from replicate.trainers.context import RunContext

STORE = Path(".replicate/runs")


class RunStore(Checkpoints):
    """What is kept of one run and seed: a checkpoint while it trains, its results when it has finished."""

    def __init__(self, key: str, root: Path = STORE) -> None:
        super().__init__(root / key)

    @contextmanager
    def locked(self, what: str):
        """Hold the seed for this process. Raises UserError when another one trains it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / "lock", "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(
                    f"another process is training {what}; wait for it, or stop it first"
                ) from None
            yield

    def finish(self, results: dict[str, Any]) -> None:
        """Record the seed's results and delete the checkpoint."""
        atomic_write(self.folder / "finished.json", lambda path: path.write_text(json.dumps(results)))
        self.checkpoint_path.unlink(missing_ok=True)

    def finished(self) -> dict[str, Any] | None:
        """The seed's results, or None while it has not finished."""
        path = self.folder / "finished.json"
        return json.loads(path.read_text()) if path.exists() else None


def store_of(context: RunContext, seed: int) -> RunStore:
    """The seed's place in the store. Device, workers and micro-batch are not part of its key."""
    parts = {
        "run": context.run.model_dump(exclude={"paper", "keep_weights"}),
        "seed": seed,
        "precision": str(context.session.precision),
        "manifest": context.manifest_sha256,
        "upstream": context.upstream and _file_sha256(context.upstream_weights(seed)),
        "code": context.code,
    }
    # An evaluation takes its model from the pre-training; the folder loader crops other pixels than a .beton
    # holds.
    for role, run in (("upstream_run", context.upstream_run), ("teacher_run", context.teacher_run)):
        if run is not None:
            parts[role] = run.model_dump(exclude={"paper", "keep_weights"})
    weights = getattr(context.run, "weights", None)
    if weights and Path(weights).is_file():
        parts["weights"] = _file_sha256(Path(weights))  # a name keeps its content, a file need not
    if context.session.loader == "folder":
        parts["loader"] = "folder"
    if context.tokenizer is not None:
        parts["tokenizer"] = _file_sha256(context.tokenizer)
    if context.on_error != "raise":
        parts["on_error"] = context.on_error
    return RunStore(run_key(**parts))


def run_key(**parts: Any) -> str:
    """A short digest of JSON-able parts."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:24]


def _file_sha256(path: Path) -> str:
    status = path.stat()
    return _sha256_of(path, status.st_mtime_ns, status.st_size)


@functools.lru_cache(maxsize=64)
def _sha256_of(path: Path, modified: int, size: int) -> str:
    return sha256(path)

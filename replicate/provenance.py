"""Where a result came from: enough to repeat it, and nothing that would make two equal runs look different without cause.

Used by the trainers, so it imports nothing heavier than the standard library: versions come from package metadata.
"""

import functools
import importlib.metadata
import math
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

from replicate.errors import UserError

CODE = ("replicate",)
PAGE_SOURCES = (*CODE, "papers", "notebooks")
PACKAGES = ("torch", "torchvision", "timm", "ffcv", "numpy")
_UNKNOWN = "unknown"


def _git(*arguments: str, root: Path) -> str | None:
    command = ["git", "-C", str(root), *arguments]
    try:
        finished = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return finished.stdout.strip() if finished.returncode == 0 else None


@functools.cache
def git_state(root: Path | None = None, paths: tuple[str, ...] = CODE) -> dict[str, Any]:
    """`{"revision": 40 hex digits or "unknown", "dirty": True, False or None}` of the checkout that holds this package.

    Dirty means that a *tracked* file below `paths` differs from the revision. For a run that is the package alone: what params.yaml
    states of it stands beside its numbers, so another budget or run in that file is no doubt about them. A page, which says what it
    shows, has more sources, `PAGE_SOURCES`. Outside a checkout (an installed wheel, no git) the revision is "unknown" and `dirty` is
    None. Read once a process, at the first call: call it before training, and an edit made meanwhile is not blamed on the run.
    """
    root = root or Path(__file__).resolve().parents[1]
    revision = _git("rev-parse", "HEAD", root=root)
    if revision is None:
        return {"revision": _UNKNOWN, "dirty": None}
    changes = _git("status", "--porcelain", "--untracked-files=no", "--", *paths, root=root)
    return {"revision": revision, "dirty": None if changes is None else bool(changes)}


@functools.cache
def versions() -> dict[str, str | None]:
    """Version of Python and of every package whose change could change a number; None for one that is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def machine() -> dict[str, Any]:
    """System, processor architecture and the number of cores this process may use."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS and Windows have no affinity call
        cores = os.cpu_count() or 1
    return {"system": platform.system(), "architecture": platform.machine(), "cores": cores}


def _measure(name: str, value: float | None, lowest: float = 0.0) -> float | None:
    if value is None:
        return None
    if not math.isfinite(value) or value < lowest:
        raise UserError(f"provenance: {name} is {value}, but it must be a finite number of at least {lowest:g}")
    return float(value)


def provenance(
    *,
    device: str,
    seeds: list[int],
    manifest_sha256: str | None,
    wall_seconds: float,
    images_per_second: float | None,
    peak_memory_bytes: int | None,
) -> dict[str, Any]:
    """The `provenance` entry of a run's `metrics.json`, ready for `json.dumps`.

    Args:
        device: as the trainer names it, with the accelerator's model where there is one ("cpu", "cuda:0 NVIDIA H100").
        seeds: every seed that the run's results are taken over, in their order.
        manifest_sha256: digest of the data manifest; None for a run that reads no data.
        wall_seconds: time of every seed, summed; seeds may have trained side by side, in other processes, or in pieces.
        images_per_second: training throughput, all devices together; None when nothing was trained.
        peak_memory_bytes: peak memory of the process, or of the accelerator where there is one; None when not measured.

    Raises:
        UserError: a measured value is negative, infinite or NaN, or there is no seed.
    """
    if not seeds:
        raise UserError("provenance: seeds is empty, but a result belongs to at least one seed")
    peak = _measure("peak_memory_bytes", peak_memory_bytes)
    return {
        "git": dict(git_state()),
        "seeds": [int(seed) for seed in seeds],
        "device": str(device),
        "machine": machine(),
        "versions": dict(versions()),
        "manifest_sha256": manifest_sha256,
        "wall_seconds": _measure("wall_seconds", wall_seconds),
        "images_per_second": _measure("images_per_second", images_per_second),
        "peak_memory_bytes": None if peak is None else int(peak),
    }

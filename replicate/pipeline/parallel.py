"""Several seeds of one run at once, a process each.

A narrow ViT does not keep two cores busy: its operations are too short to share. On a CPU the seeds of a run
therefore train side by side, with the cores dealt out among them. Each child trains one seed into the store
of resumable runs; then the parent finds all of them finished and writes the run's folder.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence

from replicate.errors import UserError
from replicate.pipeline import interruption
from replicate.pipeline.interruption import PARENT
from replicate.trainers.session import Session


def seed_processes(setting: int | None, seeds: int, session: Session) -> int:
    """Seeds to train at once: `machine.seed_processes`, or one a core where there is no accelerator."""
    if session.world_size > 1 or session.device.type == "cuda":
        return 1
    return min(seeds, setting if setting is not None else available_cores())


def available_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def train_seeds_in_processes(command: Sequence[str], seeds: int, processes: int) -> None:
    """Run `python -m replicate *command --seed S` for every seed, `processes` at a time.

    Only this process reacts to Ctrl-C, and it ends the seeds; they ignore it even while Python starts. When a
    seed fails, its message is on stderr, the others are stopped, and UserError is raised. An interrupted seed
    interrupts this process.
    """
    threads = max(1, available_cores() // processes)
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), PARENT: str(os.getpid())}
    waiting, running = list(range(seeds)), {}
    try:
        while waiting or running:
            while waiting and len(running) < processes:
                seed = waiting.pop(0)
                arguments = {"env": environment, "preexec_fn": interruption.ignore_ctrl_c}
                started = [sys.executable, "-m", "replicate", *command, "--seed", str(seed)]
                running[seed] = subprocess.Popen(started, **arguments)
            time.sleep(0.05)
            for seed, child in list(running.items()):
                status = child.poll()
                if status is not None:
                    del running[seed]
                if status == interruption.STATUS:
                    raise KeyboardInterrupt
                if status:
                    what = f"seed {seed} of `replicate {' '.join(command)}`"
                    raise UserError(f"{what} ended with status {status}; its message is above")
    finally:
        for child in running.values():
            child.terminate()
        for child in running.values():
            child.wait()


def end_with_parent() -> None:
    """In a seed's process: stop when the parent is gone, so that a killed run leaves no seed training."""
    parent = os.environ.get(PARENT)
    if parent is None:
        return

    def watch() -> None:
        while os.getppid() == int(parent):
            time.sleep(0.5)
        os._exit(143)

    threading.Thread(target=watch, daemon=True).start()

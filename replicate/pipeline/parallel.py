"""Several seeds of one run at once, a process each.

A narrow ViT does not keep two cores busy: its operations are too short to be worth sharing. Two seeds side by side do, so on a CPU the seeds of a
run are trained in processes of their own with the cores dealt out among them. Each child trains one seed into the store of resumable runs; the
parent then finds all of them finished and writes the run's folder.
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
    """How many seeds to train at once: as `machine.seed_processes` says, or one a core where there is no accelerator."""
    if session.world_size > 1 or session.device.type == "cuda":
        return 1
    return min(seeds, setting if setting is not None else available_cores())


def available_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def train_seeds_in_processes(command: Sequence[str], seeds: int, processes: int) -> None:
    """Run `python -m replicate *command --seed S` for every seed, `processes` at a time.

    Ctrl-C is for this process alone, which ends the seeds: to them it is not a signal, not even while Python starts. Raises UserError, once the
    others have been stopped, when a seed fails; its own message is on stderr by then. A seed that was interrupted says nothing, and
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
                running[seed] = subprocess.Popen([sys.executable, "-m", "replicate", *command, "--seed", str(seed)], **arguments)
            time.sleep(0.05)
            for seed, child in list(running.items()):
                status = child.poll()
                if status is not None:
                    del running[seed]
                if status == interruption.STATUS:
                    raise KeyboardInterrupt
                if status:
                    raise UserError(f"seed {seed} of `replicate {' '.join(command)}` ended with status {status}; its message is above")
    finally:
        for child in running.values():
            child.terminate()
        for child in running.values():
            child.wait()


def end_with_parent() -> None:
    """In a seed's process: stop when the process that started it is gone, so that a killed run leaves nothing training behind it."""
    parent = os.environ.get(PARENT)
    if parent is None:
        return

    def watch() -> None:
        while os.getppid() == int(parent):
            time.sleep(0.5)
        os._exit(143)

    threading.Thread(target=watch, daemon=True).start()

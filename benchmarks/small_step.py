"""The training loop's own cost at the smallest budgets: an epoch of the loop against bare steps.

A bare step is forward, backward and optimiser on the same batch. The loop adds seeds, schedule, logs, a
progress bar and the guard against NaN. ratio = bare / loop: 1 means that the loop costs nothing. The two take
turns on one thread; CPU time is measured.

Run: python benchmarks/small_step.py [--budgets laptop brief] [--runs light_90] [--rounds 7] [--steps 20]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

from replicate.config import load
from replicate.cost.bench import compare, interleave, write_results
from replicate.loaders import Batch
from replicate.schedules.layer_decay import plain_groups
from replicate.trainers.loop import Trainer, adamw
from replicate.trainers.pretrain import PretrainTask
from replicate.trainers.session import PRECISIONS, Session

CLASSES = 10


class SameBatch:
    """A loader that yields one batch `steps` times."""

    num_skipped, on_error = 0, "raise"

    def __init__(self, batch: Batch, steps: int) -> None:
        self.batch, self.num_batches, self.num_images = batch, steps, steps * len(batch.labels)

    def set_stage(self, **_: Any) -> None:
        pass

    def epoch(self, epoch: int) -> Iterator[Batch]:
        return (self.batch for _ in range(self.num_batches))


class Unwritten:
    """A folder of checkpoints that keeps nothing."""

    def load_checkpoint(self, device: torch.device) -> None:
        pass

    start_log = log = save_checkpoint = lambda *_: None


def cases(run: Any, precision: torch.dtype, steps: int) -> dict[str, Callable[[], object]]:
    """One epoch of `steps` steps by the loop, which writes nothing, and the same steps bare."""
    torch.manual_seed(0)
    task, session = PretrainTask(run, 0, CLASSES), Session(torch.device("cpu"), precision)
    optimizer = adamw(plain_groups(task, run.weight_decay), run, session.device)
    images = torch.randint(0, 256, (run.batch_size, 3, run.image_size, run.image_size), dtype=torch.uint8)
    labels = torch.randint(0, CLASSES, (run.batch_size,))
    batch = Batch(images, labels, torch.arange(run.batch_size))
    short = run.model_copy(update={"epochs": 1, "warmup_epochs": 0.0, "stages": ()})
    trainer = Trainer(task, optimizer, SameBatch(batch, steps), short, session, Unwritten(), 0, "step")

    def bare() -> None:
        for _ in range(steps):
            with session.autocast():
                loss = task(*batch, 0, 0.5)[0]
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return {"loop": trainer.fit, "bare": bare}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--budgets", nargs="+", default=["laptop", "brief"])
    parser.add_argument("--runs", nargs="+", default=["light_90", "light_75"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args()
    torch.set_num_threads(1)
    params, rows = load(), []
    for budget in options.budgets:
        for name in options.runs:
            precision = PRECISIONS[params.budget_named(budget).precision]
            made = cases(params.resolve(name, budget), precision, options.steps)
            found = interleave(made, options.rounds, clock=time.process_time)
            case = f"{name} at {budget}: {options.steps} steps of the loop against bare ones"
            rows.append(compare("small_step", case, found["loop"], found["bare"]))
    write_results("small_step", rows)


if __name__ == "__main__":
    main()

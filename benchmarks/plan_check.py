"""The planner's seconds of a step against measured ones on this machine.

A step is a real task's: loss and optimiser included, images already decoded.

Run: python benchmarks/plan_check.py [--budget laptop] [--rounds 3] [--threads 1]

With one thread the clock is the process's CPU time, so that a busy machine does not matter. ratio =
predicted / measured.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch

from replicate.config import Params, load
from replicate.cost.bench import row, write_results
from replicate.cost.image_cost import ImageCost
from replicate.cost.rates import measure, median_seconds
from replicate.cost.runs import evaluate_cost, pretrain_cost
from replicate.models.build import build_classifier
from replicate.schedules.layer_decay import plain_groups
from replicate.trainers.classify import ClassifyTask
from replicate.trainers.pretrain import PretrainTask

CLASSES = 12
CASES = (
    ("light_90", 32),
    ("light_75", 32),
    ("full_75", 16),
    ("small_75", 32),
    ("light_90_llrd_80", 32),
    ("small_75_llrd_80", 16),
)
"""(run, images a step): few and many tokens, decoders of one and eight blocks, classifiers."""


def task_of(params: Params, name: str, budget: str) -> tuple[torch.nn.Module, ImageCost, int]:
    """(task, cost of an image, image size) of a run at a budget, in float32."""
    run = params.resolve(name, budget)
    if name in params.pretrain_runs:
        return PretrainTask(run, 0, CLASSES), pretrain_cost(run, 4), run.image_size
    source = params.resolve(run.pretrain, budget)
    model = build_classifier(source, CLASSES, run.image_size, run.drop_path)
    return (
        ClassifyTask(model, run, CLASSES, torch.device("cpu")),
        evaluate_cost(run, source, CLASSES, 4),
        run.image_size,
    )


def step_of(task: torch.nn.Module, size: int, batch: int) -> Callable[[], None]:
    optimizer = torch.optim.AdamW(plain_groups(task, 0.05), lr=1e-4)
    images = torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8)
    labels, index = torch.randint(0, CLASSES, (batch,)), torch.arange(batch)

    def step() -> None:
        task(images, labels, index, 0, 0.5)[0].backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--budget", default="laptop")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    clock = time.process_time if options.threads == 1 else time.perf_counter
    params, rates = load(), measure("cpu")
    rows = []
    for name, batch in CASES:
        task, cost, size = task_of(params, name, options.budget)
        measured = median_seconds(step_of(task, size, batch), options.rounds, clock)
        predicted = rates.seconds(batch * cost.macs, batch * cost.activations, cost.calls)
        case = f"{name} at {options.budget}, batch {batch}: predicted against measured"
        rows.append(row("plan_check", case, predicted, measured, predicted / measured))
    write_results("plan_check", rows)
    print(f"largest error {max(abs(line['ratio'] - 1) for line in rows):.0%}")


if __name__ == "__main__":
    main()

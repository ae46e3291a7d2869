"""What RoIAlign and NMS in plain torch cost where torchvision's compiled operators do not load.

Run: python benchmarks/detection_operators.py [--rounds 5] [--paper]

The first rows compare a step's RoIAlign and NMS ("ours") with the whole step of Mask R-CNN ("theirs"),
forward and backward: a ratio of 10 is 10 % of the step. The calls of one step are recorded and repeated. One
thread, CPU-seconds, so that other processes do not count. `--paper` adds ViT-B at 1024 pixels, which takes
minutes. The last rows hold the peak memory of one RoIAlign, forward and backward ("ours"), beside that of its
result ("theirs"); they need Linux.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from replicate.config import PretrainRun
from replicate.config.dense import DetectRun
from replicate.cost.bench import compare, interleave, row, write_results
from replicate.transfer import operators
from replicate.transfer.detection import DetectionTask, build_model

Call = tuple[Callable[..., Tensor], tuple[Any, ...]]
ROIS = (128, 256, 512, 1024)
CHANNELS, SIDE, BINS = 256, 64, 7
SMALL = {"head_width": 32, "fc_width": 128, "proposals": (200, 100, 50), "rpn_batch": 64, "roi_batch": 32}
CASES = {
    "ViT of 6 blocks and width 96, 128 px, batch 8": ("vit", (96, 6, 8), 128, 8, SMALL | {"window": 4}),
    "ViT-B, 1024 px, batch 1": ("vit", (768, 12, 16), 1024, 1, {}),
}


def task_of(case: str) -> tuple[DetectionTask, Tensor, list[dict[str, Tensor]]]:
    name, (width, depth, patch), size, batch, changes = CASES[case]
    numbers = {"embed_dim": width, "depth": depth, "num_heads": max(1, width // 64), "patch_size": patch}
    pretrained = PretrainRun.model_construct(backbone=name, backbone_kwargs=numbers)
    run = DetectRun.model_construct(image_size=size, test_size=size, weight_decay=0.1, **changes)
    torch.manual_seed(0)
    corners = torch.rand(6, 2) * size * 0.6
    boxes = torch.cat([corners, corners + size * 0.05 + torch.rand(6, 2) * size * 0.3], 1).round()
    masks = torch.zeros(6, size, size, dtype=torch.uint8)
    for mask, (left, top, right, bottom) in zip(masks, boxes.int().tolist(), strict=True):
        mask[top:bottom, left:right] = 1
    target = {"boxes": boxes, "labels": torch.arange(1, 7), "masks": masks}
    images = torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8)
    return DetectionTask(build_model(pretrained, run, 6), run), images, [target] * batch


def step(task: DetectionTask, images: Tensor, targets: list[dict[str, Tensor]]) -> None:
    task(images, targets)[0].backward()
    task.zero_grad(set_to_none=True)


@contextmanager
def recorded(calls: list[Call]) -> Iterator[None]:
    """Record every call of the two operators; they go to the plain ones."""
    before = {name: getattr(torch.ops.torchvision, name) for name in ("nms", "roi_align")}

    def record(function: Callable[..., Tensor], *arguments: Any) -> Tensor:
        kept = [a.detach().requires_grad_(a.requires_grad) if torch.is_tensor(a) else a for a in arguments]
        calls.append((function, tuple(kept)))
        return function(*arguments)

    for name in before:
        setattr(torch.ops.torchvision, name, partial(record, getattr(operators, name)))
    try:
        yield
    finally:
        for name, function in before.items():
            setattr(torch.ops.torchvision, name, function)


def repeat(calls: list[Call]) -> None:
    for function, arguments in calls:
        result = function(*arguments)
        if result.requires_grad:
            result.sum().backward()


def share(case: str, rounds: int) -> dict[str, Any]:
    calls: list[Call] = []
    arguments = task_of(case)
    with recorded(calls):
        step(*arguments)
    whole, part = partial(step, *arguments), partial(repeat, calls)
    times = interleave({"step": whole, "operators": part}, rounds, clock=time.process_time)
    percent = 100 * times["operators"].median / times["step"].median
    name = "RoIAlign and NMS in a detection step"
    return compare(name, case, times["operators"], times["step"], percent=round(percent, 1))


def peak_megabytes(count: int) -> float:
    features = torch.randn(1, CHANNELS, SIDE, SIDE, requires_grad=True)
    corners = torch.rand(count, 2) * SIDE * 8
    rois = torch.cat([torch.zeros(count, 1), corners, corners + 16 + torch.rand(count, 2) * 300], 1)
    operators.roi_align(features, rois[:1], 1 / 16, BINS, BINS, 0, True).sum().backward()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = resident("VmRSS")
    operators.roi_align(features, rois, 1 / 16, BINS, BINS, 0, True).sum().backward()
    return resident("VmHWM") - before


def resident(kind: str) -> float:
    """Megabytes of this process in memory now (VmRSS), or at most (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(kind)) / 1024


def memory(count: int) -> dict[str, Any]:
    ours, result = peak_megabytes(count), count * CHANNELS * BINS**2 * 4 / 2**20
    case = f"{count} regions, {CHANNELS} channels, a map of {SIDE} x {SIDE}"
    return row("RoIAlign's peak memory", case, ours, result, result / ours, unit="MB")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--paper", action="store_true", help="add ViT-B at 1024 pixels")
    options = parser.parse_args()
    torch.set_num_threads(1)
    cases = list(CASES) if options.paper else list(CASES)[:1]
    rows = [share(case, options.rounds) for case in cases]
    write_results("detection_operators", rows + [memory(count) for count in ROIS])


if __name__ == "__main__":
    main()

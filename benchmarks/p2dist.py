"""What P2Dist costs: against scipy's distance transform, and as a share of a whole pre-training step.

Run: python benchmarks/p2dist.py [--masks 256] [--rounds 7] [--threads 1] [--other FILE] [--budgets
smoke,laptop,brief]

The first rows compare a batch of masks with one `scipy.ndimage.distance_transform_edt` per mask, and exact
P2Dist with Algorithm 1. The last rows compare P2Dist with a pre-training step (forward, backward) of the same
batch: ViT-B/16 at 224 pixels with 16 images, and the run `emae_85` at the small budgets. There the ratio is
step / P2Dist: 50 is 2 % of the step. `--other` adds another file with the same functions, such as an older
revision of `replicate/difficulty.py`. One thread is the default: scipy uses no more.
"""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from replicate import difficulty
from replicate.config import PretrainRun, load
from replicate.cost.bench import Timing, compare, interleave, write_results
from replicate.masking import random_masking
from replicate.patches import grid_of
from replicate.trainers.pretrain import PretrainTask

GRID, PATCH_SIZE = (14, 14), 16
RATIOS = (0.75, 0.85, 0.9, 0.95)
RUN, BATCH = "emae_85", 16
REPEATS = 20


def scipy_loop(masks: np.ndarray) -> None:
    rows, columns = GRID
    for mask in masks:
        hidden = np.kron(mask.reshape(GRID), np.ones((PATCH_SIZE, PATCH_SIZE)))
        distance_transform_edt(hidden).reshape(rows, PATCH_SIZE, columns, PATCH_SIZE).mean(axis=(1, 3))


def masks_at(ratio: float, count: int, grid: tuple[int, int], device: str) -> Tensor:
    noise = torch.rand(count, grid[0] * grid[1], generator=torch.Generator().manual_seed(0))
    return random_masking(noise, ratio).mask.to(device)


def against_scipy(count: int, rounds: int, device: str) -> list[dict]:
    rows = []
    for ratio in RATIOS:
        masks = masks_at(ratio, count, GRID, device)
        cases = {
            "exact": partial(difficulty.p2dist, masks, GRID, PATCH_SIZE),
            "approximate": partial(difficulty.p2dist_approx, masks, GRID, PATCH_SIZE),
            "scipy": partial(scipy_loop, masks.cpu().numpy()),
        }
        times = interleave(cases, rounds)
        case = f"{count} masks of 14x14, ratio {ratio}, {device}"
        rows.append(compare("p2dist exact vs scipy loop", case, times["exact"], times["scipy"]))
        rows.append(compare("p2dist exact vs Algorithm 1", case, times["exact"], times["approximate"]))
    return rows


def against_a_step(
    case: str,
    run: PretrainRun,
    precision: torch.dtype,
    metrics: dict[str, Callable],
    rounds: int,
    device: str,
) -> list[dict]:
    """A row per metric: its time beside that of the run's whole step without P2Dist."""
    torch.manual_seed(0)
    plain = {"weighting": "uniform", "weighting_options": {}, "decoder_beta": None, "difficulty": "p2dist"}
    task = PretrainTask(run.model_copy(update=plain), 0, 10).to(device)
    size = run.image_size
    images = torch.randint(0, 256, (BATCH, 3, size, size), dtype=torch.uint8, device=device)

    def step() -> None:
        with torch.autocast(device, precision, enabled=precision != torch.float32):
            loss, _ = task(images, torch.zeros(BATCH, dtype=torch.long), torch.arange(BATCH), 0, 0.5)
        loss.backward()
        task.zero_grad(set_to_none=True)

    grid = grid_of(size, run.patch_size)
    masks = masks_at(run.mask_ratio, BATCH, grid, device)
    cases = {
        name: partial(repeatedly, partial(metric, masks, grid, run.patch_size))
        for name, metric in metrics.items()
    }
    times = interleave(cases | {"step": step}, rounds, warmup=2)
    rows = []
    for name in metrics:
        once = Timing(tuple(seconds / REPEATS for seconds in times[name].seconds))
        share = 100 * once.median / times["step"].median
        full = f"{case}, {size} px, batch {BATCH}, {device}"
        rows.append(compare(f"{name} p2dist in a step", full, once, times["step"], percent=share))
    return rows


def repeatedly(case: Callable[[], object]) -> None:
    for _ in range(REPEATS):
        case()


def imported(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("other", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--masks", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--budgets", default="smoke,laptop,brief")
    parser.add_argument("--other", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    metrics = {"exact": difficulty.p2dist, "approximate": difficulty.p2dist_approx}
    if options.other:
        metrics |= {"other exact": imported(options.other).p2dist}
    params = load(Path(__file__).resolve().parents[1] / "params.yaml")
    rows = against_scipy(options.masks, options.rounds, device)
    paper = params.run(RUN).model_copy(update={"backbone": "vit_base_patch16"})
    rows += against_a_step("ViT-B/16", paper, torch.bfloat16, metrics, options.rounds, device)
    for name in options.budgets.split(","):
        precision = getattr(torch, params.budget_named(name).precision)
        case = f"budget {name}"
        rows += against_a_step(case, params.resolve(RUN, name), precision, metrics, options.rounds, device)
    write_results("p2dist", rows)


if __name__ == "__main__":
    main()

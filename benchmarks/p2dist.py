"""What P2Dist costs: exact and approximate, against scipy's distance transform and against a pre-training step.

Run: python benchmarks/p2dist.py [--masks 1024] [--batch 16] [--rounds 7] [--threads 1]

Exact P2Dist on the default device against one `scipy.ndimage.distance_transform_edt` per mask on the CPU; Algorithm 1 against
exact; and both against a ViT-B/16 pre-training step (224 px, forward and backward, mask ratio .85, bfloat16 autocast) of the
same batch. One thread each by default: scipy has no more, and on a busy machine more threads wait for one another. In the last
rows ratio is step / P2Dist: 50 or more is 2 % of the step or less.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from replicate.config.backbones import VIT_SIZES
from replicate.cost.bench import Timing, compare, interleave, write_results
from replicate.difficulty import p2dist, p2dist_approx
from replicate.losses.reconstruction import reconstruction_loss
from replicate.masking import random_masking
from replicate.models.mae import MAE
from replicate.targets.pixel import Target

GRID, PATCH_SIZE = (14, 14), 16
RATIOS = (0.75, 0.85, 0.9, 0.95)
REPEATS = 50


def scipy_loop(masks: np.ndarray) -> None:
    rows, columns = GRID
    for mask in masks:
        hidden = np.kron(mask.reshape(GRID), np.ones((PATCH_SIZE, PATCH_SIZE)))
        distance_transform_edt(hidden).reshape(rows, PATCH_SIZE, columns, PATCH_SIZE).mean(axis=(1, 3))


def masks_at(ratio: float, count: int, device: str) -> Tensor:
    noise = torch.rand(count, GRID[0] * GRID[1], generator=torch.Generator().manual_seed(0))
    return random_masking(noise, ratio).mask.to(device)


def step(model: MAE, images: Tensor, target: Tensor) -> None:
    with torch.autocast(images.device.type, torch.bfloat16):
        prediction = model(images)
    reconstruction_loss(prediction.pred, target, prediction.scored).backward()
    model.zero_grad(set_to_none=True)


def against_scipy(count: int, rounds: int, device: str) -> list[dict]:
    rows = []
    for ratio in RATIOS:
        masks = masks_at(ratio, count, device)
        cases = {
            "exact": partial(p2dist, masks, GRID, PATCH_SIZE),
            "approximate": partial(p2dist_approx, masks, GRID, PATCH_SIZE),
            "scipy": partial(scipy_loop, masks.cpu().numpy()),
        }
        times = interleave(cases, rounds)
        case = f"{count} masks of 14x14, ratio {ratio}, {device}"
        rows.append(compare("p2dist exact vs scipy loop", case, times["exact"], times["scipy"]))
        rows.append(compare("p2dist exact vs Algorithm 1", case, times["exact"], times["approximate"]))
    return rows


def against_a_step(batch: int, rounds: int, device: str) -> list[dict]:
    torch.manual_seed(0)
    model = MAE(**VIT_SIZES["base"], mask_ratio=0.85).to(device)
    images = torch.randn(batch, 3, 224, 224, device=device)
    masks = masks_at(0.85, batch, device)
    metrics = {"exact": p2dist, "approximate": p2dist_approx}
    cases = {name: partial(repeatedly, partial(metric, masks, GRID, PATCH_SIZE)) for name, metric in metrics.items()}
    times = interleave(cases | {"step": partial(step, model, images, Target(PATCH_SIZE)(images))}, rounds, warmup=2)
    rows = []
    for name in metrics:
        once = Timing(tuple(seconds / REPEATS for seconds in times[name].seconds))
        share = 100 * once.median / times["step"].median
        rows.append(compare(f"{name} p2dist in a step", f"ViT-B/16, batch {batch}, {device}", once, times["step"], percent=share))
    return rows


def repeatedly(case: Callable[[], object]) -> None:
    """Milliseconds are too short to be timed beside a step of seconds."""
    for _ in range(REPEATS):
        case()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--masks", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    write_results(
        "p2dist",
        against_scipy(options.masks, options.rounds, device) + against_a_step(options.batch, options.rounds, device),
    )


if __name__ == "__main__":
    main()

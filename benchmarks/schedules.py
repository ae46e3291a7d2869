"""How much time resolution and mask-ratio schedules save: DailyMAE's Table 11 with ViT-B/16's full size.

A step (forward and backward, no optimiser) is timed at every image size and mask ratio of the schemes, all in
turn. A scheme's time is their mean, weighted by its stages' share of the epochs. ours is the scheme, theirs
the paper's fixed 224 pixels, in seconds an image; ratio > 1: the scheme is faster. `predicted` is the same
ratio by multiply-adds, `tokens` by patch tokens, `published` by the paper's hours. s5 and its like have the
stage ends of the authors' code or, as `..._thirds`, equal stages.

Run: python benchmarks/schedules.py [--batch 16] [--rounds 5] [--precision bfloat16|float32] [--threads 2]
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from replicate.config import PretrainRun, load
from replicate.config.backbones import VIT_SIZES
from replicate.cost.bench import Timing, compare, interleave, write_results
from replicate.losses.reconstruction import reconstruction_loss
from replicate.models.mae import MAE
from replicate.papers.dailymae import FIXED, SCHEMES, printed_hours, relative_cost, stage_shares
from replicate.targets.pixel import Target

NAME = "schedules"
FIXED_RUN = "daily_224"


def step(model: MAE, images: Tensor, mask_ratio: float, precision: torch.dtype) -> None:
    with torch.autocast(images.device.type, precision, enabled=precision != torch.float32):
        noise = torch.rand(len(images), model.num_patches, device=images.device)
        prediction = model(images, noise, mask_ratio)
        loss = reconstruction_loss(prediction.pred, Target(model.patch_size)(images), prediction.scored)
    loss.backward()
    model.zero_grad(set_to_none=True)


def schemes() -> dict[str, PretrainRun]:
    """Run -> recipe of the fixed sizes and of the six schemes with either stage ends."""
    params = load(Path(__file__).resolve().parents[1] / "params.yaml")
    names = [f"daily_{scheme}" for scheme in (*FIXED, *SCHEMES)] + [
        f"daily_{scheme}_thirds" for scheme in SCHEMES
    ]
    return {name: params.run(name) for name in names}


def scheme_time(run: PretrainRun, times: Mapping[tuple[int, float], Timing], batch: int) -> Timing:
    """Seconds an image of a whole schedule, a value a round."""
    parts = [(share / batch, times[view].seconds) for view, share in stage_shares(run).items()]
    return Timing(tuple(sum(share * seconds[k] for share, seconds in parts) for k in range(len(parts[0][1]))))


def rows(
    runs: Mapping[str, PretrainRun], times: Mapping[tuple[int, float], Timing], batch: int, case: str
) -> list[dict[str, Any]]:
    """A line a scheme against the fixed size."""
    fixed, found = runs[FIXED_RUN], []
    for name, run in runs.items():
        if name != FIXED_RUN:
            cost, scheme = relative_cost(run, fixed), name.split("_")[1]
            extra = {
                "predicted": 1 / cost["multiply-adds"],
                "tokens": 1 / cost["tokens"],
                "published": printed_hours("224") / printed_hours(scheme),
            }
            ours, theirs = (scheme_time(one, times, batch) for one in (run, fixed))
            found.append(compare(f"{name} vs {FIXED_RUN}", case, ours, theirs, **extra) | {"unit": "s/image"})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--precision", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    runs = schemes()
    views = sorted({view for run in runs.values() for view in stage_shares(run)})
    models = {size: MAE(**VIT_SIZES["base"] | {"image_size": size}).to(device) for size, _ in views}
    images = {size: torch.randn(options.batch, 3, size, size, device=device) for size in models}
    precision = getattr(torch, options.precision)
    cases = {
        (size, ratio): partial(step, models[size], images[size], ratio, precision) for size, ratio in views
    }
    case = f"ViT-B/16, batch {options.batch}, {options.precision}, {device}"
    write_results(NAME, rows(runs, interleave(cases, options.rounds), options.batch, case))


if __name__ == "__main__":
    main()

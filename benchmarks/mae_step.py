"""One pre-training step of MAE against transformers' ViTMAE with the same weights and noise.

A step is forward, the loss of normalised pixels, and backward.

On a CPU: ViT-B/16, 224 pixels, batch 16, in float32 and under bfloat16 autocast. On a GPU: ViT-B and ViT-L
in bfloat16, ours compiled, theirs eager as transformers runs it, with model-FLOPs utilisation (3 forward
passes' multiply-adds x 2 over the GPU's dense bfloat16 peak).

Run: python benchmarks/mae_step.py [--batch 16] [--rounds 7] [--models base large] [--cpu-time]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from replicate.config.backbones import VIT_SIZES
from replicate.cost.bench import Timing, compare, interleave, write_results
from replicate.cost.image_cost import TRAINED
from replicate.cost.macs import mae_macs
from replicate.losses.reconstruction import reconstruction_loss
from replicate.models.cpu import plain_torch, tune_for_cpu
from replicate.models.huggingface import to_transformers
from replicate.models.mae import MAE
from replicate.targets.pixel import Target

NAME = "mae_step"
PEAK = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "A6000": 155e12, "4090": 165e12}
"""Dense bfloat16 FLOP/s by the makers' data sheets."""


def our_step(
    model: MAE, images: Tensor, noise: Tensor, bf16: bool, compiled: bool = False
) -> Callable[[], None]:
    target = Target(model.patch_size, norm_pix=True)
    forward = torch.compile(model) if compiled else model

    def run() -> None:
        with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
            prediction = forward(images, noise)
        reconstruction_loss(prediction.pred, target(images), prediction.scored).backward()
        model.zero_grad(set_to_none=True)

    return run


def their_step(model: torch.nn.Module, images: Tensor, noise: Tensor, bf16: bool) -> Callable[[], None]:
    def run() -> None:
        with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
            loss = model(images, noise=noise).loss
        loss.backward()
        model.zero_grad(set_to_none=True)

    return run


def on_torch_kernels(step: Callable[[], None]) -> Callable[[], None]:
    def run() -> None:
        with plain_torch():
            step()

    return run


def inputs(size: str, batch: int, device: str) -> tuple[MAE, torch.nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    model = MAE(**VIT_SIZES[size])
    theirs = to_transformers(model).train()
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(batch, 3, 224, 224, generator=generator)
    noise = torch.rand(batch, model.num_patches, generator=generator)
    return model.to(device), theirs.to(device), images.to(device), noise.to(device)


def on_cpu(batch: int, rounds: int, clock: Callable[[], float]) -> list[dict[str, Any]]:
    ours, theirs, images, noise = inputs("base", batch, "cpu")
    tune_for_cpu(ours)
    cases = {
        "ours float32": our_step(ours, images, noise, bf16=False),
        "theirs float32": their_step(theirs, images, noise, bf16=False),
        "ours bf16": our_step(ours, images, noise, bf16=True),
        "theirs bf16": their_step(theirs, images, noise, bf16=True),
    }
    cases["ours float32, torch's own kernels"] = on_torch_kernels(cases["ours float32"])
    timings = interleave(cases, rounds, clock=clock)
    pairs = [
        ("ours float32", "theirs float32"),
        ("ours float32, torch's own kernels", "theirs float32"),
        ("ours bf16", "theirs float32"),
        ("ours bf16", "theirs bf16"),
    ]
    seconds = ", CPU time" if clock is time.process_time else ""
    label = f"ViT-B/16 224 px batch {batch} cpu{seconds}"
    return [
        compare(NAME, f"{label}: {one} against {other}", timings[one], timings[other]) for one, other in pairs
    ]


def on_gpu(size: str, batch: int, rounds: int) -> list[dict[str, Any]]:
    ours, theirs, images, noise = inputs(size, batch, "cuda")
    timings = interleave(
        {
            "ours": our_step(ours, images, noise, bf16=True),
            "ours compiled": our_step(ours, images, noise, bf16=True, compiled=True),
            "theirs": their_step(theirs, images, noise, bf16=True),
        },
        rounds,
        warmup=3,
    )
    label = f"ViT-{size}/16 224 px batch {batch} bf16 gpu"
    return [
        compare(
            NAME,
            f"{label}: {case} against theirs eager",
            timings[case],
            timings["theirs"],
            mfu=utilisation(size, batch, timings[case]),
        )
        for case in ("ours", "ours compiled")
    ]


def utilisation(size: str, batch: int, timing: Timing) -> float | None:
    """Share of the GPU's peak that the model's arithmetic reaches; None for a GPU that is not in `PEAK`."""
    name = torch.cuda.get_device_name()
    peak = next((value for key, value in PEAK.items() if key in name), None)
    flops = 2 * TRAINED * batch * mae_macs(**VIT_SIZES[size], project_masked=False).total
    return flops / timing.median / peak if peak else None


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=None, help="default: 16 on a CPU, 256 on a GPU")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--models", nargs="+", default=["base", "large"], choices=sorted(VIT_SIZES), help="on a GPU"
    )
    parser.add_argument(
        "--cpu-time", action="store_true", help="CPU seconds of one thread, for a shared machine"
    )
    options = parser.parse_args()
    clock = time.process_time if options.cpu_time else time.perf_counter
    if options.cpu_time:
        torch.set_num_threads(1)
    if torch.cuda.is_available():
        rows = [row for size in options.models for row in on_gpu(size, options.batch or 256, options.rounds)]
        write_results(f"{NAME}_gpu", rows)
    else:
        write_results(NAME, on_cpu(options.batch or 16, options.rounds, clock))


if __name__ == "__main__":
    main()

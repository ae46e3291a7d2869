"""How fast a device works, as the planner needs it: given (peak x efficiency), or measured on this machine in seconds.

An accelerator of large models is described by one number, the share of its peak that training reaches. Narrow models on a CPU are not: there the
traffic of activations and the fixed price of an operation weigh as much as arithmetic. `measure` therefore times a few steps of small Vision
Transformers and solves for the three prices; `benchmarks/plan_check.py` holds its predictions against steps of other models.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from replicate.errors import UserError


@dataclass(frozen=True)
class Device:
    """An accelerator by its maker's data sheet: dense bfloat16 FLOP/s, bytes of memory, and the share of the peak that is assumed."""

    name: str
    peak: float
    memory: float
    efficiency: float


DEVICES = {
    "h200": Device("H200", 989e12, 141e9, 0.30),
    "h100": Device("H100", 989e12, 80e9, 0.30),
    "a100": Device("A100", 312e12, 80e9, 0.35),
}
"""Efficiencies are assumptions until `benchmarks/mae_step.py` has printed the MFU of one's own device: give it as `--efficiency`."""


@dataclass(frozen=True)
class Rates:
    """Seconds that a multiply-add, a byte kept for the backward pass and an operator call take on one device."""

    mac: float
    byte: float = 0.0
    call: float = 0.0
    memory: float | None = None

    def seconds(self, macs: float, traffic: float = 0.0, calls: float = 0.0) -> float:
        """macs: multiply-adds; traffic: bytes of activations; calls: operator calls (Transformer blocks passed)."""
        return macs * self.mac + traffic * self.byte + calls * self.call


def rates_of(device: str, efficiency: float | None = None) -> Rates:
    """Rates of a device by name; `cpu` and `here` are measured now (about three seconds). Raises UserError for an unknown name."""
    if device in ("cpu", "here"):
        return measure("cpu" if device == "cpu" else None)
    if device not in DEVICES:
        raise UserError(f"--device {device}: choose {', '.join(DEVICES)}, cpu or here (this machine, measured)")
    known = DEVICES[device]
    share = known.efficiency if efficiency is None else efficiency
    if not 0 < share <= 1:
        raise UserError(f"--efficiency {share}: the share of the peak that training reaches lies between 0 and 1")
    return Rates(2 / (known.peak * share), memory=known.memory)


PROBES = ((8, 8, 192, 2), (32, 5, 64, 8), (4, 14, 384, 2), (32, 7, 128, 4), (4, 4, 64, 10), (16, 4, 320, 2), (16, 7, 32, 10))
"""(images, patches a side, width, blocks) of the masked autoencoders whose steps `measure` times: from mostly fixed price to mostly arithmetic."""


def measure(device: str | None = None, rounds: int = 3) -> Rates:
    """Fit the three prices to timed steps at `PROBES`; takes about three seconds.

    On a CPU with one thread the process's own time is taken, so that what else runs does not count.
    """
    import torch
    from scipy.optimize import nnls

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    cases = [probe_case(device, *probe) for probe in PROBES]
    clock = time.process_time if device == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
    seconds = [median_seconds(case.step, rounds, clock) for case in cases]
    matrix = np.array([[case.macs, case.traffic, case.calls] for case in cases])
    # Relative errors count, not absolute ones: the smallest probe is as much a run as the largest.
    scale = matrix / np.array(seconds)[:, None]
    unit = scale.max(axis=0)
    prices = nnls(scale / unit, np.ones(len(cases)))[0] / unit
    memory = torch.cuda.get_device_properties(0).total_memory if device == "cuda" else None
    return Rates(*map(float, prices), memory=memory)


@dataclass(frozen=True)
class Case:
    """A timed step with what it is made of."""

    step: Callable[[], None]
    macs: float
    traffic: float
    calls: float


def probe_case(device: str, images: int, side: int, width: int, depth: int) -> Case:
    """A whole step (forward, loss, backward, AdamW) of a small masked autoencoder that hides nothing, so that every block sees every patch."""
    import torch

    from replicate.cost.activations import mae_activations
    from replicate.cost.macs import TRAINING_FACTOR, mae_macs
    from replicate.models.cpu import tune_for_cpu
    from replicate.models.mae import MAE

    patch, patches = 8, side * side
    sizes = {"embed_dim": width, "depth": depth, "num_heads": max(1, width // 64), "decoder_embed_dim": 64, "decoder_depth": 1}
    model = MAE(image_size=side * patch, patch_size=patch, decoder_num_heads=2, mask_ratio=0.0, **sizes).to(device)
    if device == "cpu":
        tune_for_cpu(model)  # as the trainer does
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    inputs, noise = torch.randn(images, 3, side * patch, side * patch, device=device), torch.rand(images, patches, device=device)

    def step() -> None:
        model(inputs, noise).pred.square().mean().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if device == "cuda":
            torch.cuda.synchronize()

    values = patch**2 * 3
    macs = TRAINING_FACTOR * images * mae_macs(image_size=side * patch, patch_size=patch, mask_ratio=0.0, **sizes).total
    kept = mae_activations(patches=patches, visible=patches, patch_values=values, target_dim=values, bytes_per_value=4, **sizes)
    return Case(step, macs, images * kept, depth + 1)


def median_seconds(step: Callable[[], None], rounds: int, clock: Callable[[], float]) -> float:
    """Median of `rounds` calls after one that is not counted."""
    step()
    seconds = []
    for _ in range(rounds):
        start = clock()
        step()
        seconds.append(clock() - start)
    return statistics.median(seconds)

"""How fast a device works: by its data sheet (peak x efficiency), or measured on this machine.

For large models on an accelerator one number is enough, the share of the peak that training reaches. For
narrow models on a CPU, memory traffic and the fixed price of an operator weigh as much as arithmetic.
`measure` therefore times steps of small Vision Transformers and solves for three prices;
`benchmarks/plan_check.py` checks its predictions on other models.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from replicate.errors import UserError


class Device(NamedTuple):
    """A data sheet: dense bfloat16 FLOP/s, bytes of memory, and the share of the peak that we assume."""

    name: str
    peak: float
    memory: float
    efficiency: float


DEVICES = {
    "h200": Device("H200", 989e12, 141e9, 0.30),
    "h100": Device("H100", 989e12, 80e9, 0.30),
    "a100": Device("A100", 312e12, 80e9, 0.35),
}
"""Efficiencies are assumptions. `benchmarks/mae_step.py` prints the MFU of a device, for `--efficiency`."""


class Rates(NamedTuple):
    """Seconds that a multiply-add, a byte of activations and an operator call take; bytes of memory."""

    mac: float
    byte: float = 0.0
    call: float = 0.0
    memory: float | None = None

    def seconds(self, macs: float, activations: float = 0.0, calls: float = 0.0) -> float:
        return macs * self.mac + activations * self.byte + calls * self.call


def rates_of(device: str, efficiency: float | None = None) -> Rates:
    """Rates of a device by name; `cpu` and `here` are measured now, in about three seconds.

    Raises UserError for an unknown name or an impossible efficiency.
    """
    if device in ("cpu", "here"):
        return measure("cpu" if device == "cpu" else None)
    if device not in DEVICES:
        raise UserError(
            f"--device {device}: choose {', '.join(DEVICES)}, cpu or here (this machine, measured)"
        )
    known = DEVICES[device]
    share = known.efficiency if efficiency is None else efficiency
    if not 0 < share <= 1:
        raise UserError(f"--efficiency {share}: must be a share of the device's peak, above 0 and at most 1")
    return Rates(2 / (known.peak * share), memory=known.memory)


PROBES = (
    (8, 8, 192, 2),
    (32, 5, 64, 8),
    (4, 14, 384, 2),
    (32, 7, 128, 4),
    (4, 4, 64, 10),
    (16, 4, 320, 2),
    (16, 7, 32, 10),
)
"""(images, patches a side, width, blocks) of timed steps, from mostly operator calls to mostly arithmetic."""


def measure(device: str | None = None, rounds: int = 3) -> Rates:
    """Fit the three prices to timed steps at `PROBES`.

    On a CPU with one thread the clock is the process's own time, so that other processes do not count.
    """
    import torch
    from scipy.optimize import nnls

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    cases = [_probe_case(device, *probe) for probe in PROBES]
    clock = time.process_time if device == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
    seconds = np.array([median_seconds(step, rounds, clock) for step, *_ in cases])
    amounts = np.array([case[1:] for case in cases])
    # Fit relative errors, so that the smallest probe weighs as much as the largest.
    relative = amounts / seconds[:, None]
    unit = relative.max(axis=0)
    prices = nnls(relative / unit, np.ones(len(cases)))[0] / unit
    memory = torch.cuda.get_device_properties(0).total_memory if device == "cuda" else None
    return Rates(*map(float, prices), memory=memory)


def _probe_case(
    device: str, images: int, side: int, width: int, depth: int
) -> tuple[Callable[[], None], float, float, float]:
    """(step, multiply-adds, bytes kept, calls) of a small MAE that masks nothing, AdamW included."""
    import torch

    from replicate.cost.activations import mae_activations
    from replicate.cost.image_cost import TRAINED
    from replicate.cost.macs import mae_macs
    from replicate.models.cpu import tune_for_cpu
    from replicate.models.mae import MAE

    patch, patches = 8, side * side
    sizes = {
        "embed_dim": width,
        "depth": depth,
        "num_heads": max(1, width // 64),
        "decoder_embed_dim": 64,
        "decoder_depth": 1,
    }
    shape = {"image_size": side * patch, "patch_size": patch, "mask_ratio": 0.0, **sizes}
    model = MAE(decoder_num_heads=2, **shape).to(device)
    if device == "cpu":
        tune_for_cpu(model)  # as the trainer does
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    inputs = torch.randn(images, 3, side * patch, side * patch, device=device)
    noise = torch.rand(images, patches, device=device)

    def step() -> None:
        model(inputs, noise).pred.square().mean().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if device == "cuda":
            torch.cuda.synchronize()

    values = patch**2 * 3
    kept = mae_activations(
        patches=patches, visible=patches, patch_values=values, target_dim=values, bytes_per_value=4, **sizes
    )
    return step, TRAINED * images * mae_macs(**shape).total, images * kept, depth + 1


def median_seconds(step: Callable[[], None], rounds: int, clock: Callable[[], float]) -> float:
    """Median of `rounds` calls after an untimed one."""
    step()
    seconds = []
    for _ in range(rounds):
        start = clock()
        step()
        seconds.append(clock() - start)
    return statistics.median(seconds)

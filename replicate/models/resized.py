"""Learned tables that change shape with the resolution (FastMIM, section 4.2), and their optimiser state."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

Resized = dict[nn.Parameter, Callable[[Tensor], Tensor]]
"""Parameters whose shape changed, each with the function that resamples a tensor of the old shape."""


def replace_data(parameter: nn.Parameter, resample: Callable[[Tensor], Tensor], resized: Resized) -> None:
    """Resample a parameter in place; if its shape changed, record how in `resized`."""
    old_shape = parameter.shape
    with torch.no_grad():
        parameter.data = resample(parameter.data)
    if parameter.shape != old_shape:
        parameter.grad = None
        resized[parameter] = resample


def carry_optimizer_state(optimizer: torch.optim.Optimizer, resized: Resized) -> None:
    """Resample the optimiser's state of the parameters in `resized` (Adam's moments).

    Second moments stay non-negative, which bicubic resampling alone does not ensure.
    """
    for parameter, resample in resized.items():
        state = optimizer.state.get(parameter, {})
        for key, value in state.items():
            if torch.is_tensor(value) and value.ndim > 0:
                moved = resample(value)
                state[key] = moved.clamp_(min=0) if (value >= 0).all() else moved

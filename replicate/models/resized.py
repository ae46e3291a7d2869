"""What an optimiser remembers of a learned table, brought over when a resolution stage gives the table another shape (FastMIM sec 4.2).

A change of resolution keeps every parameter object and gives it new data; its moments are resampled as the table itself is.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

Resized = dict[nn.Parameter, Callable[[Tensor], Tensor]]
"""Parameters whose shape changed, each with the function that takes a tensor of the old shape to the new one."""


def carry_optimizer_state(optimizer: torch.optim.Optimizer, resized: Resized) -> None:
    """Resamples what `optimizer` remembers of the parameters in `resized` (Adam's moments), so that training goes on as it was.

    Second moments stay non-negative, which bicubic resampling alone does not promise.
    """
    for parameter, resample in resized.items():
        state = optimizer.state.get(parameter, {})
        for key, value in state.items():
            if torch.is_tensor(value) and value.ndim > 0:
                moved = resample(value)
                state[key] = moved.clamp_(min=0) if (value >= 0).all() else moved

"""Learning rate over iterations: linear warm-up from zero, then half a cosine (MAE Tables 7 and 8)."""

from __future__ import annotations

import math

from torch.optim import Optimizer


def warmup_cosine(
    epoch: float, *, peak: float, epochs: float, warmup_epochs: float, min_lr: float = 0.0
) -> float:
    """The learning rate at a fractional epoch.

    It rises linearly from 0 to `peak` over `warmup_epochs`, then falls along half a cosine to `min_lr` at
    `epochs`.
    """
    if epoch < warmup_epochs:
        return peak * epoch / warmup_epochs
    progress = (epoch - warmup_epochs) / max(epochs - warmup_epochs, 1e-12)
    return min_lr + (peak - min_lr) * 0.5 * (1.0 + math.cos(math.pi * min(progress, 1.0)))


def set_learning_rate(optimizer: Optimizer, lr: float) -> None:
    """Set every group's rate: `lr` times its `lr_scale` (1 without layer-wise decay)."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)

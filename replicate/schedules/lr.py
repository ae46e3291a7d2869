"""Learning rate over iterations: linear warm-up from zero, then half a cosine (MAE Tables 7 and 8; SGDR for the cosine)."""

from __future__ import annotations

import math

from torch.optim import Optimizer


def warmup_cosine(epoch: float, *, peak: float, epochs: float, warmup_epochs: float, min_lr: float = 0.0) -> float:
    """The learning rate at a fractional epoch, set anew at every iteration.

    Rises linearly from 0 to `peak` over `warmup_epochs`, then falls along half a cosine to `min_lr` at `epochs`.
    """
    if epoch < warmup_epochs:
        return peak * epoch / warmup_epochs
    progress = (epoch - warmup_epochs) / max(epochs - warmup_epochs, 1e-12)
    return min_lr + (peak - min_lr) * 0.5 * (1.0 + math.cos(math.pi * min(progress, 1.0)))


def set_learning_rate(optimizer: Optimizer, lr: float) -> None:
    """Give every parameter group `lr` times its own `lr_scale` (layer-wise decay); groups without one take `lr`, those with a `fixed_lr` that."""
    for group in optimizer.param_groups:
        group["lr"] = group.get("fixed_lr", lr * group.get("lr_scale", 1.0))

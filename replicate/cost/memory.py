"""Memory of a training step: what autograd keeps for the backward pass, and the peak on a GPU."""

from __future__ import annotations

from collections.abc import Callable

import torch

from replicate.models.activations import activation_bytes

__all__ = ["activation_bytes", "cuda_peak_bytes"]


def cuda_peak_bytes(step: Callable[[], object]) -> int | None:
    """Most bytes that the CUDA allocator held at once while `step()` ran, or None without a GPU."""
    if not torch.cuda.is_available():
        return None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated()

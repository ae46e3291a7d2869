"""Memory of a training step: what autograd keeps for the backward pass, and the peak on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from replicate.models.activations import activation_bytes
from replicate.models.cpu import plain_torch
from replicate.models.mae import MAE

__all__ = ["activation_bytes", "cuda_peak_bytes", "mae_activation_bytes"]


def mae_activation_bytes(batch: int = 1, *, depth: int = 12, decoder_depth: int = 8, **sizes: Any) -> int:
    """`activation_bytes` of a masked autoencoder's forward pass, its size as `MAE` takes it, without the memory or the time.

    Tensors are stood in for by their shapes, and every block keeps what the one before it kept, so that a ViT-H is counted on any
    machine; the count is that of a real pass on torch's own kernels, in float32. Random masks only; other kinds keep as much.
    """
    one, encoder, decoder = (_shapes_kept(batch, depth=d, decoder_depth=dd, **sizes) for d, dd in ((1, 1), (2, 1), (1, 2)))
    return one + (depth - 1) * (encoder - one) + (decoder_depth - 1) * (decoder - one)


def _shapes_kept(batch: int, **sizes: Any) -> int:
    with FakeTensorMode(), plain_torch():
        model = MAE(**sizes)
        images, noise = torch.randn(batch, 3, *model.image_size), torch.rand(batch, model.num_patches)
        return activation_bytes(lambda: model(images, noise), model.parameters())


def cuda_peak_bytes(step: Callable[[], object]) -> int | None:
    """Most bytes that the CUDA allocator held at once while `step()` ran, or None without a GPU."""
    if not torch.cuda.is_available():
        return None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated()

"""Memory of a training step, counted without spending it."""

from __future__ import annotations

from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from replicate.models.activations import activation_bytes
from replicate.models.cpu import plain_torch
from replicate.models.mae import MAE


def mae_activation_bytes(batch: int = 1, *, depth: int = 12, decoder_depth: int = 8, **sizes: Any) -> int:
    """Bytes that autograd keeps of a masked autoencoder's forward pass in float32, by torch's own kernels.

    `sizes` are `MAE`'s arguments. Only shapes are computed, and every block keeps as much as the one before
    it, so any machine can count a ViT-H. Masks are random; other samplings keep as much.
    """
    one, encoder, decoder = (
        _kept(batch, depth=d, decoder_depth=dd, **sizes) for d, dd in ((1, 1), (2, 1), (1, 2))
    )
    return one + (depth - 1) * (encoder - one) + (decoder_depth - 1) * (decoder - one)


def _kept(batch: int, **sizes: Any) -> int:
    with FakeTensorMode(), plain_torch():
        model = MAE(**sizes)
        images, noise = torch.randn(batch, 3, *model.image_size), torch.rand(batch, model.num_patches)
        return activation_bytes(lambda: model(images, noise), model.parameters())

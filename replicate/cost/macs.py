"""Multiply-adds of one image's forward pass, in closed form and counted on the real modules.

The papers' "GFLOPs" are multiply-adds (one multiplication with its addition counts once): linear layers, both matrix
products of attention, and LayerNorm at 5 an element; the class token is included, softmax, GELU and biases are not.
With that every GFLOPs value of Efficient MAE's Tables 1, 3 and 4 for MAE itself comes out to the printed rounding.

The reference projects every patch and then drops the masked ones; this package's model projects the visible ones only.
The papers' numbers contain the projection of all patches, so that is the default here; `project_masked=False` is what
really runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from replicate.masking import num_visible
from replicate.models.cpu import plain_torch
from replicate.models.mae import MAE
from replicate.patches import grid_of, pair

NORM = 5
"""Multiply-adds of LayerNorm for one element, as the papers' counter has it."""
TRAINING_FACTOR = 3
"""Forward and backward together cost three forwards: each matrix product has two gradients."""


class Macs(NamedTuple):
    """Multiply-adds of one image's forward pass. The encoder holds the patch projection, the decoder its prediction
    head.
    """

    encoder: float
    decoder: float

    @property
    def total(self) -> float:
        return self.encoder + self.decoder

    @property
    def giga(self) -> float:
        """The total as the papers print it, in units of 10^9."""
        return self.total / 1e9


def block_macs(tokens: float, width: int, mlp_ratio: float = 4.0) -> float:
    """One Transformer block: qkv, output projection and MLP, two attention products, two norms."""
    return tokens * width**2 * (4 + 2 * mlp_ratio) + 2 * tokens**2 * width + 2 * NORM * tokens * width


def mae_macs(
    *,
    image_size: int | tuple[int, int] = 224,
    patch_size: int = 16,
    embed_dim: int = 768,
    depth: int = 12,
    num_heads: int = 12,
    decoder_embed_dim: int = 512,
    decoder_depth: int = 8,
    decoder_num_heads: int = 16,
    mlp_ratio: float = 4.0,
    target_dim: int | None = None,
    mask_ratio: float = 0.75,
    mask_tokens_in_encoder: bool = False,
    kept: float | None = None,
    project_masked: bool = True,
) -> Macs:
    """Closed form for a masked autoencoder; the arguments are `MAE`'s (the numbers of heads cost nothing).

    kept             masked patches that enter the decoder (Efficient MAE's decoder masking); None for all. A mean over
                     images may
                     be given; attention's square then makes the result a lower bound, by less than 0.1 % at the papers'
                     spread.
    project_masked   count the projection of masked patches, as the papers do
    """
    patches = _patches(image_size, patch_size)
    visible = num_visible(patches, mask_ratio)
    encoded = patches if mask_tokens_in_encoder else visible
    pixels = patch_size**2 * 3
    projected = patches if project_masked else encoded
    encoder = projected * pixels * embed_dim + depth * block_macs(1 + encoded, embed_dim, mlp_ratio) + NORM * (1 + encoded) * embed_dim
    tokens = 1 + patches if kept is None else 1 + visible + kept
    decoder = (1 + encoded) * embed_dim * decoder_embed_dim
    decoder += decoder_depth * block_macs(tokens, decoder_embed_dim, mlp_ratio) + NORM * tokens * decoder_embed_dim
    decoder += tokens * decoder_embed_dim * (pixels if target_dim is None else target_dim)
    return Macs(encoder, decoder)


def classifier_macs(
    *,
    num_classes: int,
    embed_dim: int,
    depth: int,
    num_heads: int,
    patch_size: int,
    image_size: int | tuple[int, int] = 224,
    mlp_ratio: float = 4.0,
) -> Macs:
    """Closed form for the fine-tuning model: every patch, mean pooling, one norm and the head."""
    patches = _patches(image_size, patch_size)
    encoder = patches * patch_size**2 * 3 * embed_dim + depth * block_macs(1 + patches, embed_dim, mlp_ratio)
    return Macs(encoder + NORM * embed_dim + embed_dim * num_classes, 0)


def count_mae(model: MAE, mask_ratio: float | None = None, kept: Tensor | None = None, project_masked: bool = True) -> Macs:
    """Multiply-adds of a real `MAE`, counted operator by operator for one image, without running it (meta device).

    kept (L,) bool stands for decoder masking: the patches, visible ones included, that enter the decoder. Those shapes
    depend on data, so that the decoder then runs for real. `project_masked` adds the projections that the papers count
    and this model leaves out.
    """
    ratio = model.mask_ratio if mask_ratio is None else mask_ratio
    images = torch.empty(1, 3, *model.image_size, device="meta")
    noise = torch.empty(1, model.num_patches, device="meta")
    encoder, (latent, _, restore) = _count(_Weightless.call(model, "forward_encoder"), images, ratio, noise)
    if kept is None:
        decoder, _ = _count(_Weightless.call(model, "forward_decoder"), latent, restore)
    else:
        visible_first = torch.argsort((~kept).float(), stable=True)[None]
        latent = torch.zeros(latent.shape, device=kept.device)
        with sdpa_kernel(SDPBackend.MATH), plain_torch():  # the counter does not see a CPU's own kernels
            decoder, _ = _count(model.forward_decoder, latent, torch.argsort(visible_first, 1), kept[None])
    if project_masked and not model.mask_tokens_in_encoder:
        skipped = model.num_patches - num_visible(model.num_patches, ratio)
        encoder += skipped * model.patch_embed.proj.weight.numel()
    return Macs(encoder, decoder)


def count_forward(model: nn.Module, image_size: int | tuple[int, int]) -> float:
    """Multiply-adds of any module on one image, counted on the meta device: classifiers, other backbones."""
    training = model.training
    try:
        return _count(_Weightless.call(model.eval(), "forward"), torch.empty(1, 3, *pair(image_size), device="meta"))[0]
    finally:
        model.train(training)


def _patches(image_size: int | tuple[int, int], patch_size: int) -> int:
    rows, columns = grid_of(image_size, patch_size)
    return rows * columns


@torch.no_grad()
def _count(function: Callable[..., Any], *inputs: Any) -> tuple[float, Any]:
    norm = {torch.ops.aten.native_layer_norm: _norm_flops}
    with FlopCounterMode(display=False, custom_mapping=norm) as counter:
        output = function(*inputs)
    return counter.get_total_flops() / 2, output


def _norm_flops(shape: tuple[int, ...], *_: Any, **__: Any) -> int:
    return 2 * NORM * math.prod(shape)


class _Weightless(nn.Module):
    """One method of a module, run with parameters and buffers that are shapes without memory."""

    def __init__(self, module: nn.Module, method: str) -> None:
        super().__init__()
        self.module, self.method = module, method

    def forward(self, *inputs: Any) -> Any:
        return getattr(self.module, self.method)(*inputs)

    @classmethod
    def call(cls, module: nn.Module, method: str) -> Callable[..., Any]:
        """The method as a function of its inputs alone."""
        wrapped = cls(module, method)
        tensors = chain(wrapped.named_parameters(), wrapped.named_buffers())
        shapes = {name: torch.empty_like(tensor, device="meta") for name, tensor in tensors}
        return lambda *inputs: functional_call(wrapped, shapes, inputs)

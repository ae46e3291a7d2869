"""Multiply-adds of one image's forward pass through a Vision Transformer, in closed form.

The papers' "GFLOPs" are multiply-adds: one multiplication with its addition counts once. They cover linear
layers, both matrix products of attention, and LayerNorm at 5 an element. They include the class token and
leave out softmax, GELU and biases. Every GFLOPs value for MAE in Efficient MAE's Tables 1, 3 and 4 comes out
to the printed rounding.

The reference projects every patch and then drops the masked ones; this package projects visible patches
only. The papers count all projections, which is the default here; `project_masked=False` counts what runs.
"""

from __future__ import annotations

from math import prod
from typing import NamedTuple

from replicate.masking import num_visible
from replicate.patches import grid_of

NORM = 5
"""Multiply-adds of LayerNorm for one element, as the papers count them."""


class Macs(NamedTuple):
    """Multiply-adds of one image's forward pass; the encoder includes the patch projection, the decoder its
    head.
    """

    encoder: float
    decoder: float

    @property
    def total(self) -> float:
        return self.encoder + self.decoder


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
    """A masked autoencoder; the arguments are `MAE`'s (heads cost nothing).

    kept             masked patches that enter the decoder (Efficient MAE, section 4.2); None: all. A mean
                     over images gives a lower bound, at most 0.1 % low, as attention is quadratic
    project_masked   count the projection of masked patches, as the papers do
    """
    patches, pixels = prod(grid_of(image_size, patch_size)), patch_size**2 * 3
    visible = num_visible(patches, mask_ratio)
    encoded = patches if mask_tokens_in_encoder else visible
    encoder = (patches if project_masked else encoded) * pixels * embed_dim
    encoder += depth * block_macs(1 + encoded, embed_dim, mlp_ratio) + NORM * (1 + encoded) * embed_dim
    tokens = 1 + patches if kept is None else 1 + visible + kept
    decoder = (1 + encoded) * embed_dim * decoder_embed_dim
    decoder += (
        decoder_depth * block_macs(tokens, decoder_embed_dim, mlp_ratio) + NORM * tokens * decoder_embed_dim
    )
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
) -> float:
    """The fine-tuning model: every patch, mean pooling, one norm and the head."""
    patches = prod(grid_of(image_size, patch_size))
    encoder = patches * patch_size**2 * 3 * embed_dim + depth * block_macs(1 + patches, embed_dim, mlp_ratio)
    return encoder + NORM * embed_dim + embed_dim * num_classes

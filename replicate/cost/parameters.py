"""Numbers of parameters of Vision Transformers, in closed form.

Fixed position embeddings count: the released checkpoints hold them, and the papers' counts include them.
"""

from __future__ import annotations

from math import prod
from typing import NamedTuple

from torch import nn

from replicate.patches import grid_of


class Parameters(NamedTuple):
    """Parameters of a pre-training model; the mask token belongs to the decoder."""

    encoder: int
    decoder: int

    @property
    def total(self) -> int:
        return self.encoder + self.decoder


def block_parameters(width: int, mlp_ratio: float = 4.0) -> int:
    """One Transformer block: two norms, qkv, output projection and MLP, all with biases."""
    hidden = int(width * mlp_ratio)
    return 4 * width + 4 * (width**2 + width) + (2 * width * hidden + width + hidden)


def mae_parameters(
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
    mask_tokens_in_encoder: bool = False,
) -> Parameters:
    """A masked autoencoder; the arguments are `MAE`'s (heads have no parameters of their own)."""
    patches = prod(grid_of(image_size, patch_size))
    outputs = patch_size**2 * 3 if target_dim is None else target_dim
    width = decoder_embed_dim
    decoder = (
        embed_dim * width + width + (1 + patches) * width + (embed_dim if mask_tokens_in_encoder else width)
    )
    decoder += decoder_depth * block_parameters(width, mlp_ratio) + 2 * width + width * outputs + outputs
    return Parameters(_encoder(patches, patch_size, embed_dim, depth, mlp_ratio), decoder)


def classifier_parameters(
    *,
    num_classes: int,
    embed_dim: int,
    depth: int,
    num_heads: int,
    patch_size: int,
    image_size: int | tuple[int, int] = 224,
    mlp_ratio: float = 4.0,
) -> int:
    """The fine-tuning model: encoder, one norm, head."""
    patches = prod(grid_of(image_size, patch_size))
    return _encoder(patches, patch_size, embed_dim, depth, mlp_ratio) + (embed_dim + 1) * num_classes


def count_parameters(model: nn.Module, trainable: bool = False) -> int:
    """Parameters of any module, or those that train."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trainable)


def _encoder(patches: int, patch_size: int, width: int, depth: int, mlp_ratio: float) -> int:
    """Patch projection, positions, class token, blocks, one norm."""
    embedding = (patch_size**2 * 3 + 1) * width + (1 + patches) * width + width
    return embedding + depth * block_parameters(width, mlp_ratio) + 2 * width

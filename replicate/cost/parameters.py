"""Numbers of parameters, in closed form and counted.

Fixed position embeddings are in the released checkpoints, and so they are in the papers' counts.
"""

from __future__ import annotations

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
    """Closed form for a masked autoencoder; the arguments are `MAE`'s (the numbers of heads cost nothing)."""
    pixels = patch_size**2 * 3
    outputs = pixels if target_dim is None else target_dim
    encoder = _encoder(image_size, patch_size, embed_dim, depth, mlp_ratio) + 2 * embed_dim
    decoder = embed_dim * decoder_embed_dim + decoder_embed_dim
    decoder += (1 + _patches(image_size, patch_size)) * decoder_embed_dim
    decoder += decoder_depth * block_parameters(decoder_embed_dim, mlp_ratio) + 2 * decoder_embed_dim
    decoder += decoder_embed_dim * outputs + outputs
    return Parameters(encoder, decoder + (embed_dim if mask_tokens_in_encoder else decoder_embed_dim))


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
    """Closed form for the fine-tuning model: encoder, one norm, head."""
    return _encoder(image_size, patch_size, embed_dim, depth, mlp_ratio) + 2 * embed_dim + (embed_dim + 1) * num_classes


def count_parameters(model: nn.Module, trainable: bool = False) -> int:
    """Parameters of any module; `trainable` leaves out frozen ones."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trainable)


def _encoder(image_size: int | tuple[int, int], patch_size: int, width: int, depth: int, mlp_ratio: float) -> int:
    tokens = (1 + _patches(image_size, patch_size)) * width + width
    return tokens + (patch_size**2 * 3 + 1) * width + depth * block_parameters(width, mlp_ratio)


def _patches(image_size: int | tuple[int, int], patch_size: int) -> int:
    rows, columns = grid_of(image_size, patch_size)
    return rows * columns

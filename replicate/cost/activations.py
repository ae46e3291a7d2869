"""What autograd keeps of one image for the backward pass, in closed form for Vision Transformers: with the batch it decides what fits a device.

Counted for fused attention, whose T x T matrix is never kept. Under autocast the residual stream and the norms' inputs stay float32 and everything
else is kept in two bytes.
"""

from __future__ import annotations

FLOAT32 = 4


def block_activations(tokens: float, width: int, heads: int, mlp_ratio: float = 4.0, bytes_per_value: int = 2) -> float:
    """Bytes of one Transformer block for one image of `tokens` tokens; `bytes_per_value` is 2 under autocast, 4 in float32.

    In tokens x width: two norms' inputs, which stay float32; inputs of qkv and fc1, q, k, v, attention's output, and GELU's input and output.
    """
    residual = 2 * FLOAT32 * width
    low = bytes_per_value * width * (2 + 3 + 1 + 2 * mlp_ratio)
    statistics = FLOAT32 * (4 + heads)
    return tokens * (residual + low + statistics)


def mae_activations(
    *,
    patches: int,
    visible: int,
    embed_dim: int,
    depth: int,
    num_heads: int,
    patch_values: int,
    decoder_embed_dim: int,
    decoder_depth: int,
    target_dim: int,
    kept: float | None = None,
    bytes_per_value: int = 2,
    mlp_ratio: float = 4.0,
) -> float:
    """Bytes of a masked autoencoder's step for one image, its loss included. `visible` is what enters the encoder; the decoder sees every patch, or
    the visible ones and `kept` masked ones (decoder masking).
    """
    tokens = 1 + (patches if kept is None else visible + kept)
    encoder = depth * block_activations(1 + visible, embed_dim, num_heads, mlp_ratio, bytes_per_value)
    decoder = decoder_depth * block_activations(tokens, decoder_embed_dim, max(1, decoder_embed_dim // 32), mlp_ratio, bytes_per_value)
    ends = visible * patch_values * bytes_per_value + (FLOAT32 + bytes_per_value) * ((1 + visible) * embed_dim + tokens * decoder_embed_dim)
    loss = 2 * FLOAT32 * patches * target_dim
    return encoder + decoder + ends + loss


def classifier_activations(*, patches: int, embed_dim: int, depth: int, num_heads: int, bytes_per_value: int = 2, mlp_ratio: float = 4.0) -> float:
    """Bytes of a classifier's step for one image with `depth` trainable blocks; frozen blocks below them keep nothing."""
    return depth * block_activations(1 + patches, embed_dim, num_heads, mlp_ratio, bytes_per_value) + FLOAT32 * (1 + patches) * embed_dim

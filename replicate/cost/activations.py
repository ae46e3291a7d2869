"""Bytes that autograd keeps of one image for the backward pass: closed forms for Vision Transformers.

They hold for fused attention, which never keeps the T x T matrix. Under autocast the residual stream and the
inputs of norms stay float32; everything else takes two bytes a value.
"""

from __future__ import annotations

from replicate.cost.image_cost import FLOAT32


def block_activations(
    tokens: float, width: int, heads: int, mlp_ratio: float = 4.0, bytes_per_value: int = 2
) -> float:
    """Bytes of one Transformer block for one image; `bytes_per_value` is 2 under autocast, 4 in float32."""
    norm_inputs = 2 * FLOAT32 * width
    qkv_and_fc1_inputs, q_k_v, attention, gelu = 2, 3, 1, 2 * mlp_ratio
    low_precision = bytes_per_value * width * (qkv_and_fc1_inputs + q_k_v + attention + gelu)
    statistics = FLOAT32 * (4 + heads)
    return tokens * (norm_inputs + low_precision + statistics)


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
    """Bytes of a masked autoencoder's step for one image, its loss included.

    visible: patches that enter the encoder. kept: masked patches that enter the decoder (decoder masking);
    None: all.
    """
    tokens = 1 + (patches if kept is None else visible + kept)
    shared = {"mlp_ratio": mlp_ratio, "bytes_per_value": bytes_per_value}
    decoder_heads = max(1, decoder_embed_dim // 32)
    encoder = depth * block_activations(1 + visible, embed_dim, num_heads, **shared)
    decoder = decoder_depth * block_activations(tokens, decoder_embed_dim, decoder_heads, **shared)
    last_norms = (1 + visible) * embed_dim + tokens * decoder_embed_dim
    ends = visible * patch_values * bytes_per_value + (FLOAT32 + bytes_per_value) * last_norms
    loss = 2 * FLOAT32 * patches * target_dim
    return encoder + decoder + ends + loss


def classifier_activations(
    *,
    patches: int,
    embed_dim: int,
    depth: float,
    num_heads: int,
    bytes_per_value: int = 2,
    mlp_ratio: float = 4.0,
) -> float:
    """Bytes of a classifier's step for one image; `depth` blocks train and the frozen ones keep nothing."""
    block = block_activations(1 + patches, embed_dim, num_heads, mlp_ratio, bytes_per_value)
    return depth * block + FLOAT32 * (1 + patches) * embed_dim

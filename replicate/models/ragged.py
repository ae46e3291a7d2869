"""Sequences of unequal length without padding: the decoder's batch under decoder masking (Efficient MAE, section 4.2).

Dropping hard patches leaves a different number of tokens in every image. Everything in a Transformer block but
attention acts on single tokens, so the tokens of all images are packed end to end into one (T, C) matrix, and linear
layers, norms and MLPs cost exactly T tokens; only attention has to keep the images apart.
`benchmarks/decoder_masking.py` measures the alternatives.
"""

from __future__ import annotations

import inspect
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from replicate.models.cpu import attend

_TAKES_EXTENT = "max_seqlen" in inspect.signature(torch.nested.nested_tensor_from_jagged).parameters
"""torch 2.4 finds the longest image by itself, at the price of waiting for the device."""


class Packing(NamedTuple):
    """Where each packed token comes from.

    source   (T,) index into the flattened (N * S) dense tokens, image by image
    target   (N * S,) packed position of every dense token (meaningless where the token was dropped)
    offsets  (N + 1,) int64 start of every image in the packed matrix
    lengths  tokens of every image, known to the host
    """

    source: Tensor
    target: Tensor
    offsets: Tensor
    lengths: list[int]


@torch.compiler.disable
def pack(kept: Tensor) -> Packing:
    """The packing of kept (N, S) bool tokens. Costs one wait for the device: the host must know the lengths."""
    counts = kept.sum(1)
    offsets = F.pad(counts.cumsum(0), (1, 0))
    flat = kept.flatten()
    return Packing(flat.nonzero().squeeze(1), flat.cumsum(0) - 1, offsets, counts.tolist())


@torch.compiler.disable  # the lengths are new in every batch: compiled, they would be compiled anew
def ragged_attention(query: Tensor, key: Tensor, value: Tensor, packing: Packing, kernel: str = "auto") -> Tensor:
    """Attention within each image over packed (T, heads, d) tensors; returns (T, heads, d).

    kernel "loop" calls fused attention once an image (best on a CPU, whose kernels each fill the machine), "jagged"
    calls one variable-length kernel (best on a GPU), "padded" pads to the longest image and masks keys; "auto" picks by
    device. All three give the same result.
    """
    if kernel == "auto":
        kernel = "jagged" if query.is_cuda else "loop"
    return {"loop": _loop, "jagged": _jagged, "padded": _padded}[kernel](query, key, value, packing)


def _loop(query: Tensor, key: Tensor, value: Tensor, packing: Packing) -> Tensor:
    images = zip(*(tensor.transpose(0, 1).split(packing.lengths, dim=1) for tensor in (query, key, value)), strict=True)
    mixed = [attend(q[None], k[None], v[None])[0] for q, k, v in images]
    return torch.cat(mixed, dim=1).transpose(0, 1)


def _jagged(query: Tensor, key: Tensor, value: Tensor, packing: Packing) -> Tensor:
    extent = {"min_seqlen": min(packing.lengths), "max_seqlen": max(packing.lengths)} if _TAKES_EXTENT else {}
    nested = torch.nested.nested_tensor_from_jagged
    q, k, v = (nested(tensor.contiguous(), packing.offsets, **extent).transpose(1, 2) for tensor in (query, key, value))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).values()


def _padded(query: Tensor, key: Tensor, value: Tensor, packing: Packing) -> Tensor:
    images, longest = len(packing.lengths), max(packing.lengths)
    lengths = packing.offsets.diff()
    slot = torch.arange(longest, device=query.device)
    within = torch.arange(len(query), device=query.device) - torch.repeat_interleave(packing.offsets[:-1], lengths, output_size=len(query))
    image = torch.repeat_interleave(torch.arange(images, device=query.device), lengths, output_size=len(query))
    place = image * longest + within

    def spread(tensor: Tensor) -> Tensor:
        dense = tensor.new_zeros(images * longest, *tensor.shape[1:]).index_copy(0, place, tensor)
        return dense.unflatten(0, (images, longest)).transpose(1, 2)

    real = (slot < lengths[:, None])[:, None, None, :]
    mixed = F.scaled_dot_product_attention(spread(query), spread(key), spread(value), attn_mask=real)
    return mixed.transpose(1, 2).flatten(0, 1).index_select(0, place)


def ragged_block(block: nn.Module, tokens: Tensor, packing: Packing, kernel: str = "auto") -> Tensor:
    """A timm `Block` (plain, as MAE uses it) over packed tokens (T, C)."""
    attention = block.attn
    qkv = attention.qkv(block.norm1(tokens)).unflatten(1, (3, attention.num_heads, -1))
    mixed = ragged_attention(*qkv.unbind(1), packing, kernel).flatten(1)
    tokens = tokens + attention.proj(mixed)
    return tokens + block.mlp(block.norm2(tokens))

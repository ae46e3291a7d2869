"""Sequences of unequal length without padding, for decoder masking (Efficient MAE, section 4.2).

Dropping hard patches leaves a different number of tokens in every image. Only attention mixes tokens of a
Transformer block. So this module packs the tokens of all images end to end into one (T, C) matrix: linear
layers, norms and MLPs cost exactly T tokens, and attention keeps the images apart.
`benchmarks/decoder_masking.py` measures the alternatives.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from replicate.models.cpu import attend, fused, unfused

SMALL = 2**21
"""Multiply-adds of one image's attention scores below which padding beats a loop over images.

Holds for bfloat16 on a CPU. Padding takes a fifth of the time for 16 tokens of a decoder 64 wide, and 1.5
times as long for the 180 tokens of a decoder 512 wide.
"""
_TAKES_EXTENT = "max_seqlen" in inspect.signature(torch.nested.nested_tensor_from_jagged).parameters
"""torch 2.4 has no such argument; it waits for the device to find the longest image."""


class Packing(NamedTuple):
    """Where each packed token comes from.

    dense_index   (T,) index of every packed token in the flattened (N * S) dense tokens
    packed_index  (N * S,) position of every dense token in the packed matrix; undefined for dropped tokens
    offsets       (N + 1,) int64 start of every image in the packed matrix
    lengths       number of tokens of every image, on the host
    """

    dense_index: Tensor
    packed_index: Tensor
    offsets: Tensor
    lengths: list[int]


@torch.compiler.disable
def pack(kept: Tensor) -> Packing:
    """The packing of kept (N, S) bool tokens. Waits for the device once: the host needs the lengths."""
    counts = kept.sum(1)
    offsets = F.pad(counts.cumsum(0), (1, 0))
    flat = kept.flatten()
    return Packing(flat.nonzero().squeeze(1), flat.cumsum(0) - 1, offsets, counts.tolist())


@torch.compiler.disable  # lengths change with every batch, and each change would recompile
def ragged_attention(qkv: Tensor, packing: Packing, kernel: str = "auto") -> Tensor:
    """Attention within each image: packed (T, 3, heads, d) queries, keys and values -> (T, heads, d).

    kernel "loop" attends image by image: fastest on a CPU, where one image's attention fills the machine.
    "jagged" calls one variable-length kernel: fastest on a GPU. "padded" pads to the longest image and masks
    keys: fastest on a CPU for images so small that calls cost more than arithmetic. "auto" chooses by device
    and size. All three give the same result.
    """
    if kernel == "auto":
        kernel = _fastest(qkv, packing)
    return {"loop": _loop, "jagged": _jagged, "padded": _padded}[kernel](qkv, packing)


def _fastest(qkv: Tensor, packing: Packing) -> str:
    if qkv.is_cuda:
        return "jagged"
    scores = max(packing.lengths) ** 2 * qkv[0, 0].numel()
    return "padded" if unfused(qkv) and scores < SMALL else "loop"


def _loop(qkv: Tensor, packing: Packing) -> Tensor:
    if fused(qkv):
        return _FlashLoop.apply(qkv, packing.lengths)
    images = (image.permute(1, 2, 0, 3)[:, None] for image in qkv.split(packing.lengths))
    return torch.cat([attend(*image)[0].transpose(0, 1) for image in images])


class _FlashLoop(torch.autograd.Function):
    """Fused attention image by image into one buffer.

    Autograd would keep every image's output twice: once for attention, and packed for the layer that follows.
    """

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, lengths: list[int]) -> Tensor:
        mixed, norms = torch.empty_like(qkv[:, 0], memory_format=torch.contiguous_format), []
        for image, output in zip(qkv.split(lengths), mixed.split(lengths), strict=True):
            result, norm = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(*_heads_first(image))
            output.copy_(result[0].transpose(0, 1))
            norms.append(norm)
        ctx.save_for_backward(qkv, mixed, *norms)
        ctx.lengths = lengths
        return mixed

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        qkv, mixed, *norms = ctx.saved_tensors
        grad_qkv = torch.empty_like(qkv)
        parts = (tensor.split(ctx.lengths) for tensor in (grad, qkv, mixed, grad_qkv))
        for grad_image, image, output, target, norm in zip(*parts, norms, strict=True):
            grad_image, output = (tensor.transpose(0, 1)[None] for tensor in (grad_image, output))
            backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
            for index, part in enumerate(
                backward(grad_image, *_heads_first(image), output, norm, 0.0, False)
            ):
                target[:, index].copy_(part[0].transpose(0, 1))
        return grad_qkv, None


def _heads_first(image: Tensor) -> Iterator[Tensor]:
    """One image's (tokens, 3, heads, d) as three tensors (1, heads, tokens, d)."""
    return (part.transpose(0, 1)[None] for part in image.unbind(1))


def _jagged(qkv: Tensor, packing: Packing) -> Tensor:
    lengths = packing.lengths
    extent = {"min_seqlen": min(lengths), "max_seqlen": max(lengths)} if _TAKES_EXTENT else {}
    nested = torch.nested.nested_tensor_from_jagged
    q, k, v = (
        nested(tensor.contiguous(), packing.offsets, **extent).transpose(1, 2) for tensor in qkv.unbind(1)
    )
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).values()


def _padded(qkv: Tensor, packing: Packing) -> Tensor:
    images, longest = len(packing.lengths), max(packing.lengths)
    real = torch.arange(longest, device=qkv.device) < packing.offsets.diff()[:, None]
    place = real.flatten().nonzero().squeeze(1)
    dense = (
        qkv.new_zeros(images * longest, *qkv.shape[1:])
        .index_copy(0, place, qkv)
        .unflatten(0, (images, longest))
    )
    mixed = attend(*dense.permute(2, 0, 3, 1, 4).unbind(0), real)
    return mixed.transpose(1, 2).flatten(0, 1).index_select(0, place)


def ragged_block(block: nn.Module, tokens: Tensor, packing: Packing, kernel: str = "auto") -> Tensor:
    """A timm `Block` (plain, as MAE uses it) over packed tokens (T, C)."""
    attention = block.attn
    qkv = attention.qkv(block.norm1(tokens)).unflatten(1, (3, attention.num_heads, -1))
    tokens = tokens + attention.proj(ragged_attention(qkv, packing, kernel).flatten(1))
    return tokens + block.mlp(block.norm2(tokens))

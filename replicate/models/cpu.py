"""Faster training steps on a CPU, with unchanged parameters and results equal to rounding.

Two detours, each taken only where it was measured to pay (`benchmarks/mae_step.py`):

- float32 linear layers on AMD processors. torch sends float32 matrix products to MKL, which keeps its AVX-512 kernels to Intel's processors;
  oneDNN, which torch carries too, does the same products about twice as fast there.
- attention in bfloat16. The fused kernel's backward pass is several times slower in bfloat16 than plain matrix products are. The plain form
  is also what the reference computes under autocast.

Everything else, and every other device, runs torch's own path.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import replicate.compat  # noqa: F401

from timm.models.vision_transformer import Attention  # isort: skip  (after replicate.compat)

WORTHWHILE = 2**22
"""Multiply-adds of a product below which the detour costs more than it saves."""
_enabled = True


def tune_for_cpu(model: nn.Module) -> nn.Module:
    """Let a model's linear layers and timm attention take the detours above; in place, parameters and their names unchanged."""
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = Linear
        elif type(module) is Attention:
            module.__class__ = CpuAttention
    return model


@contextlib.contextmanager
def plain_torch() -> Iterator[None]:
    """Inside, tuned models run torch's own path."""
    global _enabled
    before, _enabled = _enabled, False
    try:
        yield
    finally:
        _enabled = before


class Linear(nn.Linear):
    """nn.Linear, through oneDNN where that is faster."""

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias)


class CpuAttention(Attention):
    """timm's self-attention, unfused for bfloat16 on a CPU."""

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, **options: Any) -> Tensor:
        masked = attn_mask is not None or any(options.values())
        if masked or not _unfused_pays(x) or (self.training and self.attn_drop.p):
            return super().forward(x, attn_mask=attn_mask, **options)
        query, key, value = self.qkv(x).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = attend(self.q_norm(query), self.k_norm(key), value).transpose(1, 2).flatten(2)
        return self.proj_drop(self.proj(self.norm(mixed)))


def attend(query: Tensor, key: Tensor, value: Tensor, real: Tensor | None = None) -> Tensor:
    """softmax(query key^T / sqrt(d)) value over (N, heads, tokens, d), fused but for bfloat16 on a CPU.

    `real` (N, tokens) bool says which keys take part.
    """
    if not unfused(query):
        return F.scaled_dot_product_attention(query, key, value, attn_mask=None if real is None else real[:, None, None, :])
    shape = query.shape
    query, key, value = (tensor.flatten(0, 1) for tensor in (query, key, value))
    with torch.autocast("cpu", enabled=False):
        scores = torch.baddbmm(query.new_empty(1, 1, 1), query, key.transpose(1, 2), beta=0, alpha=shape[-1] ** -0.5)
        if real is not None:
            scores = scores.unflatten(0, shape[:2]).masked_fill(~real[:, None, None, :], -torch.inf).flatten(0, 1)
        return (scores.softmax(-1) @ value).view(shape)


def unfused(tensor: Tensor) -> bool:
    """True where plain matrix products beat the fused attention kernel: bfloat16 on a CPU."""
    return _enabled and tensor.device.type == "cpu" and tensor.dtype == torch.bfloat16


def fused(tensor: Tensor) -> bool:
    """True where the CPU's fused attention kernel is called by its own name, unseen by a counter of multiply-adds."""
    return _enabled and tensor.device.type == "cpu" and tensor.dtype != torch.bfloat16


def _unfused_pays(x: Tensor) -> bool:
    """`unfused` for what autocast will make of x."""
    if not torch.is_autocast_enabled("cpu") or x.device.type != "cpu":
        return unfused(x)
    return _enabled and torch.get_autocast_dtype("cpu") == torch.bfloat16


def linear(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """F.linear, through oneDNN for large float32 products on an AMD processor."""
    if _onednn_pays(input, weight):
        return _OneDnnLinear.apply(input, weight, bias)
    return F.linear(input, weight, bias)


def _onednn_pays(input: Tensor, weight: Tensor) -> bool:
    return (
        not torch.compiler.is_compiling()
        and input.device.type == "cpu"
        and input.dtype == weight.dtype == torch.float32
        and _enabled
        and not torch.is_autocast_enabled("cpu")
        and input.numel() * weight.shape[0] >= WORTHWHILE
        and _onednn_is_faster()
    )


@functools.cache
def _onednn_is_faster() -> bool:
    """True on AMD processors whose torch has oneDNN. A fixed rule, not a timing: equal runs must take equal paths."""
    if not (torch.backends.mkldnn.is_available() and torch.backends.mkl.is_available()):
        return False
    try:
        vendor = "AuthenticAMD" in Path("/proc/cpuinfo").read_text()
        probe = torch.eye(2)
        return vendor and torch.equal(_product(probe, probe, None), probe)
    except (OSError, RuntimeError, AttributeError):
        return False


def _product(rows: Tensor, columns: Tensor, bias: Tensor | None) -> Tensor:
    """rows (M, K) @ columns (N, K)^T + bias by oneDNN; either may be strided."""
    return torch.ops.mkldnn._linear_pointwise(rows, columns, bias, "none", [], "")


class _OneDnnLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(input, weight)
        return _product(input.reshape(-1, input.shape[-1]), weight, bias).view(*input.shape[:-1], -1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        input, weight = ctx.saved_tensors
        rows = grad.reshape(-1, grad.shape[-1])
        grads: list[Tensor | None] = [None, None, None]
        if ctx.needs_input_grad[0]:
            grads[0] = _product(rows, weight.t(), None).view(input.shape)
        if ctx.needs_input_grad[1]:
            # Transposed, because oneDNN handles few columns and very many summands badly the other way round.
            grads[1] = _product(input.reshape(-1, input.shape[-1]).t(), rows.t(), None).t()
        if ctx.needs_input_grad[2]:
            grads[2] = rows.sum(0)
        return tuple(grads)

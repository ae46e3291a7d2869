"""Faster training steps on a CPU, with unchanged parameters and results equal to rounding.

`tune_for_cpu` takes two detours, each only where `benchmarks/mae_step.py` measured a gain:

- float32 linear layers on AMD processors. torch sends float32 matrix products to MKL, which keeps its AVX-512
kernels to Intel's processors. oneDNN, which torch ships too, computes them about twice as fast there. -
attention in bfloat16. The backward pass of the fused kernel is several times slower in bfloat16 than plain
matrix products. The plain form is also what the reference computes under autocast.

Everything else, and every other device, takes torch's own path.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Attention
from torch import Tensor, nn

WORTHWHILE = 2**26
"""Multiply-adds of a product below which the detour costs more than it saves."""
_enabled = True


def tune_for_cpu(model: nn.Module) -> nn.Module:
    """Let a model's linear layers and timm attention take the detours above, in place.

    Parameters, names and classes stay. Layers of a subclass keep their own forward pass.
    """
    for module in model.modules():
        if type(module) is nn.Linear:
            module.forward = functools.partial(_linear_forward, module)
        elif type(module) is Attention:
            module.forward = functools.partial(_attention_forward, module)
    return model


@contextlib.contextmanager
def plain_torch() -> Iterator[None]:
    """Inside, tuned models take torch's own path."""
    global _enabled
    before, _enabled = _enabled, False
    try:
        yield
    finally:
        _enabled = before


def _linear_forward(self: nn.Linear, input: Tensor) -> Tensor:
    """nn.Linear, through oneDNN for large float32 products on an AMD processor."""
    if not _onednn_pays(input, self.weight):
        return F.linear(input, self.weight, self.bias)
    # Reshaped outside the autograd function: torch forbids in-place operations on a view made inside one.
    rows = _OneDnnLinear.apply(input.reshape(-1, input.shape[-1]), self.weight, self.bias)
    return rows.view(*input.shape[:-1], -1)


def _attention_forward(self: Attention, x: Tensor, attn_mask: Tensor | None = None, **options: Any) -> Tensor:
    """timm's self-attention, unfused for bfloat16 on a CPU."""
    masked = attn_mask is not None or any(options.values())
    if masked or not _unfused_pays(x) or (self.training and self.attn_drop.p):
        return Attention.forward(self, x, attn_mask=attn_mask, **options)
    query, key, value = self.qkv(x).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
    mixed = attend(self.q_norm(query), self.k_norm(key), value).transpose(1, 2).flatten(2)
    return self.proj_drop(self.proj(self.norm(mixed)))


def attend(query: Tensor, key: Tensor, value: Tensor, real: Tensor | None = None) -> Tensor:
    """softmax(query key^T / sqrt(d)) value over (N, heads, tokens, d), fused but for bfloat16 on a CPU.

    `real` (N, tokens) bool selects the keys that take part.
    """
    if not unfused(query):
        mask = None if real is None else real[:, None, None, :]
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    shape = query.shape
    query, key, value = (tensor.flatten(0, 1) for tensor in (query, key, value))
    with torch.autocast("cpu", enabled=False):
        zero = query.new_empty(1, 1, 1)
        scores = torch.baddbmm(zero, query, key.transpose(1, 2), beta=0, alpha=shape[-1] ** -0.5)
        if real is not None:
            scores = (
                scores.unflatten(0, shape[:2]).masked_fill(~real[:, None, None, :], -torch.inf).flatten(0, 1)
            )
        return (scores.softmax(-1) @ value).view(shape)


def unfused(tensor: Tensor) -> bool:
    """Whether plain matrix products beat the fused attention kernel: bfloat16 on a CPU."""
    return _enabled and tensor.device.type == "cpu" and tensor.dtype == torch.bfloat16


def fused(tensor: Tensor) -> bool:
    """Whether to call the CPU's fused attention kernel by its own name, which a FLOP counter does not see."""
    return _enabled and tensor.device.type == "cpu" and tensor.dtype != torch.bfloat16


def _unfused_pays(x: Tensor) -> bool:
    """`unfused` for the type that autocast will give x."""
    if not torch.is_autocast_enabled("cpu") or x.device.type != "cpu":
        return unfused(x)
    return _enabled and torch.get_autocast_dtype("cpu") == torch.bfloat16


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
    """True on AMD processors with oneDNN. A rule, not a timing: equal runs must take equal paths."""
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
    """rows (M, K), weight (N, K), bias (N,) -> (M, N)."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(rows, weight)
        return _product(rows, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        rows, weight = ctx.saved_tensors
        # With create_graph the backward pass needs a derivative too, which oneDNN's product has not.
        product = F.linear if torch.is_grad_enabled() else _product
        grads: list[Tensor | None] = [None, None, None]
        if ctx.needs_input_grad[0]:
            grads[0] = product(grad, weight.t(), None)
        if ctx.needs_input_grad[1]:
            # Transposed, because oneDNN is slow the other way round with few columns and very many summands.
            grads[1] = product(rows.t(), grad.t(), None).t()
        if ctx.needs_input_grad[2]:
            grads[2] = grad.sum(0)
        return tuple(grads)

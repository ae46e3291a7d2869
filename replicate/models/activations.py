"""Memory that autograd keeps for the backward pass.

The saved tensors depend on the model alone. So the number is the same on every machine, and it grows in exact
proportion to the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor


def activation_bytes(forward: Callable[[], object], parameters: Iterable[Tensor] = ()) -> int:
    """Bytes that autograd saves while `forward()` runs: every storage once, without those of `parameters`.

    Views count as their storage. Low-precision copies of weights, which autocast saves, count too.
    """
    owned = {_key(parameter) for parameter in parameters}
    saved: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if _key(tensor) not in owned:
            saved.setdefault(_key(tensor), tensor)  # held, so that no later storage takes its identity
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = forward()
    total = sum(tensor.untyped_storage().nbytes() for tensor in saved.values())
    del output
    return total


def _key(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata

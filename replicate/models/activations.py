"""What autograd keeps for the backward pass.

The count of saved tensors depends on the model alone, not on the device, its allocator or what else runs: it is the same number
on every machine, and it grows exactly in proportion to the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor


def activation_bytes(forward: Callable[[], object], parameters: Iterable[Tensor] = ()) -> int:
    """Bytes that autograd saves while `forward()` runs: every storage once, those of `parameters` left out.

    Views count as the storage they look into. Under autocast the low-precision copies of weights are saved too, and
    count.
    """
    owned = {_key(parameter) for parameter in parameters}
    saved: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if _key(tensor) not in owned:
            saved.setdefault(_key(tensor), tensor)  # held, so that no later storage can take its identity
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = forward()
    total = sum(tensor.untyped_storage().nbytes() for tensor in saved.values())
    del output
    return total


def _key(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata

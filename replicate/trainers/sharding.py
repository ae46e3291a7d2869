"""Fully sharded training (FSDP2), for models that one device cannot hold.

Each process holds a shard of parameters, gradients and optimiser state. Blocks gather in each pass.
Checkpoints are written whole, so that a run continues on any number of devices.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from replicate.errors import UserError

if TYPE_CHECKING:
    from replicate.trainers.session import Session


def shard(model: nn.Module, session: Session) -> nn.Module:
    """Shard a model in place where `session.shard` says so. Call it before making the optimiser."""
    if not session.shard:
        return model
    from torch.distributed.fsdp import fully_shard

    for block in [module for module in model.modules() if hasattr(module, "attn") and hasattr(module, "mlp")]:
        fully_shard(block)
    return fully_shard(model)


def is_sharded(model: nn.Module) -> bool:
    """Whether any parameter of a module is sharded."""
    return any(hasattr(parameter, "full_tensor") for parameter in model.parameters())


@contextlib.contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """Inside, every process holds the whole model: processes may score different numbers of batches."""
    if not is_sharded(model):
        yield
        return
    from torch.distributed.fsdp import FSDPModule

    parts = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.reshard()
            part.set_reshard_after_forward(True, recurse=False)


def refuse_unsharded(run: Any, session: Session) -> None:
    """Raise UserError for what cannot train sharded."""
    wrong = {
        "stages of several image sizes": any(stage.image_size for stage in run.stages),
        "an online probe": getattr(run, "online_probe", False),
        "a moving average of its weights": getattr(run, "ema", None),
    }
    for what, present in wrong.items():
        if session.shard and present:
            raise UserError(f"machine.shard: a run with {what} cannot be sharded; set machine.shard to false")


def whole(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict with every shard gathered; all processes must call it."""
    return {name: t.full_tensor() if hasattr(t, "full_tensor") else t for name, t in tensors.items()}


def whole_state(parts: dict[str, Any]) -> dict[str, Any]:
    """What a checkpoint holds, gathered on the CPU; all processes must call it."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    state = {key: part.state_dict() for key, part in parts.items() if key not in ("task", "optimizer")}
    state["task"] = {name: tensor.cpu() for name, tensor in whole(parts["task"].state_dict()).items()}
    state["optimizer"] = get_optimizer_state_dict(parts["task"], parts["optimizer"], options=options)
    return state


def load_sharded(parts: dict[str, Any], state: dict[str, Any]) -> None:
    """The reverse of `whole_state`: every process takes its own shards of a whole checkpoint."""
    from torch.distributed.checkpoint.state_dict import (
        StateDictOptions,
        set_model_state_dict,
        set_optimizer_state_dict,
    )

    options = StateDictOptions(full_state_dict=True)
    set_model_state_dict(parts["task"], state["task"], options=options)
    set_optimizer_state_dict(parts["task"], parts["optimizer"], state["optimizer"], options=options)
    for key, part in parts.items():
        if key not in ("task", "optimizer"):
            part.load_state_dict(state[key])

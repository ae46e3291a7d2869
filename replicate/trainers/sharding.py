"""Fully sharded training (FSDP2): parameters, gradients and optimiser state shared out over the processes, for models that one device cannot hold.

Shards gather block by block in the forward and backward pass. Checkpoints are written whole, so that a run continues on any number of devices.
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
    """Share out a model in place, Transformer blocks one by one; call it before the optimiser is made. Without `session.shard` nothing changes."""
    if not session.shard:
        return model
    from torch.distributed.fsdp import fully_shard

    for block in [module for module in model.modules() if hasattr(module, "attn") and hasattr(module, "mlp")]:
        fully_shard(block)
    return fully_shard(model)


def is_sharded(model: nn.Module) -> bool:
    """Whether any of a module's parameters is shared out."""
    return any(hasattr(parameter, "full_tensor") for parameter in model.parameters())


@contextlib.contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """Inside, every process holds the whole model, so that processes may score different numbers of batches."""
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
    """Raise UserError for what cannot be trained sharded: image sizes that change, an online probe, an average of the weights."""
    if not session.shard:
        return
    if any(stage.image_size for stage in run.stages):
        raise UserError("machine.shard: a run whose image size changes from stage to stage cannot be sharded; set machine.shard to false")
    if getattr(run, "online_probe", False):
        raise UserError("machine.shard: the online probe reads an encoder that is whole; set machine.shard, or the run's online_probe, to false")
    if getattr(run, "ema", None):
        raise UserError("machine.shard: a run with an EMA of its weights cannot be sharded; set machine.shard to false")


def whole(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict with every shard gathered; all processes must call it."""
    return {name: tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor for name, tensor in tensors.items()}


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

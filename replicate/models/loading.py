"""Load a pre-trained encoder into a classifier, all of it or not at all."""

from __future__ import annotations

from collections.abc import Container
from typing import Any

from torch import Tensor, nn

from replicate.errors import UserError
from replicate.patches import pair

State = dict[str, Tensor]

PREFIXES = ("_orig_mod.", "module.", "model.", "model_ema.", "encoder.", "backbone.")
"""What torch.compile, data parallelism, trainers and other code bases put before an encoder's names."""
OWN = ("head.", "fc_norm.")
"""Prefixes of a classifier's own parts, beside the layers that timm names as the classifier."""


def without_prefixes(state: State, wanted: Container[str]) -> State:
    """Strip `PREFIXES` in any order and number until one of the names `wanted` appears.

    Drops what lies beside a prefix (a decoder beside "encoder."). Without a known prefix the rest stays as it
    is.
    """
    while not any(name in wanted for name in state):
        prefix = next((p for p in PREFIXES if any(name.startswith(p) for name in state)), None)
        if prefix is None:
            return state
        inner = {name: tensor for name, tensor in state.items() if name.startswith(prefix)}
        state = {name.removeprefix(prefix): tensor for name, tensor in inner.items()}
    return state


def load_encoder(
    classifier: nn.Module,
    state_dict: State,
    path: str = "the checkpoint",
    *,
    drop_blocks: Any = 0,
    trained_at: int | tuple[int, int] | None = None,
    antialias: bool = True,
) -> list[str]:
    """Load a pre-trained encoder into a classifier or probe; returns the parameters that stay new.

    Leaves out decoder, mask token and heads, and a last norm for which the classifier has no place (it
    normalises after pooling). Resamples position tables of another resolution.

    path         names the checkpoint in messages
    drop_blocks  blocks that pre-training left out (FastMIM Table 1c), if any
    trained_at   image size of the checkpoint, in pixels; None: the classifier's own, or square images
    antialias    filter while resampling, as timm and DailyMAE do; MAE and FastMIM do not

    Raises UserError, naming `path` and the difference, when the checkpoint is another model's.
    """
    if hasattr(getattr(classifier, "encoder", None), "fit_state"):
        classifier = classifier.encoder  # of a probe on a hierarchy
    wanted, own = classifier.state_dict(), _own(classifier)
    state = encoder_state(state_dict, wanted, own)
    dropped = _dropped_blocks(state, wanted) if drop_blocks else []
    state |= {name: wanted[name] for name in dropped}
    try:
        state = classifier.fit_state(state, None if trained_at is None else pair(trained_at), antialias)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    _refuse_misfit(state, {name: tensor for name, tensor in wanted.items() if not name.startswith(own)}, path)
    classifier.load_state_dict(state, strict=False)
    return dropped


def encoder_state(state_dict: State, wanted: State, own: tuple[str, ...] = OWN) -> State:
    """The encoder's tensors of a checkpoint, under the classifier's names; unknown tensors stay in.

    own: prefixes of parts that the classifier keeps, whether the checkpoint has them or not.
    """
    state = without_prefixes(state_dict, {name for name in wanted if not name.startswith(own)})
    without = ("decoder", "mask_token", *own, *(() if "norm.weight" in wanted else ("norm.",)))
    return {name: tensor for name, tensor in state.items() if not name.startswith(without)}


def _own(classifier: nn.Module) -> tuple[str, ...]:
    """timm's models call their last layer "head", "fc", "head_dist.linear" or otherwise; some have two."""
    layers = getattr(classifier, "default_cfg", {}).get("classifier") or ()
    return *OWN, *(layer.split(".")[0] + "." for layer in ([layers] if isinstance(layers, str) else layers))


def _block_of(name: str) -> tuple[str, int] | None:
    """("layers.3.blocks", 1) for a parameter of block 1 of that list."""
    parts = name.split(".")
    if "blocks" not in parts:
        return None
    # The block's number follows "blocks", or "blocks.<stage>".
    at = parts.index("blocks") + 1
    at += at + 1 < len(parts) and parts[at + 1].isdigit()
    return (".".join(parts[:at]), int(parts[at])) if at < len(parts) and parts[at].isdigit() else None


def _dropped_blocks(state: State, wanted: State) -> list[str]:
    """Parameters of the classifier's blocks behind the last one that the checkpoint has of their stage."""
    last: dict[str, int] = {}
    for name in state:
        if block := _block_of(name):
            last[block[0]] = max(block[1], last.get(block[0], -1))
    blocks = {name: _block_of(name) for name in wanted} if last else {}
    return [name for name, block in blocks.items() if block and block[1] > last.get(block[0], -1)]


def _refuse_misfit(state: State, expected: State, path: str) -> None:
    here, there = describe_vit(expected), describe_vit(state)
    if here and there and here != there:
        raise UserError(f"{path} does not fit the model: it holds {there}, the model is {here}")
    missing = [name for name in expected if name not in state]
    foreign = [name for name in state if name not in expected]
    for name, tensor in expected.items():
        if name in state and state[name].shape != tensor.shape:
            shapes = f"{tuple(state[name].shape)} where the model has {tuple(tensor.shape)}"
            raise UserError(f"{path} does not fit the model: {name} is {shapes}")
    for names, fault in ((missing, "is missing"), (foreign, "is unknown to the model")):
        if names:
            more = f", with {len(names) - 1} more" if len(names) > 1 else ""
            raise UserError(f"{path} does not fit the model: {names[0]} {fault}{more}")


def describe_vit(state: State) -> str | None:
    """Such as "a ViT of width 768, 12 blocks, patch 16"; None for another model's state dict."""
    projection = state.get("patch_embed.proj.weight")
    blocks = {block[1] for name in state if (block := _block_of(name)) and block[0] == "blocks"}
    if projection is None or projection.ndim != 4 or not blocks or "pos_embed" not in state:
        return None
    return f"a ViT of width {projection.shape[0]}, {len(blocks)} blocks, patch {projection.shape[-1]}"

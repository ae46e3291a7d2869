"""transformers' ViTMAE: an independent implementation to test against, to be timed against, and to take published weights from."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from replicate.models.mae import MAE

_LEAVES_5 = {
    "attn.proj": "attention.o_proj",
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
    "qkv": "attention.{}_proj",
    "parts": "qkv",
    "encoder": "vit.layers.",
}
_LEAVES_4 = {
    "attn.proj": "attention.output.dense",
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
    "qkv": "attention.attention.{}",
    "parts": ("query", "key", "value"),
    "encoder": "vit.encoder.layer.",
}
_STEMS = {
    "cls_token": "vit.embeddings.cls_token",
    "pos_embed": "vit.embeddings.position_embeddings",
    "patch_embed.proj": "vit.embeddings.patch_embeddings.projection",
    "norm": "vit.layernorm",
    "mask_token": "decoder.mask_token",
}


def to_transformers(model: MAE, norm_pix_loss: bool = True) -> nn.Module:
    """transformers' ViTMAEForPreTraining of the same sizes with the weights of `model`, in evaluation mode.

    Needs the package transformers. A freshly built ViTMAE of version 5 has all-zero position embeddings and tokens, so
    every tensor is copied, and a key that either side lacks raises RuntimeError.
    """
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    config = ViTMAEConfig(
        hidden_size=model.embed_dim,
        num_hidden_layers=len(model.blocks),
        num_attention_heads=model.blocks[0].attn.num_heads,
        intermediate_size=model.blocks[0].mlp.fc1.out_features,
        image_size=model.image_size[0],
        patch_size=model.patch_size,
        decoder_hidden_size=model.decoder_embed_dim,
        decoder_num_hidden_layers=len(model.decoder_blocks),
        decoder_num_attention_heads=model.decoder_blocks[0].attn.num_heads,
        decoder_intermediate_size=model.decoder_blocks[0].mlp.fc1.out_features,
        mask_ratio=model.mask_ratio,
        norm_pix_loss=norm_pix_loss,
        layer_norm_eps=1e-6,
    )
    theirs = ViTMAEForPreTraining(config).eval()
    leaves = _LEAVES_5 if any(name.startswith("vit.layers.") for name in theirs.state_dict()) else _LEAVES_4
    theirs.load_state_dict(_renamed(model.state_dict(), leaves), strict=True)
    return theirs


def is_transformers(state: dict[str, Tensor]) -> bool:
    """True for a state dict with the keys of transformers' ViTMAE (version 4 or 5), with its decoder or without."""
    return "vit.embeddings.cls_token" in state or "embeddings.cls_token" in state


def from_transformers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of transformers' ViTMAE under the reference's names; keys that have no counterpart keep theirs."""
    state = {name if name.startswith(("vit.", "decoder.")) else f"vit.{name}": tensor for name, tensor in state.items()}
    leaves = _LEAVES_5 if any(name.startswith("vit.layers.") for name in state) else _LEAVES_4
    stacks = {leaves["encoder"]: "blocks.", "decoder.decoder_layers.": "decoder_blocks."}
    renamed: dict[str, Tensor] = {}
    for theirs, ours in stacks.items():
        for index in sorted({int(name[len(theirs) :].split(".")[0]) for name in state if name.startswith(theirs)}):
            renamed |= {f"{ours}{index}.{leaf}": tensor for leaf, tensor in _taken_block(state, f"{theirs}{index}.", leaves)}
    stems = {theirs: ours for ours, theirs in _STEMS.items()}
    for name, tensor in state.items():
        if name.startswith(tuple(stacks)):
            continue
        stem, _, kind = name.rpartition(".")
        stem, kind = (stem, "." + kind) if kind in ("weight", "bias") else (name, "")
        renamed[stems.get(stem, stem.removeprefix("decoder.")) + kind] = tensor
    return renamed


def _taken_block(state: dict[str, Tensor], block: str, leaves: dict) -> list[tuple[str, Tensor]]:
    taken = []
    for kind in ("weight", "bias"):
        parts = [state.get(f"{block}{leaves['qkv'].format(part)}.{kind}") for part in leaves["parts"]]
        if all(part is not None for part in parts):
            taken.append((f"attn.qkv.{kind}", torch.cat(parts)))
        names = ((leaf, f"{block}{leaves[leaf]}.{kind}") for leaf in ("norm1", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2"))
        taken += [(f"{leaf}.{kind}", state[name]) for leaf, name in names if name in state]
    return taken


def _renamed(state: dict[str, Tensor], leaves: dict) -> dict[str, Tensor]:
    renamed = {}
    for name, tensor in state.items():
        stack, is_block, rest = name.partition("blocks.")
        if is_block:
            index, _, leaf = rest.partition(".")
            block = f"{'decoder.decoder_layers.' if stack else leaves['encoder']}{index}."
            renamed.update({block + key: value for key, value in _block_leaf(leaf, tensor, leaves)})
            continue
        stem, _, kind = name.rpartition(".")
        stem, kind = (stem, "." + kind) if kind in ("weight", "bias") else (name, "")
        renamed[_STEMS.get(stem, "decoder." + stem) + kind] = tensor
    return renamed


def _block_leaf(leaf: str, tensor: Tensor, leaves: dict) -> list[tuple[str, Tensor]]:
    stem, _, kind = leaf.rpartition(".")
    if stem == "attn.qkv":
        return [(f"{leaves['qkv'].format(part)}.{kind}", piece) for part, piece in zip(leaves["parts"], tensor.chunk(3), strict=True)]
    return [(f"{leaves[stem]}.{kind}", tensor)]

"""transformers' ViTMAE: weights to read and write, and an independent implementation to test against.

Three layouts of names exist: `state_dict()` of version 5, `save_pretrained` of version 5, and version 4,
which published files use. All versions read the last, so it is the one written here.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from replicate.files import atomic_write

if TYPE_CHECKING:
    from replicate.models.mae import MAE

State = dict[str, Tensor]

_ANCHORS = ("vit.embeddings.cls_token", "embeddings.cls_token")
_READ = (
    (r"^(?:vit\.)?embeddings\.cls_token$", "cls_token"),
    (r"^(?:vit\.)?embeddings\.position_embeddings$", "pos_embed"),
    (r"^(?:vit\.)?embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^(?:vit\.)?layernorm\.", "norm."),
    (r"^(?:vit\.)?(?:encoder\.layer|layers)\.(\d+)\.", r"blocks.\1."),
    (r"^decoder\.(?:decoder_encoder\.layer|decoder_layers)\.(\d+)\.", r"decoder_blocks.\1."),
    (r"^decoder\.", ""),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.attention\.(?:attention\.query|q_proj)\.", ".attn.q."),
    (r"\.attention\.(?:attention\.key|k_proj)\.", ".attn.k."),
    (r"\.attention\.(?:attention\.value|v_proj)\.", ".attn.v."),
    (r"\.attention\.(?:output\.dense|o_proj)\.", ".attn.proj."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"blocks\.(\d+)\.output\.dense\.", r"blocks.\1.mlp.fc2."),
)
"""Patterns of all layouts, applied in order; `from_transformers` then joins query, key and value."""
_WRITTEN = (
    (r"^(cls_token)$", r"vit.embeddings.\1"),
    (r"^pos_embed$", "vit.embeddings.position_embeddings"),
    (r"^patch_embed\.proj\.", "vit.embeddings.patch_embeddings.projection."),
    (r"^norm\.", "vit.layernorm."),
    (r"^blocks\.", "vit.encoder.layer."),
    (r"^decoder_blocks\.", "decoder.decoder_layers."),
    (r"^(decoder_\w+|mask_token)", r"decoder.\1"),
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
    (r"\.attn\.q\.", ".attention.attention.query."),
    (r"\.attn\.k\.", ".attention.attention.key."),
    (r"\.attn\.v\.", ".attention.attention.value."),
    (r"\.attn\.proj\.", ".attention.output.dense."),
    (r"\.mlp\.fc1\.", ".intermediate.dense."),
    (r"\.mlp\.fc2\.", ".output.dense."),
)


def is_transformers(state: State) -> bool:
    """True for the names of transformers' ViTMAE in any layout, with its decoder or without."""
    return any(name in state for name in _ANCHORS)


def from_transformers(state: State) -> State:
    """A state dict of transformers' ViTMAE under the reference's names; unknown names stay as they are."""
    renamed = {_renamed(name, _READ): tensor for name, tensor in state.items()}
    for name in [name for name in renamed if ".attn.q." in name]:
        parts = [name.replace(".attn.q.", f".attn.{part}.") for part in "qkv"]
        if all(part in renamed for part in parts):
            renamed[name.replace(".attn.q.", ".attn.qkv.")] = torch.cat([renamed.pop(part) for part in parts])
    return renamed


def to_transformers_state(state: State) -> State:
    """A state dict under the reference's names in the layout of published files."""
    return {_renamed(name, _WRITTEN): tensor for name, tensor in _split_qkv(state).items()}


def _split_qkv(state: State) -> State:
    split = {}
    for name, tensor in state.items():
        joined = ".attn.qkv." in name
        names = [name.replace(".attn.qkv.", f".attn.{part}.") for part in "qkv"] if joined else [name]
        split |= dict(zip(names, tensor.chunk(len(names)) if joined else [tensor], strict=True))
    return split


def _renamed(name: str, rules: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def config_of(model: MAE, norm_pix_loss: bool = True) -> dict[str, Any]:
    """Keyword arguments of transformers' ViTMAEConfig for a model of these sizes and square images."""
    return {
        "hidden_size": model.embed_dim,
        "num_hidden_layers": len(model.blocks),
        "num_attention_heads": model.blocks[0].attn.num_heads,
        "intermediate_size": model.blocks[0].mlp.fc1.out_features,
        "image_size": model.image_size[0],
        "patch_size": model.patch_size,
        "decoder_hidden_size": model.decoder_embed_dim,
        "decoder_num_hidden_layers": len(model.decoder_blocks),
        "decoder_num_attention_heads": model.decoder_blocks[0].attn.num_heads,
        "decoder_intermediate_size": model.decoder_blocks[0].mlp.fc1.out_features,
        "mask_ratio": model.mask_ratio,
        "norm_pix_loss": norm_pix_loss,
        "layer_norm_eps": 1e-6,
    }


def to_transformers(model: MAE, norm_pix_loss: bool = True) -> nn.Module:
    """transformers' ViTMAEForPreTraining of the same sizes with the weights of `model`, in evaluation mode.

    Needs the package transformers. Copies every tensor, because a freshly built ViTMAE of version 5 has
    all-zero position embeddings and tokens.
    """
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    theirs = ViTMAEForPreTraining(ViTMAEConfig(**config_of(model, norm_pix_loss))).eval()
    ours = _split_qkv(model.state_dict())
    theirs.load_state_dict({name: ours[_renamed(name, _READ)] for name in theirs.state_dict()}, strict=True)
    return theirs


def save_pretrained(model: MAE, folder: str | Path) -> None:
    """Write weights and configuration to a folder, as `ViTMAEForPreTraining.from_pretrained` reads them."""
    from safetensors.torch import save_file

    config = config_of(model) | {"architectures": ["ViTMAEForPreTraining"], "model_type": "vit_mae"}
    state = {name: tensor.contiguous() for name, tensor in to_transformers_state(model.state_dict()).items()}
    folder = Path(folder)
    atomic_write(folder / "model.safetensors", lambda part: save_file(state, part, {"format": "pt"}))
    atomic_write(folder / "config.json", lambda part: part.write_text(json.dumps(config, indent=2) + "\n"))

"""The same model in transformers' ViTMAE: an independent implementation to test against and to be timed against."""

from __future__ import annotations

from torch import Tensor, nn

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

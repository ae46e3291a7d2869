"""Classifiers on top of a pre-trained encoder: fine-tuning, linear probing and partial fine-tuning (MAE, sections 4.1,
4.3, appendix A.1).
"""

from __future__ import annotations

import importlib
import math
from functools import partial

from torch import Tensor, nn

import replicate.compat  # noqa: F401
from replicate.config.backbones import Backbone
from replicate.errors import UserError
from replicate.models.cpu import tune_for_cpu
from replicate.models.pos_embed import resample_pos_embed
from replicate.patches import grid_of

from timm.models.vision_transformer import VisionTransformer  # isort: skip  (after replicate.compat)

HEAD = ("head.", "fc_norm.")
"""Prefixes of what a classifier owns and no encoder brings."""
_WRAPPERS = ("module.", "encoder.", "backbone.")


class Classifier(VisionTransformer):
    """timm's Vision Transformer, so that timm's tools (layer-wise decay, feature extraction) apply, initialised and
    pooled as MAE does.

    Images may have any size that the patch divides: the learned position embeddings are resampled on the fly, so that a
    resolution stage leaves the parameters, and the optimizer's state for them, in place.
    """


def build_classifier(
    backbone: Backbone,
    num_classes: int,
    *,
    drop_path: float = 0.0,
    image_size: int | tuple[int, int] = 224,
    pool: str = "avg",
) -> nn.Module:
    """A classifier on `backbone` with an untrained encoder: what fine-tuning starts from, and what "from scratch"
    trains.

    pool "avg" averages the patch tokens and normalises after the pooling (`fc_norm`); "token" takes the class token
    after the last norm. The head starts at trunc-normal 2e-5, as the reference has it. Backbones other than plain
    Vision Transformers come from `replicate.models.backbones`.
    """
    if not backbone.is_vit:
        registry = importlib.import_module("replicate.models.backbones")
        return registry.build_classifier(backbone, num_classes, drop_path=drop_path, image_size=image_size)
    kwargs = backbone.kwargs
    grid_of(image_size, kwargs["patch_size"])
    if pool not in ("avg", "token"):
        raise UserError(f"pool {pool!r} is unknown: choose avg or token")
    model = Classifier(
        img_size=image_size,
        num_classes=num_classes,
        global_pool=pool,
        qkv_bias=True,
        drop_path_rate=drop_path,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        dynamic_img_size=True,
        **kwargs,
    )
    _initialize(model)
    return tune_for_cpu(model)


def _initialize(model: Classifier) -> None:
    for module in model.blocks.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    nn.init.xavier_uniform_(model.patch_embed.proj.weight.data.flatten(1))
    nn.init.zeros_(model.patch_embed.proj.bias)
    if isinstance(model.head, nn.Linear):
        nn.init.trunc_normal_(model.head.weight, std=2e-5)
        nn.init.zeros_(model.head.bias)


def build_probe(backbone: Backbone, num_classes: int, *, image_size: int | tuple[int, int] = 224, pool: str = "token") -> nn.Module:
    """A linear probe: frozen encoder, then BatchNorm without affine parameters, then one linear layer with std .01
    (appendix A.1, Table 9).

    Only the linear layer has trainable parameters. The class token after the encoder's last norm is the feature; pool
    "avg" takes the mean instead.
    """
    model = build_classifier(backbone, num_classes, image_size=image_size, pool=pool)
    model.head = probe_head(model.num_features, num_classes)
    for name, parameter in model.named_parameters():
        parameter.requires_grad = name.startswith("head.")
    return model


def probe_head(width: int, num_classes: int) -> nn.Sequential:
    """BatchNorm1d(affine=False, eps=1e-6) -> Linear with N(0, .01) weights and zero bias."""
    linear = nn.Linear(width, num_classes)
    nn.init.trunc_normal_(linear.weight, std=0.01)
    nn.init.zeros_(linear.bias)
    return nn.Sequential(nn.BatchNorm1d(width, affine=False, eps=1e-6), linear)


def init_head(classifier: nn.Module, std: float) -> None:
    """Draw the head's weights anew from a normal distribution of this spread, cut at two units; the bias is zero.

    The reference's 2e-5 hides the encoder from the loss until the head has grown: nothing to a hundred epochs, but much to
    a few.
    """
    heads = classifier.get_classifier()
    for head in heads if isinstance(heads, tuple) else (heads,):  # DeiT's distilled models have two
        nn.init.trunc_normal_(head.weight, std=std)
        nn.init.zeros_(head.bias)


def freeze_for_partial(classifier: nn.Module, blocks: float) -> list[str]:
    """Leave only the last `blocks` Transformer blocks trainable (partial fine-tuning, section 4.3); returns the names
    that train.

    0      the head alone (fc_norm stays the fixed normalisation that it starts as)
    0.5    the MLP sub-block of the last block (its norm2 and mlp), fc_norm and the head
    k      the last k blocks, fc_norm and the head
    depth  everything: also patch projection, class token and position embeddings

    Raises UserError for any other number.
    """
    depth = len(classifier.blocks)
    if blocks != 0.5 and (blocks != int(blocks) or not 0 <= blocks <= depth):
        raise UserError(f"blocks {blocks} cannot be tuned: choose 0, 0.5 or a whole number up to the model's depth, {depth}")
    prefixes = ["head."]
    if blocks > 0:
        prefixes += ["fc_norm.", "norm."]
    if blocks == 0.5:
        prefixes += [f"blocks.{depth - 1}.norm2.", f"blocks.{depth - 1}.mlp."]
    else:
        prefixes += [f"blocks.{index}." for index in range(depth - int(blocks), depth)]
    trainable = []
    for name, parameter in classifier.named_parameters():
        parameter.requires_grad = blocks == depth or name.startswith(tuple(prefixes))
        if parameter.requires_grad:
            trainable.append(name)
    return trainable


def load_encoder(
    classifier: nn.Module,
    state_dict: dict[str, Tensor],
    source: str = "the checkpoint",
    grid: tuple[int, int] | None = None,
) -> None:
    """Load a pre-trained encoder into a classifier, all of it: only the head and fc_norm keep their own values.

    Decoder and mask token are left out, and so is the encoder's last norm where the classifier pools before its norm
    (`fc_norm`). Position embeddings of another grid are resampled; `grid` is (rows, columns) of the checkpoint's, taken
    as square when not given.

    Raises UserError naming `source` and what differs when the checkpoint is another model's.
    """
    wanted = classifier.state_dict()
    encoder = _encoder_part(state_dict, wanted)
    if "pos_embed" in encoder and "pos_embed" in wanted:
        encoder["pos_embed"] = _fit_pos_embed(encoder["pos_embed"], classifier, source, grid)
    _refuse_misfit(encoder, wanted, source)
    classifier.load_state_dict(encoder, strict=False)


def _encoder_part(state_dict: dict[str, Tensor], wanted: dict[str, Tensor]) -> dict[str, Tensor]:
    state = dict(state_dict)
    for prefix in _WRAPPERS:
        inner = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
        state = inner or state
    state = {name: tensor for name, tensor in state.items() if not name.startswith(("decoder", "mask_token", *HEAD))}
    if "fc_norm.weight" in wanted:
        state = {name: tensor for name, tensor in state.items() if not name.startswith("norm.")}
    return state


def _fit_pos_embed(table: Tensor, classifier: nn.Module, source: str, grid: tuple[int, int] | None) -> Tensor:
    new_grid = tuple(classifier.patch_embed.grid_size)
    prefix = classifier.pos_embed.shape[1] - new_grid[0] * new_grid[1]
    count = table.shape[1] - prefix
    old_grid = grid or (new_grid if count == new_grid[0] * new_grid[1] else (math.isqrt(count), math.isqrt(count)))
    if old_grid[0] * old_grid[1] != count:
        raise UserError(f"{source} has {count} patch positions, which are no square grid: say which (rows, columns) they are")
    return resample_pos_embed(table, old_grid, new_grid)


def _refuse_misfit(encoder: dict[str, Tensor], wanted: dict[str, Tensor], source: str) -> None:
    expected = {name: tensor for name, tensor in wanted.items() if not name.startswith(HEAD)}
    shapes = [name for name in expected if name in encoder and expected[name].shape != encoder[name].shape]
    missing = [name for name in expected if name not in encoder]
    foreign = [name for name in encoder if name not in expected]
    if not (shapes or missing or foreign):
        return
    here, there = describe_vit(expected), describe_vit(encoder)
    if here and there and here != there:
        raise UserError(f"{source} does not fit the model: it holds {there}, the model is {here}")
    if shapes:
        detail = f"{shapes[0]} is {tuple(encoder[shapes[0]].shape)} where the model has {tuple(expected[shapes[0]].shape)}"
    elif missing:
        detail = f"{missing[0]} is missing" + (f", with {len(missing) - 1} more" if len(missing) > 1 else "")
    else:
        detail = f"{foreign[0]} is unknown to the model" + (f", with {len(foreign) - 1} more" if len(foreign) > 1 else "")
    raise UserError(f"{source} does not fit the model: {detail}")


def describe_vit(state_dict: dict[str, Tensor]) -> str | None:
    """ "a ViT of width 768, 12 blocks, patch 16" read from a state dict, or None when it is no Vision Transformer's."""
    projection = state_dict.get("patch_embed.proj.weight")
    blocks = {name.split(".")[1] for name in state_dict if name.startswith("blocks.") and name.split(".")[1].isdigit()}
    if projection is None or projection.ndim != 4 or not blocks or "pos_embed" not in state_dict:
        return None
    return f"a ViT of width {projection.shape[0]}, {len(blocks)} blocks, patch {projection.shape[-1]}"

"""Backbones of FastMIM: any timm model with a feature map, PVTv1 and CMT, for pre-training (`build_encoder`) and for fine-tuning.

ViT: `vit_base_patch16` and kin, or `vit` with its numbers. Hierarchies: the names of `names.HIERARCHIES`. Anything else is taken
as a timm model's name. A process loads the file of the one family that it uses.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from replicate.config.backbones import Backbone, is_plain_vit, stride_of, vit_backbone
from replicate.config.hierarchies import hierarchy, is_hierarchy
from replicate.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from replicate.models.backbones.features import Encoder

_WRAPPERS = ("module.", "model.", "encoder.", "backbone.")
_OWN = ("head.", "fc_norm.")
"""Prefixes of what a classifier owns and no encoder brings, beside the layer that timm says is the classifier (`_own`)."""


def build_encoder(name: str, image_size: int | tuple[int, int], in_chans: int = 3, drop_blocks: int | Sequence[int] = 0, **kwargs: Any) -> Encoder:
    """The backbone called `name` without a head: forward (N, in_chans, H, W) -> (N, num_features, H / stride, W / stride).

    kwargs are the backbone's numbers (`vit_backbone`, `names.hierarchy`) or timm's arguments. `drop_blocks` leaves out the last
    blocks (Table 1c). Raises UserError for an unknown backbone or numbers and sizes that do not fit.
    """
    from replicate.models.backbones.features import Encoder

    size = _size(name, image_size, kwargs)
    if is_plain_vit(name, kwargs):
        model = importlib.import_module(f"{__name__}.vit").ViT(size, in_chans=in_chans, **vit_backbone(name, **kwargs).kwargs)
    else:
        model = _build(name, size, in_chans, 0, 0.0, kwargs)
    return Encoder(model, size, drop_blocks)


def build_classifier(
    name: str | Backbone,
    num_classes: int,
    image_size: int | tuple[int, int] = 224,
    drop_path: float = 0.0,
    **kwargs: Any,
) -> nn.Module:
    """The fine-tuning model: (N, 3, H, W) -> (N, num_classes). Vision Transformers come from `replicate.models.classifier`.

    `set_input_size(img_size)` of the result takes another resolution. Raises UserError as `build_encoder` does.
    """
    if isinstance(name, Backbone):
        name, kwargs = name.name, {**name.kwargs, **kwargs}
    size = _size(name, image_size, kwargs)
    if is_plain_vit(name, kwargs):
        module = importlib.import_module("replicate.models.classifier")
        return module.build_classifier(vit_backbone(name, **kwargs), num_classes, drop_path=drop_path, image_size=size)
    return _build(name, size, 3, num_classes, drop_path, kwargs)


def build_probe(name: str, num_classes: int, image_size: int | tuple[int, int] = 224, pool: str = "token", **kwargs: Any) -> nn.Module:
    """A linear probe (MAE, appendix A.1) on a frozen backbone: of a hierarchy, which has no class token, on its mean feature."""
    if is_plain_vit(name, kwargs):
        module = importlib.import_module("replicate.models.classifier")
        return module.build_probe(vit_backbone(name, **kwargs), num_classes, image_size=image_size, pool=pool)
    return importlib.import_module(f"{__name__}.probe").Probe(build_encoder(name, image_size, **kwargs), num_classes)


def tokens(classifier: nn.Module, images: Tensor) -> Tensor:
    """A classifier's last tokens (N, T, C) in raster order after its last norm, without class token."""
    if hasattr(classifier, "feature_map"):
        return classifier.feature_map(images).flatten(2).transpose(1, 2)
    return classifier.fc_norm(classifier.forward_features(images)[:, classifier.num_prefix_tokens :])


def _size(name: str, image_size: int | tuple[int, int], kwargs: dict[str, Any]) -> tuple[int, int]:
    size = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    stride = stride_of(name, kwargs)
    if stride and any(side < stride or side % stride for side in size):
        raise UserError(f"backbone {name!r}: image_size {size[0]}x{size[1]} is not a multiple of its stride, {stride} pixels")
    return size


def _build(name: str, size: tuple[int, int], in_chans: int, num_classes: int, drop_path: float, kwargs: dict[str, Any]) -> nn.Module:
    if not is_hierarchy(name):
        family = importlib.import_module(f"{__name__}.pyramid")
        return family.build_any(name, size, in_chans, num_classes, drop_path, **kwargs)
    numbers = hierarchy(name, **kwargs)
    family = importlib.import_module(f"{__name__}.{numbers.family}")
    return family.build(numbers, name, size, in_chans, num_classes, drop_path)


def load_encoder(
    classifier: nn.Module, state_dict: dict[str, Tensor], source: str = "the checkpoint", grid: tuple[int, int] | None = None
) -> list[str]:
    """Load a pre-trained encoder into a classifier; returns the names of encoder parameters that kept their own values.

    Those can only be blocks that pre-training had dropped from the end of a stage (Table 1c). Decoder, mask token and heads are
    left out; position embeddings and relative position tables of another (square) resolution are resampled to the classifier's.
    Raises UserError naming `source` and what differs when the checkpoint is another model's.
    """
    wanted, own = classifier.state_dict(), _own(classifier)
    state = encoder_state(state_dict, wanted, own)
    dropped = _dropped_blocks(state, wanted)
    state |= {name: wanted[name] for name in dropped}
    if not hasattr(classifier, "fit_state"):
        importlib.import_module("replicate.models.classifier").load_encoder(classifier, state, source, grid)
        return dropped
    state = classifier.fit_state(state)
    _refuse_misfit(state, wanted, source, own)
    classifier.load_state_dict(state, strict=False)
    return dropped


def _own(classifier: nn.Module) -> tuple[str, ...]:
    """Prefixes of what `classifier` owns: timm's models call their last layer "head", "fc" or "classifier", some have two."""
    layers = getattr(classifier, "default_cfg", {}).get("classifier") or ()
    return *_OWN, *(f"{layer}." for layer in ([layers] if isinstance(layers, str) else layers))


def encoder_state(state_dict: dict[str, Tensor], wanted: dict[str, Tensor], own: tuple[str, ...] = _OWN) -> dict[str, Tensor]:
    """The encoder's tensors of a checkpoint, under the classifier's names. What the classifier has no place for stays in.

    own: prefixes of what the classifier keeps of its own and the checkpoint may have too.
    """
    state = dict(state_dict)
    for prefix in _WRAPPERS:
        inner = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
        state = inner or state
    # A norm after the last block gives way to the classifier's own where the classifier normalises what it pooled.
    without = ("decoder", "mask_token", *own, *(() if "norm.weight" in wanted else ("norm.",)))
    return {name: tensor for name, tensor in state.items() if not name.startswith(without)}


def _block_of(name: str) -> tuple[str, int] | None:
    """("layers.3.blocks", 1) of a parameter that belongs to block 1 of that list."""
    parts = name.split(".")
    numbered = [index for index, part in enumerate(parts[:-1]) if part.isdigit()]
    if "blocks" not in parts or not numbered:
        return None
    # The block's number is the last one directly after "blocks", or after "blocks.<stage>".
    at = parts.index("blocks") + 1
    at += at + 1 < len(parts) and parts[at + 1].isdigit()
    return (".".join(parts[:at]), int(parts[at])) if parts[at].isdigit() else None


def _dropped_blocks(state: dict[str, Tensor], wanted: dict[str, Tensor]) -> list[str]:
    """Names of the classifier's blocks behind the last one that the checkpoint has of their stage."""
    last: dict[str, int] = {}
    for name in state:
        if block := _block_of(name):
            last[block[0]] = max(block[1], last.get(block[0], -1))
    if not last:
        return []
    return [name for name in wanted if (block := _block_of(name)) and block[1] > last.get(block[0], -1)]


def _refuse_misfit(state: dict[str, Tensor], wanted: dict[str, Tensor], source: str, own: tuple[str, ...]) -> None:
    expected = {name: tensor for name, tensor in wanted.items() if not name.startswith(own)}
    for name, tensor in state.items():
        if name not in expected:
            raise UserError(f"{source} does not fit the model: {name} is unknown to it")
        if tensor.shape != expected[name].shape:
            shapes = f"{tuple(tensor.shape)} where the model has {tuple(expected[name].shape)}"
            raise UserError(f"{source} does not fit the model: {name} is {shapes}")
    missing = [name for name in expected if name not in state]
    if missing:
        raise UserError(f"{source} does not fit the model: {missing[0]} is missing, with {len(missing) - 1} more")

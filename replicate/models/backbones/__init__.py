"""The registry of backbones: plain ViTs, the hierarchies of FastMIM Table 4, and any other timm model.

`vit_base_patch16` and the like, or `vit` with numbers: `replicate.models.vit`. Names of
`replicate.config.hierarchies.HIERARCHIES`: one file a family here. Any other name: timm's.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

from torch import nn

from replicate.config.backbones import is_plain_vit, stride_of, vit_backbone
from replicate.config.hierarchies import hierarchy, is_hierarchy
from replicate.errors import UserError
from replicate.models.features import Encoder, xavier_linear
from replicate.models.vit import ViT
from replicate.patches import pair


def build_encoder(
    name: str,
    image_size: int | tuple[int, int],
    in_chans: int = 3,
    drop_blocks: int | Sequence[int] = 0,
    **kwargs: Any,
) -> Encoder:
    """The backbone `name` without a head: (N, in_chans, H, W) -> (N, num_features, H / stride, W / stride).

    kwargs: the backbone's numbers (`vit_backbone`, `hierarchy`) or timm's arguments. `drop_blocks` leaves out
    the last blocks (FastMIM Table 1c). Linear layers of hierarchies are Xavier-uniform, as in FastMIM's code.
    Raises UserError for an unknown backbone, or numbers and sizes that do not fit.
    """
    model = build_backbone(name, image_size, in_chans=in_chans, **kwargs)
    if is_hierarchy(name):
        xavier_linear(model)
    return Encoder(model, image_size, drop_blocks)


def build_backbone(
    name: str,
    image_size: int | tuple[int, int],
    num_classes: int = 0,
    drop_path: float = 0.0,
    in_chans: int = 3,
    pool: str = "avg",
    **kwargs: Any,
) -> nn.Module:
    """The backbone `name` as an encoder (`num_classes` 0) or a classifier; `pool` as `ViT` takes it.

    Raises UserError as `build_encoder` does.
    """
    size, stride = pair(image_size), stride_of(name, kwargs)
    if stride and any(side < stride or side % stride for side in size):
        given = f"image_size {size[0]}x{size[1]} is not a multiple of its stride, {stride} pixels"
        raise UserError(f"backbone {name!r}: {given}")
    if is_plain_vit(name, kwargs):
        numbers = vit_backbone(name, **kwargs).kwargs
        return ViT(
            size, **numbers, num_classes=num_classes, drop_path=drop_path, pool=pool, in_chans=in_chans
        )
    if not is_hierarchy(name):
        return _family("pyramid").build_any(name, size, in_chans, num_classes, drop_path, **kwargs)
    numbers = hierarchy(name, **kwargs)
    return _family(numbers.family).build(numbers, name, size, in_chans, num_classes, drop_path)


def _family(name: str) -> Any:
    """A family's module; a process imports only those that it uses."""
    return importlib.import_module(f"{__name__}.{name}")

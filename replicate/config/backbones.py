"""Backbones by name or by numbers, before anything is built."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from replicate.config.hierarchies import hierarchy, is_hierarchy
from replicate.errors import UserError

VIT_SIZES: dict[str, dict[str, int]] = {
    "tiny": {"embed_dim": 192, "depth": 12, "num_heads": 3},
    "small": {"embed_dim": 384, "depth": 12, "num_heads": 6},
    "base": {"embed_dim": 768, "depth": 12, "num_heads": 12},
    "large": {"embed_dim": 1024, "depth": 24, "num_heads": 16},
    "huge": {"embed_dim": 1280, "depth": 32, "num_heads": 16},
}
"""Width, blocks and heads (ViT, Table 1; DeiT for tiny and small)."""

_VIT_KEYS = ("embed_dim", "depth", "num_heads", "patch_size")
_VIT_NAME = re.compile(r"vit_(tiny|small|base|large|huge)_patch(\d+)(?:_\d+)?")


@dataclass(frozen=True)
class Backbone:
    """A backbone's name and the numbers that build it.

    A Vision Transformer's `kwargs` are embed_dim, depth, num_heads and patch_size; others take their
    builder's.
    """

    name: str
    kwargs: dict[str, Any] = field(default_factory=dict)

    @property
    def is_vit(self) -> bool:
        """Whether `kwargs` holds the four numbers of a plain Vision Transformer."""
        return self.name.startswith("vit") and all(key in self.kwargs for key in _VIT_KEYS)


def is_plain_vit(name: str, numbers: Mapping[str, Any]) -> bool:
    """Whether `vit_backbone` understands `name`: a timm name, "vit", or another name with all four numbers.

    timm has other backbones whose names start with "vit", such as `vitamin_small_224`.
    """
    own_name = name.startswith("vit") and all(key in numbers for key in _VIT_KEYS)
    return name == "vit" or _VIT_NAME.fullmatch(name) is not None or own_name


def stride_of(name: str, numbers: Mapping[str, Any]) -> int | None:
    """Pixels between a backbone's last tokens: the default mask unit. None for other names of timm.

    Raises UserError for numbers that do not fit the backbone.
    """
    if is_plain_vit(name, numbers):
        return vit_backbone(name, **numbers).kwargs["patch_size"]
    return hierarchy(name, **numbers).stride if is_hierarchy(name) else None


def vit_backbone(name: str = "vit", **numbers: int) -> Backbone:
    """A Vision Transformer by timm name ("vit_base_patch16"), by numbers, or by a name with numbers changed.

    Raises UserError for another model's name, a missing number, or a width that its heads do not divide.
    """
    match = _VIT_NAME.fullmatch(name)
    form = f"write vit_{{{'|'.join(VIT_SIZES)}}}_patchP, or vit with {', '.join(_VIT_KEYS)}"
    kwargs: dict[str, int] = {**VIT_SIZES[match[1]], "patch_size": int(match[2])} if match else {}
    if match is None and not name.startswith("vit"):
        raise UserError(f"backbone {name!r} is no Vision Transformer: {form}")
    unknown = sorted(set(numbers) - set(_VIT_KEYS))
    if unknown:
        raise UserError(
            f"backbone {name!r}: unknown number {unknown[0]!r}; a ViT takes {', '.join(_VIT_KEYS)}"
        )
    kwargs.update(numbers)
    for key in _VIT_KEYS:
        if key not in kwargs:
            raise UserError(f"backbone {name!r}: {key} is missing; {form}")
        if not isinstance(kwargs[key], int) or isinstance(kwargs[key], bool) or kwargs[key] < 1:
            raise UserError(f"backbone {name!r}: {key} {kwargs[key]!r} must be a whole number >= 1")
    width, heads = kwargs["embed_dim"], kwargs["num_heads"]
    if width % heads:
        raise UserError(f"backbone {name!r}: embed_dim {width} is not a multiple of num_heads {heads}")
    return Backbone(name, {key: kwargs[key] for key in _VIT_KEYS})

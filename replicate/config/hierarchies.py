"""Hierarchical backbones by name: their published numbers, and how a small budget shrinks them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from replicate.errors import UserError


@dataclass(frozen=True)
class Hierarchy:
    """Four stages, each at half the resolution of the one before.

    family      the module of `replicate.models.backbones` that builds it
    dims, depths, heads   width, blocks and attention heads of each stage (heads empty for a ConvNet)
    patch_size  pixels that the first stage's tokens are apart
    options     what only this family has
    """

    family: str
    dims: tuple[int, ...]
    depths: tuple[int, ...]
    heads: tuple[int, ...] = ()
    patch_size: int = 4
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def stride(self) -> int:
        """Pixels that the last stage's tokens are apart: 32 for all of the papers' models."""
        return self.patch_size * 2 ** (len(self.dims) - 1)


_PVT = {"dims": (64, 128, 320, 512), "heads": (1, 2, 5, 8)}
_CMT_HEADS = (1, 2, 4, 8)

HIERARCHIES: dict[str, Hierarchy] = {
    "swin_base": Hierarchy(
        "swin", (128, 256, 512, 1024), (2, 2, 18, 2), (4, 8, 16, 32), options={"windows_across": 8}
    ),
    "swin_large": Hierarchy(
        "swin", (192, 384, 768, 1536), (2, 2, 18, 2), (6, 12, 24, 48), options={"windows_across": 4}
    ),
    "twins_svt_large": Hierarchy("pyramid", (128, 256, 512, 1024), (2, 2, 18, 2), (4, 8, 16, 32)),
    "pvt_large": Hierarchy("pvt", **_PVT, depths=(3, 8, 27, 3), options={"mlp_ratios": (8, 8, 4, 4)}),
    "pvt_v2_b2": Hierarchy("pyramid", **_PVT, depths=(3, 4, 6, 3)),
    "pvt_v2_b5": Hierarchy("pyramid", **_PVT, depths=(3, 6, 40, 3)),
    "convnext_tiny": Hierarchy("pyramid", (96, 192, 384, 768), (3, 3, 9, 3)),
    "convnext_base": Hierarchy("pyramid", (128, 256, 512, 1024), (3, 3, 27, 3)),
    "convnextv2_base": Hierarchy("pyramid", (128, 256, 512, 1024), (3, 3, 27, 3)),
    "cmt_tiny": Hierarchy(
        "cmt", (46, 92, 184, 368), (2, 2, 10, 2), _CMT_HEADS, options={"stem_dim": 16, "mlp_ratio": 3.6}
    ),
    "cmt_xs": Hierarchy(
        "cmt", (52, 104, 208, 416), (3, 3, 12, 3), _CMT_HEADS, options={"stem_dim": 16, "mlp_ratio": 3.77}
    ),
    "cmt_small": Hierarchy(
        "cmt", (64, 128, 256, 512), (3, 3, 16, 3), _CMT_HEADS, options={"stem_dim": 32, "mlp_ratio": 4.0}
    ),
    "cmt_base": Hierarchy(
        "cmt", (76, 152, 304, 608), (4, 4, 20, 4), _CMT_HEADS, options={"stem_dim": 38, "mlp_ratio": 4.0}
    ),
}
"""The hierarchies of FastMIM Table 4. `windows_across`: Swin's windows along a side of the first stage, the
same at every resolution: 8 gives windows of 4 at 128 pixels and 7 at 224 for Swin-B, 4 gives 8 and 14 for
Swin-L (A.3.2)."""

_ALIASES = {"swin_base_patch4_window7_224": "swin_base", "swin_large_patch4_window7_224": "swin_large"}
_NUMBERS = ("dims", "depths", "heads", "patch_size", "width_scale", "max_depth")


def is_hierarchy(name: str) -> bool:
    """Whether `name` is one of the backbones of FastMIM Table 4."""
    return _ALIASES.get(name, name) in HIERARCHIES


def hierarchy(name: str, **numbers: Any) -> Hierarchy:
    """The numbers of the backbone called `name`, changed by `numbers`.

    dims, depths, heads, patch_size   replace the published ones
    width_scale                       shrinks every stage's width and heads; depth stays the paper's
    max_depth                         at most so many blocks a stage
    and the family's own options (Swin: windows_across). Raises UserError for what does not exist or does not
    fit together.
    """
    published = HIERARCHIES.get(_ALIASES.get(name, name))
    if published is None:
        raise UserError(
            f"backbone {name!r} is no hierarchy of FastMIM: choose one of {', '.join(HIERARCHIES)}"
        )
    known = (*_NUMBERS, *published.options)
    unknown = sorted(set(numbers) - set(known))
    if unknown:
        raise UserError(f"backbone {name!r}: unknown number {unknown[0]!r}; it takes {', '.join(known)}")
    for key in ("dims", "depths", "heads"):
        if key in numbers and not isinstance(numbers[key], list | tuple):
            raise UserError(
                f"backbone {name!r}: {key} {numbers[key]!r} must be four whole numbers >= 1, one a stage"
            )
    scaled = _scaled(published, numbers.get("width_scale", 1.0))
    depths = tuple(
        min(depth, numbers.get("max_depth") or depth) for depth in numbers.get("depths", scaled.depths)
    )
    chosen = replace(
        scaled,
        dims=tuple(numbers.get("dims", scaled.dims)),
        depths=depths,
        heads=tuple(numbers.get("heads", scaled.heads)),
        patch_size=numbers.get("patch_size", scaled.patch_size),
        options=scaled.options | {key: numbers[key] for key in published.options if key in numbers},
    )
    _check(name, chosen)
    return chosen


def _scaled(published: Hierarchy, factor: float) -> Hierarchy:
    """Narrower stages: fewer heads of the published width, and widths that the heads divide."""
    if factor == 1.0:
        return published
    heads = tuple(max(1, round(count * factor)) for count in published.heads)
    steps = [4 * count for count in heads] or [8] * len(published.dims)
    dims = [
        max(step, round(width * factor / step) * step)
        for width, step in zip(published.dims, steps, strict=True)
    ]
    if published.family == "swin":
        dims = [dims[0] * 2**stage for stage in range(len(dims))]
    return replace(published, dims=tuple(dims), heads=heads)


def _check(name: str, chosen: Hierarchy) -> None:
    for key in ("dims", "depths", *(["heads"] if chosen.heads else [])):
        numbers = getattr(chosen, key)
        if len(numbers) != 4 or any(not isinstance(number, int) or number < 1 for number in numbers):
            raise UserError(
                f"backbone {name!r}: {key} {numbers} must be four whole numbers >= 1, one a stage"
            )
    for width, heads in zip(chosen.dims, chosen.heads or (1,) * 4, strict=True):
        if width % heads:
            raise UserError(f"backbone {name!r}: width {width} is not a multiple of its {heads} heads")
    if chosen.patch_size not in (1, 2, 4):
        raise UserError(
            f"backbone {name!r}: patch_size {chosen.patch_size} must be 4, as published, or 2 or 1"
        )
    if chosen.family == "swin" and any(
        width != chosen.dims[0] * 2**stage for stage, width in enumerate(chosen.dims)
    ):
        raise UserError(f"backbone {name!r}: dims {chosen.dims} must double from stage to stage")
    for key, value in chosen.options.items():
        _check_option(name, key, value)


def _check_option(name: str, key: str, value: Any) -> None:
    if key == "mlp_ratios":
        if (
            not isinstance(value, list | tuple)
            or len(value) != 4
            or not all(_is_positive(ratio) for ratio in value)
        ):
            raise UserError(f"backbone {name!r}: {key} {value!r} must be four numbers > 0, one a stage")
    elif key == "stem_dim":
        if not _is_positive(value) or not isinstance(value, int):
            raise UserError(f"backbone {name!r}: {key} {value!r} must be a whole number >= 1")
    elif not _is_positive(value):
        raise UserError(f"backbone {name!r}: {key} {value!r} must be a number > 0")


def _is_positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0

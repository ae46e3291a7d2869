"""Options of a loader's crops and colours, and the batches that it yields."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from replicate.errors import UserError

if TYPE_CHECKING:
    import torch

CROPS = ("random_resized", "fixed", "center", "none")
AUTOS = (None, "rand-m9-mstd0.5-inc1", "three_augment", "three_augment_plus")
INTERPOLATIONS = ("area", "bicubic")
UNCHANGED: Any = object()
"""Keeps a setting for which None is a value."""


@dataclass(frozen=True)
class Augmentation:
    """Augmentation of one image, on 8-bit pixels. Raises UserError for an unknown value.

    crop          random_resized (scale and ratio as in torchvision), fixed (one size, random place), center,
                  or none (the whole image, resized)
    color_jitter  strength for brightness, contrast and saturation; 0 = off
    auto          RandAugment in timm's notation, or DeiT III's three_augment or three_augment_plus (with
                  colour jitter .3)
    """

    crop: str = "random_resized"
    scale: tuple[float, float] = (0.2, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: bool = True
    color_jitter: float = 0.0
    auto: str | None = None
    interpolation: str = "area"

    def __post_init__(self) -> None:
        for key, allowed in (("crop", CROPS), ("auto", AUTOS), ("interpolation", INTERPOLATIONS)):
            if getattr(self, key) not in allowed:
                known = ", ".join(map(str, allowed))
                raise UserError(f"augmentation {key}: {getattr(self, key)!r} is none of {known}")
        for key, highest in (("scale", 1.0), ("ratio", float("inf"))):
            low, high = getattr(self, key)
            if not 0 < low <= high <= highest:
                limits = "two ascending numbers above 0 (scale: at most 1)"
                raise UserError(f"augmentation {key}: ({low}, {high}) must be {limits}")
        if self.color_jitter < 0:
            raise UserError(f"augmentation color_jitter: {self.color_jitter} must be 0 or more")

    @property
    def colours(self) -> bool:
        """Whether the augmentation changes pixel values, beyond cropping and flipping."""
        return self.color_jitter > 0 or self.auto is not None


EVALUATION = Augmentation(crop="center", flip=False)


class Batch(NamedTuple):
    """images uint8 (n, 3, S, S); labels int64 (n,); index int64 (n,), sample numbers."""

    images: torch.Tensor
    labels: torch.Tensor
    index: torch.Tensor

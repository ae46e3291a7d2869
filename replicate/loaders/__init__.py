"""From images to batches: three kinds of loader with one interface, the same images, crops and order.

    options = {"batch_size": 128, "image_size": 56, "augmentation": Augmentation(scale=(0.2, 1.0)), ...}
    with open_loader("auto", "data/photos/train.beton", **options) as loader:
        for images, labels, index in loader.epoch(0):
            ...

A kind is the name of its module: `beton` (our own reader of FFCV's files), `ffcv` (FFCV's pipeline with the
same crop decoder), `folder` (Pillow and a plain DataLoader over the source images). `auto` is beton: it
yields ffcv's pixels at the same speed, but saves each process the seconds of importing ffcv and compiling its
pipeline.
"""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from replicate.errors import UserError

if TYPE_CHECKING:
    import torch

    from replicate.loaders.base import BaseLoader
    from replicate.loaders.crop_decode import Decoding

KINDS = ("ffcv", "beton", "folder")
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


def resolve_kind(kind: str) -> str:
    """The kind that `open_loader` uses. Without ffcv, warn and use beton, which reads the same files."""
    if kind != "auto" and kind not in KINDS:
        raise UserError(f"loader: {kind!r} is none of auto, {', '.join(KINDS)}")
    if kind == "ffcv" and importlib.util.find_spec("ffcv") is None:
        warnings.warn(
            "ffcv is not installed; the loader `beton` reads the .beton files instead", stacklevel=3
        )
        return "beton"
    return "beton" if kind == "auto" else kind


def open_loader(
    kind: str,
    path: str | Path,
    *,
    batch_size: int,
    image_size: int,
    augmentation: Augmentation,
    seed: int,
    train: bool,
    workers: int = 1,
    rank: int = 0,
    world_size: int = 1,
    drop_last: bool | None = None,
    on_error: str = "raise",
    decoding: Decoding | None = None,
    per_class: int | None = None,
    subset_seed: int = 0,
) -> BaseLoader:
    """Open and check `path`: a .beton file, or for `folder` also a folder of class folders.

    train=True   random order; this rank's share of each global batch; drop_last defaults to True
    train=False  storage order; every image exactly once over all ranks
    on_error     "raise" stops at a damaged image and names it, "skip" counts it in `num_skipped`
    per_class    serve at most this many images of each class, which `subset_seed` draws; `seed` does not
    decoding     options of the crop decoder for beton and ffcv (see `crop_decode.Decoding`); exact if None

    Raises UserError for an unknown kind, a missing or damaged file, or a training batch larger than the data
    set.
    """
    module = importlib.import_module(f"replicate.loaders.{resolve_kind(kind)}")
    return module.open_loader(
        Path(path),
        batch_size=batch_size,
        image_size=image_size,
        augmentation=augmentation,
        seed=seed,
        train=train,
        workers=workers,
        rank=rank,
        world_size=world_size,
        drop_last=train if drop_last is None else drop_last,
        on_error=on_error,
        per_class=per_class,
        subset_seed=subset_seed,
        **({} if decoding is None else {"decoding": decoding}),
    )

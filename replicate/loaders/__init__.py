"""Images into batches: one interface, three kinds of loader, the same images, crops and order from each.

    augmentation = Augmentation(scale=(0.2, 1.0))
    with open_loader("auto", "data/photos/train.beton", batch_size=128, image_size=56, augmentation=augmentation, ...) as loader:
        for images, labels, index in loader.epoch(0):
            ...

The kind is the name of the module that serves it: `beton` (our own reader of FFCV's files), `ffcv` (FFCV's pipeline around the
same crop decoder), `folder` (Pillow and a plain DataLoader over the source images). `auto` is beton: the same pixels as ffcv at
the same speed, without the seconds that importing ffcv and compiling its pipeline cost in every process.
"""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from replicate.errors import UserError

if TYPE_CHECKING:
    import torch

    from replicate.loaders.crop_decode import Decoding

KINDS = ("ffcv", "beton", "folder")
CROPS = ("random_resized", "fixed", "center", "none")
AUTOS = (None, "rand-m9-mstd0.5-inc1", "three_augment", "three_augment_plus")
INTERPOLATIONS = ("area", "bicubic")
UNCHANGED: Any = object()
"""A setting that stays as it is, where None is a setting of its own."""


@dataclass(frozen=True)
class Augmentation:
    """What happens to an image between the file and the network, all of it on 8-bit pixels.

    `crop`: random_resized (scale and ratio as torchvision's), fixed (one size, random place), center, or none (resized whole).
    `color_jitter`: strength of brightness, contrast and saturation, 0 = off. `auto`: RandAugment in timm's notation, or DeiT
    III's three_augment, three_augment_plus (with colour jitter .3). Raises UserError for a value outside those."""

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
                raise UserError(f"augmentation {key}: {getattr(self, key)!r} is none of {', '.join(map(str, allowed))}")
        for key, highest in (("scale", 1.0), ("ratio", float("inf"))):
            low, high = getattr(self, key)
            if not 0 < low <= high <= highest:
                raise UserError(f"augmentation {key}: ({low}, {high}) must be two ascending numbers above 0 (scale: at most 1)")
        if self.color_jitter < 0:
            raise UserError(f"augmentation color_jitter: {self.color_jitter} must be 0 or more")

    @property
    def colours(self) -> bool:
        """Whether pixel values change, not only which pixels are taken."""
        return self.color_jitter > 0 or self.auto is not None


EVALUATION = Augmentation(crop="center", flip=False)


class Batch(NamedTuple):
    """images uint8 (n, 3, S, S) · labels int64 (n,) · index int64 (n,), each sample's number in the data set."""

    images: torch.Tensor
    labels: torch.Tensor
    index: torch.Tensor


class Loader(Protocol):
    """What every kind offers. `epoch` may be called again for the same number and then yields the same batches."""

    num_images: int
    num_classes: int
    class_names: list[str]
    num_batches: int
    num_skipped: int

    def epoch(self, epoch: int) -> Iterator[Batch]: ...
    def set_stage(
        self,
        image_size: int | None = None,
        scale: tuple[float, float] | None = None,
        batch_size: int | None = None,
        auto: str | None = UNCHANGED,
    ) -> None: ...
    def close(self) -> None: ...
    def __enter__(self) -> Loader: ...
    def __exit__(self, *exception: object) -> None: ...


def resolve_kind(kind: str) -> str:
    """The kind that will serve. A missing ffcv falls back to beton, which reads the same files, and a warning says so once a
    process.
    """
    if kind != "auto" and kind not in KINDS:
        raise UserError(f"loader: {kind!r} is none of auto, {', '.join(KINDS)}")
    if kind == "ffcv" and importlib.util.find_spec("ffcv") is None:
        warnings.warn("ffcv is not installed here: its .beton files are read by the package's own reader instead", stacklevel=3)
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
) -> Loader:
    """Opens `path` (a .beton file; for `folder` also a folder of class folders) and checks it before the first batch.

    train=True: shuffled anew each epoch, this rank's share of every global batch; drop_last defaults to True.
    train=False: storage order, every image exactly once over all ranks, nothing dropped.
    on_error: "raise" stops at a damaged image and names it, "skip" leaves it out and counts it in `num_skipped`.
    decoding: how the crop decoder works (kinds beton and ffcv; see `crop_decode.Decoding`), exact by default.
    Raises UserError for an unknown kind, a missing or damaged file, or a batch larger than a data set whose rest is dropped.
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
        **({} if decoding is None else {"decoding": decoding}),
    )

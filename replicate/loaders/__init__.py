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
from pathlib import Path
from typing import TYPE_CHECKING

from replicate.errors import UserError
from replicate.loaders.batch import EVALUATION, Augmentation, Batch

if TYPE_CHECKING:
    from replicate.loaders.base import BaseLoader
    from replicate.loaders.crop_decode import Decoding

__all__ = ["EVALUATION", "KINDS", "Augmentation", "Batch", "open_loader", "resolve_kind"]
KINDS = ("ffcv", "beton", "folder")


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

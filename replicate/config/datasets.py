"""Data sets: a source of images, the part of it that is used, and how the images are stored."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from replicate.config.schema import Count, Fraction, Strict

PUBLIC = ("imagenette160", "imagenette320", "tiny-imagenet", "cifar10", "fashion-mnist", "imagenet-100")
"""Public sets that `source` can name; `replicate.fetch` brings them."""
HUB = "hf://datasets/"
"""What the name of a data set on the Hugging Face hub begins with."""


class Encoding(Strict):
    """How a `.beton` stores images: `resolution` caps the longest side in pixels, `quality` is the JPEG
    quality.

    mode              jpg, raw, or proportion: a share `proportion` of the images as JPEG, the rest raw
    keep              a JPEG that meets the settings keeps its bytes
    restart, seek     let the decoder of a crop skip: restart markers, or a seek index, every so many MCUs
    """

    resolution: Count | None = None
    quality: Annotated[int, Field(ge=1, le=100)] = 95
    mode: Literal["jpg", "raw", "proportion"] = "jpg"
    proportion: Fraction = 0.5
    keep: bool = True
    restart: Annotated[int, Field(ge=0, le=65535)] = 0
    seek: Annotated[int, Field(ge=0, le=65535)] = 0


SYNTHETIC = frozenset({"photos", "scenes"})
"""Sources whose images are made on the spot."""

OF_SOURCE = frozenset({"classes", "class_fraction", "fraction", "train_images", "val_images", "minival"})
"""Settings of a data set that mean something for its own source alone."""


class Dataset(Strict):
    """A source of images and the part of it that is used; the papers' proxies are class and image fractions.

    A data set that states `image_size` states it, and its caps, in the paper's pixels; a budget scales both.
    The others take the budget's size.

    source    photos, a folder with train/ and val/, one of PUBLIC, or hf://datasets/OWNER/NAME
    layout    classes: a folder a class; coco: boxes and instance masks; ade20k: masks of class numbers;
              panoptic: COCO's panoptic masks. `scenes` are made as coco or as ade20k
    minival   training images of each class that are held out and join the validation images
    """

    source: str = "photos"
    layout: Literal["classes", "coco", "ade20k", "panoptic"] = "classes"
    image_size: Count = 224
    classes: Annotated[int, Field(ge=2)] | None = None
    class_fraction: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    fraction: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    train_images: Count | None = None
    val_images: Count | None = None
    minival: Annotated[int, Field(ge=0)] = 0
    seed: int = 0
    on_error: Literal["raise", "skip"] = "raise"
    train: Encoding = Encoding(resolution=500, quality=95)
    val: Encoding = Encoding(resolution=500, quality=100)

    @property
    def is_synthetic(self) -> bool:
        """Whether its images are made on the spot, so that results say nothing about a paper."""
        return self.source in SYNTHETIC


def is_public(source: str) -> bool:
    """Whether `source` names a set to be fetched, and not a folder."""
    return source in PUBLIC or source.startswith(HUB)


def source_path(source: str) -> Path:
    """The folder of a source: a public set's is below data/."""
    if source.startswith(HUB):
        return Path("data", "hf", source.removeprefix(HUB).strip("/").replace("/", "--"))
    return Path("data", source) if source in PUBLIC else Path(source)

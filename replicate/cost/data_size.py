"""Images, classes and bytes of a data set before it is written."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from replicate.config import published
from replicate.loaders.sources import count_images, source_folder

if TYPE_CHECKING:
    from replicate.config import Dataset, Params

IMAGENET = {"train": 1_281_167, "val": 50_000, "classes": 1000}
PHOTOS = {"train": 2400, "val": 1200, "classes": 12}
DENSE = {
    "coco": {"train": 118_287, "val": 5000, "classes": 80, "bytes": 20.1e9},
    "panoptic": {"train": 118_287, "val": 5000, "classes": 133, "bytes": 20.1e9},
    "ade20k": {"train": 20_210, "val": 2000, "classes": 150, "bytes": 0.97e9},
}
SCENE_CLASSES = 6
UNCAPPED = 1000
"""Pixels a side at which images without a cap are taken from DailyMAE's Table 4."""


@dataclass(frozen=True)
class DataSize:
    """Images, classes and bytes of `.beton` files; `assumed` where the source is not there to be counted."""

    train: int
    val: int
    classes: int
    bytes: float
    assumed: bool


def data_size(params: Params, name: str, budget: str) -> DataSize:
    """The size of a data set: from its manifest, else from its source's folders, else from ImageNet-1k."""
    manifest = params.data_folder(name, budget) / "manifest.json"
    if not manifest.exists():
        return _expected(params.dataset(name, budget))
    content = json.loads(manifest.read_text())
    splits = content["splits"]
    stored = sum(split.get("bytes", 0) for split in splits.values())
    return DataSize(
        splits["train"]["images"], splits["val"]["images"], len(content["class_names"]), stored, assumed=False
    )


def beton_bytes(images: int, resolution: int | None, quality: int) -> float:
    """Bytes of `images` photographs by the nearest setting of DailyMAE's Table 4, scaled by area."""
    table = published.select({"paper": "dailymae", "table": "table_4", "column": "file_size_gb"})
    known = {}
    for row, value in zip(table["row"], table["value"], strict=True):
        setting = published.setting(row)
        if setting["res"].isdigit():
            known[int(setting["res"]), int(setting["quality"])] = value * 1e9 / IMAGENET["train"]
    side = resolution or UNCAPPED
    nearest = min(known, key=lambda key: (abs(math.log(key[0] / side)), abs(key[1] - quality)))
    return images * known[nearest] * (min(side, nearest[0]) / nearest[0]) ** 2


def _dense(dataset: Dataset) -> DataSize:
    """COCO and ADE20K as they ship, or the scenes that stand in for them."""
    known = DENSE[dataset.layout]
    if dataset.source != "scenes":
        return DataSize(**known, assumed=not Path(dataset.source).is_dir())
    train, val = (getattr(dataset, f"{split}_images") or known[split] for split in ("train", "val"))
    classes = (dataset.classes or SCENE_CLASSES) + (dataset.layout != "coco")
    return DataSize(train, val, classes, beton_bytes(train + val, dataset.image_size, 95), assumed=False)


def _expected(dataset: Dataset) -> DataSize:
    if dataset.layout != "classes":
        return _dense(dataset)
    photos = dataset.source == "photos"
    found = None if photos else _counted(source_folder(dataset.source))
    base = PHOTOS if photos else found or IMAGENET
    classes = dataset.classes or max(2, round(base["classes"] * dataset.class_fraction))
    share = 1.0 if photos else classes / base["classes"]
    held = dataset.minival * classes
    train = round((dataset.train_images or base["train"] * share - held) * dataset.fraction)
    val = (dataset.val_images or round(base["val"] * share)) + held
    stored = sum(
        beton_bytes(images, dataset.image_size if photos else encoding.resolution, encoding.quality)
        for images, encoding in ((train, dataset.train), (val, dataset.val))
    )
    return DataSize(train, val, classes, stored, assumed=not photos and found is None)


def _counted(source: Path) -> dict[str, int] | None:
    if not (source / "train").is_dir():
        return None
    return count_images(source)

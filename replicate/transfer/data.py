"""Data sets of dense transfer: what `data write` makes or records, and how a run finds it again.

`scenes` are made on the spot, in COCO's and in ADE20K's layout at once. A real folder stays where it is; the
manifest records its paths, how many images it has, and a digest of its annotations.
"""

from __future__ import annotations

import hashlib
import json
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from replicate.errors import UserError
from replicate.loaders.manifest import FILE_NAME, Manifest, sha256
from replicate.transfer.ade import IGNORED, MaskImages, class_names, open_ade, open_panoptic

if TYPE_CHECKING:
    from replicate.config import Dataset

SCENES = "scenes"
SPLITS = ("train", "val")
SCENE_CLASSES, SCENE_IMAGES = 6, {"train": 400, "val": 100}
BAR = {"mininterval": 30, "disable": None}


def write(dataset: Dataset, folder: Path) -> Manifest:
    """Make the scenes, or check a real folder, and write `folder`/manifest.json.

    Raises UserError for a folder that is missing or not laid out as COCO or ADE20K ship theirs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FILE_NAME).unlink(missing_ok=True)
    source: dict[str, Any] = {"source": dataset.source, "layout": dataset.layout}
    if dataset.source == SCENES:
        counts = {f"{split}_images": _images(dataset, split) for split in SPLITS}
        sizes = {"image_size": dataset.image_size, "seed": dataset.seed, "classes": dataset.classes}
        root, source = _make_scenes(dataset, folder, counts), source | sizes
        source |= {key: getattr(dataset, key) for key in counts}
    else:
        root = _existing(dataset)
    read = {"coco": _coco, "ade20k": _ade20k, "panoptic": _panoptic}[dataset.layout]
    names, splits = read(root)
    manifest = Manifest(source, names, {split: record | {"settings": {}} for split, record in splits.items()})
    manifest.write(folder / FILE_NAME)
    return manifest


def describe(manifest: Manifest) -> list[dict[str, Any]]:
    """What each split holds, for `data info` and `data check`."""
    return [
        {"file": record["image_folder"], "split": split, "classes": len(manifest.class_names)} | record
        for split, record in manifest.splits.items()
    ]


def masked_images(manifest: Manifest, split: str) -> MaskImages:
    """The images of a split with their masks of classes."""
    record = manifest.splits[split]
    if "panoptic" in record:
        return open_panoptic(record["image_folder"], record["masks"], record["panoptic"])[0]
    if "masks" not in record:
        raise UserError(f"{record['image_folder']}: has boxes, no masks of classes; use layout ade20k")
    return open_ade(Path(record["image_folder"]).parents[1], split)


def _images(dataset: Dataset, split: str) -> int:
    return getattr(dataset, f"{split}_images") or SCENE_IMAGES[split]


def _make_scenes(dataset: Dataset, folder: Path, counts: dict[str, int]) -> Path:
    from replicate.transfer.scenes import Settings, write_scenes

    numbers = {"image_size": dataset.image_size, "seed": dataset.seed}
    settings = Settings(**counts, num_classes=dataset.classes or SCENE_CLASSES, **numbers)
    # A folder a setting: what an earlier budget wrote stays whole.
    digest = hashlib.sha256(repr(settings).encode()).hexdigest()[:8]
    bar = partial(tqdm, desc="scenes", unit="image", **BAR)
    return write_scenes(folder / f"scenes_{digest}", settings, bar)


def _existing(dataset: Dataset) -> Path:
    root = Path(dataset.source)
    if not root.is_dir():
        made = f"or use source {SCENES}, which needs no download"
        raise UserError(
            f"data source {dataset.source!r}: no such folder; name a {dataset.layout} folder, {made}"
        )
    return root


def _coco(root: Path) -> tuple[list[str], dict[str, dict[str, Any]]]:
    from replicate.transfer.coco import CocoImages

    names: list[str] = []
    splits = {}
    for split in SPLITS:
        images, annotations = root / f"{split}2017", root / "annotations" / f"instances_{split}2017.json"
        read = CocoImages(images, annotations)
        names = names or list(read.class_names)
        splits[split] = {
            **_place(images, len(read.images)),
            "annotations": str(annotations),
            "sha256": sha256(annotations),
        }
    return names, splits


def _ade20k(root: Path) -> tuple[list[str], dict[str, dict[str, Any]]]:
    splits, largest = {}, 0
    for split in SPLITS:
        found = open_ade(root, split)
        largest = max(largest, _largest(root, found))
        masks = found.masks[0].parent
        splits[split] = {
            **_place(found.images[0].parent, len(found)),
            "masks": str(masks),
            "sha256": _listing(found.masks),
        }
    return _scene_names(root) or class_names(root, largest), splits


def _panoptic(root: Path) -> tuple[list[str], dict[str, dict[str, Any]]]:
    names: list[str] = []
    splits = {}
    for split in SPLITS:
        folder, masks = root / f"{split}2017", root / "annotations" / f"panoptic_{split}2017"
        annotations = masks.with_suffix(".json")
        found, names = open_panoptic(folder, masks, annotations)
        paths = {"masks": str(masks), "panoptic": str(annotations), "sha256": sha256(annotations)}
        splits[split] = _place(folder, len(found)) | paths
    return names, splits


def _place(folder: Path, images: int) -> dict[str, Any]:
    return {"file": folder.name, "images": images, "image_folder": str(folder)}


def _scene_names(root: Path) -> list[str]:
    """The classes of scenes; none for a real folder."""
    from replicate.transfer.scenes import GROUND, SETTINGS_FILE, Settings

    stated = root / SETTINGS_FILE
    if not stated.is_file():
        return []
    return [GROUND, *Settings(**json.loads(stated.read_text())).class_names]


def _largest(root: Path, found: MaskImages) -> int:
    """The largest class of all masks, where no list names the classes."""
    from replicate.transfer.ade import NAMES_FILE

    if (root / NAMES_FILE).is_file():
        return 0
    masks = tqdm(range(len(found)), desc="masks", unit="mask", file=sys.stderr, **BAR)
    return max((int(seen[seen != IGNORED].max(initial=0)) for seen in map(found.mask, masks)), default=0)


def _listing(files: list[Path]) -> str:
    """A digest of names and sizes: reading gigabytes of masks would take minutes."""
    text = "".join(f"{path.name} {path.stat().st_size}\n" for path in files)
    return hashlib.sha256(text.encode()).hexdigest()

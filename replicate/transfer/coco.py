"""Detection data as COCO ships it: a folder of images, and one JSON of boxes, masks and categories.

Crowd regions are no objects to train on; the metrics ignore what falls into them. Masks are polygons or run
lengths. Category ids may have gaps: label 1 is the lowest id, and 0 is the background.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from replicate.errors import UserError
from replicate.loaders.decode import decode_image

POLYGON_NUMBERS = 6
"""A polygon has three corners at least."""


@dataclass(frozen=True)
class Objects:
    """The objects of one image that are no crowds: labels int64 (n,) from 1, masks bool (n, H, W)."""

    labels: np.ndarray
    masks: np.ndarray


class CocoImages:
    """The images that an annotation file lists, in the order of their ids.

    path        the JSON, and `content` what it holds
    images      the records of the images
    empty       images to keep: "keep" all, or "drop" those without an object, as training does

    Raises UserError, naming the file and the entry, for a file that is no COCO annotation, or an annotation
    whose image or category is unknown.
    """

    def __init__(self, image_folder: str | Path, annotations: str | Path, empty: str = "keep") -> None:
        self.folder, self.path = Path(image_folder), Path(annotations)
        if not self.folder.is_dir():
            raise UserError(f"{self.folder}: no such folder of images")
        self.content = _read(self.path)
        categories = sorted(self.content["categories"], key=lambda category: category["id"])
        self.category_ids = [category["id"] for category in categories]
        self.class_names = [category["name"] for category in categories]
        self._label = {number: label for label, number in enumerate(self.category_ids, start=1)}
        self._objects = self._by_image()
        records = sorted(self.content["images"], key=lambda record: record["id"])
        self.images = [record for record in records if empty == "keep" or self._objects[record["id"]]]
        if not self.images:
            raise UserError(f"{self.path}: no image has an object")

    def _by_image(self) -> dict[int, list[dict[str, Any]]]:
        found: dict[int, list[dict[str, Any]]] = {record["id"]: [] for record in self.content["images"]}
        for note in self.content["annotations"]:
            name = f"{self.path}: annotation {note['id']}"
            if note["image_id"] not in found:
                raise UserError(f"{name} is of image {note['image_id']}, which the file does not list")
            if note["category_id"] not in self._label:
                raise UserError(f"{name} has category {note['category_id']}, which the file does not list")
            if note.get("iscrowd"):
                continue
            if not note.get("segmentation"):
                raise UserError(f"{name} has no segmentation; instance masks need one for every object")
            if _drawable(note["segmentation"]) and min(note["bbox"][2:]) > 0:
                found[note["image_id"]].append(note)
        return found

    def __len__(self) -> int:
        return len(self.images)

    @property
    def num_classes(self) -> int:
        return len(self.category_ids)

    def pixels(self, index: int) -> np.ndarray:
        """Image number `index`, uint8 (H, W, 3) RGB.

        Raises UserError when the file is missing or damaged, or the JSON states another size.
        """
        record = self.images[index]
        path = self.folder / record["file_name"]
        try:
            pixels = decode_image(path.read_bytes(), str(path))
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror}); {self.path} lists it") from None
        stated, found = (record["height"], record["width"]), pixels.shape[:2]
        if stated != found:
            sizes = f"{stated[1]}x{stated[0]} pixels, but it has {found[1]}x{found[0]}"
            raise UserError(f"{self.path}: image {record['id']} ({path}) is stated to have {sizes}")
        return pixels

    def objects(self, index: int) -> Objects:
        """The objects of image number `index`; an image without objects gives empty arrays."""
        record = self.images[index]
        shape, labels, masks = (record["height"], record["width"]), [], []
        for note in self._objects[record["id"]]:
            mask = self._mask(note, shape)
            if mask.any():
                masks.append(mask)
                labels.append(self._label[note["category_id"]])
        stacked = np.stack(masks) if masks else np.zeros((0, *shape), bool)
        return Objects(np.array(labels, np.int64), stacked)

    def _mask(self, note: Mapping[str, Any], shape: tuple[int, int]) -> np.ndarray:
        """One object's mask, bool (H, W). Raises UserError for run lengths of another size."""
        from pycocotools import mask as run_lengths

        stated, height, width = note["segmentation"], *shape
        if isinstance(stated, list):
            polygons = [part for part in stated if len(part) >= POLYGON_NUMBERS]
            return run_lengths.decode(run_lengths.frPyObjects(polygons, height, width)).any(2)
        if tuple(stated["size"]) != shape or _cells(stated["counts"]) not in (None, height * width):
            name = f"{self.path}: annotation {note['id']}"
            raise UserError(f"{name} has run lengths that do not fit its image of {width}x{height} pixels")
        packed = stated
        if isinstance(stated["counts"], list):
            packed = run_lengths.frPyObjects(dict(stated), height, width)
        return run_lengths.decode([packed])[..., 0].astype(bool)


def _drawable(segmentation: Any) -> bool:
    """Whether a segmentation covers anything; COCO has polygons of a line or of nothing."""
    if isinstance(segmentation, list):
        return any(len(polygon) >= POLYGON_NUMBERS for polygon in segmentation)
    return True


def _cells(counts: Any) -> int | None:
    return sum(counts) if isinstance(counts, list) else None


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise UserError(f"{path}: no readable JSON ({error})") from None
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise UserError(f"{path}: no COCO annotations: the list {key!r} is missing")
    needed = {
        "images": ("id", "file_name", "height", "width"),
        "annotations": ("id", "image_id", "category_id", "bbox"),
        "categories": ("id", "name"),
    }
    for kind, keys in needed.items():
        for entry in content[kind]:
            if missing := next((key for key in keys if key not in entry), None):
                raise UserError(f"{path}: {missing!r} is missing in an entry of {kind!r}: {str(entry)[:80]}")
    return content

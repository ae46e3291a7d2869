"""Images with masks of class numbers, as ADE20K ships them: `images/<split>`, `annotations/<split>`.

In a mask 0 is unlabelled and class k of ADE20K is k; here classes count from 0 and `IGNORED` is unlabelled.
COCO's panoptic masks (`panoptic_<split>2017/` with its JSON) read as the same thing.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from replicate.errors import UserError

IGNORED = 255
SPLITS = {"train": "training", "val": "validation"}
SUFFIXES = (".jpg", ".jpeg", ".png")
NAMES_FILE = "objectInfo150.txt"


@dataclass(frozen=True)
class MaskImages:
    """Images and their masks, in the order of their names.

    segments  of panoptic masks: a picture's stem -> {segment id: class}; None for masks of class numbers
    """

    images: list[Path]
    masks: list[Path]
    segments: dict[str, dict[int, int]] | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.images)

    def image(self, index: int) -> np.ndarray:
        """uint8 (H, W, 3) RGB. Raises UserError that names a file that cannot be read."""
        return np.array(_opened(self.images[index]).convert("RGB"))

    def mask(self, index: int) -> np.ndarray:
        """uint8 (H, W): classes from 0, `IGNORED` where nothing is labelled. Raises UserError as `image`."""
        path, opened = self.masks[index], _opened(self.masks[index])
        if self.segments is not None:
            return _panoptic(np.asarray(opened.convert("RGB")), self.segments[path.stem], path)
        if opened.mode not in ("L", "P"):
            raise UserError(f"{path}: mode {opened.mode}; a mask has one byte a pixel, the class's number")
        return np.asarray(opened) - np.uint8(1)  # 0, unlabelled, wraps to 255

    def pair(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Image and mask. Raises UserError when their sizes differ."""
        image, mask = self.image(index), self.mask(index)
        if image.shape[:2] != mask.shape:
            sizes = [f"{size[1]} x {size[0]}" for size in (mask.shape, image.shape)]
            raise UserError(f"{self.masks[index]}: {sizes[0]} pixels where its image has {sizes[1]}")
        return image, mask


def open_ade(folder: str | Path, split: str) -> MaskImages:
    """The images of a split, "train" or "val", each with its mask.

    Raises UserError for a missing folder, no images, or an image without a mask.
    """
    images = Path(folder) / "images" / SPLITS[split]
    masks = Path(folder) / "annotations" / SPLITS[split]
    return _paired(_images_in(images), masks)


def open_panoptic(images: str | Path, masks: str | Path, annotations: str | Path) -> tuple:
    """(MaskImages, class names) of COCO's panoptic masks; things and stuff are classes alike.

    Raises UserError for files that are missing or do not fit together.
    """
    path = Path(annotations)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        numbers = {category["id"]: place for place, category in enumerate(content["categories"])}
        names = [category["name"] for category in content["categories"]]
        segments = {
            Path(one["file_name"]).stem: {
                segment["id"]: numbers[segment["category_id"]] for segment in one["segments_info"]
            }
            for one in content["annotations"]
        }
    except FileNotFoundError:
        raise UserError(f"{path}: missing; COCO ships it as panoptic_train2017.json") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not COCO's panoptic JSON ({type(error).__name__}: {error})") from None
    found = [image for image in _images_in(Path(images)) if image.stem in segments]
    paired = _paired(found, Path(masks))
    return MaskImages(paired.images, paired.masks, segments), names


def class_names(folder: str | Path, largest: int) -> list[str]:
    """Names of the classes from ADE20K's list, or their numbers where the folder has none."""
    path = Path(folder) / NAMES_FILE
    if not path.is_file():
        return [f"class {number}" for number in range(1, largest + 2)]
    lines = path.read_text(encoding="utf-8").splitlines()[1:]
    names = [line.split("\t")[-1].split(",")[0].strip() for line in lines if line.strip()]
    if largest >= len(names):
        raise UserError(f"{path}: names {len(names)} classes, but a mask has class {largest + 1}")
    return names


def _images_in(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise UserError(f"{folder}: missing; images lie in images/training and images/validation")
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    if not found:
        raise UserError(f"{folder}: holds no image ({', '.join(SUFFIXES)})")
    return found


def _paired(images: list[Path], masks: Path) -> MaskImages:
    named = [masks / f"{image.stem}.png" for image in images]
    for image, mask in zip(images, named, strict=True):
        if not mask.is_file():
            raise UserError(f"{mask}: missing; {image} needs its mask")
    return MaskImages(images, named)


def _opened(path: Path) -> Image.Image:
    try:
        with Image.open(path) as opened:
            opened.load()
            return opened
    except FileNotFoundError:
        raise UserError(f"{path}: missing") from None
    except (OSError, ValueError, SyntaxError) as error:
        raise UserError(f"{path}: cannot be read as an image ({error})") from None


def _panoptic(colours: np.ndarray, classes: dict[int, int], path: Path) -> np.ndarray:
    """Segment ids are red + 256 green + 256^2 blue; 0 is unlabelled."""
    ids = colours.astype(np.int32) @ np.array([1, 256, 65536], np.int32)
    mask = np.full(ids.shape, IGNORED, np.uint8)
    for number in np.unique(ids[ids > 0]).tolist():
        if number not in classes:
            raise UserError(f"{path}: has segment {number}, which its JSON does not list")
        mask[ids == number] = classes[number]
    return mask

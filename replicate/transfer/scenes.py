"""The offline data set `scenes`: several objects a picture, with exact masks of instances and classes.

An object is a picture of `photos`, cut out along a random outline, and its class is the layout of that
picture. The ground is one photographic texture. Objects overlap, and their sizes are log-uniform from tiny to
large. As in `photos`, colour and outline say nothing about the class, and a scene is a function of (seed,
split, index) in relative coordinates. Training and validation cut from different parts of the photographs.

`write_scenes` writes what users have: a folder as COCO ships it (`train2017/`, `val2017/`,
`annotations/instances_*.json`) which is also one as ADE20K ships it (`images/training/`,
`annotations/training/`, and the same for validation). The set stands in for both on a machine without data.
Its numbers do not compare with published ones.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from replicate.errors import UserError
from replicate.files import atomic_write
from replicate.loaders.photos import LAYOUTS, SPLITS, Draws, cut_texture, draw_image
from replicate.transfer.ade import SPLITS as ADE_SPLITS

# COCO's categories have gaps in their ids; a reader that takes ids for class numbers fails here too.
CATEGORY_STEP = 3
GROUND = "ground"
# In the index masks 0 is unlabelled, as in ADE20K, and occurs nowhere; 1 is the ground.
GROUND_INDEX = 1
# Widths over heights of the pictures; the longer side is `image_size`.
ASPECTS = (3 / 4, 1.0, 4 / 3)
OBJECT_ASPECTS = (0.6, 1.6)
# Waves of an outline around its mean radius, and the largest amplitude of each.
OUTLINE_WAVES = {2: 0.15, 3: 0.12, 5: 0.06}
# An object that others would cover more than this is left out.
LEAST_VISIBLE = 0.4
LEAST_PIXELS = 12
LEAST_SIDE = 6
JPEG_QUALITY = 95
SETTINGS_FILE = "scenes.json"
_SCENE_STREAM, _OBJECT_STREAM = 18, 19
_COCO_SPLITS = {"train": "train2017", "val": "val2017"}


@dataclass(frozen=True)
class Settings:
    """What decides a set of scenes. Raises UserError for values that do not fit.

    image_size   longer side in pixels
    num_classes  the first so many layouts of `photos`
    objects      fewest and most objects a picture, before covered ones are left out
    sides        an object's smallest and largest side as shares of `image_size`
    """

    train_images: int
    val_images: int
    image_size: int = 128
    num_classes: int = 6
    objects: tuple[int, int] = (2, 7)
    sides: tuple[float, float] = (0.08, 0.6)
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.num_classes <= len(LAYOUTS):
            raise UserError(f"scenes num_classes: {self.num_classes} must lie between 1 and {len(LAYOUTS)}")
        if self.image_size < 32:
            raise UserError(f"scenes image_size: {self.image_size} must be at least 32 pixels")
        for key in ("train_images", "val_images"):
            if getattr(self, key) < 1:
                raise UserError(f"scenes {key}: {getattr(self, key)} must be at least 1")
        for key, lowest, highest in (("objects", 0, 64), ("sides", 0.01, 1.0)):
            low, high = getattr(self, key)
            if not lowest <= low <= high <= highest:
                limits = f"two ascending numbers between {lowest} and {highest}"
                raise UserError(f"scenes {key}: ({low}, {high}) must be {limits}")

    @property
    def class_names(self) -> list[str]:
        return list(LAYOUTS)[: self.num_classes]

    @property
    def category_ids(self) -> list[int]:
        """The COCO id of every class, with gaps."""
        return [1 + CATEGORY_STEP * label for label in range(self.num_classes)]


@dataclass(frozen=True)
class Scene:
    """image uint8 (H, W, 3) RGB; masks bool (n, H, W), what shows of each object; labels int64 (n,) from 0.

    The nearest object comes first. No two masks share a pixel.
    """

    image: np.ndarray
    masks: np.ndarray
    labels: np.ndarray

    def index_mask(self) -> np.ndarray:
        """uint8 (H, W): 1 on the ground, 2 + label on an object."""
        classes = np.full(self.image.shape[:2], GROUND_INDEX, np.uint8)
        for mask, label in zip(self.masks, self.labels, strict=True):
            classes[mask] = GROUND_INDEX + 1 + label
        return classes


def draw_scene(settings: Settings, split: str, index: int) -> Scene:
    """Scene number `index` of a split."""
    if split not in SPLITS:
        raise UserError(f"scenes split: {split!r} is none of {', '.join(SPLITS)}")
    draws = Draws(settings.seed, split, index, _SCENE_STREAM)
    image = _ground(settings, split, draws)
    low, high = settings.objects
    placed = [
        _object(settings, split, index, number, image.shape[:2])
        for number in range(low + draws.integer(high - low + 1))
    ]
    masks, labels, covered = [], [], np.zeros(image.shape[:2], bool)
    for whole, pixels, label in placed:
        visible = whole & ~covered
        if visible.sum() < max(LEAST_PIXELS, LEAST_VISIBLE * whole.sum()):
            continue
        image[visible] = pixels[visible]
        covered |= whole
        masks.append(visible)
        labels.append(label)
    stacked = np.stack(masks) if masks else np.zeros((0, *image.shape[:2]), bool)
    return Scene(image, stacked, np.array(labels, np.int64))


def _ground(settings: Settings, split: str, draws: Draws) -> np.ndarray:
    """One texture in one colour, uint8 (H, W, 3)."""
    size, aspect = settings.image_size, ASPECTS[draws.integer(len(ASPECTS))]
    height, width = round(size / max(aspect, 1.0)), round(size * min(aspect, 1.0))
    base = np.array([draws.between(90, 165) for _ in range(3)], np.float32)
    texture = cut_texture(split, size, draws)[:height, :width] * draws.log_between(8.0, 20.0)
    return np.clip(np.rint(base + texture), 0, 255).astype(np.uint8)


def _object(
    settings: Settings, split: str, index: int, number: int, shape: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray, int]:
    """(mask bool (H, W), pixels uint8 (H, W, 3), label) of one object, before others cover it.

    At least its centre lies inside the picture.
    """
    draws = Draws(settings.seed, split, 64 * index + number, _OBJECT_STREAM)
    label = draws.integer(settings.num_classes)
    side = max(LEAST_SIDE, round(settings.image_size * draws.log_between(*settings.sides)))
    top, left = (int(draws.between(0, length) - side / 2) for length in shape)
    outline = _outline(side, draws)
    pixels = draw_image(settings.class_names[label], side, split, draws)
    rows = slice(max(top, 0), min(top + side, shape[0]))
    columns = slice(max(left, 0), min(left + side, shape[1]))
    cut = slice(rows.start - top, rows.stop - top), slice(columns.start - left, columns.stop - left)
    mask, canvas = np.zeros(shape, bool), np.zeros((*shape, 3), np.uint8)
    mask[rows, columns], canvas[rows, columns] = outline[cut], pixels[cut]
    return mask, canvas, label


def _outline(side: int, draws: Draws) -> np.ndarray:
    """A closed wavy shape, bool (side, side), that touches at least one pair of its square's borders."""
    axis = (np.arange(side) + 0.5) / side * 2 - 1
    aspect, turn = draws.log_between(*OBJECT_ASPECTS), draws.between(0, np.pi)
    x, y = np.meshgrid(axis, axis)
    x, y = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
    x, y = x * max(1.0, 1 / aspect), y * max(1.0, aspect)
    angle = np.arctan2(y, x)
    radius = np.ones_like(angle)
    for wave, most in OUTLINE_WAVES.items():
        amplitude, phase = draws.between(0, most), draws.between(0, 2 * np.pi)
        radius += amplitude * (np.cos(wave * angle + phase) - 1)
    return np.hypot(x, y) <= radius


def write_scenes(folder: str | Path, settings: Settings, progress: Callable[[range], Any] = iter) -> Path:
    """Write the set in COCO's and in ADE20K's layout; a set that is there already stays as it is.

    progress: wraps the numbers of a split's pictures, such as tqdm. Raises UserError when the folder holds
    scenes with other settings.
    """
    folder, stated = Path(folder), json.loads(json.dumps(asdict(settings)))
    note = folder / SETTINGS_FILE
    if note.is_file():
        if json.loads(note.read_text()) == stated:
            return folder
        raise UserError(f"{note}: holds scenes with other settings; delete {folder} or choose another folder")
    for split, count in (("train", settings.train_images), ("val", settings.val_images)):
        _write_split(folder, settings, split, progress(range(count)))
    _write_json(note, stated)
    return folder


def _write_split(folder: Path, settings: Settings, split: str, numbers: Any) -> None:
    coco, ade = _COCO_SPLITS[split], ADE_SPLITS[split]
    for part in (coco, f"images/{ade}", f"annotations/{ade}"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index in numbers:
        scene, stem = draw_scene(settings, split, index), f"{index + 1:012d}"
        for place in (coco, f"images/{ade}"):
            Image.fromarray(scene.image).save(folder / place / f"{stem}.jpg", quality=JPEG_QUALITY)
        Image.fromarray(scene.index_mask()).save(folder / "annotations" / ade / f"{stem}.png")
        height, width = scene.image.shape[:2]
        images.append({"id": index + 1, "file_name": f"{stem}.jpg", "height": height, "width": width})
        annotations += _annotations(settings, scene, index + 1, len(annotations) + 1)
    categories = [
        {"id": number, "name": name, "supercategory": "layout"}
        for number, name in zip(settings.category_ids, settings.class_names, strict=True)
    ]
    content = {"images": images, "annotations": annotations, "categories": categories}
    _write_json(folder / "annotations" / f"instances_{coco}.json", content)


def _annotations(settings: Settings, scene: Scene, image_id: int, first: int) -> list[dict[str, Any]]:
    return [
        {
            "id": first + number,
            "image_id": image_id,
            "category_id": settings.category_ids[label],
            "bbox": _box(mask),
            "area": int(mask.sum()),
            "segmentation": {"size": list(mask.shape), "counts": run_lengths(mask)},
            "iscrowd": 0,
        }
        for number, (mask, label) in enumerate(zip(scene.masks, scene.labels, strict=True))
    ]


def _box(mask: np.ndarray) -> list[int]:
    """[left, top, width, height] of a mask that is not empty."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return [int(n) for n in (columns[0], rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1)]


def run_lengths(mask: np.ndarray) -> list[int]:
    """COCO's uncompressed run lengths of a mask (H, W): column by column, zeros first."""
    flat = mask.flatten(order="F")
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    lengths = np.diff(np.concatenate([[0], edges, [flat.size]])).tolist()
    return [0, *lengths] if flat[0] else lengths


def _write_json(path: Path, content: Any) -> None:
    atomic_write(path, lambda part: part.write_text(json.dumps(content)))

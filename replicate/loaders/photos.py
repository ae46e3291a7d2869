"""The offline data set `photos`: real photographic texture, and a label that only the global layout reveals.

Each image combines two textures along a mask. The textures are cuts of photographs that scikit-image ships.
The mask's layout (bands, rings, a spiral, ...) is the class. Photographs, colours, and the mask's place and
period are random. So colour says nothing about the class, a patch shows at most an edge, and a network has to
relate distant patches. The set replaces natural images on a machine without a data set. It compares methods,
but its numbers do not compare with published ones.

An image is a function of (seed, split, index) in relative coordinates: at 64 and at 256 pixels it differs in
resolution only. Training and validation cut their textures from different parts of the photographs.
"""

import importlib.util
from collections.abc import Callable
from functools import cache
from pathlib import Path

import cv2
import numpy as np

from replicate.errors import UserError
from replicate.loaders import crops
from replicate.loaders.decode import decode_image

PHOTOGRAPHS = (
    "astronaut.png",
    "brick.png",
    "camera.png",
    "chelsea.png",
    "coffee.png",
    "coins.png",
    "grass.png",
    "gravel.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "moon.png",
    "motorcycle_left.png",
    "retina.jpg",
    "rocket.jpg",
)
# Training cuts from the left of each photograph, validation from the rest.
TRAIN_SHARE = 0.75

# Side of a texture's cut in pixels of the photograph: a wide cut gives fine grain, a narrow one single
# objects.
CUT_SIDES = (48, 200)
# These two set the difficulty: difference between the two textures' colours, and deviation within a texture,
# in grey levels, log-uniform. Measured with a ViT of 12 blocks and width 96 on 1,600 images of 64 pixels,
# batch 32. These values: 26 % from scratch after 200 steps, 51 % after 400, 53 % after 500; after 40 epochs
# of MAE on the same images 47 % and 63 % after 200 and 400. (60, 120) with (4, 14): 26, 57, 59 % from
# scratch, but the photographs hardly show. (40, 100) with (6, 20), more tilt and light, and overlaid patches:
# 21 % after 500.
COLOUR_STEP = (80.0, 140.0)
TEXTURE_CONTRAST = (8.0, 20.0)
# Direction of the colour step, uniform per channel. The first texture is mostly the brighter one. A more
# frequent majority helps a linear template of pixels: 27 % at (-.3, 1), 25 % here, of 12 classes.
TINT = (-0.5, 1.0)
# Periods of the layout across the image. Below 1.5, bands and blobs look alike; above 4, an 8-pixel patch
# averages them.
PERIODS = (1.5, 3.5)
# Tilt of the layout in radians and bend as a share of the image, so that no column of pixels is always an
# edge.
TILT = 0.1
BEND = 0.03
# Largest change of brightness from the middle to a border, in grey levels.
LIGHT = 5.0

DRAWS = 64
SPLITS = ("train", "val")
_STREAM = 11


class Draws:
    """A finite sequence of uniform random numbers of one image; each call takes the next."""

    def __init__(self, seed: int, split: str, index: int, stream: int = _STREAM) -> None:
        self._tape = iter(
            crops.uniforms(seed, SPLITS.index(split), stream, np.asarray(index), np.arange(DRAWS)).tolist()
        )

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * next(self._tape)

    def log_between(self, low: float, high: float) -> float:
        return float(np.exp(self.between(np.log(low), np.log(high))))

    def integer(self, count: int) -> int:
        return int(next(self._tape) * count)

    def sign(self) -> float:
        return 1.0 if next(self._tape) < 0.5 else -1.0


Layout = Callable[[np.ndarray, np.ndarray, Draws], np.ndarray]


def _wave(phase: np.ndarray, draws: Draws) -> np.ndarray:
    """Cosine of `phase`, which counts periods over the unit interval, with a random shift."""
    return np.cos(2 * np.pi * (phase * draws.between(*PERIODS) + draws.between(-0.5, 0.5)))


def _off_centre(
    x: np.ndarray, y: np.ndarray, draws: Draws, by: float = 0.15
) -> tuple[np.ndarray, np.ndarray]:
    return x + draws.between(-by, by), y + draws.between(-by, by)


def _horizontal(x: np.ndarray, y: np.ndarray, draws: Draws) -> np.ndarray:
    return _wave(y, draws)


def _vertical(x: np.ndarray, y: np.ndarray, draws: Draws) -> np.ndarray:
    return _wave(x, draws)


def _diagonal(x: np.ndarray, y: np.ndarray, draws: Draws) -> np.ndarray:
    """Either diagonal, because a flip must not change the class."""
    return _wave((x + draws.sign() * y) * 0.7071, draws)


def _checker(x: np.ndarray, y: np.ndarray, draws: Draws) -> np.ndarray:
    return _wave(x * 0.75, draws) * _wave(y * 0.75, draws)


def _rings(x: np.ndarray, y: np.ndarray, draws: Draws) -> np.ndarray:
    x, y = _off_centre(x, y, draws)
    return _wave(np.hypot(x, y) * 1.2, draws)


def _frames(x: np.ndarray, y: np.ndarray, draws: Draws) -> np.ndarray:
    x, y = _off_centre(x, y, draws)
    return _wave(np.maximum(np.abs(x), np.abs(y)) * 1.4, draws)


def _sectors(x: np.ndarray, y: np.ndarray, draws: Draws) -> np.ndarray:
    x, y = _off_centre(x, y, draws)
    return np.cos((3 + draws.integer(4)) * np.arctan2(y, x) + draws.between(-np.pi, np.pi))


def _spiral(x: np.ndarray, y: np.ndarray, draws: Draws) -> np.ndarray:
    x, y = _off_centre(x, y, draws)
    turn = draws.sign() * (1 + draws.integer(2)) * np.arctan2(y, x)
    return np.cos(2 * np.pi * np.hypot(x, y) * draws.between(*PERIODS) + turn + draws.between(-np.pi, np.pi))


def _dots(x: np.ndarray, y: np.ndarray, draws: Draws) -> np.ndarray:
    return _wave(x, draws) + _wave(y, draws) - 0.5


def _cross(x: np.ndarray, y: np.ndarray, draws: Draws) -> np.ndarray:
    # Further off than the other layouts: a template would recognise a bright bar that is always in the
    # middle.
    x, y = _off_centre(x, y, draws, by=0.25)
    return draws.between(0.08, 0.16) - np.minimum(np.abs(x), np.abs(y))


def _chevrons(x: np.ndarray, y: np.ndarray, draws: Draws) -> np.ndarray:
    teeth = np.abs((x * draws.between(1.5, 2.5) + draws.between(0, 1)) % 1.0 - 0.5)
    return _wave(y + teeth * draws.sign() * draws.between(0.45, 0.7), draws)


def _blobs(x: np.ndarray, y: np.ndarray, draws: Draws) -> np.ndarray:
    field = np.zeros_like(x)
    for _ in range(4):
        angle = draws.between(0, np.pi)
        field += _wave(x * np.cos(angle) + y * np.sin(angle), draws)
    return field - 0.3


LAYOUTS: dict[str, Layout] = {
    "horizontal": _horizontal,
    "vertical": _vertical,
    "diagonal": _diagonal,
    "checker": _checker,
    "rings": _rings,
    "frames": _frames,
    "sectors": _sectors,
    "spiral": _spiral,
    "dots": _dots,
    "cross": _cross,
    "chevrons": _chevrons,
    "blobs": _blobs,
}


@cache
def _photographs() -> list[np.ndarray]:
    """The photographs, uint8 (H, W, 3) RGB, from files of the scikit-image package. Downloads nothing."""
    spec = importlib.util.find_spec("skimage")
    if spec is None or not spec.submodule_search_locations:
        raise UserError("data source 'photos' needs scikit-image's photographs: pip install scikit-image")
    folder = Path(spec.submodule_search_locations[0]) / "data"
    missing = [name for name in PHOTOGRAPHS if not (folder / name).is_file()]
    if missing:
        advice = "install the wheel of scikit-image 0.26, which holds it"
        raise UserError(
            f"data source 'photos': {folder / missing[0]} is missing from this scikit-image; {advice}"
        )
    return [decode_image((folder / name).read_bytes(), name) for name in PHOTOGRAPHS]


def cut_texture(split: str, size: int, draws: Draws) -> np.ndarray:
    """A square cut of a random photograph, float32 (size, size, 3): zero mean per channel, unit deviation."""
    photographs = _photographs()
    photograph = photographs[draws.integer(len(photographs))]
    border = int(photograph.shape[1] * TRAIN_SHARE)
    region = photograph[:, :border] if split == "train" else photograph[:, border:]
    side = int(min(draws.log_between(*CUT_SIDES), *region.shape[:2]))
    top = draws.integer(region.shape[0] - side + 1)
    left = draws.integer(region.shape[1] - side + 1)
    cut = cv2.resize(region[top : top + side, left : left + side], (size, size), interpolation=cv2.INTER_AREA)
    turned = np.rot90(cut, draws.integer(4)).astype(np.float32)
    turned -= turned.mean((0, 1))
    return turned / max(float(turned.std()), 4.0)


def _coordinates(size: int, draws: Draws) -> tuple[np.ndarray, np.ndarray]:
    """Tilted and bent x and y in -.5..+.5, float32 (size, size) each."""
    axis = ((np.arange(size, dtype=np.float32) + 0.5) / size - 0.5)[None]
    tilt = draws.between(-TILT, TILT)
    x = np.cos(tilt) * axis + np.sin(tilt) * axis.T
    y = np.cos(tilt) * axis.T - np.sin(tilt) * axis
    bend_x, bend_y = (_bend(axis, draws) for _ in "xy")
    return (x + bend_x.T).astype(np.float32), (y + bend_y).astype(np.float32)


def _bend(axis: np.ndarray, draws: Draws) -> np.ndarray:
    strength = draws.between(-BEND, BEND)
    return strength * np.cos(2 * np.pi * (axis * draws.between(0.5, 1.5) + draws.between(0, 1)))


def draw_mask(layout: str, size: int, draws: Draws) -> np.ndarray:
    """Share of the first texture, float32 (size, size) in 0..1. Edges are one pixel wide."""
    field = LAYOUTS[layout](*_coordinates(size, draws), draws)
    slope = sum(np.abs(np.gradient(field, axis=axis)) for axis in (0, 1))
    slope = np.maximum(slope, 1e-3)
    return np.clip(field / slope + 0.5, 0, 1).astype(np.float32)


def draw_image(layout: str, size: int, split: str, draws: Draws) -> np.ndarray:
    """One picture, uint8 (size, size, 3) RGB."""
    mask = draw_mask(layout, size, draws)[..., None]
    tint = np.array([draws.between(*TINT) for _ in range(3)], np.float32)
    step = tint / max(float(np.linalg.norm(tint)), 0.3) * draws.log_between(*COLOUR_STEP)
    base = np.array([draws.between(90, 165) for _ in range(3)], np.float32)
    first, second = (cut_texture(split, size, draws) * draws.log_between(*TEXTURE_CONTRAST) for _ in range(2))
    image = base + mask * (first + step) + (1 - mask) * (second - step)
    axis = (np.arange(size, dtype=np.float32) / size - 0.5)[None]
    light = draws.between(-LIGHT, LIGHT) * axis + draws.between(-LIGHT, LIGHT) * axis.T
    image += light[..., None]
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


class PhotosSource:
    """`num_images` pictures of `split`, drawn by `read`. Classes alternate: any prefix is balanced."""

    def __init__(
        self, split: str, *, num_images: int, image_size: int, seed: int = 0, num_classes: int | None = None
    ) -> None:
        if split not in SPLITS:
            raise UserError(f"photos split: {split!r} is none of {', '.join(SPLITS)}")
        if not 1 <= (num_classes or 1) <= len(LAYOUTS):
            raise UserError(f"photos classes: {num_classes} must lie between 1 and {len(LAYOUTS)}")
        if image_size < 8:
            raise UserError(f"photos image_size: {image_size} must be at least 8 pixels")
        self.split, self.image_size, self.seed = split, image_size, seed
        self.class_names = list(LAYOUTS)[:num_classes]
        if num_images < len(self.class_names):
            least = f"at least the number of classes, {len(self.class_names)}"
            raise UserError(f"photos {split} images: {num_images} must be {least}")
        self.labels = np.arange(num_images, dtype=np.int64) % len(self.class_names)
        self.names = [f"{split}/{self.class_names[label]}/{i:06d}" for i, label in enumerate(self.labels)]

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> np.ndarray:
        """Picture number `index`, uint8 (image_size, image_size, 3) RGB."""
        draws = Draws(self.seed, self.split, index)
        return draw_image(self.class_names[self.labels[index]], self.image_size, self.split, draws)

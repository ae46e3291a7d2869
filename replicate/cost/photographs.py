"""Photographs that the loader benchmark writes and reads."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np

from replicate.loaders.sources import images_in
from replicate.loaders.writer import encode_jpeg

SCIKIT_IMAGE = ("astronaut", "coffee", "chelsea", "rocket", "immunohistochemistry")
SCIKIT_IMAGE_QUALITY = 95
"""scikit-image's photographs come as pixels."""


class Photographs:
    """The images below a folder, `repeat` times over, as a source for the writer; scikit-image's without a
    folder.

    Raises UserError for a folder that is missing or holds no image.
    """

    class_names = ("photograph",)

    def __init__(self, folder: Path | None, repeat: int = 1) -> None:
        self.files = _of_scikit_image() if folder is None else _below(folder)
        self.place = "scikit-image" if folder is None else folder.resolve().name
        self._repeat(repeat)

    def _repeat(self, times: int) -> None:
        self.names = [name for name, _ in self.files] * times
        self.labels = np.zeros(len(self.names), np.int64)

    def __len__(self) -> int:
        return len(self.names)

    def read(self, index: int) -> bytes:
        return self.files[index % len(self.files)][1]

    def repeated(self, least: int, jpegs: list[bytes]) -> Photographs:
        """The same images as other JPEGs, repeated in whole rounds until they are `least` or more."""
        longer = copy.copy(self)
        longer.files = [(name, jpeg) for (name, _), jpeg in zip(self.files, jpegs, strict=False)]
        longer._repeat(len(self) // len(self.files) * math.ceil(least / len(self)))
        return longer

    def unpack(self, folder: Path, read: Callable[[int], bytes]) -> Path:
        """Write an image folder of one class, each image as `read` gives it."""
        (folder / "photograph").mkdir(parents=True)
        for index, name in enumerate(self.names):
            (folder / "photograph" / f"{index:06d}{Path(name).suffix.lower()}").write_bytes(read(index))
        return folder


def _below(folder: Path) -> list[tuple[str, bytes]]:
    return [(str(path), path.read_bytes()) for path in images_in(folder)]


def _of_scikit_image() -> list[tuple[str, bytes]]:
    from skimage import data

    pixels = {name: np.ascontiguousarray(getattr(data, name)()) for name in SCIKIT_IMAGE}
    return [(f"{name}.jpg", encode_jpeg(image, SCIKIT_IMAGE_QUALITY)) for name, image in pixels.items()]

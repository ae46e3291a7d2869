"""The steps of DailyMAE's Table 13 on one .beton: read, decode, resize, and simple augmentation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import numpy as np

from replicate.loaders import crop_decode
from replicate.loaders.base import ahead, as_batch
from replicate.loaders.beton_format import JPG, read_tables
from replicate.loaders.crop_decode import Decoding
from replicate.loaders.crops import flips, random_resized_crop_boxes
from replicate.loaders.pixels import normalise

T = TypeVar("T")


class Steps:
    """Each method gives an epoch's batches, `threads` of them prepared at a time as in our loader."""

    def __init__(
        self, path: Path, size: int, threads: int, batch_size: int, scale: tuple[float, float]
    ) -> None:
        self.size, self.threads, self.batch_size = size, threads, batch_size
        self.tables = read_tables(path)
        self.bytes = np.memmap(path, np.uint8, mode="r")
        self.addresses = (self.tables.pointers + self.bytes.ctypes.data).astype(np.uint64)
        self.index = np.arange(len(self.tables))
        self.boxes = random_resized_crop_boxes(self.tables.sizes, self.index, seed=0, epoch=0, scale=scale)
        self.flips = flips(self.index, seed=0, epoch=0)

    @property
    def all_jpeg(self) -> bool:
        return bool((self.tables.modes == JPG).all())

    def jpegs(self) -> list[bytes]:
        return [bytes(self._jpeg(sample)) for sample in self.index]

    def read(self) -> Iterator[object]:
        return self._batches(lambda part: [self._jpeg(sample).max() for sample in part])

    def decode(self, decoding: Decoding) -> Iterator[object]:
        def one(sample: int) -> np.ndarray:
            box = (0, 0, *self.tables.sizes[sample]) if decoding.full else self.boxes[sample]
            return crop_decode.decode_crop(self._jpeg(sample), box, False, decoding)

        return self._batches(lambda part: [one(sample).shape for sample in part])

    def resize(self, decoding: Decoding) -> Iterator[np.ndarray]:
        return self._batches(lambda part: self._crops(part, np.zeros(len(part), bool), decoding))

    def simple(self, decoding: Decoding) -> Iterator[object]:
        """With flips, as normalised tensors; normalised here, where a training loop would do it."""
        for images in self._batches(lambda part: self._crops(part, self.flips[part], decoding)):
            index = np.arange(len(images))
            yield normalise(as_batch(images, index, index, planar=False).images)

    def _jpeg(self, sample: int) -> np.ndarray:
        start = self.tables.pointers[sample]
        return self.bytes[start : start + self.tables.lengths[sample]]

    def _crops(self, part: np.ndarray, mirrored: np.ndarray, decoding: Decoding) -> np.ndarray:
        jpegs = self.addresses[part], self.tables.lengths[part]
        return crop_decode.decode_batch(*jpegs, self.boxes[part], mirrored, self.size, decoding).images

    def _batches(self, work: Callable[[np.ndarray], T]) -> Iterator[T]:
        starts = range(0, len(self.index), self.batch_size)
        return ahead(work, [self.index[start : start + self.batch_size] for start in starts], self.threads)

"""Loader kind `beton`: our own reader of .beton files and a pool of threads. Needs neither ffcv nor a compiler."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from replicate.loaders import Batch
from replicate.loaders.base import BaseLoader, Epoch, ahead, as_batch
from replicate.loaders.reader import BetonReader


class BetonLoader(BaseLoader):
    """Each thread reads, crops, resizes and augments one whole batch at a time; Pillow and OpenCV release Python's lock
    meanwhile.
    """

    def __init__(self, path: Path, **options: Any) -> None:
        self.reader = BetonReader(path)
        super().__init__(path, self.reader.tables.labels, self.reader.class_names, self.reader.tables.sizes, **options)

    def _load(self, plan: Epoch, image_size: int, index: np.ndarray) -> Batch:
        images = np.empty((len(index), image_size, image_size, 3), np.uint8)
        for row, sample in enumerate(index):
            box, flip = plan.boxes[sample], bool(plan.flips[sample])
            images[row] = self.reader.crop(int(sample), box, flip, image_size, self.augmentation.interpolation)
        return as_batch(self.augment(images, index, plan.number), self.labels[index], index)

    def epoch(self, epoch: int) -> Iterator[Batch]:
        plan = self.plan(epoch)
        return ahead(partial(self._load, plan, self.image_size), plan.batches, self.workers)

    def close(self) -> None:
        self.reader.close()


def open_loader(path: Path, **options: Any) -> BetonLoader:
    return BetonLoader(path, **options)

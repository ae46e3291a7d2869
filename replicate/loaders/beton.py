"""Loader kind `beton`: our own reader of .beton files and a pool of threads, without ffcv or a compiler."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from replicate.errors import UserError
from replicate.loaders import Batch
from replicate.loaders.base import BaseLoader, Epoch, ahead, as_batch
from replicate.loaders.crop_decode import Decoding
from replicate.loaders.reader import BetonReader


class BetonLoader(BaseLoader):
    """Each thread reads, crops, resizes and augments a whole batch; the decoders release Python's lock."""

    def __init__(self, path: Path, *, decoding: Decoding | None = None, **options: Any) -> None:
        self.reader = BetonReader(path)
        tables = self.reader.tables
        super().__init__(path, tables.labels, self.reader.class_names, tables.sizes, **options)
        self.decoding = decoding or Decoding(interpolation=self.augmentation.interpolation)
        self._rebuild()

    def _rebuild(self) -> None:
        # Augmentations take (S, S, 3), networks (3, S, S).
        self.decoding = replace(self.decoding, planar=not self.augmentation.colours)

    def _load(self, plan: Epoch, image_size: int, index: np.ndarray) -> Batch:
        planar = self.decoding.planar
        shape = (3, image_size, image_size) if planar else (image_size, image_size, 3)
        images = np.empty((len(index), *shape), np.uint8)
        samples = enumerate(index.tolist())
        good = [row for row, sample in samples if self._decode(plan, sample, image_size, images[row])]
        if len(good) < len(index):
            images, index = images[good], index[good]
        return as_batch(self.augment(images, index, plan.number), self.labels[index], index, planar)

    def _decode(self, plan: Epoch, sample: int, image_size: int, out: np.ndarray) -> bool:
        """Write the sample's crop to `out`; False when the sample failed."""
        try:
            box, flip = plan.boxes[sample], bool(plan.flips[sample])
            self.reader.crop(sample, box, flip, image_size, self.decoding, out)
        except UserError as error:
            self.sample_failed(error)
            return False
        return True

    def _epoch(self, epoch: int) -> Iterator[Batch]:
        plan = self.plan(epoch)
        return ahead(partial(self._load, plan, self.image_size), plan.batches, self.workers)

    def close(self) -> None:
        self.reader.close()


def open_loader(path: Path, **options: Any) -> BetonLoader:
    return BetonLoader(path, **options)

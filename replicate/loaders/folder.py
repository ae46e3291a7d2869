"""Loader kind `folder`: image files through Pillow and torch's DataLoader, the baseline that everyone knows.

Opened on a folder, it serves its class folders. Opened on a .beton file, it serves the source files of its
samples, so that one parameter switches loaders. Pixels equal the .beton's where the writer kept a file's
bytes. Elsewhere they differ by what resizing and encoding lose, and crop boxes by rounding, because they
count the source image's pixels.

The source `photos` has no files. The .beton's own JPEGs stand for them, because drawing them would dominate
the time.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Dataset

from replicate.errors import UserError
from replicate.loaders import Batch
from replicate.loaders.base import BaseLoader, as_batch
from replicate.loaders.beton_format import JPG
from replicate.loaders.data import PHOTOS, open_sources
from replicate.loaders.decode import decode_image, resize_crop
from replicate.loaders.manifest import FILE_NAME, Manifest, read_samples
from replicate.loaders.photos import PhotosSource
from replicate.loaders.reader import BetonReader
from replicate.loaders.sources import FolderSource, Source, open_classes, source_folder

# Longest wait for a thread that feeds a worker's queue, after the epoch has ended.
_JOIN_SECONDS = 2.0


def source_behind(path: Path) -> Source:
    """The images of a folder of class folders, or the source images of a .beton file's samples.

    Raises UserError when a .beton file has no manifest or no table of samples.
    """
    if path.suffix != ".beton":
        return open_classes(path)
    manifest = Manifest.read(path.parent / FILE_NAME)
    if manifest.source["source"] == PHOTOS:
        train, val = open_sources(**manifest.source)
        return train if path.name == manifest.splits["train"]["file"] else val
    samples = [(row["name"], int(row["label"])) for row in read_samples(path)]
    if not samples:
        raise UserError(f"{path.with_suffix('.csv')}: missing; write the data set again")
    names, labels = zip(*samples, strict=True)
    return FolderSource(source_folder(manifest.source["source"]), manifest.class_names, names, labels)


class StoredSource:
    """The JPEGs of a .beton file, read as if each were a file."""

    def __init__(self, path: Path) -> None:
        self.reader = BetonReader(path)
        self.class_names, self.labels = self.reader.class_names, self.reader.tables.labels
        self.names = [
            f"{path}: sample {index} ({row['name']})" for index, row in enumerate(read_samples(path))
        ]

    def __len__(self) -> int:
        return len(self.reader)

    def read(self, index: int) -> bytes:
        return bytes(self.reader.read(index))

    def close(self) -> None:
        self.reader.close()


def served(path: Path) -> Source:
    """What the loader reads: `source_behind`, or a StoredSource, which the caller closes."""
    source = source_behind(path)
    if not isinstance(source, PhotosSource):
        return source
    stored = StoredSource(path)
    if (stored.reader.tables.modes == JPG).all():
        return stored
    stored.close()
    return source


class _Crops(Dataset):
    """One epoch's images of a source, cropped: item `index` -> uint8 (S, S, 3)."""

    def __init__(self, loader: "FolderLoader", epoch: int) -> None:
        self.loader, self.number, self.image_size = loader, epoch, loader.image_size

    def __getitem__(self, index: int) -> np.ndarray | UserError:
        try:
            return self._crop(index)
        except UserError as error:
            # Returned, not raised: torch would wrap it in the worker's traceback, and the consumer decides
            # what to do.
            return error

    def _crop(self, index: int) -> np.ndarray:
        source, one = self.loader.source, np.array([index])
        stored = source.read(index)
        pixels = decode_image(stored, source.names[index]) if isinstance(stored, bytes) else stored
        box = self.loader.boxes(one, np.array([pixels.shape[:2]]), self.number)[0]
        flip = bool(self.loader.flips(one, self.number)[0])
        crop = resize_crop(pixels, box, flip, self.image_size, self.loader.augmentation.interpolation)
        return self.loader.augment(np.ascontiguousarray(crop)[None], one, self.number)[0]


@contextmanager
def _running(images: DataLoader) -> Iterator[Iterator[list[np.ndarray | UserError]]]:
    """An iterator over `images` whose worker processes and threads end with the block, however it is left.

    Otherwise the iterator lives as long as an exception's traceback holds it, and its queues' threads even
    longer.
    """
    before = set(threading.enumerate())
    running = iter(images)
    try:
        yield running
    finally:
        feeders = [
            thread for thread in set(threading.enumerate()) - before if thread.name == "QueueFeederThread"
        ]
        try:
            if hasattr(running, "_shutdown_workers"):
                running._shutdown_workers()
        finally:
            # Torch closes the queues last, and not at all after an interruption. A feeder ends once its queue
            # is closed.
            for queue in getattr(running, "_index_queues", ()):
                queue.cancel_join_thread()
                queue.close()
            for thread in feeders:
                thread.join(_JOIN_SECONDS)


class FolderLoader(BaseLoader):
    """`workers` is DataLoader's num_workers; with one, the training process itself reads the images."""

    def __init__(self, path: Path, **options: Any) -> None:
        self.source = served(path)
        try:
            super().__init__(path, self.source.labels, self.source.class_names, None, **options)
        except BaseException:
            self.close()
            raise

    def _collate(self, index: np.ndarray, images: list[np.ndarray | UserError]) -> Batch:
        good = [position for position, image in enumerate(images) if not isinstance(image, UserError)]
        for image in images:
            if isinstance(image, UserError):
                self.sample_failed(image)
        empty = np.empty((0, self.image_size, self.image_size, 3), np.uint8)
        pixels = np.stack([images[position] for position in good]) if good else empty
        return as_batch(pixels, self.labels[index[good]], index[good], planar=False)

    def _epoch(self, epoch: int) -> Iterator[Batch]:
        batches = self.batches(epoch)
        options = {"num_workers": self.workers if self.workers > 1 else 0, "collate_fn": list}
        images = DataLoader(
            _Crops(self, epoch), batch_sampler=[batch.tolist() for batch in batches], **options
        )
        with _running(images) as running:
            for index, crops_of_batch in zip(batches, running, strict=True):
                yield self._collate(index, crops_of_batch)

    def close(self) -> None:
        """Close the .beton file, if it stands for the source files. Worker processes end with their epoch."""
        if isinstance(self.source, StoredSource):
            self.source.close()


def open_loader(path: Path, **options: Any) -> FolderLoader:
    return FolderLoader(path, **options)

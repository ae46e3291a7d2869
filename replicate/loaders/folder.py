"""Loader kind `folder`: image files through Pillow and torch's DataLoader, the baseline that everyone knows.

Opened on a .beton file, it serves the source images that the manifest says the file was made from, so that one parameter
switches loaders; opened on a folder, it serves its class folders. Pixels equal the .beton's where the writer kept the bytes;
where it resized or encoded again they differ by that loss, and boxes by rounding, since they are counted in pixels of the image
that is read.

The made-up photos have no files: their JPEGs in the .beton stand for them, since drawing each anew would time the drawing.
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
from replicate.loaders.data import open_sources
from replicate.loaders.decode import decode_image, resize_crop
from replicate.loaders.manifest import Manifest
from replicate.loaders.photos import PhotosSource
from replicate.loaders.reader import BetonReader
from replicate.loaders.sources import FolderSource, Source, class_folders, images_in

# How long an ended epoch waits for a thread that feeds a worker's queue.
_JOIN_SECONDS = 2.0


def source_behind(path: Path) -> Source:
    """The images of a folder of class folders, or those that the .beton file `path` was made from."""
    if path.suffix != ".beton":
        names = class_folders(path)
        return FolderSource(path, names, [images_in(path / name) for name in names])
    manifest = Manifest.read(path.parent / "manifest.json")
    train, val = open_sources(**manifest.source)
    return train if path.name == manifest.splits["train"]["file"] else val


class StoredSource:
    """The JPEGs of a .beton file, one by one, as if each were a file."""

    def __init__(self, path: Path) -> None:
        self.reader = BetonReader(path)
        self.class_names, self.labels = self.reader.class_names, self.reader.tables.labels
        self.names = [self.reader.name(index) for index in range(len(self.reader))]

    def __len__(self) -> int:
        return len(self.names)

    def read(self, index: int) -> bytes:
        return bytes(self.reader.read(index))

    def close(self) -> None:
        self.reader.close()


def served(path: Path) -> Source:
    """What the loader reads: the files behind `path`, or the .beton's own JPEGs where there are none. A StoredSource is the
    caller's to close.
    """
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
            # Returned, not raised: torch would wrap a worker's exception in its traceback, and the policy belongs to the consumer.
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
    """Its iterator, whose worker processes and threads have ended when the epoch is left, by whatever way.

    By itself the iterator lives for as long as an exception's traceback holds it, and the threads that feed its queues a moment
    longer.
    """
    before = set(threading.enumerate())
    running = iter(images)
    try:
        yield running
    finally:
        feeders = [thread for thread in set(threading.enumerate()) - before if thread.name == "QueueFeederThread"]
        try:
            if hasattr(running, "_shutdown_workers"):
                running._shutdown_workers()
        finally:
            # Torch does this last, and not at all where it was interrupted: a feeder ends once its queue is closed.
            for queue in getattr(running, "_index_queues", ()):
                queue.cancel_join_thread()
                queue.close()
            for thread in feeders:
                thread.join(_JOIN_SECONDS)


class FolderLoader(BaseLoader):
    """`workers` processes as DataLoader's num_workers; with one, the images are read in the training process."""

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

    def epoch(self, epoch: int) -> Iterator[Batch]:
        batches = self.batches(epoch)
        workers = self.workers if self.workers > 1 else 0
        images = DataLoader(_Crops(self, epoch), batch_sampler=[batch.tolist() for batch in batches], num_workers=workers, collate_fn=list)
        with _running(images) as running:
            for index, crops_of_batch in zip(batches, running, strict=True):
                yield self._collate(index, crops_of_batch)

    def close(self) -> None:
        """Worker processes end with their epoch; what is left is the .beton, where it stands for the files."""
        if isinstance(self.source, StoredSource):
            self.source.close()


def open_loader(path: Path, **options: Any) -> FolderLoader:
    return FolderLoader(path, **options)

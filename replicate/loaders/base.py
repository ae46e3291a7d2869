"""What all kinds of loader share: samples, boxes and flips of an epoch, stages, and worker threads."""

import os
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import torch

from replicate.errors import UserError
from replicate.loaders import crops
from replicate.loaders.batch import UNCHANGED, Augmentation, Batch
from replicate.loaders.beton_format import FileCutError

S, T = TypeVar("S"), TypeVar("T")
ON_ERROR = ("raise", "skip")
# Samples whose boxes are computed at a time. All of ImageNet's at once would take gigabytes of random
# numbers.
_CHUNK = 1 << 16


class Epoch(NamedTuple):
    """One epoch: sample numbers of this rank's batches; boxes (N, 4) and flips (N,) of the whole data set."""

    number: int
    batches: list[np.ndarray]
    boxes: np.ndarray
    flips: np.ndarray


def as_batch(images: np.ndarray, labels: np.ndarray, index: np.ndarray, planar: bool) -> Batch:
    """images uint8 (n, 3, S, S) if planar, else (n, S, S, 3) -> a Batch with (n, 3, S, S)."""
    pixels = torch.from_numpy(images if planar else np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
    return Batch(pixels, torch.from_numpy(labels.astype(np.int64)), torch.from_numpy(index.astype(np.int64)))


def ahead(work: Callable[[S], T], items: Iterable[S], workers: int) -> Iterator[T]:
    """Yield work(item) for every item, in order. Each of `workers` threads works on one item at a time.

    Raises an exception of `work` in place of its result. Closing the iterator waits for running items and
    ends the threads.
    """
    pool = ThreadPoolExecutor(workers, thread_name_prefix="loader")
    pending: deque[Future[T]] = deque()
    try:
        for item in items:
            pending.append(pool.submit(work, item))
            if len(pending) > workers:
                yield _first(pending)
        while pending:
            yield _first(pending)
    finally:
        _end(pool, pending)


def _first(pending: deque[Future[T]]) -> T:
    """The first future's result. It stays in the queue meanwhile, so that an interruption can cancel it."""
    wait([pending[0]])
    return pending.popleft().result()


def _end(pool: ThreadPoolExecutor, pending: Iterable[Future]) -> None:
    """Cancel what has not started and wait for the rest."""

    def stop() -> None:
        # One by one: an interrupted `shutdown` may have taken a future from the pool's queue, and nobody
        # would finish it.
        in_work = [future for future in pending if not future.cancel()]
        pool.shutdown(wait=False)
        wait(in_work)

    despite_ctrl_c(stop)
    pool.shutdown(wait=True)


def despite_ctrl_c(wait_for_work: Callable[[], object]) -> None:
    """Call `wait_for_work`, and again after a Ctrl-C before raising it. A second Ctrl-C ends the wait.

    `wait_for_work` must not join threads: Python considers a thread ended when its join was interrupted.
    """
    try:
        wait_for_work()
    except KeyboardInterrupt:
        wait_for_work()
        raise


class BaseLoader(ABC):
    """What every kind of loader offers; `open_loader` documents the options. Subclasses read the images.

    `sizes` (N, 2) holds the images' heights and widths, or is None if they are unknown before reading.
    """

    def __init__(
        self,
        path: Path,
        labels: np.ndarray,
        class_names: list[str],
        sizes: np.ndarray | None,
        *,
        batch_size: int,
        image_size: int,
        augmentation: Augmentation,
        seed: int,
        train: bool,
        workers: int,
        rank: int,
        world_size: int,
        drop_last: bool,
        on_error: str = "raise",
        per_class: int | None = None,
        subset_seed: int = 0,
    ) -> None:
        if on_error not in ON_ERROR:
            raise UserError(f"on_error: {on_error!r} is none of {', '.join(ON_ERROR)}")
        if not 0 <= rank < world_size:
            raise UserError(f"rank: {rank} must lie between 0 and world_size - 1 = {world_size - 1}")
        self.path, self.labels, self.class_names, self.sizes = path, labels, class_names, sizes
        everyone = np.arange(len(labels))
        some = per_class is not None
        self.members = crops.first_of_each_class(labels, per_class, seed=subset_seed) if some else everyone
        self.num_images, self.num_classes = len(self.members), len(class_names)
        self.batch_size, self.augmentation, self.seed, self.train = batch_size, augmentation, seed, train
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
        self.workers = workers if workers > 0 else cores
        self.rank, self.world_size, self.drop_last = rank, world_size, drop_last
        self.on_error, self.num_skipped = on_error, 0
        self._last_failure: UserError | None = None
        self._refuse_too_large(batch_size)
        self.set_stage(image_size=image_size)
        self.num_batches = len(self.batches(0))

    def set_stage(
        self,
        image_size: int | None = None,
        scale: tuple[float, float] | None = None,
        batch_size: int | None = None,
        auto: str | None = UNCHANGED,
    ) -> None:
        """Change output side (pixels), crop scale, batch size or `auto` augmentation from the next epoch on.

        None keeps a setting. For `auto`, None means no augmentation, and leaving it out keeps it.
        """
        if image_size is not None:
            if image_size < 1:
                raise UserError(f"image_size: {image_size} must be at least 1 pixel")
            self.image_size = image_size
        if scale is not None:
            self.augmentation = replace(self.augmentation, scale=tuple(scale))
        if auto is not UNCHANGED and auto != self.augmentation.auto:
            self.augmentation = replace(self.augmentation, auto=auto)
            self._rebuild()
        if batch_size is not None and batch_size != self.batch_size:
            self._refuse_too_large(batch_size)
            self.batch_size = batch_size
            self.num_batches = len(self.batches(0))
            self._rebuild()

    def _rebuild(self) -> None:  # noqa: B027  (optional to override)
        """Rebuild what depends on batch size or augmentation."""

    def _refuse_too_large(self, batch_size: int) -> None:
        if batch_size < 1:
            raise UserError(f"batch_size: {batch_size} must be at least 1")
        if self.train and self.drop_last and batch_size * self.world_size > self.num_images:
            total = f"{batch_size} x {self.world_size} ranks" if self.world_size > 1 else f"{batch_size}"
            fewer = f"holds {self.num_images} images, fewer than one batch of {total}"
            raise UserError(f"{self.path}: {fewer}; use a smaller batch_size")

    def batches(self, epoch: int) -> list[np.ndarray]:
        """Sample numbers of this rank's batches in `epoch`."""
        share = {"rank": self.rank, "world_size": self.world_size}
        if not self.train:
            batches = crops.evaluation_batches(self.num_images, self.batch_size, **share)
            return [self.members[batch] for batch in batches]
        order = self.members[crops.epoch_order(self.num_images, seed=self.seed, epoch=epoch)]
        return crops.training_batches(order, self.batch_size, drop_last=self.drop_last, **share)

    def boxes(self, index: np.ndarray, sizes: np.ndarray, epoch: int) -> np.ndarray:
        """Boxes (n, 4) of the samples numbered `index` (n,), whose heights and widths are `sizes` (n, 2)."""
        crop, key = self.augmentation.crop, {"seed": self.seed, "epoch": epoch}
        if crop == "random_resized":
            limits = {"scale": self.augmentation.scale, "ratio": self.augmentation.ratio}
            return crops.random_resized_crop_boxes(sizes, index, **key, **limits)
        if crop == "fixed":
            return crops.fixed_size_boxes(sizes, index, **key)
        return crops.center_boxes(sizes) if crop == "center" else crops.whole_boxes(sizes)

    def flips(self, index: np.ndarray, epoch: int) -> np.ndarray:
        """Flips (n,) bool of the samples numbered `index`; all False when the augmentation has no flip."""
        if not self.augmentation.flip:
            return np.zeros(len(index), bool)
        return crops.flips(index, seed=self.seed, epoch=epoch)

    def plan(self, epoch: int) -> Epoch:
        """All random choices of `epoch`, made before its first image is read."""
        boxes, flips = np.zeros((len(self.labels), 4), np.int32), np.zeros(len(self.labels), bool)
        for start in range(0, self.num_images, _CHUNK):
            chunk = self.members[start : start + _CHUNK]
            boxes[chunk] = self.boxes(chunk, self.sizes[chunk], epoch)
        flips[self.members] = self.flips(self.members, epoch)
        return Epoch(epoch, self.batches(epoch), boxes, flips)

    def augment(self, images: np.ndarray, index: np.ndarray, epoch: int) -> np.ndarray:
        """Augment the colours of uint8 (n, S, S, 3), possibly in place. Keyed by sample, like the crops."""
        if not self.augmentation.colours:
            return images
        from replicate.loaders.augment import augment_batch

        return augment_batch(images, index, self.augmentation, seed=self.seed, epoch=epoch)

    def sample_failed(self, error: UserError) -> None:
        """Handle a damaged image by `on_error`: raise, or count it in `num_skipped` and leave it out."""
        if isinstance(error, FileCutError):
            raise error
        if self.on_error == "raise":
            advice = "`on_error: skip` in the data set's settings leaves out such images in every run"
            raise UserError(f"{error}; {advice}") from error
        self.num_skipped += 1
        self._last_failure = error

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """Batches of `epoch`; the same ones whenever it is called with the same number.

        A batch whose images are all damaged is empty in training, so that all ranks take the same number of
        steps. In evaluation it is left out. Raises UserError after an epoch in which this rank could not read
        any image.
        """
        return self._readable(self._epoch(epoch))

    def _readable(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        planned = served = 0
        with closing(batches):
            for batch in batches:
                planned, served = planned + 1, served + len(batch.index)
                if len(batch.index) or self.train:
                    yield batch
        if planned and not served:
            raise UserError(f"{self.path}: no image can be read; for example {self._last_failure}")

    @abstractmethod
    def _epoch(self, epoch: int) -> Iterator[Batch]:
        """Batches of `epoch` without the images that `sample_failed` leaves out; some may be empty."""

    @abstractmethod
    def close(self) -> None:
        """Close files and end threads."""

    def __enter__(self) -> "BaseLoader":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

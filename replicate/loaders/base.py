"""What all kinds of loader share: which samples, boxes and flips make up an epoch, stages, and the bounded look-ahead of worker
threads.
"""

import os
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import torch

from replicate.errors import UserError
from replicate.loaders import UNCHANGED, Augmentation, Batch, crops
from replicate.loaders.beton_format import FileCutError

S, T = TypeVar("S"), TypeVar("T")
ON_ERROR = ("raise", "skip")
# Boxes are computed for this many samples at a time: ImageNet's 1.28 million at once would take some gigabytes of random numbers.
_CHUNK = 1 << 16


class Epoch(NamedTuple):
    """One epoch of this rank: sample numbers of each batch, and boxes (N, 4) and flips (N,) of every sample in the data set."""

    number: int
    batches: list[np.ndarray]
    boxes: np.ndarray
    flips: np.ndarray


def boxes_for(sizes: np.ndarray, index: np.ndarray, augmentation: Augmentation, *, seed: int, epoch: int) -> np.ndarray:
    """Boxes (n, 4) of the samples numbered `index` (n,), whose height and width are `sizes` (n, 2)."""
    if augmentation.crop == "random_resized":
        scale, ratio = augmentation.scale, augmentation.ratio
        return crops.random_resized_crop_boxes(sizes, index, seed=seed, epoch=epoch, scale=scale, ratio=ratio)
    if augmentation.crop == "fixed":
        return crops.fixed_size_boxes(sizes, index, seed=seed, epoch=epoch)
    return crops.center_boxes(sizes) if augmentation.crop == "center" else crops.whole_boxes(sizes)


def flips_for(index: np.ndarray, augmentation: Augmentation, *, seed: int, epoch: int) -> np.ndarray:
    """(n,) bool for the samples numbered `index`; all False where the augmentation has no flip."""
    return crops.flips(index, seed=seed, epoch=epoch) if augmentation.flip else np.zeros(len(index), bool)


def as_batch(images: np.ndarray, labels: np.ndarray, index: np.ndarray, planar: bool) -> Batch:
    """images uint8 (n, 3, S, S) if planar, else (n, S, S, 3) -> a Batch in the network's order of axes."""
    pixels = torch.from_numpy(images if planar else np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
    return Batch(pixels, torch.from_numpy(labels.astype(np.int64)), torch.from_numpy(index.astype(np.int64)))


def ahead(work: Callable[[S], T], items: Iterable[S], workers: int) -> Iterator[T]:
    """work(item) for every item, in order, by `workers` threads, one item in the making for each.

    An exception of `work` surfaces here at its item; leaving early waits for the items in work and leaves no thread behind.
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
    """The first one's result. It leaves the queue only then: who is interrupted while waiting must still know what is in work."""
    wait([pending[0]])
    return pending.popleft().result()


def _end(pool: ThreadPoolExecutor, pending: Iterable[Future]) -> None:
    """Cancels what has not begun and waits for the rest."""

    def stop() -> None:
        # Cancelled one by one: an interrupted shutdown may have taken one from the pool's queue that nobody would ever finish.
        in_work = [future for future in pending if not future.cancel()]
        pool.shutdown(wait=False)
        wait(in_work)

    despite_ctrl_c(stop)
    pool.shutdown(wait=True)


def despite_ctrl_c(wait_for_work: Callable[[], object]) -> None:
    """Waits, and where Ctrl-C comes meanwhile waits again before that is raised; only a second one leaves work undone.

    What waits must not join threads: Python counts a thread as ended whose join was interrupted.
    """
    try:
        wait_for_work()
    except KeyboardInterrupt:
        wait_for_work()
        raise


class BaseLoader(ABC):
    """See `replicate.loaders.Loader`. Subclasses know how to read; `sizes` (N, 2) is None where only reading tells."""

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
    ) -> None:
        if on_error not in ON_ERROR:
            raise UserError(f"on_error: {on_error!r} is none of {', '.join(ON_ERROR)}")
        if not 0 <= rank < world_size:
            raise UserError(f"rank: {rank} must lie between 0 and world_size - 1 = {world_size - 1}")
        self.path, self.labels, self.class_names, self.sizes = path, labels, class_names, sizes
        self.num_images, self.num_classes = len(labels), len(class_names)
        self.batch_size, self.augmentation, self.seed, self.train = batch_size, augmentation, seed, train
        self.workers = workers if workers > 0 else len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
        self.rank, self.world_size, self.drop_last = rank, world_size, drop_last
        self.on_error, self.num_skipped = on_error, 0
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
        """Output side in pixels, crop scale, batch and automatic augmentation from the next epoch on.

        None, or a value not given, leaves one as it is, but for `auto`: None is no augmentation.
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

    def _rebuild(self) -> None:  # noqa: B027  (a hook, not a duty)
        """Renew what was made for another batch or augmentation, in kinds that make something."""

    def _refuse_too_large(self, batch_size: int) -> None:
        if batch_size < 1:
            raise UserError(f"batch_size: {batch_size} must be at least 1")
        if self.train and self.drop_last and batch_size * self.world_size > self.num_images:
            total = f"{batch_size} x {self.world_size} ranks" if self.world_size > 1 else f"{batch_size}"
            raise UserError(f"{self.path}: holds {self.num_images} images, fewer than one batch of {total}; use a smaller batch_size")

    def batches(self, epoch: int) -> list[np.ndarray]:
        """Sample numbers of this rank's batches in `epoch`."""
        share = {"rank": self.rank, "world_size": self.world_size}
        if not self.train:
            return crops.evaluation_batches(self.num_images, self.batch_size, **share)
        order = crops.epoch_order(self.num_images, seed=self.seed, epoch=epoch)
        return crops.training_batches(order, self.batch_size, drop_last=self.drop_last, **share)

    def boxes(self, index: np.ndarray, sizes: np.ndarray, epoch: int) -> np.ndarray:
        return boxes_for(sizes, index, self.augmentation, seed=self.seed, epoch=epoch)

    def flips(self, index: np.ndarray, epoch: int) -> np.ndarray:
        return flips_for(index, self.augmentation, seed=self.seed, epoch=epoch)

    def plan(self, epoch: int) -> Epoch:
        """Everything that is random about `epoch`, settled before its first image is read."""
        everyone = np.arange(self.num_images)
        chunks = [everyone[start : start + _CHUNK] for start in range(0, self.num_images, _CHUNK)]
        boxes = np.concatenate([self.boxes(chunk, self.sizes[chunk], epoch) for chunk in chunks])
        return Epoch(epoch, self.batches(epoch), boxes, self.flips(everyone, epoch))

    def augment(self, images: np.ndarray, index: np.ndarray, epoch: int) -> np.ndarray:
        """Colour augmentation of uint8 (n, S, S, 3), in place where there is any; keyed by sample, like the crops."""
        if not self.augmentation.colours:
            return images
        from replicate.loaders.augment import augment_batch

        return augment_batch(images, index, self.augmentation, seed=self.seed, epoch=epoch)

    def sample_failed(self, error: UserError) -> None:
        """The error policy for one damaged image: raise, or count it in `num_skipped` and leave it out of its batch."""
        if isinstance(error, FileCutError):
            raise error
        if self.on_error == "raise":
            raise UserError(f"{error}; `on_error: skip` in the data set's settings leaves such images out of training and evaluation") from error
        self.num_skipped += 1

    @abstractmethod
    def epoch(self, epoch: int) -> Iterator[Batch]:
        """Batches of `epoch`, the same ones whenever it is called with the same number."""

    @abstractmethod
    def close(self) -> None:
        """Frees files and threads."""

    def __enter__(self) -> "BaseLoader":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

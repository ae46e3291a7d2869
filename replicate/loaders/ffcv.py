"""Loader kind `ffcv`: FFCV's pipeline with our own decoder.

Stock FFCV draws crops from per-thread generators, fixes the crop scale when it compiles, hangs when its
thread fails, returns garbage for a damaged image, and sets torch's thread count for the whole process. Here:

- Boxes, flips and file positions are in one table by sample number. Compiled code reads it by address, so
  nothing is compiled again between epochs.
- Compiled code writes each sample's status into that table. The loader then raises, or skips and counts, and
  names the sample.
- The thread that runs the pipeline passes its exception on, ends when the consumer leaves, and is joined.
- Batches are copied out of FFCV's ring of buffers.
- Images are read from the file instead of FFCV's memory map. If somebody cuts the file, that is an error and
  not a SIGBUS.

One gap is left. Without the package `crop_decode` (`FullDecoder`), FFCV's decoder reads the map. A file that
is cut after the check of its size before a batch, and before the end of that batch, still ends the process
with SIGBUS.
"""

import queue
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numba
import numpy as np
import torch
from numba.extending import intrinsic

from replicate.errors import UserError
from replicate.loaders import Batch, beton_format, crop_decode
from replicate.loaders.base import BaseLoader, Epoch, ahead, as_batch, despite_ctrl_c
from replicate.loaders.beton_format import FileCutError
from replicate.loaders.crop_decode import Decoding
from replicate.loaders.reader import BetonReader


@contextmanager
def _torch_threads_kept() -> Iterator[None]:
    """Restore torch's thread count, which FFCV sets at import and with each Loader."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


with _torch_threads_kept(), warnings.catch_warnings():
    warnings.simplefilter("ignore")
    # Two loaders at once abort numba's layer "workqueue"; "safe" layers allow them.
    numba.config.THREADING_LAYER = "safe"
    import ffcv.loader.loader as ffcv_loader
    from ffcv.fields.rgb_image import SimpleRGBImageDecoder
    from ffcv.libffcv import imdecode, resize_crop
    from ffcv.loader.epoch_iterator import EpochIterator
    from ffcv.memory_managers import OSCacheManager
    from ffcv.pipeline.allocation_query import AllocationQuery
    from ffcv.pipeline.compiler import Compiler

BATCHES_AHEAD = 2
# Seconds that a consumer waits before it checks whether the pipeline's thread is alive.
_POLL_SECONDS = 0.2

TOP, LEFT, HEIGHT, WIDTH, FLIP, POINTER, LENGTH, MODE, ROWS, COLUMNS, SEEK, SEEK_LENGTH, STATUS = range(13)
_FIELDS = 13
_RAW = beton_format.RAW
_FILE = crop_decode.STATUS.index("file")


class SampleTable:
    """int64 (N, 13): for each sample what compiled code needs to decode it, and the status that it writes."""

    def __init__(self, reader: BetonReader) -> None:
        tables = reader.tables
        self.rows = np.zeros((len(tables), _FIELDS), np.int64)
        self.rows[:, POINTER], self.rows[:, LENGTH] = tables.pointers, tables.lengths
        self.rows[:, MODE] = tables.modes
        self.rows[:, ROWS : COLUMNS + 1] = tables.sizes
        self.file, self.seek_file = reader.file, -1
        if reader.seek is not None:
            self.seek_file = reader.seek.file
            self.rows[:, SEEK], self.rows[:, SEEK_LENGTH] = reader.seek.offsets, reader.seek.lengths

    @property
    def address(self) -> int:
        return self.rows.ctypes.data

    def set_epoch(self, plan: Epoch) -> None:
        self.rows[:, TOP : WIDTH + 1] = plan.boxes
        self.rows[:, FLIP] = plan.flips
        self.rows[:, STATUS] = 0


class _FileMap(OSCacheManager):
    """FFCV's memory map without its compiled lookup, which our decoders do not need.

    Compiling the lookup also makes numba treat all one-dimensional byte arrays of the process as read-only.
    """

    def compile_reader(self) -> None:
        return None


@contextmanager
def _own_file_map() -> Iterator[None]:
    before = ffcv_loader.OSCacheManager
    ffcv_loader.OSCacheManager = _FileMap
    try:
        yield
    finally:
        ffcv_loader.OSCacheManager = before


def _compile(code: Callable[..., None], parallel: bool) -> Callable[..., None]:
    return numba.njit(nogil=True, error_model="numpy", parallel=parallel)(code)


@intrinsic
def _int64_pointer(typing_context, address):
    # A view of bytes would not do: a stock FFCV pipeline in the process makes numba's byte arrays read-only.
    def cast(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return numba.types.CPointer(numba.types.int64)(numba.types.uintp), cast


@numba.njit(nogil=True)
def _rows_at(address: int, count: int) -> np.ndarray:
    return numba.carray(_int64_pointer(address), (count, _FIELDS))


@cache
def _crop_decode_batch(parallel: bool) -> Callable[..., None]:
    """Decode the crops of a batch by C code into FFCV's buffer. Compiled once a process."""
    decode_jpeg = crop_decode.function("crop_decode_resize_stored")
    resize = crop_decode.function("crop_decode_resize_stored_pixels")

    def decode(indices, destination, file, seeks, address, count, size, flags):
        rows = _rows_at(address, count)
        for i in numba.prange(len(indices)):
            row = rows[indices[i]]
            start, length, target = row[POINTER], row[LENGTH], destination[i].ctypes.data
            top, left, height, width, flip = row[TOP], row[LEFT], row[HEIGHT], row[WIDTH], row[FLIP]
            if row[MODE] == _RAW:
                columns = row[COLUMNS]
                status = resize(file, start, columns, target, size, top, left, height, width, flip, flags)
            else:
                seek, n = row[SEEK], row[SEEK_LENGTH]
                status = decode_jpeg(
                    file, start, length, seeks, seek, n, target, size, top, left, height, width, flip, flags
                )
            row[STATUS] = status

    return _compile(decode, parallel)


@cache
def _full_decode_batch(parallel: bool) -> Callable[..., None]:
    """Decode whole images by FFCV's own functions, without `crop_decode`. Compiled once a process."""
    decode_jpeg, resize = numba.njit(nogil=True)(imdecode), numba.njit(nogil=True)(resize_crop)

    def decode(indices, destination, scratch, data, address, count):
        rows = _rows_at(address, count)
        for i in numba.prange(len(indices)):
            row = rows[indices[i]]
            height, width = row[ROWS], row[COLUMNS]
            source = data[row[POINTER] : row[POINTER] + row[LENGTH]]
            pixels = source
            if row[MODE] != _RAW:
                pixels = scratch[i][: 3 * height * width]
                h, w = np.uint32(height), np.uint32(width)
                row[STATUS] = decode_jpeg(source, pixels, h, w, h, w, 0, 0, 1, 1, False, False)
            image = pixels.reshape(height, width, 3)
            resize(image, row[TOP], row[TOP] + row[HEIGHT], row[LEFT], row[LEFT] + row[WIDTH], destination[i])
            if row[FLIP]:
                for y in range(destination.shape[1]):
                    destination[i, y] = destination[i, y, ::-1].copy()

    return _compile(decode, parallel)


class CropDecoder(SimpleRGBImageDecoder):
    """Decodes only the box of each sample. `output_size` may change between epochs, `decoding` may not."""

    def __init__(self, table: SampleTable, output_size: int, decoding: Decoding) -> None:
        super().__init__()
        self.table, self.output_size, self.decoding = table, output_size, decoding

    @property
    def shape(self) -> tuple[int, int, int]:
        size = self.output_size
        return (3, size, size) if self.decoding.planar else (size, size, 3)

    def declare_state_and_memory(self, previous_state: Any) -> tuple[Any, AllocationQuery]:
        state = replace(previous_state, jit_mode=True, shape=self.shape, dtype=np.dtype("u1"))
        return state, AllocationQuery(self.shape, np.dtype("u1"))

    def generate_code(self) -> Callable[..., np.ndarray]:
        run = _crop_decode_batch(Compiler.num_threads > 1)
        address, count, flags = self.table.address, len(self.table.rows), self.decoding.flags
        file, seek_file = self.table.file, self.table.seek_file

        def decode(batch_indices, destination, metadata, storage_state):
            # Outputs are square, so the third axis is the side in both layouts.
            run(batch_indices, destination, file, seek_file, address, count, destination.shape[2], flags)
            return destination[: len(batch_indices)]

        return decode


class FullDecoder(CropDecoder):
    """FFCV's full decode, crop and resize, with the fast DCT and area interpolation."""

    def declare_state_and_memory(self, previous_state: Any) -> tuple[Any, tuple[AllocationQuery, ...]]:
        state, output = super().declare_state_and_memory(previous_state)
        largest = int(self.table.rows[:, ROWS].max() * self.table.rows[:, COLUMNS].max()) * 3
        return state, (output, AllocationQuery((largest,), np.dtype("u1")))

    def generate_code(self) -> Callable[..., np.ndarray]:
        run = _full_decode_batch(Compiler.num_threads > 1)
        address, count = self.table.address, len(self.table.rows)

        def decode(batch_indices, memory, metadata, storage_state):
            destination, scratch = memory
            run(batch_indices, destination, scratch, storage_state[0], address, count)
            return destination[: len(batch_indices)]

        return decode


class _WatchedEpoch(EpochIterator):
    """FFCV's epoch thread, but it passes its failure to the consumer, and ends when the consumer leaves.

    FFCV's own thread waits until somebody takes its batches. When it fails, its consumer waits forever.
    """

    error: BaseException | None = None

    def __init__(self, loader: ffcv_loader.Loader, order: np.ndarray, reader: BetonReader) -> None:
        self.reader, self.work_done = reader, threading.Event()
        super().__init__(loader, order)

    def run(self) -> None:
        try:
            self._put_batches()
        except BaseException as error:
            self.error = error
        finally:
            self.work_done.set()
        self._put(None)

    def _put_batches(self) -> None:
        numba.set_num_threads(self.loader.num_workers)
        for number, indices in enumerate(self.iter_ixes):
            self.reader.check_unchanged()
            slot = number % (self.loader.batches_ahead + 2)
            images = self.run_pipeline(number, indices, slot, None)[0]
            if not self._put((indices, images)):
                return

    def _put(self, item: object) -> bool:
        """Wait for room in the queue. False when the consumer has left."""
        while not self.terminate_event.is_set():
            try:
                self.output_queue.put(item, timeout=_POLL_SECONDS)
                return True
            except queue.Full:
                continue
        return False

    def _next(self) -> tuple[np.ndarray, np.ndarray] | None:
        """The next item of the thread; None at the end."""
        while True:
            try:
                return self.output_queue.get(timeout=_POLL_SECONDS)
            except queue.Empty:
                if self.is_alive():
                    continue
            # Between the two checks the thread may have put its last batches and ended.
            with suppress(queue.Empty):
                return self.output_queue.get_nowait()
            return None

    def results(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(sample numbers, images) of each batch. The images are a view, valid until the next batch."""
        served = 0
        while (item := self._next()) is not None:
            served += len(item[0])
            yield item
        if self.terminate_event.is_set():
            raise RuntimeError("this epoch ended because another one of the same loader began")
        if self.error is not None:
            raise self.error
        if served < len(self.order):
            progress = f"{served} of the epoch's {len(self.order)} images"
            raise RuntimeError(f"{self.reader.path}: the pipeline's thread ended after {progress}")

    def close(self) -> None:
        super().close()
        if self.is_alive():
            despite_ctrl_c(self.work_done.wait)
            self.join()


class FfcvLoader(BaseLoader):
    """FFCV's Loader with the interface of all loaders. `workers` is its number of threads."""

    def __init__(self, path: Path, *, decoding: Decoding | None = None, **options: Any) -> None:
        self.reader = BetonReader(path)
        tables = self.reader.tables
        super().__init__(path, tables.labels, self.reader.class_names, tables.sizes, **options)
        self.table = SampleTable(self.reader)
        self._decoding = decoding
        self._running: _WatchedEpoch | None = None
        self._rebuild()

    def _rebuild(self) -> None:
        self.decoder = self._decoder(self._decoding)
        self.pipeline = self._build()

    def _decoder(self, decoding: Decoding | None) -> CropDecoder:
        interpolation = self.augmentation.interpolation
        if crop_decode.available():
            decoding = decoding or Decoding(interpolation=interpolation)
            # Augmentations take (S, S, 3), networks (3, S, S).
            chosen = replace(decoding, planar=not self.augmentation.colours)
            return CropDecoder(self.table, self.image_size, chosen)
        if interpolation != "area" or decoding is not None:
            only = "only area interpolation and FFCV's own decoder without the C library"
            raise UserError(f"loader ffcv: {only}; use loader beton")
        return FullDecoder(self.table, self.image_size, Decoding(dct="fast"))

    @property
    def _threads(self) -> int:
        """`workers`, but numba allows no more threads than the machine has cores."""
        return min(self.workers, numba.config.NUMBA_NUM_THREADS)

    def _build(self) -> ffcv_loader.Loader:
        names = self.reader.tables.field_names
        pipelines: dict[str, Any] = dict.fromkeys(names)
        pipelines[self.reader.tables.image_field] = [self.decoder]
        with _torch_threads_kept(), _own_file_map():
            return ffcv_loader.Loader(
                str(self.path),
                batch_size=self.batch_size,
                num_workers=self._threads,
                order=ffcv_loader.OrderOption.SEQUENTIAL,
                drop_last=False,
                os_cache=True,
                batches_ahead=BATCHES_AHEAD,
                pipelines=pipelines,
            )

    def _raw_batches(self, plan: Epoch) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(sample numbers, copied images) of each batch. Failed samples raise or are left out."""
        order = np.concatenate(plan.batches) if plan.batches else np.empty(0, np.int64)
        if self._running is not None:
            self._running.close()
        self.table.set_epoch(plan)
        self.decoder.output_size = self.image_size
        with _torch_threads_kept():
            Compiler.set_num_threads(self._threads)
            self._running = _WatchedEpoch(self.pipeline, order, self.reader)
        with closing(self._running) as running:
            for index, images in running.results():
                good = self.good_samples(index, self.table.rows[index, STATUS])
                yield index[good], images[good]

    def good_samples(self, index: np.ndarray, status: np.ndarray) -> np.ndarray:
        """Positions of the samples that were decoded; `sample_failed` handles the others."""
        failed = np.flatnonzero(status)
        for position in np.flatnonzero(status == _FILE)[:1]:
            try:
                self.reader.check_unchanged()
            except FileCutError as error:
                raise FileCutError(error.path, f"sample {int(index[position])}") from error
        for position in failed:
            name, fault = self.reader.name(int(index[position])), crop_decode.fault(int(status[position]))
            self.sample_failed(UserError(f"{name}: {fault}"))
        return np.flatnonzero(status == 0)

    def _finish(self, epoch: int, item: tuple[np.ndarray, np.ndarray]) -> Batch:
        index, images = item
        images = self.augment(images, index, epoch)
        return as_batch(images, self.labels[index], index, self.decoder.decoding.planar)

    def _epoch(self, epoch: int) -> Iterator[Batch]:
        plan = self.plan(epoch)
        with closing(self._raw_batches(plan)) as raw:
            if self.augmentation.colours:
                yield from ahead(lambda item: self._finish(epoch, item), raw, self.workers)
            else:
                yield from (self._finish(epoch, item) for item in raw)

    def close(self) -> None:
        if self._running is not None:
            self._running.close()
        self.reader.close()


def open_loader(path: Path, **options: Any) -> FfcvLoader:
    return FfcvLoader(path, **options)

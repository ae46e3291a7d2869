"""Loader kind `ffcv`: FFCV's pipeline with a decoder of our own, and its traps handled in one place.

Stock FFCV draws crops from per-thread generators, freezes the crop scale when it compiles, hangs for ever when its thread
fails, serves garbage for a damaged image, and sets torch's thread count for the whole process. Here - boxes, flips and file
positions stand in one shared table by sample number, read by address, so nothing is compiled again between epochs; - each
sample's decode status comes back in that table and is raised, or skipped and counted, with the sample's name; - the thread that
runs the pipeline hands its exception over, ends when the consumer leaves, and is joined; - batches are copied out of FFCV's
ring of buffers; - images are read from the file, not from FFCV's memory map, so that a file that is cut while it is being read is
an error and not a bus error that ends the process. One gap is left: without the package's C library (`FullDecoder`) FFCV's own
decoder works from the map, and a file cut between the look at its size, before each batch, and the end of that batch still ends the
process with SIGBUS.
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
    """FFCV sets torch's thread count when it is imported and whenever a Loader is built; training must not slow down for that."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


with _torch_threads_kept(), warnings.catch_warnings():
    warnings.simplefilter("ignore")
    # Several loaders at once abort numba's own "workqueue" layer; the layers called safe allow it.
    numba.config.THREADING_LAYER = "safe"
    import ffcv.loader.loader as ffcv_loader
    from ffcv.fields.rgb_image import SimpleRGBImageDecoder
    from ffcv.libffcv import imdecode, resize_crop
    from ffcv.loader.epoch_iterator import EpochIterator
    from ffcv.memory_managers import OSCacheManager
    from ffcv.pipeline.allocation_query import AllocationQuery
    from ffcv.pipeline.compiler import Compiler

BATCHES_AHEAD = 2
# How long a consumer waits before it looks whether the pipeline's thread still lives.
_POLL_SECONDS = 0.2

TOP, LEFT, HEIGHT, WIDTH, FLIP, POINTER, LENGTH, MODE, ROWS, COLUMNS, SEEK, SEEK_LENGTH, STATUS = range(13)
_FIELDS = 13
_RAW = beton_format.RAW
_FILE = crop_decode.STATUS.index("file")


class SampleTable:
    """int64 (N, 13), one row a sample: what the compiled code needs to know of it, and the status that it leaves there."""

    def __init__(self, reader: BetonReader) -> None:
        tables = reader.tables
        self.rows = np.zeros((len(tables), _FIELDS), np.int64)
        self.rows[:, POINTER], self.rows[:, LENGTH], self.rows[:, MODE] = tables.pointers, tables.lengths, tables.modes
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
    """FFCV's memory map without its compiled lookup: our decoders know where each sample lies.

    Compiling the lookup would also mark numba's one-dimensional byte array type as read-only for everyone in the process.
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
    # Not by way of bytes: a stock FFCV pipeline in the same process makes numba's byte arrays read-only.
    def cast(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return numba.types.CPointer(numba.types.int64)(numba.types.uintp), cast


@numba.njit(nogil=True)
def _rows_at(address: int, count: int) -> np.ndarray:
    return numba.carray(_int64_pointer(address), (count, _FIELDS))


@cache
def _crop_decode_batch(parallel: bool) -> Callable[..., None]:
    """Compiled once a process: crops of a batch decoded by the package's C library, straight into FFCV's buffer."""
    decode_jpeg, resize_pixels = crop_decode.function("crop_decode_resize_stored"), crop_decode.function("crop_decode_resize_stored_pixels")

    def decode(indices, destination, file, seek_file, address, count, size, flags):
        rows = _rows_at(address, count)
        for i in numba.prange(len(indices)):
            row = rows[indices[i]]
            start, length, target = row[POINTER], row[LENGTH], destination[i].ctypes.data
            top, left, height, width, flip = row[TOP], row[LEFT], row[HEIGHT], row[WIDTH], row[FLIP]
            if row[MODE] == _RAW:
                row[STATUS] = resize_pixels(file, start, row[COLUMNS], target, size, top, left, height, width, flip, flags)
            else:
                seek, seek_length = row[SEEK], row[SEEK_LENGTH]
                row[STATUS] = decode_jpeg(file, start, length, seek_file, seek, seek_length, target, size, top, left, height, width, flip, flags)

    return _compile(decode, parallel)


@cache
def _full_decode_batch(parallel: bool) -> Callable[..., None]:
    """Compiled once a process: FFCV's own calls, whole image first, for a machine where the C library was not built."""
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
    """Decodes each sample's box only. `output_size` may change between epochs; `decoding` is fixed."""

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
            # Square outputs: the middle axis is the side in either order of axes.
            run(batch_indices, destination, file, seek_file, address, count, destination.shape[2], flags)
            return destination[: len(batch_indices)]

        return decode


class FullDecoder(CropDecoder):
    """FFCV's decode of the whole image, then its crop and resize: fast DCT, area interpolation."""

    def declare_state_and_memory(self, previous_state: Any) -> tuple[Any, tuple[AllocationQuery, AllocationQuery]]:
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
    """FFCV's epoch thread, whose failure reaches the consumer and whose end does not depend on one.

    FFCV's own puts batches until someone takes them and dies in silence; a consumer then waits for ever.
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
        """Waits for room in the queue; False once the consumer has left."""
        while not self.terminate_event.is_set():
            try:
                self.output_queue.put(item, timeout=_POLL_SECONDS)
                return True
            except queue.Full:
                continue
        return False

    def _next(self) -> tuple[np.ndarray, np.ndarray] | None:
        """What the thread put next, None where nothing more will come."""
        while True:
            try:
                return self.output_queue.get(timeout=_POLL_SECONDS)
            except queue.Empty:
                if self.is_alive():
                    continue
            # Between the two looks the thread may have put its last batches and ended.
            with suppress(queue.Empty):
                return self.output_queue.get_nowait()
            return None

    def results(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(sample numbers, images) of every batch; images are a view that lasts until the next one is asked for."""
        served = 0
        while (item := self._next()) is not None:
            served += len(item[0])
            yield item
        if self.terminate_event.is_set():
            raise RuntimeError("this epoch was left when another one of the same loader began")
        if self.error is not None:
            raise self.error
        if served < len(self.order):
            raise RuntimeError(f"{self.reader.path}: the pipeline's thread ended after {served} of the epoch's {len(self.order)} images")

    def close(self) -> None:
        super().close()
        if self.is_alive():
            despite_ctrl_c(self.work_done.wait)
            self.join()


class FfcvLoader(BaseLoader):
    """FFCV's Loader behind the common interface; `workers` are its threads."""

    def __init__(self, path: Path, *, decoding: Decoding | None = None, **options: Any) -> None:
        self.reader = BetonReader(path)
        super().__init__(path, self.reader.tables.labels, self.reader.class_names, self.reader.tables.sizes, **options)
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
            # Augmentations want (S, S, 3), networks (3, S, S).
            chosen = replace(decoding or Decoding(interpolation=interpolation), planar=not self.augmentation.colours)
            return CropDecoder(self.table, self.image_size, chosen)
        if interpolation != "area" or decoding is not None:
            raise UserError("loader ffcv: only area interpolation and FFCV's own decoder without the C library; use loader beton")
        return FullDecoder(self.table, self.image_size, Decoding(dct="fast"))

    @property
    def _threads(self) -> int:
        """numba refuses more threads than the machine has cores."""
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
        """(sample numbers, copied images) of each batch, failed samples raised or left out."""
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
        """Positions of the samples that decoded; the others are handed to the error policy, with the reader's own words for
        what is wrong.
        """
        failed = np.flatnonzero(status)
        for position in np.flatnonzero(status == _FILE)[:1]:
            try:
                self.reader.check_unchanged()
            except FileCutError as error:
                raise FileCutError(error.path, f"sample {int(index[position])}") from error
        for position in failed:
            self.sample_failed(UserError(f"{self.reader.name(int(index[position]))}: {crop_decode.fault(int(status[position]))}"))
        return np.flatnonzero(status == 0)

    def _finish(self, epoch: int, item: tuple[np.ndarray, np.ndarray]) -> Batch:
        index, images = item
        return as_batch(self.augment(images, index, epoch), self.labels[index], index, self.decoder.decoding.planar)

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

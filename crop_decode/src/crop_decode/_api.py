"""The functions of the package: each checks its arguments, calls C, and raises for a bad status."""

from __future__ import annotations

import ctypes
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import repeat
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from crop_decode._library import MAX_OUTPUT_SIDE, MAX_PIXELS, MESSAGE_BYTES, STATUS, library

if TYPE_CHECKING:
    import torch

    Jpeg = bytes | bytearray | memoryview | np.ndarray | torch.Tensor
    Image = np.ndarray | torch.Tensor

_WORDS = {"corrupt": "damaged JPEG", "unsupported": "unsupported JPEG", "index": "wrong seek index"}
_CHOICES = {
    "dct": ("accurate", "fast"),
    "interpolation": ("area", "bicubic"),
    "resize": ("exact", "fused"),
    "entropy": ("own", "libjpeg"),
}
_FAST_DCT, _PLANAR, _FUSED, _LIBJPEG_HUFFMAN, _NO_SEEK, _FULL, _BICUBIC, _VERIFY = (
    1 << bit for bit in range(8)
)


class DecodeError(ValueError):
    """A JPEG that cannot be decoded, or a box outside the image. `status` is one of `STATUS`."""

    def __init__(self, message: str, status: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Decoding:
    """How to decode. Raises ValueError for an unknown value.

    Attributes:
        dct: "accurate" (Pillow's inverse DCT) or "fast" (stock FFCV's).
        interpolation: "area" (OpenCV's INTER_AREA) or "bicubic" (Pillow's, antialiased).
        resize: "exact", or "fused": resize the YCbCr planes before colour conversion. Faster, and differs by
            rounding.
        planar: return (3, H, W) instead of (H, W, 3).
        verify: parse the whole scan, so that damage outside the crop is an error too.
        seek: use restart markers and seek indices to jump to the crop.
        entropy: "own" Huffman decoder, or "libjpeg"'s. Changes no pixel; for comparison.
        full: decode the whole image, then crop. Changes no pixel; for comparison.
    """

    dct: str = "accurate"
    interpolation: str = "area"
    resize: str = "exact"
    planar: bool = False
    verify: bool = False
    seek: bool = True
    entropy: str = "own"
    full: bool = False

    def __post_init__(self) -> None:
        for key, allowed in _CHOICES.items():
            if getattr(self, key) not in allowed:
                raise ValueError(f"crop decode {key}: {getattr(self, key)!r} is none of {', '.join(allowed)}")

    @property
    def flags(self) -> int:
        """The options as the integer that C functions take."""
        chosen = (
            (self.dct == "fast", _FAST_DCT),
            (self.planar, _PLANAR),
            (self.resize == "fused", _FUSED),
            (self.entropy == "libjpeg", _LIBJPEG_HUFFMAN),
            (not self.seek, _NO_SEEK),
            (self.full, _FULL),
            (self.interpolation == "bicubic", _BICUBIC),
            (self.verify, _VERIFY),
        )
        return sum(flag for on, flag in chosen if on)


EXACT = Decoding()


class JpegInfo(NamedTuple):
    """Header of a JPEG, sizes in pixels. Seekable: baseline, Huffman-coded, one scan."""

    width: int
    height: int
    components: int
    progressive: int
    arithmetic: int
    restart_interval: int
    mcu_width: int
    mcu_height: int
    mcus_per_row: int
    mcu_rows: int
    seekable: int
    h_samp: int
    v_samp: int


class BatchResult(NamedTuple):
    """Result of a batch; the image of a sample that failed is black.

    Attributes:
        images: uint8 (n, H, W, 3), or (n, 3, H, W) when planar.
        status: int32 (n,), 0 where the sample was decoded, else a position in `STATUS`.
        messages: what went wrong, by position, for the samples that failed.
    """

    images: Image
    status: np.ndarray
    messages: dict[int, str]


def describe(status: int) -> str:
    """A status other than 0 in words."""
    kind = STATUS[status] if 0 <= status < len(STATUS) else "corrupt"
    return f"{_WORDS.get(kind, 'cannot be decoded')} ({kind})"


def jpeg_info(data: Jpeg, *, name: str = "image") -> JpegInfo:
    """Read the header of a JPEG. Raises DecodeError, whose message begins with `name`."""
    address, length, _keep = _buffer(data)
    fields, message = (ctypes.c_int64 * len(JpegInfo._fields))(), _message()
    _check(
        library.crop_decode_info(address, length, ctypes.addressof(fields), ctypes.addressof(message)),
        message,
        name,
    )
    return JpegInfo(*fields)


def decode_jpeg(
    data: Jpeg,
    roi: Sequence[int] | None = None,
    size: int | tuple[int, int] | None = None,
    *,
    flip: bool = False,
    decoding: Decoding = EXACT,
    index: Jpeg | None = None,
    out: np.ndarray | None = None,
    output: str = "numpy",
    name: str = "image",
) -> Image:
    """Decode a region of a JPEG, then resize and mirror it. Grey images become RGB.

    Args:
        data: The file's bytes, as bytes, memoryview, uint8 array or CPU uint8 tensor.
        roi: Region of interest (top, left, height, width) in pixels; None for the whole image.
        size: Output side, or (height, width); None to keep the size of the region.
        flip: Mirror left to right.
        decoding: See `Decoding`.
        index: Seek index of this file from `build_index`.
        out: Contiguous uint8 array that receives the pixels. Needs `size`.
        output: "numpy" for an array (H, W, 3), or (3, H, W) when planar; "torch" for a tensor (3, H, W).
        name: How error messages call the image.

    Raises:
        DecodeError: The JPEG is damaged or unsupported, the region leaves the image, the index belongs to
            other bytes, or a side of the output is not 1 to `MAX_OUTPUT_SIDE`.
    """
    decoding = _for_output(decoding, output)
    if roi is None:
        info = jpeg_info(data, name=name)
        roi = (0, 0, info.height, info.width)
    box = tuple(int(side) for side in roi)
    if size is None:
        if out is not None:
            raise ValueError("decode_jpeg: `out` needs `size`")
        return _as(output, _crop(data, box, flip, decoding, index, name))
    rows, columns = _checked_size(size, name)
    shape = (3, rows, columns) if decoding.planar else (rows, columns, 3)
    out = np.empty(shape, np.uint8) if out is None else _checked_output(out, shape)
    (address, length, _keep), (where, index_length, _keep_index) = _buffer(data), _buffer(index)
    message = _message()
    status = library.crop_decode_resize_indexed(
        *(address, length, where, index_length, out.ctypes.data, rows, columns),
        *(*box, bool(flip), decoding.flags, ctypes.addressof(message)),
    )
    _check(status, message, name)
    return _as(output, out)


def _crop(
    data: Jpeg, box: tuple[int, ...], flip: bool, decoding: Decoding, index: Jpeg | None, name: str
) -> np.ndarray:
    """The pixels in `box`, not resized."""
    height, width = box[2:]
    if height < 1 or width < 1 or height * width > MAX_PIXELS:
        raise DecodeError(f"{name}: cannot be decoded (box of {height} x {width} pixels)", "box")
    out = np.empty((height, width, 3), np.uint8)
    (address, length, _keep), (where, index_length, _keep_index) = _buffer(data), _buffer(index)
    message = _message()
    status = library.crop_decode_pixels(
        *(address, length, where, index_length, out.ctypes.data, *box),
        *(bool(flip), decoding.flags, ctypes.addressof(message)),
    )
    _check(status, message, name)
    return np.ascontiguousarray(out.transpose(2, 0, 1)) if decoding.planar else out


def decode_jpegs(
    jpegs: Sequence[Jpeg],
    rois: np.ndarray | Sequence[Sequence[int]],
    size: int | tuple[int, int],
    *,
    flips: np.ndarray | Sequence[bool] | None = None,
    decoding: Decoding = EXACT,
    indices: Sequence[Jpeg | None] | None = None,
    threads: int = 1,
    out: np.ndarray | None = None,
    output: str = "numpy",
) -> BatchResult:
    """Decode a batch on `threads` C threads. A bad image does not raise: see `BatchResult`.

    `rois` (n, 4), `flips` (n,), and one seek index or None for each image in `indices`; the rest as in
    `decode_jpeg`.
    """
    decoding = _for_output(decoding, output)
    buffers = [_buffer(jpeg) for jpeg in jpegs]
    seek = [_buffer(index) for index in indices or [None] * len(buffers)]
    (addresses, lengths), (index_addresses, index_lengths) = _table(buffers), _table(seek)
    result = decode_addresses(
        addresses,
        lengths,
        np.asarray(rois),
        np.zeros(len(buffers), bool) if flips is None else np.asarray(flips),
        size,
        decoding,
        index_addresses=index_addresses,
        index_lengths=index_lengths,
        threads=threads,
        out=out,
    )
    return result._replace(images=_as(output, result.images))


def decode_addresses(
    addresses: np.ndarray,
    lengths: np.ndarray,
    rois: np.ndarray,
    flips: np.ndarray,
    size: int | tuple[int, int],
    decoding: Decoding = EXACT,
    *,
    index_addresses: np.ndarray | None = None,
    index_lengths: np.ndarray | None = None,
    threads: int = 1,
    out: np.ndarray | None = None,
) -> BatchResult:
    """`decode_jpegs` for images that lie in memory of the caller's, such as a memory-mapped file.

    Args:
        addresses, lengths: (n,) address and bytes of each JPEG. The caller keeps the memory alive.
        rois: (n, 4) top, left, height, width.
        flips: (n,) whether to mirror.
        index_addresses, index_lengths: (n,) of each seek index; address 0 for none.

    Raises:
        DecodeError: A side of the output is not 1 to `MAX_OUTPUT_SIDE`. Bad images do not raise.
        ValueError: The arrays have different lengths.
    """
    n, none = len(addresses), np.zeros(len(addresses), np.uint64)
    index_addresses = none if index_addresses is None else index_addresses
    index_lengths = none if index_lengths is None else index_lengths
    if not len(lengths) == len(rois) == len(flips) == n or np.shape(rois) != (n, 4):
        counts = f"{len(lengths)} lengths, rois {np.shape(rois)}, {len(flips)} flips"
        raise ValueError(f"{n} images, {counts}: the numbers differ")
    if not len(index_addresses) == len(index_lengths) == n:
        raise ValueError(f"{len(index_addresses)} seek indices for {n} images")
    rows, columns = _checked_size(size)
    shape = (n, 3, rows, columns) if decoding.planar else (n, rows, columns, 3)
    out = np.empty(shape, np.uint8) if out is None else _checked_output(out, shape)
    tables = [
        np.ascontiguousarray(t, np.uint64) for t in (addresses, lengths, index_addresses, index_lengths)
    ]
    tables += [np.ascontiguousarray(rois, np.int32), np.ascontiguousarray(flips, np.uint8), out]
    status, messages = np.zeros(n, np.int32), np.zeros((n, MESSAGE_BYTES), np.uint8)
    failed = library.crop_decode_batch(
        *(n, *(table.ctypes.data for table in tables), rows, columns, decoding.flags, threads),
        *(status.ctypes.data, messages.ctypes.data),
    )
    bad = np.flatnonzero(status) if failed else ()
    return BatchResult(out, status, {int(i): _text(bytes(messages[i]).split(b"\0")[0]) for i in bad})


def decode_stream(
    jpegs: Iterable[Jpeg],
    rois: Iterable[Sequence[int] | None],
    size: int | tuple[int, int] | None = None,
    *,
    flips: Iterable[bool] | None = None,
    threads: int = 2,
    decoding: Decoding = EXACT,
    output: str = "numpy",
) -> Iterator[Image]:
    """Decode a stream on a pool of `threads` Python threads, and yield the images in order.

    Reads at most two images a thread ahead. Raises the DecodeError of a bad image when its turn comes, named
    "image N".
    """
    waiting: deque[Future[Image]] = deque()
    samples = zip(zip(jpegs, rois, strict=True), repeat(False) if flips is None else flips, strict=False)
    decode = partial(decode_jpeg, size=size, decoding=decoding, output=output)
    with ThreadPoolExecutor(threads, thread_name_prefix="crop_decode") as pool:
        try:
            for number, ((jpeg, roi), flip) in enumerate(samples):
                waiting.append(pool.submit(decode, jpeg, roi, flip=flip, name=f"image {number}"))
                if len(waiting) >= 2 * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def resize_pixels(
    pixels: np.ndarray, size: int | tuple[int, int], *, flip: bool = False, decoding: Decoding = EXACT
) -> np.ndarray:
    """Resize uint8 (H, W, 3) pixels, which may be a view into a larger array, as the exact mode does.

    Raises DecodeError for a side of the output that is not 1 to `MAX_OUTPUT_SIDE`.
    """
    rows, columns = _checked_size(size)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.strides[1:] != (3, 1):
        pixels = np.ascontiguousarray(pixels, np.uint8)
    out = np.empty((3, rows, columns) if decoding.planar else (rows, columns, 3), np.uint8)
    status = library.crop_decode_resize_pixels(
        *(pixels.ctypes.data, pixels.strides[0], pixels.shape[0], pixels.shape[1]),
        *(out.ctypes.data, rows, columns, bool(flip), decoding.flags),
    )
    if status:
        message = f"pixels {pixels.shape} cannot be resized to {rows} x {columns} ({STATUS[status]})"
        raise DecodeError(message, STATUS[status])
    return out


def add_restarts(
    data: Jpeg, interval: int = 8, *, optimize: bool = False, keep_markers: bool = False, name: str = "image"
) -> bytes:
    """Rewrite a JPEG, without loss, as a baseline JPEG with restart markers (ITU-T T.81, B.2.4.4).

    Args:
        data: The file's bytes. Progressive files become baseline.
        interval: MCUs between markers, 0 to 65535; 0 for none.
        optimize: Fit the Huffman tables to the image: a smaller file, but each decode builds its tables.
        keep_markers: Keep Exif, ICC profile and comments.

    Raises:
        DecodeError: The JPEG is damaged or unsupported (CMYK, 12-bit).
    """
    if not 0 <= interval <= 65535:
        raise ValueError(f"restart interval: {interval} must be 0 to 65535 MCUs")
    address, length, _keep = _buffer(data)
    out, out_length, message = ctypes.c_int64(), ctypes.c_int64(), _message()
    results = (ctypes.addressof(out), ctypes.addressof(out_length), ctypes.addressof(message))
    status = library.crop_decode_transcode(address, length, interval, optimize, keep_markers, *results)
    _check(status, message, name)
    try:
        return ctypes.string_at(out.value, out_length.value)
    finally:
        library.crop_decode_free(out.value)


_INDEX_HEADER_BYTES, _INDEX_ENTRY_BYTES = 32, 12


def build_index(data: Jpeg, step: int = 8, *, name: str = "image") -> bytes:
    """Seek index of a baseline JPEG: decoder states every `step` MCUs, or at each restart marker of the file.

    Raises:
        DecodeError: The JPEG is damaged (the whole scan is parsed), progressive or arithmetic-coded.
    """
    if step < 1:
        raise ValueError(f"seek index step: {step} must be at least 1 MCU")
    info = jpeg_info(data, name=name)
    entries = -(-info.mcus_per_row * info.mcu_rows // min(step, info.restart_interval or step))
    capacity = _INDEX_HEADER_BYTES + _INDEX_ENTRY_BYTES * entries
    buffer, message = np.empty(capacity, np.uint8), _message()
    address, length, _keep = _buffer(data)
    result = library.crop_decode_build_index(
        address, length, step, buffer.ctypes.data, capacity, ctypes.addressof(message)
    )
    _check(max(-result, 0), message, name)
    return buffer[:result].tobytes()


def _buffer(data: Jpeg | None) -> tuple[int, int, object]:
    """Address and length of the bytes, and the object that keeps them alive: hold it while C reads them."""
    if data is None:
        return 0, 0, None
    array = np.frombuffer(data.numpy() if hasattr(data, "numpy") else data, np.uint8)
    return array.ctypes.data, array.size, array


def _table(buffers: list[tuple[int, int, object]]) -> tuple[np.ndarray, np.ndarray]:
    """Addresses and lengths of buffers, uint64 (n,)."""
    return tuple(np.array([buffer[column] for buffer in buffers], np.uint64) for column in (0, 1))


def _message() -> ctypes.Array:
    return ctypes.create_string_buffer(MESSAGE_BYTES)


def _text(message: bytes) -> str:
    return message.decode("utf-8", "replace")


def _check(status: int, message: ctypes.Array, name: str) -> None:
    if status:
        kind = STATUS[status]
        raise DecodeError(f"{name}: {_WORDS.get(kind, 'cannot be decoded')} ({_text(message.value)})", kind)


def _checked_size(size: int | tuple[int, int], name: str = "crop decode") -> tuple[int, int]:
    """Height and width of the output."""
    rows, columns = (size, size) if isinstance(size, (int, np.integer)) else size
    if not (1 <= rows <= MAX_OUTPUT_SIDE and 1 <= columns <= MAX_OUTPUT_SIDE):
        message = f"{name}: output of {rows} x {columns} pixels, where a side may have 1 to {MAX_OUTPUT_SIDE}"
        raise DecodeError(message, "too large")
    return int(rows), int(columns)


def _checked_output(out: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    if out.shape != shape or out.dtype != np.uint8 or not out.flags.c_contiguous:
        raise ValueError(
            f"out must be a contiguous uint8 array of shape {shape}, not {out.dtype} {out.shape}"
        )
    return out


def _for_output(decoding: Decoding, output: str) -> Decoding:
    if output == "torch":
        return replace(decoding, planar=True)
    if output != "numpy":
        raise ValueError(f"output: {output!r} is none of numpy, torch")
    return decoding


def _as(output: str, pixels: np.ndarray) -> Image:
    if output == "numpy":
        return pixels
    import torch

    return torch.from_numpy(pixels)

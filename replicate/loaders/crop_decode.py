"""Decodes only the part of a JPEG that a crop needs, in C, through ctypes: DailyMAE's "crop decode" (Sec. 3.1) and what lies beyond it.

The C library is built by `python -m replicate.loaders._crop_decode.build` and never required: without it the same calls decode with PIL and
OpenCV, more slowly and with the same pixels. ctypes lets go of the interpreter lock, so threads decode in parallel.

Exact modes equal full decode + crop + resize bit for bit. `resize="fused"` resizes the YCbCr planes before colour conversion and differs by
rounding (its PSNR is in benchmarks/results/crop_decode.json).

FFCV pipelines call the same function from numba-compiled code:

    c_decode_crop_resize = crop_decode.function("crop_decode_resize")     # numba understands ctypes functions
    flags = Decoding(resize="fused").flags

    def decode(batch_indices, destination, metadata, storage_state):
        for i in my_range(len(batch_indices)):
            source = mem_read(metadata[batch_indices[i]]["data_ptr"], storage_state)
            top, left, height, width = boxes[batch_indices[i]]
            status[batch_indices[i]] = c_decode_crop_resize(
                source.ctypes.data, source.size, destination[i].ctypes.data, size, top, left, height, width, flips[batch_indices[i]], flags)

Every argument is a 64-bit integer, pointers are addresses; the return value is a status, 0 when all went well (`STATUS` names them).
"""

import ctypes
import functools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from replicate.errors import UserError

LIBRARY = Path(__file__).resolve().parent / "_crop_decode" / "libcrop_decode.so"
VERSION = 3
MESSAGE_BYTES = 160
MAX_OUTPUT_SIDE = 16384
STATUS = ("ok", "corrupt", "unsupported", "box", "too large", "memory", "index", "file")
_WORDS = {"corrupt": "damaged JPEG", "unsupported": "unsupported JPEG", "index": "wrong seek index"}
_FAST_DCT, _PLANAR, _FUSED, _LIBJPEG_HUFFMAN, _NO_SEEK, _FULL, _BICUBIC, _VERIFY = (1 << bit for bit in range(8))
_ARGUMENTS = {
    "crop_decode_info": 4,
    "crop_decode_pixels": 12,
    "crop_decode_resize": 10,
    "crop_decode_resize_indexed": 14,
    "crop_decode_resize_stored": 14,
    "crop_decode_resize_stored_pixels": 11,
    "crop_decode_batch": 14,
    "crop_decode_resize_pixels": 9,
    "crop_decode_transcode": 8,
    "crop_decode_build_index": 6,
}


class DecodeError(UserError):
    """A JPEG that cannot be decoded, or a box outside of it. `status` is one of `STATUS`."""

    def __init__(self, message: str, status: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Decoding:
    """How crops are decoded.

    dct: "accurate" (PIL's) or "fast" (stock FFCV's). interpolation: "area" (OpenCV's INTER_AREA) or "bicubic" (Pillow's). resize: "exact"
    or "fused". planar: (3, S, S) instead of (S, S, 3). verify: parse the whole scan, so that damage outside the crop is an error too.
    seek: use restart markers and seek indices. entropy: "own" or "libjpeg". full: decode whole images, then crop. The last three change no
    pixel; they are there to measure what each step brings.
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
        for key, allowed in (
            ("dct", ("accurate", "fast")),
            ("interpolation", ("area", "bicubic")),
            ("resize", ("exact", "fused")),
            ("entropy", ("own", "libjpeg")),
        ):
            if getattr(self, key) not in allowed:
                raise UserError(f"crop decode {key}: {getattr(self, key)!r} is none of {', '.join(allowed)}")

    @property
    def flags(self) -> int:
        """The same as the C library's integer."""
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
    """A JPEG's header. Sizes in pixels; mcu_* describe the scan's units; seekable: baseline, Huffman-coded, one scan."""

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


@functools.cache
def library() -> ctypes.CDLL | None:
    """The C library, or None where it was not built, cannot be loaded, or REPLICATE_CROP_DECODE=python asks to do without."""
    if os.environ.get("REPLICATE_CROP_DECODE") == "python" or not LIBRARY.exists():
        return None
    try:
        loaded = ctypes.CDLL(str(LIBRARY))
        loaded.crop_decode_version.restype = ctypes.c_int64
        if loaded.crop_decode_version() != VERSION:
            return None
        for name, count in _ARGUMENTS.items():
            getattr(loaded, name).argtypes = [ctypes.c_int64] * count
            getattr(loaded, name).restype = ctypes.c_int64
        loaded.crop_decode_isa.restype, loaded.crop_decode_trusted.restype = ctypes.c_char_p, ctypes.c_int64
        loaded.crop_decode_free.argtypes, loaded.crop_decode_free.restype = [ctypes.c_int64], None
    except (OSError, AttributeError):
        return None
    return loaded


def available() -> bool:
    """Whether crops are decoded by the C library."""
    return library() is not None


def require() -> ctypes.CDLL:
    """The C library. Raises UserError telling how to build it."""
    found = library()
    if found is None:
        raise UserError("crop decode: the C library is not built; run `python -m replicate.loaders._crop_decode.build`")
    return found


def function(name: str) -> ctypes._CFuncPtr:
    """One of the library's functions as ctypes sees it, for numba: all arguments and the result are 64-bit integers."""
    return getattr(require(), name)


def address_of(data: bytes | memoryview | np.ndarray | None) -> tuple[int, int, object]:
    """Address and length of a buffer, and the object that keeps it alive."""
    if data is None:
        return 0, 0, None
    array = np.frombuffer(data, np.uint8)
    return array.ctypes.data, array.size, array


def fault(status: int) -> str:
    """A status other than 0 in words."""
    kind = STATUS[status] if 0 <= status < len(STATUS) else "corrupt"
    return f"{_WORDS.get(kind, 'cannot be decoded')} ({kind})"


def raise_decode_error(status: int, message: ctypes.Array, name: str) -> None:
    kind = STATUS[status]
    what = _WORDS.get(kind, "cannot be decoded")
    raise DecodeError(f"{name}: {what} ({message.value.decode('utf-8', 'replace')})", kind)


def jpeg_info(jpeg: bytes | memoryview | np.ndarray, name: str = "image") -> JpegInfo:
    """Header of a JPEG. Raises DecodeError naming `name`; needs the C library."""
    address, length, keep = address_of(jpeg)
    fields, message = (ctypes.c_int64 * len(JpegInfo._fields))(), ctypes.create_string_buffer(MESSAGE_BYTES)
    status = require().crop_decode_info(address, length, ctypes.addressof(fields), ctypes.addressof(message))
    del keep
    if status:
        raise_decode_error(status, message, name)
    return JpegInfo(*fields)


def decode_crop(
    jpeg: bytes | memoryview | np.ndarray,
    box: Sequence[int],
    flip: bool = False,
    decoding: Decoding = EXACT,
    *,
    index: bytes | np.ndarray | None = None,
    name: str = "image",
) -> np.ndarray:
    """The pixels in `box` = (top, left, height, width), uint8 (height, width, 3) RGB, mirrored if `flip`; grey becomes RGB.

    `index` is the file's seek index (`restart.build_index`); one that is damaged, or was made of other bytes, is an error too. Raises
    DecodeError naming `name` for a damaged or unsupported JPEG, or a box that leaves the image.
    """
    top, left, height, width = (int(side) for side in box)
    if not available():
        return np.ascontiguousarray(_python_crop(jpeg, (top, left, height, width), flip, decoding, name))
    if height < 1 or width < 1 or height * width > 178956970:
        raise DecodeError(f"{name}: cannot be decoded (box of {height} x {width} pixels)", "box")
    out = np.empty((height, width, 3), np.uint8)
    (address, length, keep), (where, index_length, keep_index) = address_of(jpeg), address_of(index)
    message = ctypes.create_string_buffer(MESSAGE_BYTES)
    status = require().crop_decode_pixels(
        address,
        length,
        where,
        index_length,
        out.ctypes.data,
        top,
        left,
        height,
        width,
        bool(flip),
        decoding.flags,
        ctypes.addressof(message),
    )
    del keep, keep_index
    if status:
        raise_decode_error(status, message, name)
    return out


def decode_crop_resize(
    jpeg: bytes | memoryview | np.ndarray,
    box: Sequence[int],
    flip: bool,
    size: int | tuple[int, int],
    decoding: Decoding = EXACT,
    *,
    index: bytes | np.ndarray | None = None,
    out: np.ndarray | None = None,
    name: str = "image",
) -> np.ndarray:
    """The crop `box` resized to `size` (one side or height, width) and mirrored if `flip`; uint8 (S, S, 3), or (3, S, S) if planar.

    `out`, if given, receives the pixels and is returned. Raises DecodeError as `decode_crop` does, and for a side that is not 1 to
    MAX_OUTPUT_SIDE pixels.
    """
    rows, columns = _checked_size(size, name)
    shape = (3, rows, columns) if decoding.planar else (rows, columns, 3)
    out = np.empty(shape, np.uint8) if out is None else _checked_output(out, shape)
    if not available():
        out[...] = _python_crop_resize(jpeg, box, flip, (rows, columns), decoding, name)
        return out
    (address, length, keep), (where, index_length, keep_index) = address_of(jpeg), address_of(index)
    message = ctypes.create_string_buffer(MESSAGE_BYTES)
    top, left, height, width = (int(side) for side in box)
    status = require().crop_decode_resize_indexed(
        *(address, length, where, index_length, out.ctypes.data, rows, columns),
        *(top, left, height, width, bool(flip), decoding.flags, ctypes.addressof(message)),
    )
    del keep, keep_index
    if status:
        raise_decode_error(status, message, name)
    return out


def _checked_size(size: int | tuple[int, int], name: str = "crop decode") -> tuple[int, int]:
    """Height and width of an output: `size`, or that as both. Raises DecodeError, which begins with `name`."""
    rows, columns = (size, size) if isinstance(size, (int, np.integer)) else size
    if not (1 <= rows <= MAX_OUTPUT_SIDE and 1 <= columns <= MAX_OUTPUT_SIDE):
        raise DecodeError(f"{name}: output of {rows} x {columns} pixels, where a side may have 1 to {MAX_OUTPUT_SIDE}", "too large")
    return int(rows), int(columns)


def _checked_output(out: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    if out.shape != shape or out.dtype != np.uint8 or not out.flags.c_contiguous:
        raise ValueError(f"out must be a contiguous uint8 array of shape {shape}, not {out.dtype} {out.shape}")
    return out


class BatchResult(NamedTuple):
    """images uint8 (n, S, S, 3) or (n, 3, S, S); status int32 (n,), 0 = decoded; messages of the samples that failed, by position.

    The image of a sample that failed is black.
    """

    images: np.ndarray
    status: np.ndarray
    messages: dict[int, str]


def decode_batch(
    addresses: np.ndarray,
    lengths: np.ndarray,
    boxes: np.ndarray,
    flips: np.ndarray,
    size: int,
    decoding: Decoding = EXACT,
    *,
    index_addresses: np.ndarray | None = None,
    index_lengths: np.ndarray | None = None,
    threads: int = 1,
    out: np.ndarray | None = None,
) -> BatchResult:
    """Decodes n crops on `threads` threads without the interpreter lock. Never raises for a bad image (see `BatchResult`), but DecodeError
    for a size out of 1 to MAX_OUTPUT_SIDE pixels.

    `addresses`, `lengths` (n,): where each JPEG stands in memory (a memory-mapped .beton: its address plus the samples' pointers; the
    caller keeps it mapped). `boxes` (n, 4) int32, `flips` (n,) bool. An index address of 0 means none. Needs the C library.
    """
    n = len(addresses)
    addresses, lengths = (np.ascontiguousarray(values, np.uint64) for values in (addresses, lengths))
    boxes, flips = np.ascontiguousarray(boxes, np.int32), np.ascontiguousarray(flips, np.uint8)
    if not len(lengths) == len(boxes) == len(flips) == n or boxes.shape != (n, 4):
        raise ValueError(f"{n} addresses, {len(lengths)} lengths, boxes {boxes.shape} and {len(flips)} flips do not belong together")
    rows, columns = _checked_size(size)
    shape = (n, 3, rows, columns) if decoding.planar else (n, rows, columns, 3)
    out = np.empty(shape, np.uint8) if out is None else _checked_output(out, shape)
    where, where_lengths = 0, 0
    if index_addresses is not None and index_lengths is not None:
        index_addresses, index_lengths = (np.ascontiguousarray(values, np.uint64) for values in (index_addresses, index_lengths))
        if not len(index_addresses) == len(index_lengths) == n:
            raise ValueError(f"{len(index_addresses)} seek indices for {n} images")
        where, where_lengths = index_addresses.ctypes.data, index_lengths.ctypes.data
    status, messages = np.zeros(n, np.int32), np.zeros((n, MESSAGE_BYTES), np.uint8)
    failed = require().crop_decode_batch(
        *(n, addresses.ctypes.data, lengths.ctypes.data, where, where_lengths, boxes.ctypes.data, flips.ctypes.data),
        *(out.ctypes.data, rows, columns, decoding.flags, threads, status.ctypes.data, messages.ctypes.data),
    )
    bad = np.flatnonzero(status) if failed else ()
    return BatchResult(out, status, {int(i): bytes(messages[i]).split(b"\0")[0].decode("utf-8", "replace") for i in bad})


def decode_files(
    jpegs: Sequence[bytes], boxes: np.ndarray, flips: np.ndarray, size: int, decoding: Decoding = EXACT, threads: int = 1
) -> BatchResult:
    """`decode_batch` for JPEGs held as bytes objects."""
    views = [np.frombuffer(jpeg, np.uint8) for jpeg in jpegs]
    addresses = np.array([view.ctypes.data for view in views], np.uint64)
    return decode_batch(addresses, np.array([view.size for view in views]), boxes, flips, size, decoding, threads=threads)


def resize_pixels(pixels: np.ndarray, flip: bool, size: int | tuple[int, int], decoding: Decoding = EXACT) -> np.ndarray:
    """Resizes uint8 (H, W, 3) pixels, which may be a crop of a larger array, as `decode_crop_resize` does in its exact mode.

    Raises DecodeError for a side of the output that is not 1 to MAX_OUTPUT_SIDE pixels.
    """
    rows, columns = _checked_size(size)
    if not available():
        return _python_resize(pixels, flip, (rows, columns), decoding)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.strides[1:] != (3, 1):
        pixels = np.ascontiguousarray(pixels, np.uint8)
    out = np.empty((3, rows, columns) if decoding.planar else (rows, columns, 3), np.uint8)
    status = require().crop_decode_resize_pixels(
        *(pixels.ctypes.data, pixels.strides[0], pixels.shape[0], pixels.shape[1]),
        out.ctypes.data,
        rows,
        columns,
        bool(flip),
        decoding.flags,
    )
    if status:
        raise DecodeError(f"pixels {pixels.shape} cannot be resized to {rows} x {columns} ({STATUS[status]})", STATUS[status])
    return out


def _python_crop(jpeg: bytes, box: Sequence[int], flip: bool, decoding: Decoding, name: str) -> np.ndarray:
    from replicate.loaders.decode import decode_image

    if decoding.dct == "fast":
        raise UserError("crop decode dct: 'fast' needs the C library; run `python -m replicate.loaders._crop_decode.build`")
    jpeg = bytes(jpeg)
    if not jpeg.rstrip(b"\0").endswith(b"\xff\xd9"):
        raise DecodeError(f"{name}: damaged JPEG (it does not end with an end-of-image marker)", "corrupt")
    try:
        pixels = decode_image(jpeg, name)
    except UserError as error:
        raise DecodeError(str(error), "corrupt") from error
    top, left, height, width = (int(side) for side in box)
    rows, columns = pixels.shape[:2]
    if min(top, left) < 0 or min(height, width) < 1 or top + height > rows or left + width > columns:
        raise DecodeError(f"{name}: cannot be decoded (box {tuple(box)} leaves the image of {rows} x {columns})", "box")
    crop = pixels[top : top + height, left : left + width]
    return crop[:, ::-1] if flip else crop


def _python_resize(pixels: np.ndarray, flip: bool, size: tuple[int, int], decoding: Decoding) -> np.ndarray:
    import cv2
    from PIL import Image

    rows, columns = size
    if decoding.interpolation == "bicubic":
        # Two calls, because newer versions of Pillow sometimes take rows before columns, which rounds differently.
        narrow = Image.fromarray(pixels).resize((columns, pixels.shape[0]), Image.Resampling.BICUBIC)
        resized = np.asarray(narrow.resize((columns, rows), Image.Resampling.BICUBIC))
    else:
        resized = cv2.resize(pixels, (columns, rows), interpolation=cv2.INTER_AREA)
    resized = resized[:, ::-1] if flip else resized
    return np.ascontiguousarray(resized.transpose(2, 0, 1) if decoding.planar else resized)


def _python_crop_resize(jpeg: bytes, box: Sequence[int], flip: bool, size: tuple[int, int], decoding: Decoding, name: str) -> np.ndarray:
    return _python_resize(np.ascontiguousarray(_python_crop(jpeg, box, False, decoding, name)), flip, size, decoding)

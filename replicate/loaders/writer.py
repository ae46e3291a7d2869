"""Write images as FFCV's .beton with NumPy, Pillow and OpenCV, on machines without ffcv too.

Two things differ from FFCV's own writer: a JPEG that meets the settings keeps its bytes, which avoids a
second loss, and a killed run leaves no file that looks finished. Resizing is FFCV's: area interpolation,
sides rounded down.
"""

import io
import zlib
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import BinaryIO, NamedTuple

import cv2
import numpy as np
from PIL import Image
from tqdm import tqdm

from replicate.errors import UserError
from replicate.loaders import beton_format as fmt
from replicate.loaders import crops, restart
from replicate.loaders.decode import END_OF_IMAGE, decode_image
from replicate.loaders.sources import Source

MODES = ("jpg", "raw", "proportion")
# For images that must be encoded (resized, or not a JPEG) when the settings name no quality.
DEFAULT_QUALITY = 95
# FFCV's smallest page. No sample crosses a page border; pages grow when an image is larger.
MIN_PAGE_SIZE = 1 << 21
MAX_PAGE_SIZE = 1 << 31
FIELD_NAMES = ("image", "label")
SEEK_SUFFIX = ".seek"
_STREAM = 13


@dataclass(frozen=True)
class WriteSettings:
    """How to store images. Raises UserError for a value out of range.

    resolution  limit of the longest side in pixels (FFCV's max_resolution; "500_95" is 500 at quality 95)
    quality     JPEG quality 1..100; None = the original bytes where possible, else 95
    mode        jpg, raw (pixels), or proportion (a share `proportion` of the images as JPEG, the rest raw)
    keep        a JPEG within `resolution` and of at most `quality` keeps its bytes; False encodes all (FFCV)
    restart     MCUs between restart markers, which are added without loss; 0 = none
    seek        MCUs between the entries of a seek index, written beside the file; 0 = none

    `restart` and `seek` let the decoder jump to a crop (see `replicate.loaders.restart`). They need
    `crop_decode`.
    """

    resolution: int | None = None
    quality: int | None = None
    mode: str = "jpg"
    proportion: float = 0.5
    keep: bool = True
    restart: int = 0
    seek: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise UserError(f"data mode: {self.mode!r} is none of {', '.join(MODES)}")
        for key, low, high, what in (
            ("resolution", 1, fmt.MAX_SIDE, f"between 1 and {fmt.MAX_SIDE} pixels, or be null for no cap"),
            ("quality", 1, 100, "between 1 and 100, or be null to keep the original bytes"),
            ("proportion", 0, 1, "between 0 and 1"),
            ("restart", 0, 65535, "between 0 (none) and 65535 MCUs"),
            ("seek", 0, 65535, "between 0 (none) and 65535 MCUs"),
        ):
            value = getattr(self, key)
            if value is not None and not low <= value <= high:
                raise UserError(f"data {key}: {value} must lie {what}")


class Encoded(NamedTuple):
    """One image as stored.

    how      kept (original bytes), transcoded (original coefficients with restart markers), encoded or raw
    resized  whether it was larger than the limit
    seek     its seek index; b"" for none
    """

    data: bytes
    mode: int
    height: int
    width: int
    how: str
    resized: bool
    seek: bytes = b""


@dataclass
class Written:
    """What was written. The lists have an entry for each sample, except `skipped`.

    index    the sample's number in the source
    skipped  why the images that were left out could not be read
    counts   samples by `how`, and the number of resized ones
    """

    names: list[str] = field(default_factory=list)
    index: list[int] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    checksums: list[int] = field(default_factory=list)
    how: list[str] = field(default_factory=list)
    seek: list[bytes] = field(default_factory=list)
    counts: Counter = field(default_factory=Counter)

    def add(self, image: Encoded, name: str, index: int) -> None:
        self.names.append(name)
        self.index.append(index)
        self.lengths.append(len(image.data))
        self.checksums.append(zlib.crc32(image.data))
        self.how.append(image.how)
        self.seek.append(image.seek)
        self.counts[image.how] += 1
        self.counts["resized"] += image.resized


@cache
def _standard_luminance() -> np.ndarray:
    """Luminance quantisation tables (100, 64) that libjpeg writes at quality 1..100."""
    tables = []
    for quality in range(1, 101):
        buffer = io.BytesIO()
        Image.new("L", (8, 8)).save(buffer, "JPEG", quality=quality)
        with Image.open(buffer) as image:
            tables.append(image.quantization[0])
    return np.array(tables)


def jpeg_quality(image: Image.Image) -> int:
    """The libjpeg quality 1..100 with the luminance table closest to this JPEG's; 100 if it has none."""
    table = image.quantization.get(0)
    if table is None or len(table) != 64:
        return 100
    return 1 + int(np.abs(_standard_luminance() - np.array(table)).sum(1).argmin())


def _complete_jpeg(data: bytes) -> bytes | None:
    """The bytes up to the end marker, without what some cameras append; None without an end marker."""
    end = data.rfind(END_OF_IMAGE)
    return data[: end + 2] if data[:2] == b"\xff\xd8" and end > 0 else None


def _bytes_to_keep(data: bytes, settings: WriteSettings) -> bytes | None:
    """The original JPEG bytes if the settings allow them and FFCV can decode them, else None."""
    if not settings.keep:
        return None
    with Image.open(io.BytesIO(data)) as image:
        if image.format not in ("JPEG", "MPO") or image.mode not in ("RGB", "L"):
            return None
        if settings.resolution is not None and max(image.size) > settings.resolution:
            return None
        if settings.quality is not None and jpeg_quality(image) > settings.quality:
            return None
    return _complete_jpeg(data)


def shrink(pixels: np.ndarray, resolution: int | None) -> np.ndarray:
    """Shrink by area to a longest side of `resolution` pixels, the other rounded down, at least 1."""
    height, width = pixels.shape[:2]
    if resolution is None or max(height, width) <= resolution:
        return pixels
    share = resolution / max(height, width)
    size = (max(int(width * share), 1), max(int(height * share), 1))
    return cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)


def encode_jpeg(pixels: np.ndarray, quality: int) -> bytes:
    """Encode uint8 (H, W, 3) RGB as a 4:2:0 JPEG, by OpenCV as FFCV's writer does."""
    bgr = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
    ok, encoded = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not ok:
        raise ValueError(f"OpenCV could not encode {pixels.shape}")
    return encoded.tobytes()


def _wants_jpeg(settings: WriteSettings, index: int) -> bool:
    if settings.mode == "proportion":
        return bool(crops.uniforms(settings.seed, 0, _STREAM, np.asarray(index)) < settings.proportion)
    return settings.mode == "jpg"


def _as_jpeg(
    data: bytes, how: str, size: tuple[int, int], resized: bool, settings: WriteSettings, name: str
) -> Encoded:
    if settings.restart:
        data = restart.add_restarts(data, settings.restart, name=name)
        how = "transcoded" if how == "kept" else how
    seek = restart.build_index(data, settings.seek, name) if settings.seek else b""
    return Encoded(data, fmt.JPG, *size, how, resized, seek)


def encode_sample(source: Source, index: int, settings: WriteSettings) -> Encoded:
    """Encode image number `index` of `source`. Raises UserError naming a file that is no image or damaged."""
    original, name = source.read(index), source.names[index]
    # Decodes even if the bytes are kept, to find a truncated image now and not in the middle of a training
    # run.
    pixels = decode_image(original, name) if isinstance(original, bytes) else original
    if max(pixels.shape[:2]) > fmt.MAX_SIDE and settings.resolution is None:
        size = f"{pixels.shape[1]} x {pixels.shape[0]} pixels"
        raise UserError(f"{name}: {size}, and the format holds at most {fmt.MAX_SIDE} a side")
    if _wants_jpeg(settings, index):
        kept = _bytes_to_keep(original, settings) if isinstance(original, bytes) else None
        if kept is not None:
            return _as_jpeg(kept, "kept", pixels.shape[:2], False, settings, name)
    small = shrink(pixels, settings.resolution)
    resized = small.shape != pixels.shape
    if _wants_jpeg(settings, index):
        encoded = encode_jpeg(small, settings.quality or DEFAULT_QUALITY)
        return _as_jpeg(encoded, "encoded", small.shape[:2], resized, settings, name)
    return Encoded(np.ascontiguousarray(small).tobytes(), fmt.RAW, *small.shape[:2], "raw", resized)


def _encode_in_order(
    source: Source, settings: WriteSettings, workers: int, on_error: str
) -> Iterator[Encoded | UserError]:
    """All images in order. `workers` threads work at most 8 images ahead each, so that memory stays small.

    With on_error "skip", yields the error in place of an image that cannot be read.
    """

    def encode(index: int) -> Encoded | UserError:
        try:
            return encode_sample(source, index, settings)
        except UserError as error:
            if on_error == "skip":
                return error
            advice = "`on_error: skip` in the data set's settings leaves such images out"
            raise UserError(f"{error}; {advice}") from error

    with ThreadPoolExecutor(workers) as pool:
        pending: deque[Future[Encoded | UserError]] = deque()
        try:
            for index in range(len(source)):
                pending.append(pool.submit(encode, index))
                if len(pending) >= 8 * workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _descriptors() -> np.ndarray:
    fields = np.zeros(len(FIELD_NAMES), fmt.FIELD)
    for descriptor, name, type_id in zip(fields, FIELD_NAMES, (fmt.RGB_IMAGE, fmt.INT), strict=True):
        descriptor["type_id"] = type_id
        descriptor["name"][: len(name)] = np.frombuffer(name.encode("ascii"), np.uint8)
    return fields


class _Layout:
    """Places of samples in the file. No sample crosses a page border, because FFCV may read page by page."""

    def __init__(self, start: int) -> None:
        self.position, self.page_size = start, MIN_PAGE_SIZE

    def place(self, length: int, name: str) -> int:
        while length > self.page_size:
            # Borders of larger pages are also borders of smaller ones, so samples placed before stay.
            self.page_size *= 2
            if self.page_size > MAX_PAGE_SIZE:
                what = f"{length} bytes, more than a page of the format can hold"
                raise UserError(f"{name}: {what}; set data resolution or mode jpg")
        if self.position % self.page_size + length > self.page_size:
            self.position += self.page_size - self.position % self.page_size
        place, self.position = self.position, self.position + length
        return place


def _write_file(file: BinaryIO, source: Source, images: Iterator[Encoded | UserError]) -> Written:
    fields = _descriptors()
    metadata = np.zeros(len(source), fmt.metadata_dtype([fmt.RGB_IMAGE, fmt.INT]))
    table = np.zeros(len(source), fmt.ALLOCATION)
    layout, written = _Layout(fmt.HEADER.itemsize + fields.nbytes + metadata.nbytes), Written()
    for index, image in enumerate(images):
        if isinstance(image, UserError):
            written.skipped.append(str(image))
            continue
        place, number = layout.place(len(image.data), source.names[index]), len(written.index)
        metadata["f0"][number] = (image.mode, image.width, image.height, place)
        table[number] = (number, place, len(image.data))
        file.seek(place)
        file.write(image.data)
        written.add(image, source.names[index], index)
    if not written.index:
        raise UserError(f"none of {len(source)} images can be read; the first: {written.skipped[0]}")
    metadata, table = metadata[: len(written.index)], table[: len(written.index)]
    metadata["f1"] = source.labels[written.index]
    file.seek(layout.position)
    file.write(table.tobytes())
    counts = (len(fields), layout.page_size, len(metadata))
    header = np.array((fmt.VERSION, *counts, layout.position), fmt.HEADER)
    file.seek(0)
    file.write(header.tobytes() + fields.tobytes() + metadata.tobytes())
    return written


def _replace_seek_index(path: Path, written: Written, settings: WriteSettings) -> None:
    """Replace the index of an older file, which holds the decoder states of other bytes."""
    seek = path.with_suffix(SEEK_SUFFIX)
    seek.unlink(missing_ok=True)
    if settings.seek:
        restart.write_index(seek, written.seek)


def write_beton(
    path: Path,
    source: Source,
    settings: WriteSettings,
    *,
    workers: int = 2,
    progress: bool = True,
    on_error: str = "raise",
) -> Written:
    """Write images and labels of `source` to `path`, in order. The file appears when it is complete.

    on_error: "raise" stops at a damaged image, "skip" leaves it out and lists it in `skipped`.
    Raises UserError that names a damaged image, and where the file cannot be written, such as on a full
    disk. Leaves nothing behind then.
    """
    images = _encode_in_order(source, settings, max(workers, 1), on_error)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        bar = tqdm(images, total=len(source), desc=path.name, unit="img", disable=not progress)
        with fmt.written_whole(path) as file:
            written = _write_file(file, source, bar)
            # A full disk shows here, before the old index is removed.
            fmt.sync(file)
            _replace_seek_index(path, written, settings)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{path}: cannot be written ({reason}); nothing was left half-written") from error
    finally:
        images.close()
    return written

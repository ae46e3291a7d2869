"""Layout of FFCV's .beton files (format version 2), and the check of a file before it is read.

    header | a descriptor for each field | a metadata record for each sample | image data | allocation table

The allocation table holds (sample, pointer, size) of each piece of image data; the pointer of an image leads
to its size. FFCV trusts the tables: when one is cut, it reads garbage or allocates terabytes. `read_tables`
checks all of them and raises one UserError that names the file.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from replicate.errors import UserError

VERSION = 2
FLOAT, INT, RGB_IMAGE = 0, 1, 2
JPG, RAW = 0, 1

_HEADER_NAMES = ("version", "num_fields", "page_size", "num_samples", "alloc_table_ptr")
HEADER = np.dtype(list(zip(_HEADER_NAMES, ("<u2", "<u2", "<u4", "<u8", "<u8"), strict=True)), align=True)
FIELD = np.dtype([("type_id", "u1"), ("name", "u1", 16), ("arguments", "u1", 1024)], align=True)
IMAGE = np.dtype([("mode", "u1"), ("width", "<u2"), ("height", "<u2"), ("data_ptr", "<u8")])
ALLOCATION = np.dtype([("sample_id", "<u8"), ("ptr", "<u8"), ("size", "<u8")])
MAX_SIDE = np.iinfo(np.uint16).max
_RECORDS = {FLOAT: np.dtype("<f8"), INT: np.dtype("<i8"), RGB_IMAGE: IMAGE}


class FileCutError(UserError):
    """A data file that has shrunk since it was opened. `on_error: skip` does not skip this."""

    def __init__(self, path: Path, sample: str = "") -> None:
        where = f"{path}: {sample}" if sample else f"{path}"
        super().__init__(f"{where}: the file has shrunk since it was opened; write it again")
        self.path = path


def sync(file: BinaryIO) -> None:
    """Write all buffers to the disk. Raises OSError where that fails, such as on a full disk."""
    file.flush()
    os.fsync(file.fileno())


@contextmanager
def written_whole(path: Path) -> Iterator[BinaryIO]:
    """A file that appears as `path` when the block ends, complete and on the disk.

    Where that fails, nothing of it is left, and an older file is unchanged.
    """
    part = path.with_name(path.name + ".part")
    try:
        with open(part, "wb") as file:
            yield file
            sync(file)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def metadata_dtype(type_ids: list[int]) -> np.dtype:
    """Record of one sample: fields f0, f1, ..., aligned as by a C compiler."""
    return np.dtype([("", _RECORDS[type_id]) for type_id in type_ids], align=True)


@dataclass(frozen=True)
class Tables:
    """What a .beton holds beside its pixels. All arrays have an entry for each sample.

    sizes              (N, 2) height, width in pixels
    modes              JPG or RAW
    labels             int64
    pointers, lengths  place and size of the image data in bytes
    """

    path: Path
    num_bytes: int
    page_size: int
    field_names: list[str]
    image_field: str
    labels: np.ndarray
    sizes: np.ndarray
    modes: np.ndarray
    pointers: np.ndarray
    lengths: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


def _damaged(path: Path, what: str) -> UserError:
    again = "write it again with `python -m replicate data write`"
    return UserError(f"{path}: damaged .beton file: {what}; {again}")


def _read_header(path: Path, num_bytes: int) -> np.void:
    if num_bytes < HEADER.itemsize:
        raise _damaged(path, f"{num_bytes} bytes, shorter than its header")
    header = np.fromfile(path, HEADER, count=1)[0]
    if header["version"] != VERSION:
        starts = f"it starts with version {header['version']}"
        raise UserError(f"{path}: not a .beton file of format version {VERSION} ({starts})")
    if header["alloc_table_ptr"] == 0:
        raise _damaged(path, "writing it was never finished (no allocation table)")
    if header["alloc_table_ptr"] > num_bytes:
        start = header["alloc_table_ptr"]
        raise _damaged(path, f"cut short, {num_bytes} bytes where its allocation table starts at {start}")
    page_size = int(header["page_size"])
    if page_size == 0 or page_size & (page_size - 1):
        raise _damaged(path, f"page size {page_size} is not a power of two")
    return header


def _read_fields(path: Path, header: np.void) -> np.ndarray:
    count = int(header["num_fields"])
    if not 0 < count <= 64 or HEADER.itemsize + count * FIELD.itemsize > header["alloc_table_ptr"]:
        raise _damaged(path, f"{count} fields do not fit before its allocation table")
    return np.fromfile(path, FIELD, count=count, offset=HEADER.itemsize)


def _field_positions(path: Path, fields: np.ndarray) -> tuple[list[str], str, str]:
    names = [bytes(field["name"]).split(b"\0")[0].decode("ascii", "replace") for field in fields]
    types = [int(field["type_id"]) for field in fields]
    unknown = [name for name, type_id in zip(names, types, strict=True) if type_id not in _RECORDS]
    if unknown:
        what = "is neither an RGB image nor a number; only image classification sets can be read"
        raise UserError(f"{path}: field {unknown[0]!r} {what}")
    if RGB_IMAGE not in types or INT not in types:
        needs = "an RGB image and an integer label are needed"
        raise UserError(f"{path}: has the fields {', '.join(names)}; {needs}")
    label = names.index("label") if "label" in names else types.index(INT)
    return names, f"f{types.index(RGB_IMAGE)}", f"f{label}"


def _read_metadata(path: Path, header: np.void, fields: np.ndarray) -> np.ndarray:
    dtype = metadata_dtype([int(field["type_id"]) for field in fields])
    offset, count = HEADER.itemsize + fields.nbytes, int(header["num_samples"])
    if offset + count * dtype.itemsize > header["alloc_table_ptr"]:
        raise _damaged(path, f"the header counts {count} samples, more than its metadata has room for")
    if count == 0:
        raise _damaged(path, "it holds no samples")
    return np.fromfile(path, dtype, count=count, offset=offset)


def _read_allocations(path: Path, num_bytes: int, header: np.void) -> np.ndarray:
    start, count = int(header["alloc_table_ptr"]), int(header["num_samples"])
    if num_bytes - start != count * ALLOCATION.itemsize:
        entries = (num_bytes - start) / ALLOCATION.itemsize
        raise _damaged(path, f"its allocation table has {entries:g} entries for {count} samples")
    table = np.fromfile(path, ALLOCATION, offset=start)
    return table[np.argsort(table["ptr"], kind="stable")]


def _lengths(path: Path, images: np.ndarray, table: np.ndarray, data_start: int, data_end: int) -> np.ndarray:
    """Bytes of each image. Checks that each pointer leads to an entry, and each entry into the data."""
    pointers = images["data_ptr"]
    place = np.minimum(np.searchsorted(table["ptr"], pointers), len(table) - 1)
    lengths = table["size"][place]
    # Compares differences, because a garbage size near 2**64 would wrap a sum around.
    room = data_end - np.minimum(pointers, data_end)
    inside = (pointers >= data_start) & (pointers <= data_end) & (lengths <= room) & (lengths > 0)
    raw_bytes = images["width"].astype(np.uint64) * images["height"] * np.uint64(3)
    raw_ok = (images["mode"] != RAW) | (lengths == raw_bytes)
    for good, what in (
        (table["ptr"][place] == pointers, "its data is missing from the allocation table"),
        (inside, "its data lies outside the file's data region"),
        ((images["width"] > 0) & (images["height"] > 0), "it has no pixels"),
        (images["mode"] <= RAW, "it is stored in an unknown mode"),
        (raw_ok, "its raw data does not have 3 bytes a pixel"),
    ):
        if not good.all():
            raise _damaged(path, f"sample {int(np.argmin(good))}: {what}")
    return lengths.astype(np.int64)


def read_tables(path: Path) -> Tables:
    """Read and check header and tables of `path`. Raises UserError naming the file, and a bad sample."""
    if not path.is_file():
        raise UserError(f"{path}: no such .beton file; write it with `python -m replicate data write`")
    num_bytes = path.stat().st_size
    header = _read_header(path, num_bytes)
    fields = _read_fields(path, header)
    names, image, label = _field_positions(path, fields)
    metadata = _read_metadata(path, header, fields)
    table = _read_allocations(path, num_bytes, header)
    data_start = HEADER.itemsize + fields.nbytes + metadata.nbytes
    images = metadata[image]
    return Tables(
        path=path,
        num_bytes=num_bytes,
        page_size=int(header["page_size"]),
        field_names=names,
        image_field=names[int(image[1:])],
        labels=metadata[label].astype(np.int64),
        sizes=np.stack([images["height"], images["width"]], 1).astype(np.int64),
        modes=images["mode"].copy(),
        pointers=images["data_ptr"].astype(np.int64),
        lengths=_lengths(path, images, table, data_start, int(header["alloc_table_ptr"])),
    )

"""Where a JPEG's entropy decoder may start: what crop decode alone leaves standing.

DailyMAE's crop decode still entropy-decodes every row above and every column beside the crop, because a JPEG scan can only be read
from its start. Two ways out, both lossless and both done once, when a data set is written:

- `add_restarts` rewrites the same coefficients with a restart marker every few MCUs (ITU-T T.81, B.2.4.4). The markers are found by a scan for
  0xFF bytes, so the file alone is enough, any JPEG decoder still reads it, and damage shows at the next marker. Progressive files become baseline.
- `build_index` leaves the file as it is and notes bit positions and DC predictors every few MCUs; `write_index` and `SeekIndex` keep the notes of
  a whole data set beside its .beton.
"""

import ctypes
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from replicate.errors import UserError
from replicate.loaders.crop_decode import MESSAGE_BYTES, address_of, jpeg_info, raise_decode_error, require

INTERVAL = 8
_MAGIC = b"RPLSEEK1"
_HEADER_BYTES, _ENTRY_BYTES = 24, 12


def add_restarts(
    jpeg: bytes | memoryview | np.ndarray,
    interval: int = INTERVAL,
    *,
    optimize: bool = False,
    keep_markers: bool = False,
    name: str = "image",
) -> bytes:
    """The same image as a baseline JPEG with a restart marker every `interval` MCUs (0 = none): every coefficient is kept.

    `optimize` fits the Huffman tables to the image: a smaller file, tables to build at every decode. `keep_markers` keeps Exif, ICC profile and
    comments. Raises DecodeError naming `name` for a damaged or unsupported (CMYK, 12-bit) JPEG.
    """
    if not 0 <= interval <= 65535:
        raise UserError(f"restart interval: {interval} must be 0 to 65535 MCUs")
    library = require()
    address, length, keep = address_of(jpeg)
    out, out_length, message = ctypes.c_int64(), ctypes.c_int64(), ctypes.create_string_buffer(MESSAGE_BYTES)
    status = library.crop_decode_transcode(
        *(address, length, interval, optimize, keep_markers, ctypes.addressof(out), ctypes.addressof(out_length)),
        ctypes.addressof(message),
    )
    del keep
    if status:
        raise_decode_error(status, message, name)
    try:
        return ctypes.string_at(out.value, out_length.value)
    finally:
        library.crop_decode_free(out.value)


def build_index(jpeg: bytes | memoryview | np.ndarray, step: int = INTERVAL, name: str = "image") -> bytes:
    """Seek index of a baseline JPEG: an entry every `step` MCUs, or one a restart interval where the file has restart markers.

    The whole scan is parsed on the way. Raises DecodeError naming `name` for a damaged JPEG, or one that is progressive or arithmetic-coded.
    """
    if step < 1:
        raise UserError(f"seek index step: {step} must be at least 1 MCU")
    info = jpeg_info(jpeg, name)
    capacity = _HEADER_BYTES + _ENTRY_BYTES * (-(-info.mcus_per_row * info.mcu_rows // min(step, info.restart_interval or step)))
    buffer, message = np.empty(capacity, np.uint8), ctypes.create_string_buffer(MESSAGE_BYTES)
    address, length, keep = address_of(jpeg)
    result = require().crop_decode_build_index(address, length, step, buffer.ctypes.data, capacity, ctypes.addressof(message))
    del keep
    if result < 0:
        raise_decode_error(-result, message, name)
    return buffer[:result].tobytes()


def write_index(path: Path, indices: Iterable[bytes]) -> None:
    """Writes the seek indices of a data set, one a sample in order (b"" where a sample has none), atomically."""
    indices = list(indices)
    ends = np.cumsum([0, *map(len, indices)]).astype("<u8")
    unfinished = path.with_name(path.name + ".unfinished")
    with unfinished.open("wb") as file:
        file.write(_MAGIC + np.uint64(len(indices)).tobytes() + ends.tobytes())
        file.writelines(indices)
    os.replace(unfinished, path)


class SeekIndex:
    """The seek indices of a data set, memory-mapped: `addresses` and `lengths` (N,) for `crop_decode.decode_batch`, 0 where there is none."""

    def __init__(self, path: Path, num_samples: int) -> None:
        """Opens `path`. Raises UserError when it is missing, cut, or made for another number of samples."""
        if not path.is_file():
            raise UserError(f"{path}: no such seek index")
        self._bytes = np.memmap(path, np.uint8, mode="r") if path.stat().st_size >= 24 else np.zeros(0, np.uint8)
        if len(self._bytes) == 0 or self._bytes[:8].tobytes() != _MAGIC:
            raise UserError(f"{path}: not a seek index")
        count = int(self._bytes[8:16].view("<u8")[0])
        if count != num_samples:
            raise UserError(f"{path}: seek index of {count} samples beside a data set of {num_samples}; write the data set again")
        table_end = 16 + 8 * (count + 1)
        ends = self._bytes[16:table_end].view("<u8") if table_end <= len(self._bytes) else np.zeros(0, np.uint64)
        if len(ends) != count + 1 or table_end + int(ends[-1]) != len(self._bytes) or (np.diff(ends.astype(np.int64)) < 0).any():
            raise UserError(f"{path}: damaged seek index; write the data set again")
        self.lengths = np.diff(ends).astype(np.uint64)
        self.addresses = np.where(self.lengths > 0, ends[:-1] + np.uint64(self._bytes.ctypes.data + table_end), 0).astype(np.uint64)

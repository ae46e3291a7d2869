"""Where a JPEG's entropy decoder may start: what crop decode alone leaves standing.

DailyMAE's crop decode still entropy-decodes every row above and every column beside the crop, because a JPEG scan can only be read
from its start. Two ways out, both lossless and both done once, when a data set is written:

- `add_restarts` rewrites the same coefficients with a restart marker every few MCUs (ITU-T T.81, B.2.4.4). The markers are found by a scan for
  0xFF bytes, so the file alone is enough, any JPEG decoder still reads it, and damage shows at the next marker. Progressive files become baseline.
- `build_index` leaves the file as it is and notes bit positions and DC predictors every few MCUs; `write_index` and `SeekIndex` keep the notes of
  a whole data set beside its .beton. An index holds a fingerprint of all its JPEG's bytes and of its own, so that damage to either is an error
  where it would otherwise be wrong pixels.
"""

import ctypes
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from replicate.errors import UserError
from replicate.loaders.beton_format import FileCutError, written_whole
from replicate.loaders.crop_decode import MESSAGE_BYTES, address_of, jpeg_info, raise_decode_error, require

INTERVAL = 8
_MAGIC, _OLD_MAGIC = b"RPLSEEK2", b"RPLSEEK1"
_HEADER_BYTES, _ENTRY_BYTES = 32, 12


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
    """Writes the seek indices of a data set, one a sample in order (b"" where a sample has none), atomically. Raises OSError where they
    cannot be written.
    """
    indices = list(indices)
    ends = np.cumsum([0, *map(len, indices)]).astype("<u8")
    with written_whole(path) as file:
        file.write(_MAGIC + np.uint64(len(indices)).tobytes() + ends.tobytes())
        file.writelines(indices)


class SeekIndex:
    """The seek indices of a data set, read one at a time: `offsets` and `lengths` (N,) int64 say where each stands in the open `file`, length 0
    for none.

    Neither mapped nor held in memory: a file that somebody cuts is an error then, not the process's end.
    """

    def __init__(self, path: Path, num_samples: int) -> None:
        """Opens `path`. Raises UserError when it is missing, cut, or made for another number of samples."""
        self.path, self.file = path, -1
        try:
            self.file = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise UserError(f"{path}: no such seek index") from error
        try:
            ends = self._read_table(num_samples)
        except BaseException:
            self.close()
            raise
        self.offsets = ends[:-1] + (16 + 8 * len(ends))
        self.lengths = np.diff(ends)

    def _read_table(self, num_samples: int) -> np.ndarray:
        self.num_bytes = os.fstat(self.file).st_size
        header = os.pread(self.file, 16, 0)
        if header[:8] == _OLD_MAGIC:
            raise UserError(f"{self.path}: seek index of an older version, without the checks of this one; write the data set again")
        if len(header) < 16 or header[:8] != _MAGIC:
            raise UserError(f"{self.path}: not a seek index")
        count = int.from_bytes(header[8:], "little")
        if count != num_samples:
            raise UserError(f"{self.path}: seek index of {count} samples beside a data set of {num_samples}; write the data set again")
        ends = np.frombuffer(os.pread(self.file, 8 * (count + 1), 16), np.uint8)
        ends = ends[: len(ends) // 8 * 8].view("<u8")
        whole = len(ends) == count + 1 and ends[0] == 0 and (ends[1:] >= ends[:-1]).all()
        if not whole or 16 + ends.nbytes + int(ends[-1]) != self.num_bytes:
            raise UserError(f"{self.path}: damaged seek index; write the data set again")
        return ends.astype(np.int64)

    def read(self, sample: int) -> bytes | None:
        """The index of `sample`, or None where it has none. Raises FileCutError when the file has shrunk."""
        length = int(self.lengths[sample])
        if not length:
            return None
        data = os.pread(self.file, length, int(self.offsets[sample]))
        if len(data) != length:
            raise FileCutError(self.path, f"sample {sample}")
        return data

    def check_unchanged(self) -> None:
        """Raises FileCutError when the file has shrunk since it was opened."""
        if os.fstat(self.file).st_size < self.num_bytes:
            raise FileCutError(self.path)

    def close(self) -> None:
        if self.file >= 0:
            os.close(self.file)
            self.file = -1

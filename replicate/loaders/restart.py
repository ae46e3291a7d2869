"""Where the decoder of a JPEG may start, so that it can jump to a crop.

A JPEG scan can only be read from its start, so DailyMAE's crop decode still entropy-decodes what lies before
the crop. Both ways out are lossless, and run once, when a data set is written:

- `add_restarts` puts a restart marker every few MCUs into the file. Any decoder still reads it.
- `build_index` notes decoder states every few MCUs and leaves the file as it is. `write_index` and
  `SeekIndex` keep the notes of a data set beside its .beton. Each index holds a checksum of its JPEG and of
  itself, so damage is an error.
"""

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from replicate.errors import UserError
from replicate.loaders.beton_format import FileCutError, written_whole
from replicate.loaders.crop_decode import require, user_errors

INTERVAL = 8
_MAGIC, _OLD_MAGIC = b"RPLSEEK2", b"RPLSEEK1"


def add_restarts(jpeg: bytes, interval: int = INTERVAL, *, name: str = "image") -> bytes:
    """The same image as a baseline JPEG with a restart marker every `interval` MCUs (0 = none).

    Raises UserError naming `name` for a damaged or unsupported JPEG, and without the package `crop_decode`.
    """
    package = require()
    with user_errors():
        return package.add_restarts(jpeg, interval, name=name)


def build_index(jpeg: bytes, step: int = INTERVAL, name: str = "image") -> bytes:
    """Seek index of a baseline JPEG, with an entry every `step` MCUs; b"" for a JPEG that cannot have one.

    Raises UserError naming `name` for a damaged JPEG, and without the package `crop_decode`.
    """
    package = require()
    with user_errors():
        return (
            package.build_index(jpeg, step, name=name) if package.jpeg_info(jpeg, name=name).seekable else b""
        )


def write_index(path: Path, indices: Iterable[bytes]) -> None:
    """Write the seek indices of a data set, one for each sample in order (b"" for none).

    The file appears under its name when complete. Raises OSError where it cannot be written.
    """
    indices = list(indices)
    ends = np.cumsum([0, *map(len, indices)]).astype("<u8")
    with written_whole(path) as file:
        file.write(_MAGIC + np.uint64(len(indices)).tobytes() + ends.tobytes())
        file.writelines(indices)


class SeekIndex:
    """The seek indices of a data set, read one at a time.

    `offsets` and `lengths` (N,) int64 say where each lies in the open `file`; length 0 for none. Positioned
    reads instead of a memory map: if somebody cuts the file, the process gets an error instead of a signal.
    """

    def __init__(self, path: Path, num_samples: int) -> None:
        """Open `path`. Raises UserError when it is missing, damaged, or of another number of samples."""
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
        again = "write the data set again"
        self.num_bytes = os.fstat(self.file).st_size
        header = os.pread(self.file, 16, 0)
        if header[:8] == _OLD_MAGIC:
            raise UserError(f"{self.path}: seek index of an older version, which has no checksums; {again}")
        if len(header) < 16 or header[:8] != _MAGIC:
            raise UserError(f"{self.path}: not a seek index")
        count = int.from_bytes(header[8:], "little")
        if count != num_samples:
            raise UserError(
                f"{self.path}: seek index of {count} samples beside a data set of {num_samples}; {again}"
            )
        ends = np.frombuffer(os.pread(self.file, 8 * (count + 1), 16), np.uint8)
        ends = ends[: len(ends) // 8 * 8].view("<u8")
        whole = len(ends) == count + 1 and ends[0] == 0 and (ends[1:] >= ends[:-1]).all()
        if not whole or 16 + ends.nbytes + int(ends[-1]) != self.num_bytes:
            raise UserError(f"{self.path}: damaged seek index; {again}")
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
        """Raise FileCutError when the file has shrunk since it was opened."""
        if os.fstat(self.file).st_size < self.num_bytes:
            raise FileCutError(self.path)

    def close(self) -> None:
        if self.file >= 0:
            os.close(self.file)
            self.file = -1

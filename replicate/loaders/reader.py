"""Read .beton files without ffcv: NumPy for the tables, one positioned read per image, a crop decoder."""

import os
from pathlib import Path

import numpy as np

from replicate.errors import UserError
from replicate.loaders import beton_format as fmt
from replicate.loaders.crop_decode import EXACT, Decoding, available, decode_crop_resize, resize_pixels
from replicate.loaders.manifest import Manifest, sample_name
from replicate.loaders.restart import SeekIndex


class BetonReader:
    """Random access to one .beton file. Threads can share it.

    Opening checks header and tables, and size and counts where a manifest lies beside the file. Raises
    UserError that names the file, and for a damaged image also the sample and its source file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tables = fmt.read_tables(path)
        self.manifest = Manifest.beside(path)
        if self.manifest is not None:
            self.manifest.check_tables(self.tables)
        self._file = os.open(path, os.O_RDONLY)
        self.seek: SeekIndex | None = None
        try:
            self.seek = self._open_seek()
        except UserError:
            self.close()
            raise

    def _open_seek(self) -> SeekIndex | None:
        """The seek index, if it was written with this file and the C library can use it."""
        if (
            self.manifest is None
            or not self.manifest.record(self.path)["settings"].get("seek")
            or not available()
        ):
            return None
        return SeekIndex(self.path.with_suffix(".seek"), len(self.tables))

    def __len__(self) -> int:
        return len(self.tables)

    @property
    def class_names(self) -> list[str]:
        """From the manifest; the labels as text without one."""
        if self.manifest is not None:
            return self.manifest.class_names
        return [str(label) for label in range(int(self.tables.labels.max()) + 1)]

    def name(self, index: int) -> str:
        """Sample `index` in messages: this file, the sample's number, and its source file if known."""
        return f"{self.path}: sample {index}{sample_name(self.path, index)}"

    @property
    def file(self) -> int:
        """The open file's descriptor, for positioned reads from C."""
        return self._file

    def check_unchanged(self) -> None:
        """Raise FileCutError when this file or its seek index has shrunk since it was opened."""
        if os.fstat(self._file).st_size < self.tables.num_bytes:
            raise fmt.FileCutError(self.path)
        if self.seek is not None:
            self.seek.check_unchanged()

    def read(self, index: int) -> bytes:
        """The stored bytes of sample `index`.

        Not through a memory map: there, a file that shrinks ends the process instead of raising FileCutError.
        """
        length = int(self.tables.lengths[index])
        data = os.pread(self._file, length, int(self.tables.pointers[index]))
        if len(data) != length:
            raise fmt.FileCutError(self.path, f"sample {index}")
        return data

    def crop(
        self,
        index: int,
        box: np.ndarray,
        flip: bool,
        image_size: int,
        decoding: Decoding = EXACT,
        out: np.ndarray | None = None,
    ) -> np.ndarray:
        """The part `box` (top, left, height, width) of sample `index`, resized, and mirrored if `flip`.

        uint8 (image_size, image_size, 3), or (3, image_size, image_size) if `decoding.planar`. `out` receives
        the pixels if given. Raises UserError that names the sample.
        """
        data = self.read(index)
        seek = self.seek.read(index) if self.seek is not None else None
        try:
            if self.tables.modes[index] == fmt.JPG:
                return decode_crop_resize(data, box, flip, image_size, decoding, index=seek, out=out, name="")
        except UserError as error:
            raise UserError(f"{self.name(index)}{error}") from error
        top, left, height, width = (int(side) for side in box)
        pixels = np.frombuffer(data, np.uint8).reshape(*self.tables.sizes[index], 3)
        resized = resize_pixels(pixels[top : top + height, left : left + width], flip, image_size, decoding)
        if out is None:
            return resized
        out[...] = resized
        return out

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
        if self.seek is not None:
            self.seek.close()

    def __enter__(self) -> "BetonReader":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

"""Reads .beton files without ffcv: NumPy for the tables, one positioned read an image, and a decoder for the crop."""

import os
from pathlib import Path

import numpy as np

from replicate.errors import UserError
from replicate.loaders import beton_format as fmt
from replicate.loaders.crop_decode import EXACT, Decoding, available, decode_crop_resize, resize_pixels
from replicate.loaders.manifest import Manifest, sample_name
from replicate.loaders.restart import SeekIndex


class BetonReader:
    """Random access to one .beton file; safe to share between threads.

    Opening checks header, tables and, where a manifest lies beside the file, size and counts. Raises UserError naming the file,
    and the sample with its source file where one image is damaged.
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
        """The index beside the file, where the manifest says that it was written with this one and the C library can use it."""
        if self.manifest is None or not self.manifest.record(self.path)["settings"].get("seek") or not available():
            return None
        return SeekIndex(self.path.with_suffix(".seek"), len(self.tables))

    def __len__(self) -> int:
        return len(self.tables)

    @property
    def class_names(self) -> list[str]:
        """From the manifest; numbers where there is none."""
        if self.manifest is not None:
            return self.manifest.class_names
        return [str(label) for label in range(int(self.tables.labels.max()) + 1)]

    def name(self, index: int) -> str:
        """How messages call sample `index`: its number, this file, and the file it was made from where that is known."""
        return f"{self.path}: sample {index}{sample_name(self.path, index)}"

    @property
    def file(self) -> int:
        """The open file's descriptor, for positioned reads from C."""
        return self._file

    def check_unchanged(self) -> None:
        """Raises FileCutError when this file, or the seek index beside it, has shrunk since it was opened."""
        if os.fstat(self._file).st_size < self.tables.num_bytes:
            raise fmt.FileCutError(self.path)
        if self.seek is not None:
            self.seek.check_unchanged()

    def read(self, index: int) -> bytes:
        """The stored bytes of sample `index`. A positioned read, not a memory map: a file that shrinks is a message then, not a
        crash.
        """
        length = int(self.tables.lengths[index])
        data = os.pread(self._file, length, int(self.tables.pointers[index]))
        if len(data) != length:
            raise fmt.FileCutError(self.path, f"sample {index}")
        return data

    def crop(self, index: int, box: np.ndarray, flip: bool, image_size: int, decoding: Decoding = EXACT, out: np.ndarray | None = None) -> np.ndarray:
        """The part `box` (top, left, height, width) of sample `index`, resized to (image_size, image_size, 3), mirrored if
        `flip`.

        `decoding` says how (planar: (3, image_size, image_size)); `out` receives the pixels if given. Raises UserError naming
        the sample.
        """
        data = self.read(index)
        seek = self.seek.read(index) if self.seek is not None else None
        try:
            if self.tables.modes[index] == fmt.JPG:
                return decode_crop_resize(data, box, flip, image_size, decoding, index=seek, out=out, name="")
        except UserError as error:
            raise UserError(f"{self.name(index)}{error}") from error
        top, left, height, width = (int(side) for side in box)
        pixels = np.frombuffer(data, np.uint8).reshape(*self.tables.sizes[index], 3)[top : top + height, left : left + width]
        resized = resize_pixels(pixels, flip, image_size, decoding)
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

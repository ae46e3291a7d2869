"""Which files of a folder are images. Every command that lists images uses this module."""

from __future__ import annotations

import os
import sys
from functools import cache
from pathlib import Path

from replicate.errors import UserError

SYSTEM_NAMES = frozenset(
    {"__MACOSX", "@eaDir", "@Recycle", "#recycle", "$RECYCLE.BIN", "System Volume Information", "lost+found"}
)
"""Folders that operating systems and network drives add. Names that start with a dot are hidden as well."""
# Pillow identifies these formats but does not decode them. It would start Ghostscript on an EPS file.
_NOT_DECODED = frozenset({"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"})
_NAMES_SHOWN = 3
_reported: set[str] = set()


@cache
def formats() -> tuple[str, ...]:
    """Pillow's names of the formats that it decodes, common ones first: Pillow tries them in order."""
    from PIL import Image

    Image.init()
    common = ("JPEG", "PNG", "WEBP")
    return (*common, *(name for name in Image.OPEN if name not in _NOT_DECODED.union(common)))


@cache
def suffixes() -> frozenset[str]:
    """Lower-case suffixes of the files that Pillow decodes, such as ".jpg"."""
    from PIL import Image

    decoded = formats()
    return frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in decoded)


class LeftOut:
    """What a listing below `root` leaves out: a count and the first names for each reason."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.counts: dict[str, int] = {}
        self.names: dict[str, list[str]] = {}

    def add(self, reason: str, path: str) -> None:
        self.counts[reason] = self.counts.get(reason, 0) + 1
        names = self.names.setdefault(reason, [])
        if len(names) < _NAMES_SHOWN:
            names.append(os.path.relpath(path, self.root))

    def __str__(self) -> str:
        parts = []
        for reason, count in self.counts.items():
            more = ", ..." if count > len(self.names[reason]) else ""
            parts.append(f"{count} {reason} ({', '.join(self.names[reason])}{more})")
        return f"{self.root}: left out {'; '.join(parts)}"

    def report(self) -> None:
        """Print one line to stderr when something was left out; the same line only once in a process."""
        if self.counts and str(self) not in _reported:
            _reported.add(str(self))
            print(self, file=sys.stderr)


def list_folder(folder: str | Path, left_out: LeftOut) -> tuple[list[str], list[str]]:
    """Paths of the visible subfolders and files in `folder`, both sorted. Follows links.

    Raises UserError when the folder cannot be read.
    """
    folders, files = [], []
    try:
        with os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                if entry.name.startswith(".") or entry.name in SYSTEM_NAMES:
                    left_out.add("hidden", entry.path)
                elif _follows(entry.is_dir):
                    folders.append(entry.path)
                elif _follows(entry.is_file):
                    files.append(entry.path)
                else:
                    left_out.add(
                        "linked to nothing" if entry.is_symlink() else "not a regular file", entry.path
                    )
    except OSError as error:
        raise UserError(f"{folder}: cannot be listed ({error.strerror})") from error
    return folders, files


def list_images(folder: Path, left_out: LeftOut) -> list[Path]:
    """The images at any depth below `folder`, sorted. Reads each folder once, so that loops of links end."""
    images: list[str] = []
    real = os.path.realpath(folder)
    # A link to a parent would add the images of other classes.
    seen = {str(parent) for parent in Path(real).parents}
    waiting = [str(folder)]
    while waiting:
        here = waiting.pop()
        if (real := os.path.realpath(here)) in seen:
            left_out.add("linked to a folder that is listed already", here)
            continue
        seen.add(real)
        folders, files = list_folder(here, left_out)
        waiting += reversed(folders)
        for file in files:
            if os.path.splitext(file)[1].lower() in suffixes():
                images.append(file)
            else:
                left_out.add("without an image suffix", file)
    return sorted(map(Path, images))


def _follows(test) -> bool:
    """`DirEntry.is_dir` or `is_file`, False for a link that leads to itself."""
    try:
        return test()
    except OSError:
        return False

"""Tiny-ImageNet's archive as class folders: it has train/<class>/images/, and all validation images in one
folder.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from replicate.errors import UserError
from replicate.loaders.listing import LeftOut
from replicate.loaders.sources import class_folders, images_in


def images(source: Path) -> Iterator[tuple[str, str, Path]]:
    """(split, class, file) of every labelled image. Raises UserError for a line without file and class."""
    left_out = LeftOut(source)
    for name in class_folders(source / "train", left_out):
        for path in images_in(source / "train" / name / "images", left_out):
            yield "train", name, path
    left_out.report()
    annotations = source / "val" / "val_annotations.txt"
    for number, line in enumerate(annotations.read_text().splitlines(), 1):
        words = line.split("\t")
        if len(words) < 2:
            raise UserError(f"{annotations}, line {number}: expected a file name and a class, got {line!r}")
        yield "val", words[1], source / "val" / "images" / words[0]


def lay_out(source: Path, target: Path) -> None:
    """Make hard links (copies across file systems) of the unpacked archive under
    `target`/{train,val}/<class>/.

    Raises UserError where `source` is not the unpacked archive.
    """
    parts = ("train", "val/images", "val/val_annotations.txt")
    if missing := [part for part in parts if not (source / part).exists()]:
        raise UserError(
            f"{source} is not the unpacked Tiny-ImageNet archive: it has no {' and no '.join(missing)}"
        )
    for split, name, path in images(source):
        place = target / split / name / path.name
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(path, place)
        except FileNotFoundError:
            raise UserError(f"{path} is listed but missing: unpack the archive again") from None
        except OSError:
            shutil.copyfile(path, place)

"""Lay out Tiny-ImageNet as the class folders that the budgets `brief`, `tiny` and `gpu` read.

The archive (http://cs231n.stanford.edu/tiny-imagenet-200.zip) has train/<class>/images/*.JPEG, and all
validation images in one folder beside val_annotations.txt.

    python tools/tiny_imagenet.py UNPACKED [data/tiny-imagenet]
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from replicate.errors import UserError
from replicate.loaders.listing import LeftOut
from replicate.loaders.sources import class_folders, images_in


def images(source: Path) -> Iterator[tuple[str, str, Path]]:
    """(split, class, file) of every labelled image. Raises ValueError for a line without file and class."""
    left_out = LeftOut(source)
    for name in class_folders(source / "train", left_out):
        for path in images_in(source / "train" / name / "images", left_out):
            yield "train", name, path
    left_out.report()
    annotations = source / "val" / "val_annotations.txt"
    for number, line in enumerate(annotations.read_text().splitlines(), 1):
        words = line.split("\t")
        if len(words) < 2:
            raise ValueError(f"{annotations}, line {number}: expected a file name and a class, got {line!r}")
        yield "val", words[1], source / "val" / "images" / words[0]


def lay_out(source: Path, target: Path) -> int:
    """Make hard links (copies across file systems) under `target`, which appears when all are there; count
    them.

    Raises ValueError where `source` is not the unpacked archive or `target` exists.
    """
    missing = [
        part for part in ("train", "val/images", "val/val_annotations.txt") if not (source / part).exists()
    ]
    if missing:
        raise ValueError(
            f"{source} is not the unpacked Tiny-ImageNet archive: it has no {' and no '.join(missing)}"
        )
    if target.exists():
        raise ValueError(f"{target} exists; remove it to lay it out again")
    unfinished = target.with_name(target.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    count = 0
    for split, name, path in images(source):
        place = unfinished / split / name / path.name
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(path, place)
        except FileNotFoundError:
            raise ValueError(f"{path} is listed but missing: unpack the archive again") from None
        except OSError:
            shutil.copyfile(path, place)
        count += 1
    unfinished.rename(target)
    return count


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path, metavar="UNPACKED")
    parser.add_argument("target", type=Path, nargs="?", default=Path("data/tiny-imagenet"))
    options = parser.parse_args(arguments)
    try:
        print(f"{lay_out(options.source, options.target):,} images under {options.target}")
    except (UserError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Sources of images: any folder of class folders, whole or in part. `photos.py` has the one without files."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from replicate.config.datasets import PUBLIC, source_path
from replicate.errors import UserError
from replicate.loaders import crops
from replicate.loaders.listing import LeftOut, list_folder, list_images

_STREAM, _MINIVAL_STREAM = 12, 15


class Source(Protocol):
    """A labelled list of images. `read` returns a file's bytes, or pixels uint8 (H, W, 3) without a file."""

    class_names: list[str]
    labels: np.ndarray
    names: list[str]

    def __len__(self) -> int: ...
    def read(self, index: int) -> bytes | np.ndarray: ...


class FolderSource:
    """Image files below the folder `base`. `names` are their paths relative to it, `labels` int64 (N,)."""

    def __init__(
        self, base: Path, class_names: Sequence[str], names: Sequence[str], labels: Sequence[int]
    ) -> None:
        self.base, self.class_names, self.names = base, list(class_names), list(names)
        self.labels = np.asarray(labels, np.int64)

    @classmethod
    def of_classes(
        cls, root: Path, class_names: Sequence[str], files: Sequence[Sequence[Path]]
    ) -> "FolderSource":
        """`files` holds the images of each class below `root`. A name is train/cat/1.jpg, for example."""
        names = [path.relative_to(root.parent).as_posix() for group in files for path in group]
        labels = np.repeat(np.arange(len(files)), [len(group) for group in files])
        return cls(root.parent, class_names, names, labels)

    def __len__(self) -> int:
        return len(self.names)

    def read(self, index: int) -> bytes:
        """The file's bytes. Raises UserError when it cannot be read."""
        path = self.base / self.names[index]
        try:
            return path.read_bytes()
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror})") from error


def source_folder(source: str | Path) -> Path:
    """The folder that `data.source` names; "~" is the home folder. Raises UserError for an unknown user."""
    try:
        return source_path(str(source)).expanduser()
    except RuntimeError as error:
        raise UserError(f"data source {source}: no such user; write the full path") from error


def class_folders(root: Path, left_out: LeftOut) -> list[str]:
    """Names of the class folders in `root`, sorted.

    Raises UserError when `root` is not a folder, holds no class folder, or one whose name is not text.
    """
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; expected class folders with images in it")
    folders, files = list_folder(root, left_out)
    for file in files:
        left_out.add("outside class folders", file)
    if not folders:
        raise UserError(f"{root}: no class folders in it; expected {root.name}/<class>/<image>.jpg")
    for folder in folders:
        try:
            folder.encode()
        except UnicodeEncodeError:
            name = os.fsencode(folder)
            raise UserError(f"{name!r}: the class folder's name is not valid UTF-8; rename it") from None
    return [os.path.basename(folder) for folder in folders]


def images_in(folder: Path, left_out: LeftOut | None = None) -> list[Path]:
    """The images at any depth below `folder`, sorted. Tiny-ImageNet, for one, has them in <class>/images/.

    Adds what it leaves out to `left_out`, or reports it when that is None. Raises UserError when there is no
    image.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; expected one with images in it, at any depth")
    found = LeftOut(folder) if left_out is None else left_out
    images = list_images(folder, found)
    if left_out is None or not images:
        found.report()
    if not images:
        raise UserError(f"{folder}: no image in it, such as a JPEG or PNG file")
    return images


def open_classes(root: Path) -> FolderSource:
    """All images of a folder of class folders. Raises UserError as `class_folders` and `images_in` do."""
    left_out = LeftOut(root)
    names = class_folders(root, left_out)
    source = FolderSource.of_classes(root, names, [images_in(root / name, left_out) for name in names])
    left_out.report()
    return source


def count_images(root: Path) -> dict[str, int]:
    """Number of `classes` in `root`/train, and of images in `train` and `val`; 0 for a missing folder."""
    left_out, counts = LeftOut(root), {}
    for split in ("train", "val"):
        folders = list_folder(root / split, left_out)[0] if (root / split).is_dir() else []
        counts[split] = sum(len(list_images(Path(folder), left_out)) for folder in folders)
        counts.setdefault("classes", len(folders))
    left_out.report()
    return counts


def spread_classes(names: Sequence[str], count: int | None, root: Path) -> list[str]:
    """`count` of the sorted class names, evenly spread: ImageNet's first classes are all fish."""
    if count is None:
        return list(names)
    if not 1 <= count <= len(names):
        limits = f"between 1 and {len(names)}, the number of class folders in {root}"
        raise UserError(f"data classes: {count} must lie {limits}")
    return [names[i * len(names) // count] for i in range(count)]


def take_share(paths: Sequence[Path], label: int, fraction: float, seed: int) -> list[Path]:
    """A random `fraction` of a class, at least one image, in the same order. The 10 % contain the 1 %."""
    if not 0 < fraction <= 1:
        raise UserError(f"data fraction: {fraction} must be above 0 and at most 1")
    count = max(round(len(paths) * fraction), 1)
    rank = np.argsort(crops.hashes(seed, label, _STREAM, np.arange(len(paths))), kind="stable")
    return [paths[i] for i in np.sort(rank[:count])]


def hold_out(paths: Sequence[Path], label: int, count: int, seed: int) -> tuple[list[Path], list[Path]]:
    """A class's paths without `count` random ones, and those. Raises UserError if none stays for training."""
    if count >= len(paths):
        few = f"the class has {len(paths)} images"
        raise UserError(f"{paths[0].parent}: minival {count} leaves nothing to train on; {few}")
    rank = np.argsort(crops.hashes(seed, label, _MINIVAL_STREAM, np.arange(len(paths))), kind="stable")
    return [paths[i] for i in np.sort(rank[count:])], [paths[i] for i in np.sort(rank[:count])]


def cap_evenly(files: Sequence[Sequence[Path]], limit: int | None, seed: int) -> list[list[Path]]:
    """At most `limit` images over all classes, equally many from each; the first classes may get one more."""
    if limit is None or limit >= sum(map(len, files)):
        return [list(group) for group in files]
    if limit < len(files):
        raise UserError(f"data images: {limit} must be at least the number of classes, {len(files)}")
    quotas = [limit // len(files) + (label < limit % len(files)) for label in range(len(files))]
    return [
        take_share(group, label, min(quota / len(group), 1.0), seed)
        for label, (group, quota) in enumerate(zip(files, quotas, strict=True))
    ]


def open_folder(
    root: Path,
    *,
    classes: int | None = None,
    class_fraction: float = 1.0,
    fraction: float = 1.0,
    train_images: int | None = None,
    val_images: int | None = None,
    minival: int = 0,
    seed: int = 0,
) -> tuple[FolderSource, FolderSource]:
    """Training and validation images of `root`/train and `root`/val. Prints what it leaves out in one line.

    `classes` or `class_fraction` takes that many classes, `fraction` that share of each class's training
    images. `train_images` and `val_images` cap the totals evenly. `minival` training images of each class
    join the validation images before any part is taken, so that all parts of a source hold out the same ones.
    Raises UserError for a missing or empty folder, and for classes that train and val do not share.
    """
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; {_how_to_get(root)}")
    train_root, val_root, left_out = root / "train", root / "val", LeftOut(root)
    names = class_folders(train_root, left_out)
    _refuse_different(root, names, class_folders(val_root, left_out))
    count = (
        classes if classes is not None or class_fraction == 1 else max(round(len(names) * class_fraction), 2)
    )
    chosen = spread_classes(names, count, train_root)
    found = [images_in(train_root / name, left_out) for name in chosen]
    split = [hold_out(paths, label, minival, seed) for label, paths in enumerate(found)]
    train = [take_share(rest, label, fraction, seed) for label, (rest, _) in enumerate(split)]
    val = cap_evenly([images_in(val_root / name, left_out) for name in chosen], val_images, seed)
    left_out.report()
    return (
        FolderSource.of_classes(train_root, chosen, cap_evenly(train, train_images, seed)),
        FolderSource.of_classes(
            val_root, chosen, [own + held for own, (_, held) in zip(val, split, strict=True)]
        ),
    )


def _refuse_different(root: Path, train: Iterable[str], val: Iterable[str]) -> None:
    odd = sorted(set(train) ^ set(val))
    if odd:
        where, other = ("train", "val") if odd[0] in set(train) else ("val", "train")
        only = f"class {odd[0]!r} is in {where}/ and not in {other}/"
        raise UserError(f"{root}: {only}; both need the same class folders")


def _how_to_get(root: Path) -> str:
    if name := next((name for name in PUBLIC if root == source_path(name)), None):
        return f"`python -m replicate data fetch {name}` brings it"
    return "data source must be 'photos', a folder with train/ and val/ in it, or a public set's name"

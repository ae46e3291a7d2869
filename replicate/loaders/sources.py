"""Where images come from: the offline `photos` set, or any folder of class folders, whole or in part."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from replicate.errors import UserError
from replicate.loaders import crops

EXTENSIONS = (".jpg", ".jpeg", ".png")
TINY_IMAGENET = Path("data/tiny-imagenet")
_STREAM = 12


class Source(Protocol):
    """A labelled list of images. `read` gives a file's bytes, or pixels uint8 (H, W, 3) where there is no file."""

    class_names: list[str]
    labels: np.ndarray
    names: list[str]

    def __len__(self) -> int: ...
    def read(self, index: int) -> bytes | np.ndarray: ...


class FolderSource:
    """The JPEG and PNG files under `root`/<class>/, classes and files in alphabetical order.

    `names` are paths relative to `root`'s parent. Raises UserError where the folder, its class folders or their images are
    missing.
    """

    def __init__(self, root: Path, class_names: Sequence[str], files: Sequence[Sequence[Path]]) -> None:
        self.root = root
        self.class_names = list(class_names)
        self.paths = [path for group in files for path in group]
        self.labels = np.repeat(np.arange(len(files), dtype=np.int64), [len(group) for group in files])
        self.names = [path.relative_to(root.parent).as_posix() for path in self.paths]

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int) -> bytes:
        try:
            return self.paths[index].read_bytes()
        except OSError as error:
            raise UserError(f"{self.paths[index]}: cannot be read ({error.strerror})") from error


def class_folders(root: Path) -> list[str]:
    """Names of the class folders in `root`, sorted. Raises UserError when `root` is no folder or holds none."""
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; expected class folders with JPEG or PNG files in it")
    names = sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not names:
        raise UserError(f"{root}: no class folders in it; expected {root.name}/<class>/<image>.jpg")
    return names


def images_in(folder: Path) -> list[Path]:
    """The images anywhere below a class folder, sorted. Raises UserError when there are none.

    Below, not in: Tiny-ImageNet as downloaded keeps its training images in <class>/images/.
    """
    images = sorted(path for path in folder.rglob("*") if path.suffix.lower() in EXTENSIONS and path.is_file())
    if not images:
        raise UserError(f"{folder}: empty class folder; expected at least one {', '.join(EXTENSIONS)} file")
    return images


def spread_classes(names: Sequence[str], count: int | None, root: Path) -> list[str]:
    """`count` of the sorted class names, evenly spread, so that a subset spans ImageNet's sorted hierarchy instead of holding
    only fish.
    """
    if count is None:
        return list(names)
    if not 1 <= count <= len(names):
        raise UserError(f"data classes: {count} must lie between 1 and {len(names)}, the number of class folders in {root}")
    return [names[i * len(names) // count] for i in range(count)]


def take_share(paths: Sequence[Path], label: int, fraction: float, seed: int) -> list[Path]:
    """A random `fraction` of a class, at least one image, in the same order: 1 % of the images is part of the 10 %."""
    if not 0 < fraction <= 1:
        raise UserError(f"data fraction: {fraction} must be above 0 and at most 1")
    count = max(round(len(paths) * fraction), 1)
    rank = np.argsort(crops.hashes(seed, label, _STREAM, np.arange(len(paths))), kind="stable")
    return [paths[i] for i in np.sort(rank[:count])]


def cap_evenly(files: Sequence[Sequence[Path]], limit: int | None, seed: int) -> list[list[Path]]:
    """At most `limit` images over all classes, the same number of each class (the first classes get one more where it does not
    divide).
    """
    if limit is None or limit >= sum(map(len, files)):
        return [list(group) for group in files]
    if limit < len(files):
        raise UserError(f"data images: {limit} must be at least the number of classes, {len(files)}")
    quotas = [limit // len(files) + (label < limit % len(files)) for label in range(len(files))]
    return [take_share(group, label, min(quota / len(group), 1.0), seed) for label, (group, quota) in enumerate(zip(files, quotas, strict=True))]


def _how_to_get(root: Path) -> str:
    """What to do about a source that is not there; budgets that git holds read Tiny-ImageNet from `TINY_IMAGENET`."""
    if root == TINY_IMAGENET:
        return f"`python tools/tiny_imagenet.py UNPACKED` lays the unpacked Tiny-ImageNet archive out as {root} (the README has its address)"
    return "data source must be 'photos' or a folder with train/ and val/ in it"


def open_folder(
    root: Path,
    *,
    classes: int | None = None,
    class_fraction: float = 1.0,
    fraction: float = 1.0,
    train_images: int | None = None,
    val_images: int | None = None,
    seed: int = 0,
) -> tuple[FolderSource, FolderSource]:
    """Training and validation images of `root`/train and `root`/val.

    `classes` or `class_fraction` takes that many classes, `fraction` that share of each class's training images, `train_images`
    and `val_images` cap the totals evenly. Raises UserError for a missing or empty folder and for classes that train and val do
    not share.
    """
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; {_how_to_get(root)}")
    train_root, val_root = root / "train", root / "val"
    names = class_folders(train_root)
    odd = sorted(set(names) ^ set(class_folders(val_root)))
    if odd:
        where, other = ("train", "val") if odd[0] in names else ("val", "train")
        raise UserError(f"{root}: class {odd[0]!r} is in {where}/ and not in {other}/; both need the same class folders")
    count = classes if classes is not None or class_fraction == 1 else max(round(len(names) * class_fraction), 2)
    chosen = spread_classes(names, count, train_root)
    train = [take_share(images_in(train_root / name), label, fraction, seed) for label, name in enumerate(chosen)]
    val = [images_in(val_root / name) for name in chosen]
    return (
        FolderSource(train_root, chosen, cap_evenly(train, train_images, seed)),
        FolderSource(val_root, chosen, cap_evenly(val, val_images, seed)),
    )

"""From a public set's files to train/<class>/ and val/<class>/. A function a set; its test split becomes val.

Each takes the files in the catalogue's order, an empty folder to work in, and the folder to fill.
"""

from __future__ import annotations

import gzip
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from replicate.errors import UserError
from replicate.fetch import tiny_imagenet as tiny
from replicate.fetch.unpack import unpack

CIFAR10_CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
FASHION_CLASSES = [
    "t_shirt",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle_boot",
]
_IDX_IMAGES, _IDX_LABELS = 2051, 2049
_CIFAR_ROW = 1 + 3 * 32 * 32


def imagenette(files: Sequence[Path], work: Path, target: Path, most_bytes: int) -> None:
    """Its archive has the class folders, below a folder of its own."""
    (root,) = _one_folder(unpack(files[0], work, most_bytes), files[0])
    for split in ("train", "val"):
        shutil.move(root / split, target / split)


def tiny_imagenet(files: Sequence[Path], work: Path, target: Path, most_bytes: int) -> None:
    """200 classes; validation images are named in a table."""
    (root,) = _one_folder(unpack(files[0], work, most_bytes), files[0])
    tiny.lay_out(root, target)


def cifar10(files: Sequence[Path], work: Path, target: Path, most_bytes: int) -> None:
    """The binary version: a byte of label, then red, green and blue planes. The Python version is pickled
    code.
    """
    (root,) = _one_folder(unpack(files[0], work, most_bytes), files[0])
    batches = {"train": [f"data_batch_{number}.bin" for number in range(1, 6)], "val": ["test_batch.bin"]}
    for split, names in batches.items():
        rows = np.concatenate([_cifar_rows(root / name) for name in names])
        pixels = rows[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        _write_images(target / split, pixels, rows[:, 0], CIFAR10_CLASSES)


def fashion_mnist(files: Sequence[Path], work: Path, target: Path, most_bytes: int) -> None:
    """IDX files: four big-endian numbers, then bytes (Yann LeCun's format of MNIST)."""
    for split, (images, labels) in {"train": files[:2], "val": files[2:]}.items():
        pixels = read_idx(images, _IDX_IMAGES, most_bytes)
        _write_images(target / split, pixels, read_idx(labels, _IDX_LABELS, most_bytes), FASHION_CLASSES)


def imagenet_100(source: Path, target: Path) -> None:
    """Links to 100 class folders of a local ImageNet-1k with train/<wnid>/ and val/<wnid>/.

    Raises UserError that names the first class folder that is missing.
    """
    names = Path(__file__).with_name("imagenet_100.txt").read_text().split()
    for split in ("train", "val"):
        (target / split).mkdir(parents=True)
        for name in names:
            folder = (source / split / name).resolve()
            if not folder.is_dir():
                raise UserError(
                    f"{folder}: no such folder; imagenet-100 takes {split}/<WordNet id>/ of ImageNet-1k"
                )
            (target / split / name).symlink_to(folder, target_is_directory=True)


def read_idx(path: Path, magic: int, most_bytes: int) -> np.ndarray:
    """The array in a gzipped IDX file, uint8 (n,) or (n, rows, columns). Raises UserError for another
    file.
    """
    dimensions = magic & 0xFF
    try:
        with gzip.open(path) as file:
            found, *shape = np.frombuffer(file.read(4 + 4 * dimensions), ">i4").tolist()
            size = int(np.prod(shape, dtype=np.int64))
            if found != magic or not 0 < size <= most_bytes:
                raise ValueError(f"begins with {found} and {shape}")
            content = file.read(size)
            return np.frombuffer(content, np.uint8).reshape(shape)
    except (OSError, EOFError, ValueError) as error:
        raise UserError(
            f"{path}: not the expected IDX file ({error}); delete it and run the command again"
        ) from None


def _cifar_rows(path: Path) -> np.ndarray:
    content = np.fromfile(path, np.uint8) if path.is_file() else np.empty(0, np.uint8)
    if not content.size or content.size % _CIFAR_ROW:
        raise UserError(f"{path.name}: missing, or no whole number of images; fetch the archive again")
    return content.reshape(-1, _CIFAR_ROW)


def _write_images(folder: Path, pixels: np.ndarray, labels: np.ndarray, class_names: Sequence[str]) -> None:
    """PNG files <class>/<number>.png of uint8 (n, H, W) or (n, H, W, 3)."""
    if len(pixels) != len(labels) or labels.max() >= len(class_names):
        raise UserError(f"{folder.name}: {len(pixels)} images and {len(labels)} labels up to {labels.max()}")
    for name in class_names:
        (folder / name).mkdir(parents=True)
    for number, (image, label) in enumerate(zip(pixels, labels, strict=True)):
        Image.fromarray(image).save(folder / class_names[label] / f"{number:05d}.png", compress_level=1)


def _one_folder(folder: Path, archive: Path) -> Iterator[Path]:
    found = [path for path in folder.iterdir() if path.is_dir() and path.name != "__MACOSX"]
    if len(found) != 1:
        raise UserError(f"{archive}: {len(found)} folders at its top, where one was expected")
    return iter(found)

"""`python -m replicate bench loader`: loaders against one another on any folder of photographs (DailyMAE Figures 1 and 3c, Tables 4, 7, 13).

Everything runs in one process, the cases taking turns: an image folder through Pillow and torch's DataLoader, stock FFCV, and the package's
own reader, on the same crops (RandomResizedCrop(.08, 1), half of them mirrored), by compression, by augmentation, and step by step. With one
thread time is the process's CPU time, which other users of the machine do not add to; with more it is wall time.
"""

from __future__ import annotations

import copy
import math
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from replicate.cost.bench import RESULTS, Timing, compare, interleave, write_results
from replicate.cost.stock_ffcv import has_ffcv, stock_ffcv
from replicate.errors import UserError
from replicate.loaders import Augmentation, Loader, crop_decode, open_loader
from replicate.loaders.beton_format import JPG, read_tables
from replicate.loaders.crop_decode import Decoding
from replicate.loaders.crops import flips, random_resized_crop_boxes
from replicate.loaders.sources import EXTENSIONS
from replicate.loaders.writer import WriteSettings, encode_jpeg, write_beton

BATCH = 64
SCALE = (0.08, 1.0)
LONG = 1000  # images of an epoch against FFCV, which renews its buffers at every epoch: short ones would time their page faults
ORIGINAL_QUALITY = 95  # of scikit-image's photographs, which come as pixels
COMPRESSIONS = {
    "500_100": WriteSettings(resolution=500, quality=100, keep=False),
    "500_95": WriteSettings(resolution=500, quality=95, keep=False),
    "500_90": WriteSettings(resolution=500, quality=90, keep=False),
    "1000_95": WriteSettings(resolution=1000, quality=95, keep=False),
    "256_95": WriteSettings(resolution=256, quality=95, keep=False),
}
"""Table 4: longest side and quality; every image is encoded again, as FFCV's writer does."""
MORE = {
    "256_90": WriteSettings(resolution=256, quality=90, keep=False),
    "1000_90": WriteSettings(resolution=1000, quality=90, keep=False),
    "none_90": WriteSettings(quality=90, keep=False),
    "500_95_kept": WriteSettings(resolution=500, quality=95),
    "500_95_seek": WriteSettings(resolution=500, quality=95, keep=False, seek=8),
    "500_half_raw": WriteSettings(resolution=500, quality=95, keep=False, mode="proportion"),
    "500_raw": WriteSettings(resolution=500, mode="raw"),
}
"""Figure 3c's other sizes; and bytes kept where the settings allow it, a seek index, half and all of the images as pixels."""
FULL = Decoding(full=True, entropy="libjpeg")
CROP = Decoding(entropy="libjpeg")


class Photographs:
    """The images below a folder (any depth), `repeat` times over, as a source for the writer; scikit-image's where no folder is named."""

    def __init__(self, folder: Path | None, repeat: int = 1) -> None:
        self.files = _of_scikit_image() if folder is None else _below(folder)
        self.labels = np.zeros(len(self.files) * repeat, np.int64)
        self.names = [name for name, _ in self.files] * repeat
        self.class_names = ["photograph"]

    def __len__(self) -> int:
        return len(self.names)

    def read(self, index: int) -> bytes:
        return self.files[index % len(self.files)][1]

    def repeated(self, least: int) -> Photographs:
        """The same images, repeated until they are `least` or more."""
        longer = copy.copy(self)
        longer.names = self.names * math.ceil(least / len(self.names))
        longer.labels = np.zeros(len(longer.names), np.int64)
        return longer

    def unpack(self, folder: Path, read: Callable[[int], bytes]) -> Path:
        """A folder of one class that holds each image as a file."""
        (folder / "photograph").mkdir(parents=True)
        for index, name in enumerate(self.names):
            (folder / "photograph" / f"{index:06d}{Path(name).suffix.lower()}").write_bytes(read(index))
        return folder


def _below(folder: Path) -> list[tuple[str, bytes]]:
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in EXTENSIONS and path.is_file())
    if not paths:
        raise UserError(f"{folder}: no JPEG or PNG file in it, nor below")
    return [(str(path), path.read_bytes()) for path in paths]


def _of_scikit_image() -> list[tuple[str, bytes]]:
    from skimage import data

    names = ("astronaut", "coffee", "chelsea", "rocket", "immunohistochemistry")
    return [(f"{name}.jpg", encode_jpeg(np.ascontiguousarray(getattr(data, name)()), ORIGINAL_QUALITY)) for name in names]


class Case(NamedTuple):
    """Something to time: an epoch of so many images, and the bytes of what it reads."""

    run: Callable[[], object]
    file_bytes: int
    images: int


class Steps:
    """Table 13's steps on one .beton, whole image against crop: read, decode, resize, and the rest of the simple augmentation."""

    def __init__(self, path: Path, size: int, threads: int) -> None:
        self.size, self.threads, self.tables = size, threads, read_tables(path)
        self.bytes = np.memmap(path, np.uint8, mode="r")
        self.addresses = (self.tables.pointers + self.bytes.ctypes.data).astype(np.uint64)
        number = np.arange(len(self.tables))
        self.boxes = random_resized_crop_boxes(self.tables.sizes, number, seed=0, epoch=0, scale=SCALE)
        self.flips = flips(number, seed=0, epoch=0)

    def jpegs(self):
        for start, length in zip(self.tables.pointers, self.tables.lengths, strict=True):
            yield self.bytes[start : start + length]

    def read(self) -> None:
        for jpeg in self.jpegs():
            jpeg.max()

    def decode(self, decoding: Decoding) -> None:
        for jpeg, box, (height, width) in zip(self.jpegs(), self.boxes, self.tables.sizes, strict=True):
            crop_decode.decode_crop(jpeg, (0, 0, height, width) if decoding.full else box, False, decoding)

    def resize(self, decoding: Decoding, simple: bool = False) -> None:
        from replicate.loaders.base import as_batch
        from replicate.loaders.pixels import normalise

        mirrored = self.flips if simple else np.zeros_like(self.flips)
        for start in range(0, len(self.tables), BATCH):
            part = slice(start, start + BATCH)
            images = crop_decode.decode_batch(
                self.addresses[part], self.tables.lengths[part], self.boxes[part], mirrored[part], self.size, decoding, threads=self.threads
            ).images
            if simple:
                index = np.arange(len(images))
                normalise(as_batch(images, index, index, planar=False).images)


def _exhaust(loader: Loader) -> None:
    for _ in loader.epoch(0):
        pass


def _iterate(batches) -> None:
    for _ in batches:
        pass


def cases(folder: Path, images: Photographs, size: int, threads: int, stock: bool = True) -> dict[str, Case]:
    """Every case by its name, `loader_...`; files are written below `folder`. `stock`: FFCV too, where it is installed."""
    found: dict[str, Case] = {}
    betons: dict[str, Path] = {}

    def ours(name: str, path: Path, kind: str = "beton", auto: str | None = None, **options: Any) -> None:
        """A case of the package's own loaders."""
        augmentation = Augmentation(scale=SCALE, auto=auto)
        shared = {"batch_size": BATCH, "image_size": size, "augmentation": augmentation, "seed": 0, "train": True, "workers": threads}
        loader = open_loader(kind, path, drop_last=False, **shared, **options)
        stored = sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) if path.is_dir() else path.stat().st_size
        seek = path.with_suffix(".seek")
        stored += seek.stat().st_size if seek.is_file() else 0
        found[f"loader_{name}"] = Case(partial(_exhaust, loader), stored, loader.num_images)

    for name, settings in (COMPRESSIONS | MORE).items():
        betons[name] = folder / f"{name}.beton"
        write_beton(betons[name], images, settings, workers=threads, progress=False)
        ours(name, betons[name])
    long = {name: folder / f"long_{name}.beton" for name in ("500_90", "500_95")}
    for name, path in long.items():
        write_beton(
            path, images.repeated(LONG), replace(COMPRESSIONS[name], seek=8 if crop_decode.available() else 0), workers=threads, progress=False
        )
    ours("folder", images.unpack(folder / "original", images.read), kind="folder")
    same = Steps(betons["500_95"], size, threads)
    stored = [bytes(jpeg) for jpeg in same.jpegs()]
    ours("folder_500_95", images.unpack(folder / "same", lambda index: stored[index]), kind="folder")
    if crop_decode.available():
        for name in ("256_90", "500_90", "500_95", "1000_90", "1000_95", "none_90"):
            ours(f"full_decode_{name}", betons[name], decoding=FULL)
            ours(f"crop_decode_{name}", betons[name], decoding=CROP)
        ours("fused_500_95", betons["500_95_seek"], decoding=Decoding(resize="fused"))
        for name in ("500_90", "500_95"):
            ours(f"long_crop_decode_{name}", long[name], decoding=CROP)
            ours(f"long_fused_{name}", long[name], decoding=Decoding(resize="fused"))
        steps = Steps(betons["500_90"], size, threads)
        if (steps.tables.modes == JPG).all():
            found |= _steps(steps, betons["500_90"].stat().st_size)
    for name, path in long.items():
        ours(f"long_{name}", path, decoding=Decoding(seek=False))
    ours("three_augment", betons["500_95"], auto="three_augment")
    ours("randaug", betons["500_95"], auto="rand-m9-mstd0.5-inc1")
    if stock and has_ffcv():
        for name in ("500_90", "500_95"):
            path, boxes = long[name], Steps(long[name], size, threads).boxes
            batches = stock_ffcv(path, boxes, size, BATCH, threads)
            found[f"loader_ffcv_{name}"] = Case(partial(_iterate, batches), path.stat().st_size, len(boxes))
    return found


def _steps(steps: Steps, stored: int) -> dict[str, Case]:
    count = len(steps.tables)
    found = {"loader_step_read": Case(steps.read, stored, count)}
    for name, decoding in (("full", FULL), ("crop", CROP)):
        found[f"loader_step_{name}_decode"] = Case(partial(steps.decode, decoding), stored, count)
        found[f"loader_step_{name}_resize"] = Case(partial(steps.resize, decoding), stored, count)
        found[f"loader_step_{name}_simple"] = Case(partial(steps.resize, decoding, True), stored, count)
    return found


COMPARISONS = (
    ("our reader against a folder of the original files", "loader_500_95", "loader_folder"),
    ("our reader against a folder of the same JPEGs, same crops", "loader_500_95", "loader_folder_500_95"),
    ("seek index and fused resize against a folder of the same JPEGs", "loader_fused_500_95", "loader_folder_500_95"),
    ("our reader against stock FFCV, quality 95, same crops", "loader_long_500_95", "loader_ffcv_500_95"),
    ("our reader against stock FFCV, quality 90, same crops", "loader_long_500_90", "loader_ffcv_500_90"),
    *((f"libjpeg's crop decode against stock FFCV, quality {q}", f"loader_long_crop_decode_500_{q}", f"loader_ffcv_500_{q}") for q in (95, 90)),
    *((f"seek index and fused resize against stock FFCV, quality {q}", f"loader_long_fused_500_{q}", f"loader_ffcv_500_{q}") for q in (95, 90)),
    ("stock FFCV against a folder of the same JPEGs, same crops", "loader_ffcv_500_95", "loader_folder_500_95"),
    *((f"crop decode against full decode, {name}", f"loader_crop_decode_{name}", f"loader_full_decode_{name}")
      for name in ("256_90", "500_90", "500_95", "1000_90", "1000_95", "none_90")),
    *((f"{name} against 500_95", f"loader_{name}", "loader_500_95") for name in (*COMPRESSIONS, *MORE) if name != "500_95"),
    ("3-Aug against RandAug", "loader_three_augment", "loader_randaug"),
    ("reading alone against crop, resize and simple augmentation", "loader_step_read", "loader_step_crop_simple"),
    *((f"step {step}: crop against full decode", f"loader_step_crop_{step}", f"loader_step_full_{step}") for step in ("decode", "resize", "simple")),
)  # fmt: skip
"""(what is compared, ours, theirs)."""


def measure(made: Mapping[str, Case], rounds: int, threads: int, size: int) -> list[dict[str, Any]]:
    """One row a comparison, in seconds an image, with the images per second of every round and the bytes of both sides."""
    clock = time.process_time if threads == 1 else time.perf_counter
    epochs = interleave({name: case.run for name, case in made.items()}, rounds, 1, clock)
    timings = {name: Timing(tuple(seconds / made[name].images for seconds in epoch.seconds)) for name, epoch in epochs.items()}
    rows = []
    for what, ours, theirs in COMPARISONS:
        if ours not in timings or theirs not in timings:
            continue
        extra = {
            "clock": clock.__name__,
            "unit": "s an image",
            "images": [made[name].images for name in (ours, theirs)],
            "runs": [ours, theirs],
            "images_per_second": [[round(1 / seconds, 1) for seconds in timings[name].seconds] for name in (ours, theirs)],
            "file_bytes": [made[name].file_bytes for name in (ours, theirs)],
        }
        rows.append(compare("loader", f"{what}, {size} px, {threads} threads", timings[ours], timings[theirs], **extra))
    return rows


def bench(folder: Path | None, *, repeat: int, rounds: int, threads: int, size: int, out: Path = RESULTS) -> Path:
    """Measure, print, and write `<out>/loader.json`. Raises UserError for a folder without images or an impossible number."""
    for name, value in (("repeat", repeat), ("rounds", rounds), ("threads", threads), ("size", size)):
        if value < 1:
            raise UserError(f"--{name} {value}: at least 1")
    images = Photographs(folder, repeat)
    import cv2
    import torch

    cv2.setNumThreads(1)
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as scratch:
        made = cases(Path(scratch), images, size, threads)
        rows = measure(made, rounds, threads, size)
        if not has_ffcv():
            print("note: ffcv is not installed here: stock FFCV is left out")
        return write_results("loader", rows, out)

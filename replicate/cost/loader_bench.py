"""`python -m replicate bench loader`: loaders against one another on any folder of photographs (DailyMAE Figures 1 and 3c, Tables 4, 7, 13).

Everything runs in one process, the cases taking turns: an image folder through Pillow and torch's DataLoader, stock FFCV, and the package's
own reader, on the same crops (RandomResizedCrop(.08, 1), half of them mirrored), by compression, by augmentation, and step by step. With one
thread time is the process's CPU time, which other users of the machine do not add to; with more it is wall time.

The clock starts when a loader runs: after two batches, so that neither starting workers nor new memory counts, and between FFCV and the cases beside
it after as many as fill each of FFCV's buffers twice (ImageNet's epochs are so long that touching them for the first time is nothing).
"""

from __future__ import annotations

import copy
import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from tqdm import tqdm

from replicate.cost.bench import Timing, compare, take_turns, timed_window, write_results
from replicate.cost.stock_ffcv import WARM, has_ffcv, stock_ffcv
from replicate.errors import UserError
from replicate.loaders import Augmentation, crop_decode, open_loader
from replicate.loaders.base import ahead, as_batch
from replicate.loaders.beton_format import JPG, read_tables
from replicate.loaders.crop_decode import Decoding
from replicate.loaders.crops import epoch_order, flips, random_resized_crop_boxes
from replicate.loaders.pixels import normalise
from replicate.loaders.sources import images_in
from replicate.loaders.writer import WriteSettings, encode_jpeg, write_beton

T = TypeVar("T")
BATCH = 64
SCALE = (0.08, 1.0)
STARTED = 2
"""Batches after which a loader runs: its threads or processes are there, and its memory is touched."""
ENOUGH = 8
"""Batches that are timed at the least where some are skipped."""
LONG = WARM * BATCH + 1000
"""Images of an epoch against FFCV, of which those that fill its new buffers are not timed."""
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
    "256_100": WriteSettings(resolution=256, quality=100, keep=False),
    "256_90": WriteSettings(resolution=256, quality=90, keep=False),
    "1000_100": WriteSettings(resolution=1000, quality=100, keep=False),
    "1000_90": WriteSettings(resolution=1000, quality=90, keep=False),
    "none_100": WriteSettings(quality=100, keep=False),
    "none_95": WriteSettings(quality=95, keep=False),
    "none_90": WriteSettings(quality=90, keep=False),
    "500_95_kept": WriteSettings(resolution=500, quality=95),
    "500_95_seek": WriteSettings(resolution=500, quality=95, keep=False, seek=8),
    "500_half_raw": WriteSettings(resolution=500, quality=95, keep=False, mode="proportion"),
    "500_raw": WriteSettings(resolution=500, mode="raw"),
}
"""The rest of 1000, 500, 256 pixels and no cap by quality 100, 95 and 90 (Figure 3c has some of it); and bytes kept where the settings allow it, a
seek index, half and all of the images as pixels.
"""
FULL = Decoding(full=True, entropy="libjpeg")
CROP = Decoding(entropy="libjpeg")


class Photographs:
    """The images below a folder (any depth), `repeat` times over, as a source for the writer; scikit-image's where no folder is named."""

    def __init__(self, folder: Path | None, repeat: int = 1) -> None:
        self.files = _of_scikit_image() if folder is None else _below(folder)
        self.place = "scikit-image" if folder is None else folder.resolve().name
        self.labels = np.zeros(len(self.files) * repeat, np.int64)
        self.names = [name for name, _ in self.files] * repeat
        self.class_names = ["photograph"]

    def __len__(self) -> int:
        return len(self.names)

    def read(self, index: int) -> bytes:
        return self.files[index % len(self.files)][1]

    def repeated(self, least: int, jpegs: list[bytes]) -> Photographs:
        """The same images, each as the JPEG that stands in its place, repeated until they are `least` or more."""
        longer = copy.copy(self)
        longer.files = [(name, jpeg) for (name, _), jpeg in zip(self.files, jpegs, strict=False)]
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
    return [(str(path), path.read_bytes()) for path in images_in(folder)]


def _of_scikit_image() -> list[tuple[str, bytes]]:
    from skimage import data

    names = ("astronaut", "coffee", "chelsea", "rocket", "immunohistochemistry")
    return [(f"{name}.jpg", encode_jpeg(np.ascontiguousarray(getattr(data, name)()), ORIGINAL_QUALITY)) for name in names]


class Case(NamedTuple):
    """Something to time: an epoch's batches after the first `skip` of them, so many images; and the bytes that the photographs take, each once."""

    begin: Callable[[], Iterable[object]]
    skip: int
    images: int
    file_bytes: int


def case(begin: Callable[[], Iterable[object]], count: int, skip: int, file_bytes: float) -> Case:
    """A case of `count` images, timed whole where skipping would leave few batches: workers are ahead by some when the clock starts."""
    if math.ceil(count / BATCH) - skip < ENOUGH:
        skip = 0
    return Case(begin, skip, count - skip * BATCH, round(file_bytes))


class Steps:
    """Table 13's steps on one .beton, whole image against crop: read, decode, resize, and the rest of the simple augmentation.

    Each is an epoch's batches, `threads` of them in the making at a time, as in the package's own loader.
    """

    def __init__(self, path: Path, size: int, threads: int) -> None:
        self.size, self.threads, self.tables = size, threads, read_tables(path)
        self.bytes = np.memmap(path, np.uint8, mode="r")
        self.addresses = (self.tables.pointers + self.bytes.ctypes.data).astype(np.uint64)
        number = np.arange(len(self.tables))
        self.boxes = random_resized_crop_boxes(self.tables.sizes, number, seed=0, epoch=0, scale=SCALE)
        self.flips = flips(number, seed=0, epoch=0)

    def jpeg(self, sample: int) -> np.ndarray:
        start = self.tables.pointers[sample]
        return self.bytes[start : start + self.tables.lengths[sample]]

    def jpegs(self) -> list[bytes]:
        return [bytes(self.jpeg(sample)) for sample in range(len(self.tables))]

    def read(self) -> Iterator[object]:
        return self._batches(lambda part: [self.jpeg(sample).max() for sample in part])

    def decode(self, decoding: Decoding) -> Iterator[object]:
        def one(sample: int) -> np.ndarray:
            box = (0, 0, *self.tables.sizes[sample]) if decoding.full else self.boxes[sample]
            return crop_decode.decode_crop(self.jpeg(sample), box, False, decoding)

        return self._batches(lambda part: [one(sample).shape for sample in part])

    def resize(self, decoding: Decoding) -> Iterator[np.ndarray]:
        return self._batches(lambda part: self._crops(part, np.zeros(len(part), bool), decoding))

    def simple(self, decoding: Decoding) -> Iterator[object]:
        """Flips as well, and tensors, normalised where a training loop would do it."""
        for images in self._batches(lambda part: self._crops(part, self.flips[part], decoding)):
            index = np.arange(len(images))
            yield normalise(as_batch(images, index, index, planar=False).images)

    def _crops(self, part: np.ndarray, mirrored: np.ndarray, decoding: Decoding) -> np.ndarray:
        return crop_decode.decode_batch(self.addresses[part], self.tables.lengths[part], self.boxes[part], mirrored, self.size, decoding).images

    def _batches(self, work: Callable[[np.ndarray], T]) -> Iterator[T]:
        everyone = np.arange(len(self.tables))
        return ahead(work, [everyone[start : start + BATCH] for start in range(0, len(everyone), BATCH)], self.threads)


def cases(folder: Path, images: Photographs, size: int, threads: int, stock: bool = True) -> dict[str, Case]:
    """Every case by its name, `loader_...`; files are written below `folder`. `stock`: FFCV too, where it is installed."""
    found: dict[str, Case] = {}
    betons: dict[str, Path] = {}

    def add(name: str, path: Path, count: int, begin: Callable[[], Iterable[object]], skip: int = STARTED) -> None:
        files = [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path, path.with_suffix(".seek")]
        stored = sum(file.stat().st_size for file in files if file.is_file())
        found[f"loader_{name}"] = case(begin, count, skip, stored * len(images.files) / count)

    def ours(name: str, path: Path, kind: str = "beton", auto: str | None = None, skip: int = STARTED, **options: Any) -> None:
        """A case of the package's own loaders."""
        augmentation = Augmentation(scale=SCALE, auto=auto)
        shared = {"batch_size": BATCH, "image_size": size, "augmentation": augmentation, "seed": 0, "train": True, "workers": threads}
        loader = open_loader(kind, path, drop_last=False, **shared, **options)
        add(name, path, loader.num_images, partial(loader.epoch, 0), skip)

    for name, settings in (COMPRESSIONS | MORE).items():
        betons[name] = folder / f"{name}.beton"
        write_beton(betons[name], images, settings, workers=threads, progress=False)
        ours(name, betons[name])
    stored = {name: Steps(betons[name], size, threads).jpegs() for name in ("500_90", "500_95")}
    long = {name: folder / f"long_{name}.beton" for name in stored}
    for name, path in long.items():
        settings = replace(COMPRESSIONS[name], keep=True, seek=8 if crop_decode.available() else 0)
        write_beton(path, images.repeated(LONG, stored[name]), settings, workers=threads, progress=False)
    ours("folder", images.unpack(folder / "original", images.read), kind="folder")
    ours("folder_500_95", images.unpack(folder / "same", stored["500_95"].__getitem__), kind="folder")
    if crop_decode.available():
        for name in ("256_90", "500_90", "500_95", "1000_90", "1000_95", "none_90"):
            ours(f"full_decode_{name}", betons[name], decoding=FULL)
            ours(f"crop_decode_{name}", betons[name], decoding=CROP)
        ours("fused_500_95", betons["500_95_seek"], decoding=Decoding(resize="fused"))
        for name in ("500_90", "500_95"):
            ours(f"long_crop_decode_{name}", long[name], skip=WARM, decoding=CROP)
            ours(f"long_fused_{name}", long[name], skip=WARM, decoding=Decoding(resize="fused"))
        steps = Steps(betons["500_90"], size, threads)
        if (steps.tables.modes == JPG).all():
            for name, begin in _steps(steps).items():
                add(f"step_{name}", betons["500_90"], len(steps.tables), begin)
    for name, path in long.items():
        ours(f"long_{name}", path, skip=WARM, decoding=Decoding(seek=False))
    ours("three_augment", betons["500_95"], auto="three_augment")
    ours("randaug", betons["500_95"], auto="rand-m9-mstd0.5-inc1")
    if stock and has_ffcv():
        for name in ("500_90", "500_95"):
            boxes = Steps(long[name], size, threads).boxes
            batches = stock_ffcv(long[name], boxes, size, BATCH, threads, order=epoch_order(len(boxes), seed=0, epoch=0))
            add(f"ffcv_{name}", long[name], len(boxes), partial(iter, batches), WARM)
    return found


def _steps(steps: Steps) -> dict[str, Callable[[], Iterable[object]]]:
    found: dict[str, Callable[[], Iterable[object]]] = {"read": steps.read}
    for name, decoding in (("full", FULL), ("crop", CROP)):
        found |= {f"{name}_{step}": partial(getattr(steps, step), decoding) for step in ("decode", "resize", "simple")}
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


def measure(made: Mapping[str, Case], rounds: int, threads: int, size: int, images: Photographs) -> list[dict[str, Any]]:
    """One row a comparison, in milliseconds an image, with the images per second of every round and the bytes of both sides."""
    clock = time.process_time if threads == 1 else time.perf_counter
    with _bar(rounds * len(made)) as bar:

        def turn(one: Case) -> float:
            seconds = timed_window(one.begin, one.skip, clock)
            bar.update()
            return seconds

        windows = take_turns({name: partial(turn, one) for name, one in made.items()}, rounds)
    timings = {name: Timing(tuple(1000 * seconds / made[name].images for seconds in taken.seconds)) for name, taken in windows.items()}
    rows = []
    for what, ours, theirs in COMPARISONS:
        if ours not in timings or theirs not in timings:
            continue
        extra = {
            "clock": clock.__name__,
            "unit": "ms an image",
            "threads": threads,
            "size": size,
            "photographs": {"of": images.place, "count": len(images.files)},
            "images": [made[name].images for name in (ours, theirs)],
            "runs": [ours, theirs],
            "images_per_second": [[round(1000 / each, 1) for each in timings[name].seconds] for name in (ours, theirs)],
            "file_bytes": [made[name].file_bytes for name in (ours, theirs)],
        }
        rows.append(compare("loader", f"{what}, {size} px, {_threads(threads)}", timings[ours], timings[theirs], **extra))
    return rows


def _bar(turns: int) -> tqdm:
    """On stderr, as other commands' bars; without a terminal, a line every half minute."""
    quiet = not sys.stderr.isatty()
    return tqdm(
        total=turns, desc="bench loader", unit="turn", mininterval=30 if quiet else 0.5, maxinterval=60 if quiet else 10, dynamic_ncols=not quiet
    )


def _threads(number: int) -> str:
    return f"{number} thread{'s' * (number > 1)}"


def bench(folder: Path | None, *, repeat: int, rounds: int, threads: int, size: int, out: Path) -> Path:
    """Measure, print, and write `<out>/loader_1_thread.json`, `loader_2_threads.json`, ...: one file a number of threads.

    Raises UserError for a folder without images or an impossible number.
    """
    for name, value in (("repeat", repeat), ("rounds", rounds), ("threads", threads), ("size", size)):
        if value < 1:
            raise UserError(f"--{name} {value}: at least 1")
    images = Photographs(folder, repeat)
    import cv2
    import torch

    cv2.setNumThreads(1)
    torch.set_num_threads(threads)
    if not has_ffcv():
        print("note: ffcv is not installed here: stock FFCV is left out")
    with tempfile.TemporaryDirectory() as scratch:
        made = cases(Path(scratch), images, size, threads)
        print(f"{len(images.files)} photographs of {images.place}, {len(made)} loaders in turn, {rounds} rounds")
        rows = measure(made, rounds, threads, size, images)
    return write_results(f"loader_{_threads(threads).replace(' ', '_')}", rows, out)

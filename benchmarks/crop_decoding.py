"""Measure what each step of crop decode brings, against stock FFCV and against decoding whole images.

    python benchmarks/crop_decoding.py [--images FOLDER] [--batches N] [--rounds N] [--threads N ...]

FOLDER holds photographs at any depth (default: $REPLICATE_REAL_DATA/imagenet-sample-167, else
scikit-image's). They are written as .beton at 500 pixels and each quality, repeated until there are enough.
Boxes are RandomResizedCrop(0.08, 1), and half the images are flipped, the same in each case. All cases run
in one process and take turns. One thread is measured in CPU time of the process, which other users of the
machine do not add to; more threads in wall time.

The time is that of the last `batches` batches of an epoch, the same images in each case. FFCV allocates
buffers for five batches of whole images in each epoch, and the first touch of their pages takes longer than
decoding. In ImageNet's 5,000 batches that does not count, so the clock starts when each buffer has been
filled twice. "stock FFCV, its own crops" draws its boxes itself; it checks that our boxes cost FFCV nothing.

Each step adds to the one before. `crop`: libjpeg decodes the rows and columns of the crop (DailyMAE's idea),
and our area filter resizes. `entropy`: our Huffman decoder. `restart` and `index`: it jumps to the crop, in
one way or the other. `fused`: resize before colour conversion. All but `fused` have the pixels of full
decode, crop and OpenCV's INTER_AREA; the rows of `fused` hold its PSNR. Stock FFCV uses the fast DCT, ours
the accurate one.
"""

import argparse
import itertools
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import cv2
import numpy as np

from replicate.cost.bench import Timing, compare, take_turns, timed_window, write_results
from replicate.cost.stock_ffcv import WARM, has_ffcv, stock_ffcv
from replicate.loaders import Augmentation, crop_decode, crops, open_loader
from replicate.loaders.beton_format import read_tables
from replicate.loaders.crop_decode import Decoding
from replicate.loaders.decode import decode_image
from replicate.loaders.restart import SeekIndex
from replicate.loaders.sources import images_in
from replicate.loaders.writer import WriteSettings, encode_jpeg, shrink, write_beton

BATCH, RESOLUTION, INTERVAL = 256, 500, 8
STEPS = {
    "full": (Decoding(full=True, entropy="libjpeg"), "plain"),
    "crop": (Decoding(entropy="libjpeg"), "plain"),
    "crop + entropy": (Decoding(), "plain"),
    "crop + entropy + restart": (Decoding(), "restart"),
    "crop + entropy + index": (Decoding(), "index"),
    "crop + entropy + fused": (Decoding(resize="fused"), "plain"),
    "crop + entropy + restart + fused": (Decoding(resize="fused"), "restart"),
    "crop + entropy + index + fused": (Decoding(resize="fused"), "index"),
}


def photographs(folder: Path | None) -> list[np.ndarray]:
    """The images below a folder, or those of scikit-image, at 500 px."""
    if folder is None:
        from skimage import data

        images = [data.astronaut(), data.coffee(), data.chelsea(), data.rocket(), data.immunohistochemistry()]
    else:
        images = [decode_image(path.read_bytes(), str(path)) for path in images_in(folder)]
    return [shrink(np.ascontiguousarray(image), RESOLUTION) for image in images]


class Repeated:
    """A source for the writer: the same JPEGs over and over, `count` in all."""

    def __init__(self, images: list[np.ndarray], quality: int, count: int) -> None:
        self.jpegs = list(
            itertools.islice(itertools.cycle([encode_jpeg(image, quality) for image in images]), count)
        )
        self.labels = np.zeros(len(self.jpegs), np.int64)
        self.names, self.class_names = [str(i) for i in range(len(self.jpegs))], ["photograph"]

    def __len__(self) -> int:
        return len(self.jpegs)

    def read(self, index: int) -> bytes:
        return self.jpegs[index]


class Crops:
    """A .beton mapped into memory, with the epoch's boxes and flips."""

    def __init__(self, path: Path, size: int, seek: bool) -> None:
        self.path, self.size = path, size
        self.tables = read_tables(path)
        self.bytes = np.memmap(path, np.uint8, mode="r")
        self.addresses = (self.tables.pointers + self.bytes.ctypes.data).astype(np.uint64)
        self.seek = SeekIndex(path.with_suffix(".seek"), len(self.tables)) if seek else None
        if self.seek is not None:
            self.seek_bytes = np.fromfile(self.seek.path, np.uint8)
            self.seek_addresses = np.where(
                self.seek.lengths > 0, self.seek.offsets + self.seek_bytes.ctypes.data, 0
            ).astype(np.uint64)
        number = np.arange(len(self.tables))
        self.boxes = crops.random_resized_crop_boxes(self.tables.sizes, number, seed=0, epoch=0)
        self.flips = crops.flips(number, seed=0, epoch=0)

    def batches(self) -> list[slice]:
        return [slice(start, start + BATCH) for start in range(0, len(self.tables), BATCH)]

    def decode(self, decoding: Decoding, threads: int, out: np.ndarray, part: slice) -> np.ndarray:
        where = (None, None) if self.seek is None else (self.seek_addresses[part], self.seek.lengths[part])
        addresses, lengths = self.addresses[part], self.tables.lengths[part]
        result = crop_decode.decode_batch(
            *(addresses, lengths, self.boxes[part], self.flips[part], self.size, decoding),
            **{
                "index_addresses": where[0],
                "index_lengths": where[1],
                "threads": threads,
                "out": out[: len(addresses)],
            },
        )
        if result.messages:
            raise RuntimeError(f"{self.path}: {result.messages}")
        return result.images

    def epoch(self, decoding: Decoding, threads: int, first: int = 0) -> Iterator[np.ndarray]:
        """Batches from number `first` on, each in the memory of the one before."""
        out = np.empty((BATCH, self.size, self.size, 3), np.uint8)
        for part in self.batches()[first:]:
            yield self.decode(decoding, threads, out, part)

    def epoch_with_opencv(self, first: int = 0) -> Iterator[np.ndarray]:
        """The same of whole images through cv2 alone, one thread."""
        out = np.empty((BATCH, self.size, self.size, 3), np.uint8)
        for part in self.batches()[first:]:
            for k, (start, length) in enumerate(
                zip(self.tables.pointers[part], self.tables.lengths[part], strict=True)
            ):
                (top, left, height, width), flip = self.boxes[part][k], self.flips[part][k]
                image = cv2.imdecode(self.bytes[start : start + length], cv2.IMREAD_COLOR_RGB)
                cv2.resize(
                    image[top : top + height, left : left + width],
                    (self.size, self.size),
                    dst=out[k],
                    interpolation=cv2.INTER_AREA,
                )
                if flip:
                    out[k] = out[k][:, ::-1]
            yield out


def fused_psnr(data: Crops) -> dict[str, float]:
    """PSNR in dB of fused against exact crops: median, first percentile and least over the data set, at most
    1,000 crops.
    """
    ratios = []
    for part in data.batches()[:4]:
        shape = (BATCH, data.size, data.size, 3)
        exact, fused = (
            data.decode(Decoding(resize=mode), 1, np.empty(shape, np.uint8), part)
            for mode in ("exact", "fused")
        )
        error = ((exact.astype(np.float32) - fused) ** 2).mean((1, 2, 3))
        ratios.append(10 * np.log10(255**2 / np.maximum(error, 1e-9)))
    together = np.concatenate(ratios)
    return {
        "psnr_median": float(np.median(together)),
        "psnr_p1": float(np.percentile(together, 1)),
        "psnr_min": float(together.min()),
    }


def write_files(folder: Path, source: Repeated, quality: int, size: int) -> dict[str, Crops]:
    plain, marked = folder / f"plain_{quality}.beton", folder / f"restart_{quality}.beton"
    write_beton(plain, source, WriteSettings(seek=INTERVAL), progress=False)
    write_beton(marked, source, WriteSettings(restart=INTERVAL), progress=False)
    files = {
        "plain": Crops(plain, size, False),
        "index": Crops(plain, size, True),
        "restart": Crops(marked, size, False),
    }
    images = files["plain"].tables.lengths.sum()
    for kind, added in (
        ("restart", files["restart"].tables.lengths.sum() - images),
        ("index", files["index"].seek.lengths.sum()),
    ):
        each = images / len(source) / 1024
        print(f"quality {quality}: {kind} adds {100 * added / images:.2f} % to {each:.1f} KiB an image")
    return files


def measure(files: dict[str, Crops], quality: int, threads: int, rounds: int) -> list[dict[str, Any]]:
    plain, clock = files["plain"], process_time if threads == 1 else perf_counter
    # A batch of ours, untimed, touches all the memory that it takes.
    epochs = {
        name: (partial(files[kind].epoch, mode, threads, WARM - 1), 1) for name, (mode, kind) in STEPS.items()
    }
    if threads == 1:
        epochs["OpenCV"] = (partial(plain.epoch_with_opencv, WARM - 1), 1)
    if has_ffcv():
        for name, boxes in (("stock FFCV", plain.boxes), ("stock FFCV, its own crops", None)):
            epochs[name] = (partial(iter, stock_ffcv(plain.path, boxes, plain.size, BATCH, threads)), WARM)
    cases = {name: partial(timed_window, begin, skip, clock) for name, (begin, skip) in epochs.items()}
    timings = take_turns(cases, rounds)
    rows, count = [], len(plain.tables) - WARM * BATCH
    psnr = fused_psnr(files["index"])
    baselines = [
        name for name in ("stock FFCV", "stock FFCV, its own crops", "OpenCV", "full") if name in timings
    ]
    for baseline, name in itertools.product(baselines, STEPS):
        if name == baseline:
            continue
        ours, theirs = timings[name], timings[baseline]
        extra = {
            "clock": clock.__name__,
            "images": count,
            "images_per_second": [round(count / ours.median, 1), round(count / theirs.median, 1)],
            "against": baseline,
            **(psnr if "fused" in name else {}),
        }
        setting = f"{RESOLUTION} px quality {quality}, {plain.size} px, flip, {threads} threads"
        case = f"{name} against {baseline}, {setting}"
        rows.append(compare("crop_decode", case, ours, theirs, **extra))
    return rows


def peak_memory(path: Path, size: int, kind: str) -> int:
    """Bytes that an epoch at batch 256 adds to a process of its own."""
    command = [sys.executable, __file__, "--memory-of", kind, "--beton", str(path), "--size", str(size)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def private_bytes() -> int:
    """Memory of this process that belongs to no file (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) * 1024


def print_memory(path: Path, size: int, kind: str) -> None:
    """Runs an epoch and prints how much memory it added at its peak, asked for at every batch."""
    has_ffcv()
    data, before, peak = Crops(path, size, False), private_bytes(), 0
    if kind == "stock":
        for _ in stock_ffcv(path, data.boxes, size, BATCH, 2):
            peak = max(peak, private_bytes())
    else:
        augmentation = Augmentation(scale=(0.08, 1.0))
        options = {
            "batch_size": BATCH,
            "image_size": size,
            "augmentation": augmentation,
            "seed": 0,
            "train": True,
            "workers": 2,
            "drop_last": False,
        }
        with open_loader("ffcv", path, decoding=Decoding(resize="fused"), **options) as loader:
            for _ in loader.epoch(0):
                peak = max(peak, private_bytes())
    print(peak - before)


def memory_row(path: Path, size: int) -> dict[str, Any]:
    ours, theirs = peak_memory(path, size, "ours"), peak_memory(path, size, "stock")
    row = compare(
        "crop_decode",
        f"peak memory of an epoch, batch {BATCH}, FFCV pipeline, 2 threads",
        Timing((ours,)),
        Timing((theirs,)),
    )
    return {**row, "unit": "bytes", "against": "stock FFCV"}


def default_images() -> Path | None:
    root = os.environ.get("REPLICATE_REAL_DATA")
    return Path(root) / "imagenet-sample-167" if root else None


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=Path, default=default_images())
    parser.add_argument(
        "--batches",
        type=int,
        default=12,
        help="timed batches of an epoch, 256 images each (default: %(default)s)",
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quality", type=int, nargs="+", default=[90, 95])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--memory-of", choices=["stock", "ours"], help=argparse.SUPPRESS)
    parser.add_argument("--beton", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory_of:
        print_memory(options.beton, options.size, options.memory_of)
        return
    crop_decode.require()
    cv2.setNumThreads(1)
    images, rows = photographs(options.images), []
    count = (WARM + options.batches) * BATCH
    with tempfile.TemporaryDirectory() as folder:
        for quality in options.quality:
            files = write_files(Path(folder), Repeated(images, quality, count), quality, options.size)
            for threads in options.threads:
                rows += measure(files, quality, threads, options.rounds)
            if has_ffcv() and quality == options.quality[0]:
                rows.append(memory_row(files["plain"].path, options.size))
    write_results("crop_decode", rows)


if __name__ == "__main__":
    main()

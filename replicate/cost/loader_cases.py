"""The loaders that `python -m replicate bench loader` times, and the comparisons that it makes.

An image folder through Pillow and torch's DataLoader, stock FFCV, and the package's own reader, all on the
same crops (RandomResizedCrop(.08, 1), half of them mirrored): by compression, by augmentation, and step by
step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from replicate.cost.decode_steps import Steps
from replicate.cost.photographs import Photographs
from replicate.cost.stock_ffcv import WARM, has_ffcv, stock_ffcv
from replicate.loaders import Augmentation, crop_decode, open_loader
from replicate.loaders.crop_decode import Decoding
from replicate.loaders.crops import epoch_order
from replicate.loaders.writer import WriteSettings, write_beton

BATCH = 64
SCALE = (0.08, 1.0)
STARTED = 2
"""Batches after which a loader runs: its workers have started and its memory is in use."""
ENOUGH = 8
"""Least number of batches timed where some are skipped."""
LONG = WARM * BATCH + 1000
"""Images of an epoch against FFCV; those that fill its new buffers are not timed."""


def _encoded(resolution: int | None = None, quality: int = 95, **options: Any) -> WriteSettings:
    """Every image is encoded again, as FFCV's writer does."""
    return WriteSettings(resolution=resolution, quality=quality, keep=False, **options)


COMPRESSIONS = {
    f"{side}_{quality}": _encoded(side, quality)
    for side, quality in ((500, 100), (500, 95), (500, 90), (1000, 95), (256, 95))
}
"""DailyMAE's Table 4: longest side and quality."""
MORE = {
    f"{side or 'none'}_{quality}": _encoded(side, quality)
    for side in (256, 1000, None)
    for quality in (100, 95, 90)
    if f"{side}_{quality}" not in COMPRESSIONS
} | {
    "500_95_kept": WriteSettings(resolution=500, quality=95),
    "500_95_seek": _encoded(500, seek=8),
    "500_half_raw": _encoded(500, mode="proportion"),
    "500_raw": WriteSettings(resolution=500, mode="raw"),
}
"""Other sides and qualities (Figure 3c), original bytes kept, a seek index, half or all images raw."""
FULL, CROP = Decoding(full=True, entropy="libjpeg"), Decoding(entropy="libjpeg")
CROP_DECODED = ("256_90", "500_90", "500_95", "1000_90", "1000_95", "none_90")
AGAINST_FFCV = ("500_95", "500_90")
STEPS = ("decode", "resize", "simple")


class Case(NamedTuple):
    """Something to time: an epoch's batches after the first `skip`, their images, all photographs' bytes."""

    begin: Callable[[], Iterable[object]]
    skip: int
    images: int
    file_bytes: int


class Cases(dict[str, Case]):
    """Every case by its name, `loader_...`, with files below `folder`. FFCV is timed if it is installed."""

    def __init__(self, folder: Path, images: Photographs, size: int, threads: int) -> None:
        super().__init__()
        self.folder, self.photographs, self.size, self.threads = folder, images, size, threads
        betons = {
            name: self._write(name, images, settings) for name, settings in (COMPRESSIONS | MORE).items()
        }
        for name, path in betons.items():
            self._add_ours(name, path)
        jpegs = {name: self._steps(betons[name]).jpegs() for name in AGAINST_FFCV}
        self._add_ours("folder", images.unpack(folder / "original", images.read), kind="folder")
        same = images.unpack(folder / "same", jpegs["500_95"].__getitem__)
        self._add_ours("folder_500_95", same, kind="folder")
        long = {name: self._write_long(name, jpegs[name]) for name in AGAINST_FFCV}
        if crop_decode.available():
            self._add_crop_decode(betons, long)
        for name, path in long.items():
            self._add_ours(f"long_{name}", path, skip=WARM, decoding=Decoding(seek=False))
        self._add_ours("three_augment", betons["500_95"], auto="three_augment")
        self._add_ours("randaug", betons["500_95"], auto="rand-m9-mstd0.5-inc1")
        if has_ffcv():
            self._add_ffcv(long)

    def _write(self, name: str, images: Photographs, settings: WriteSettings) -> Path:
        path = self.folder / f"{name}.beton"
        write_beton(path, images, settings, workers=self.threads, progress=False)
        return path

    def _write_long(self, name: str, jpegs: list[bytes]) -> Path:
        settings = replace(COMPRESSIONS[name], keep=True, seek=8 if crop_decode.available() else 0)
        return self._write(f"long_{name}", self.photographs.repeated(LONG, jpegs), settings)

    def _steps(self, path: Path) -> Steps:
        return Steps(path, self.size, self.threads, BATCH, SCALE)

    def _add(
        self, name: str, path: Path, count: int, begin: Callable[[], Iterable[object]], skip: int = STARTED
    ) -> None:
        """A case of `count` images. It is timed whole where skipping would leave few batches."""
        files = path.rglob("*") if path.is_dir() else (path, path.with_suffix(".seek"))
        stored = sum(file.stat().st_size for file in files if file.is_file())
        if math.ceil(count / BATCH) - skip < ENOUGH:
            skip = 0
        photographs = len(self.photographs.files)
        self[f"loader_{name}"] = Case(begin, skip, count - skip * BATCH, round(stored * photographs / count))

    def _add_ours(
        self,
        name: str,
        path: Path,
        kind: str = "beton",
        auto: str | None = None,
        skip: int = STARTED,
        **options: Any,
    ) -> None:
        loader = open_loader(
            kind,
            path,
            batch_size=BATCH,
            image_size=self.size,
            augmentation=Augmentation(scale=SCALE, auto=auto),
            seed=0,
            train=True,
            workers=self.threads,
            drop_last=False,
            **options,
        )
        self._add(name, path, loader.num_images, partial(loader.epoch, 0), skip)

    def _add_crop_decode(self, betons: dict[str, Path], long: dict[str, Path]) -> None:
        for name in CROP_DECODED:
            self._add_ours(f"full_decode_{name}", betons[name], decoding=FULL)
            self._add_ours(f"crop_decode_{name}", betons[name], decoding=CROP)
        fused = Decoding(resize="fused")
        self._add_ours("fused_500_95", betons["500_95_seek"], decoding=fused)
        for name, path in long.items():
            self._add_ours(f"long_crop_decode_{name}", path, skip=WARM, decoding=CROP)
            self._add_ours(f"long_fused_{name}", path, skip=WARM, decoding=fused)
        steps, path = self._steps(betons["500_90"]), betons["500_90"]
        if steps.all_jpeg:
            self._add("step_read", path, len(steps.index), steps.read)
            for side, decoding in (("full", FULL), ("crop", CROP)):
                for step in STEPS:
                    begin = partial(getattr(steps, step), decoding)
                    self._add(f"step_{side}_{step}", path, len(steps.index), begin)

    def _add_ffcv(self, long: dict[str, Path]) -> None:
        for name, path in long.items():
            boxes = self._steps(path).boxes
            order = epoch_order(len(boxes), seed=0, epoch=0)
            batches = stock_ffcv(path, boxes, self.size, BATCH, self.threads, order=order)
            self._add(f"ffcv_{name}", path, len(boxes), partial(iter, batches), WARM)


FOLDER, FFCV = "a folder of the same JPEGs", "stock FFCV, quality"
COMPARISONS = tuple(
    (what, f"loader_{ours}", f"loader_{theirs}")
    for what, ours, theirs in (
        ("our reader against a folder of the original files", "500_95", "folder"),
        (f"our reader against {FOLDER}, same crops", "500_95", "folder_500_95"),
        (f"seek index and fused resize against {FOLDER}", "fused_500_95", "folder_500_95"),
        *((f"our reader against {FFCV} {q}, same crops", f"long_500_{q}", f"ffcv_500_{q}") for q in (95, 90)),
        *((f"libjpeg's crop decode against {FFCV} {q}", f"long_crop_decode_500_{q}", f"ffcv_500_{q}")
          for q in (95, 90)),
        *((f"seek index and fused resize against {FFCV} {q}", f"long_fused_500_{q}", f"ffcv_500_{q}")
          for q in (95, 90)),
        (f"stock FFCV against {FOLDER}, same crops", "ffcv_500_95", "folder_500_95"),
        *((f"crop decode against full decode, {name}", f"crop_decode_{name}", f"full_decode_{name}")
          for name in CROP_DECODED),
        *((f"{name} against 500_95", name, "500_95") for name in (*COMPRESSIONS, *MORE) if name != "500_95"),
        ("3-Aug against RandAug", "three_augment", "randaug"),
        ("reading alone against crop, resize and simple augmentation", "step_read", "step_crop_simple"),
        *((f"step {one}: crop against full decode", f"step_crop_{one}", f"step_full_{one}") for one in STEPS),
    )
)  # fmt: skip
"""(what is compared, ours, theirs)."""

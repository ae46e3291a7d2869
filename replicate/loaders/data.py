"""The `data` stage: write source images as .beton files with a manifest; check and describe such files."""

import sys
import zlib
from collections.abc import Callable
from dataclasses import dataclass, fields
from inspect import signature
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import numpy as np

from replicate.errors import UserError
from replicate.loaders import beton_format as fmt
from replicate.loaders.decode import END_OF_IMAGE
from replicate.loaders.manifest import FILE_NAME, Manifest, read_samples, sha256, write_samples
from replicate.loaders.photos import LAYOUTS, PhotosSource
from replicate.loaders.reader import BetonReader
from replicate.loaders.sources import Source, open_folder, source_folder
from replicate.loaders.writer import SEEK_SUFFIX, WriteSettings, Written, write_beton

SPLITS = ("train", "val")
PHOTOS = "photos"
PHOTOS_TRAIN, PHOTOS_VAL = 2400, 1200


def open_sources(
    source: str,
    *,
    classes: int | None = None,
    class_fraction: float = 1.0,
    fraction: float = 1.0,
    train_images: int | None = None,
    val_images: int | None = None,
    minival: int = 0,
    image_size: int = 64,
    seed: int = 0,
) -> tuple[Source, Source]:
    """Training and validation images of `source`: "photos", or a folder with train/ and val/.

    `classes` or `class_fraction` select classes, `fraction` a share of each class's training images. The
    image counts cap the totals. `minival` training images of each class of a folder become validation images.
    `image_size` applies to photos only. Raises UserError as the sources do.
    """
    for name, share in (("class_fraction", class_fraction), ("fraction", fraction)):
        if not 0 < share <= 1:
            raise UserError(f"data {name}: {share} must be above 0 and at most 1")
    if source != PHOTOS:
        part = {"classes": classes, "class_fraction": class_fraction, "fraction": fraction}
        part |= {"train_images": train_images, "val_images": val_images, "minival": minival, "seed": seed}
        return open_folder(source_folder(source), **part)
    if minival:
        raise UserError(f"data minival: {minival} holds out images of a folder; for photos, raise val_images")
    classes = classes or max(round(len(LAYOUTS) * class_fraction), 2)
    common = {"image_size": image_size, "seed": seed, "num_classes": classes}
    train = PhotosSource("train", num_images=round((train_images or PHOTOS_TRAIN) * fraction), **common)
    return train, PhotosSource("val", num_images=val_images or PHOTOS_VAL, **common)


def _record(path: Path, written: Written, settings: WriteSettings) -> dict[str, Any]:
    seek = path.with_suffix(SEEK_SUFFIX)
    return {
        "file": path.name,
        "images": len(written.index),
        "bytes": path.stat().st_size,
        "sha256": sha256(path),
        "seek_sha256": sha256(seek) if seek.is_file() else None,
        "settings": vars(settings),
        "counts": {how: written.counts[how] for how in ("kept", "transcoded", "encoded", "raw", "resized")},
    } | ({"skipped": written.skipped} if written.skipped else {})


def _write_split(
    path: Path, source: Source, settings: WriteSettings, workers: int, progress: bool, on_error: str
) -> dict[str, Any]:
    written = write_beton(path, source, settings, workers=workers, progress=progress, on_error=on_error)
    if written.skipped:
        count = f"{len(written.skipped)} of {len(source)} images left out"
        print(f"{path}: {count}; {FILE_NAME} names them", file=sys.stderr)
    labels = source.labels[written.index].tolist()
    rows = zip(written.names, labels, written.lengths, written.checksums, written.how, strict=True)
    write_samples(path, list(rows))
    return _record(path, written, settings)


def write_dataset(
    sources: tuple[Source, Source],
    out: Path,
    train: WriteSettings,
    val: WriteSettings,
    *,
    description: dict[str, Any],
    workers: int = 2,
    progress: bool = True,
    on_error: str = "raise",
) -> Manifest:
    """Write both splits to `out`, then the manifest. `description` holds the arguments of `open_sources`.

    Deletes an older manifest first. A killed run leaves a folder without one, which every reader refuses.
    """
    out.mkdir(parents=True, exist_ok=True)
    (out / FILE_NAME).unlink(missing_ok=True)
    settings = dict(zip(SPLITS, (train, val), strict=True))
    splits = {}
    for split, source in zip(SPLITS, sources, strict=True):
        path = out / f"{split}.beton"
        splits[split] = _write_split(path, source, settings[split], workers, progress, on_error)
    manifest = Manifest(description, sources[0].class_names, splits)
    manifest.write(out / FILE_NAME)
    return manifest


@dataclass(frozen=True)
class DataSettings:
    """A data set's settings that `write` reads, for scripts and notebooks; see `open_sources`, WriteSettings.

    `params.Dataset` has the same attributes, and those of WriteSettings that it lacks keep their defaults.
    """

    source: str = PHOTOS
    classes: int | None = None
    class_fraction: float = 1.0
    fraction: float = 1.0
    train_images: int | None = None
    val_images: int | None = None
    minival: int = 0
    image_size: int = 64
    seed: int = 0
    train: Any = WriteSettings()
    val: Any = WriteSettings()
    on_error: str = "raise"


def _write_settings(encoding: Any, seed: int) -> WriteSettings:
    names = {field.name for field in fields(WriteSettings)} - {"seed"}
    return WriteSettings(
        **{name: getattr(encoding, name) for name in names if hasattr(encoding, name)}, seed=seed
    )


def write(dataset: DataSettings, out: Path, *, workers: int = 2, progress: bool = True) -> Manifest:
    """`python -m replicate data write`: write `out`/train.beton, val.beton and manifest.json.

    Raises UserError for an impossible setting before it writes anything, and for a missing folder or damaged
    image.
    """
    encodings = [_write_settings(encoding, dataset.seed) for encoding in (dataset.train, dataset.val)]
    description = {name: getattr(dataset, name) for name in signature(open_sources).parameters}
    if not dataset.minival:
        del description["minival"]  # so that the manifests of older data keep their digests
    options = {"workers": workers, "progress": progress, "on_error": dataset.on_error}
    return write_dataset(open_sources(**description), out, *encodings, description=description, **options)


def betons_in(path: Path) -> list[Path]:
    """`path` itself, or the files that the manifest in the folder `path` lists."""
    if not path.is_dir():
        return [path]
    return [path / record["file"] for record in Manifest.read(path / FILE_NAME).splits.values()]


def _check_samples(reader: BetonReader) -> None:
    """Read every sample. Check each JPEG's end marker, and the checksums of the table if there is one."""
    rows = chain(read_samples(reader.path), repeat(None))
    for index, row in zip(range(len(reader)), rows, strict=False):
        data = reader.read(index)
        if reader.tables.modes[index] == fmt.JPG and not data.endswith(END_OF_IMAGE):
            what = "damaged JPEG (it does not end with an end-of-image marker)"
            raise UserError(f"{reader.name(index)}: {what}; write the data again")
        if row is not None and zlib.crc32(data) != int(row["crc32"]):
            raise UserError(
                f"{reader.name(index)}: its bytes are not those that were written; write the data again"
            )


def _check_sums(file: Path, record: dict[str, Any]) -> None:
    for path, expected in ((file, record["sha256"]), (file.with_suffix(SEEK_SUFFIX), record["seek_sha256"])):
        if expected is not None and (not path.is_file() or sha256(path) != expected):
            raise UserError(f"{path}: its checksum is not the one in {FILE_NAME}; write the data again")


def check(path: Path) -> list[Path]:
    """`python -m replicate data check`: check a .beton file, or those of a data folder.

    Checks tables, size, every sample and the checksum. Returns the files that passed. Raises UserError that
    names the first damaged file, and the damaged sample.
    """
    files = betons_in(path)
    for file in files:
        with BetonReader(file) as reader:
            _check_samples(reader)
            if reader.manifest is not None:
                _check_sums(file, reader.manifest.record(file))
    return files


def _quantiles(values: np.ndarray) -> dict[str, int]:
    return {
        name: int(np.quantile(values, q)) for name, q in (("smallest", 0), ("median", 0.5), ("largest", 1))
    }


def _describe(file: Path) -> dict[str, Any]:
    with BetonReader(file) as reader:
        tables, manifest = reader.tables, reader.manifest
        content = {
            "file": str(file),
            "images": len(tables),
            "classes": len(reader.class_names),
            "bytes": tables.num_bytes,
            "jpg": int((tables.modes == fmt.JPG).sum()),
            "raw": int((tables.modes == fmt.RAW).sum()),
            "height": _quantiles(tables.sizes[:, 0]),
            "width": _quantiles(tables.sizes[:, 1]),
            "bytes an image": _quantiles(tables.lengths),
            "page size": tables.page_size,
        }
        if manifest is None:
            return content
        record = manifest.record(file)
        return content | {
            "counts": record["counts"],
            "settings": record["settings"],
            "sha256": record["sha256"],
            "source": manifest.source,
        }


def describe(path: Path) -> list[dict[str, Any]]:
    """What each .beton file of a data folder holds and how it was written; `path` may also be one file."""
    return [_describe(file) for file in betons_in(path)]


def info(path: Path, show: Callable[[str], None] = print) -> list[dict[str, Any]]:
    """`python -m replicate data info`: print what `describe` returns, and return it."""
    described = describe(path)
    for content in described:
        show(content["file"])
        for key, value in content.items():
            text = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else value
            if key != "file":
                show(f"  {key:>15}: {text}")
    return described

"""The `data` stage: source images -> train.beton, val.beton and their manifest; and the checks that tell damage before a run
reads it.
"""

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from replicate.errors import UserError
from replicate.loaders import beton_format as fmt
from replicate.loaders.decode import END_OF_IMAGE
from replicate.loaders.manifest import FILE_NAME, Manifest, read_samples, sha256, write_samples
from replicate.loaders.photos import PhotosSource
from replicate.loaders.reader import BetonReader
from replicate.loaders.sources import Source, open_folder
from replicate.loaders.writer import WriteSettings, Written, write_beton

SPLITS = ("train", "val")
PHOTOS = "photos"
PHOTOS_TRAIN, PHOTOS_VAL = 2400, 1200


def open_sources(
    source: str,
    *,
    classes: int | None = None,
    fraction: float = 1.0,
    train_images: int | None = None,
    val_images: int | None = None,
    image_size: int = 64,
    seed: int = 0,
) -> tuple[Source, Source]:
    """Training and validation images of `source`: "photos", or a folder with train/ and val/.

    `classes`, `fraction` (of each class's training images) and the image counts take a part; `image_size` is for photos alone.
    Raises UserError as the sources do.
    """
    if source != PHOTOS:
        part = {"classes": classes, "fraction": fraction, "train_images": train_images, "val_images": val_images}
        return open_folder(Path(source), **part, seed=seed)
    if not 0 < fraction <= 1:
        raise UserError(f"data fraction: {fraction} must be above 0 and at most 1")
    common = {"image_size": image_size, "seed": seed, "num_classes": classes}
    train = PhotosSource("train", num_images=round((train_images or PHOTOS_TRAIN) * fraction), **common)
    return train, PhotosSource("val", num_images=val_images or PHOTOS_VAL, **common)


def _record(path: Path, source: Source, written: Written, settings: WriteSettings) -> dict[str, Any]:
    return {
        "file": path.name,
        "images": len(source),
        "bytes": path.stat().st_size,
        "sha256": sha256(path),
        "settings": vars(settings),
        "counts": {how: written.counts[how] for how in ("kept", "encoded", "raw", "resized")},
    }


def _write_split(path: Path, source: Source, settings: WriteSettings, workers: int, progress: bool) -> dict[str, Any]:
    written = write_beton(path, source, settings, workers=workers, progress=progress)
    rows = zip(written.names, source.labels.tolist(), written.lengths, written.checksums, written.how, strict=True)
    write_samples(path, list(rows))
    return _record(path, source, written, settings)


def write_dataset(
    sources: tuple[Source, Source],
    out: Path,
    train: WriteSettings,
    val: WriteSettings,
    *,
    description: dict[str, Any],
    workers: int = 2,
    progress: bool = True,
) -> Manifest:
    """Writes both splits to `out` and the manifest last; `description` are the arguments that `open_sources` took.

    An older manifest goes first, so a killed run leaves a folder without one, which every reader refuses in a sentence.
    """
    out.mkdir(parents=True, exist_ok=True)
    (out / FILE_NAME).unlink(missing_ok=True)
    settings = dict(zip(SPLITS, (train, val), strict=True))
    splits = {
        split: _write_split(out / f"{split}.beton", source, settings[split], workers, progress)
        for split, source in zip(SPLITS, sources, strict=True)
    }
    manifest = Manifest(description, sources[0].class_names, splits)
    manifest.write(out / FILE_NAME)
    return manifest


def write(
    source: str,
    out: Path,
    *,
    classes: int | None = None,
    fraction: float = 1.0,
    train_images: int | None = None,
    val_images: int | None = None,
    image_size: int = 64,
    seed: int = 0,
    resolution: int | None = None,
    quality: int | None = None,
    val_resolution: int | None = None,
    val_quality: int | None = None,
    mode: str = "jpg",
    proportion: float = 0.5,
    keep: bool = True,
    workers: int = 2,
    progress: bool = True,
) -> Manifest:
    """`python -m replicate data write`: `out`/train.beton, val.beton and manifest.json from `source` ("photos" or a folder).

    resolution, quality, mode, proportion, keep: see WriteSettings. Raises UserError before anything is written where an
    argument is impossible.
    """
    common = {"mode": mode, "proportion": proportion, "keep": keep, "seed": seed}
    train = WriteSettings(resolution=resolution, quality=quality, **common)
    val = WriteSettings(resolution=val_resolution, quality=val_quality, **common)
    description = {
        "source": str(source),
        "classes": classes,
        "fraction": fraction,
        "train_images": train_images,
        "val_images": val_images,
        "image_size": image_size,
        "seed": seed,
    }
    return write_dataset(
        open_sources(**description), out, train, val, description=description, workers=workers, progress=progress
    )


def betons_in(path: Path) -> list[Path]:
    """`path` itself, or the files that the manifest in folder `path` lists."""
    if not path.is_dir():
        return [path]
    return [path / record["file"] for record in Manifest.read(path / FILE_NAME).splits.values()]


def _check_samples(reader: BetonReader) -> None:
    """Reads every sample: end marker of each JPEG, and the checksum where there is a table of them."""
    rows = read_samples(reader.path)
    for index in range(len(reader)):
        data = reader.read(index)
        if reader.tables.modes[index] == fmt.JPG and not data.endswith(END_OF_IMAGE):
            raise UserError(
                f"{reader.name(index)}: damaged JPEG (it does not end with an end-of-image marker); write the data again"
            )
        if rows and zlib.crc32(data) != int(rows[index]["crc32"]):
            raise UserError(f"{reader.name(index)}: its bytes are not those that were written; write the data again")


def check(path: Path) -> list[Path]:
    """`python -m replicate data check`: tables, size, every sample and the checksum of a .beton file, or of all in a data folder.

    Returns the files that passed. Raises UserError naming the first damaged file, and the sample where one is to blame.
    """
    files = betons_in(path)
    for file in files:
        with BetonReader(file) as reader:
            _check_samples(reader)
            if reader.manifest is not None and sha256(file) != reader.manifest.record(file)["sha256"]:
                raise UserError(f"{file}: its checksum is not the one in {FILE_NAME}; write the data again")
    return files


def _quantiles(values: np.ndarray) -> dict[str, int]:
    return {name: int(np.quantile(values, q)) for name, q in (("smallest", 0), ("median", 0.5), ("largest", 1))}


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


def info(path: Path, show: Callable[[str], None] | None = print) -> list[dict[str, Any]]:
    """`python -m replicate data info`: what each .beton holds and how it was written, returned and, through `show`, printed."""
    described = [_describe(file) for file in betons_in(path)]
    for content in described if show else ():
        show(f"{content['file']}")
        for key, value in content.items():
            if key != "file":
                text = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else value
                show(f"  {key:>15}: {text}")
    return described

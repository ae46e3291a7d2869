"""What a data set holds, how it was written, and checksums that detect a change.

Pipeline stages depend on `manifest.json` instead of on gigabytes. Beside each <split>.beton lies <split>.csv
with one line per sample: name of the source file, label, stored bytes, their CRC-32, and how they were made
(kept, encoded, raw).
"""

import csv
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from replicate.errors import UserError
from replicate.files import atomic_write
from replicate.loaders.beton_format import Tables

FILE_NAME = "manifest.json"
FORMAT = 1
COLUMNS = ("name", "label", "bytes", "crc32", "how")
# File names need not be text. Their bytes pass through the table unchanged.
_ENCODING = {"newline": "", "encoding": "utf-8", "errors": "surrogateescape"}


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()


def write_samples(path: Path, rows: list[tuple[str, int, int, int, str]]) -> None:
    """Write the table beside `path` (a .beton file); rows in the order of COLUMNS."""

    def write(temporary: Path) -> None:
        with open(temporary, "w", **_ENCODING) as file:
            # Python before 3.13 quotes a name with a carriage return only when told to quote all text.
            writer = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
            writer.writerow(COLUMNS)
            writer.writerows(rows)

    atomic_write(path.with_suffix(".csv"), write)


def read_samples(path: Path) -> Iterator[dict[str, str]]:
    """The lines of the table beside `path` (a .beton file); none when there is no table."""
    table = path.with_suffix(".csv")
    if table.is_file():
        with open(table, **_ENCODING) as file:
            yield from csv.DictReader(file)


def sample_name(path: Path, index: int) -> str:
    """ " (train/cat/1.jpg)" for a message about sample `index`; "" when its source file is unknown."""
    row = next(islice(read_samples(path), index, None), None)
    return f" ({row['name']})" if row is not None else ""


@dataclass(frozen=True)
class Manifest:
    """Contents of manifest.json.

    `source` holds the settings of the images' source. `splits` holds a record per split: file, images, bytes,
    sha256, the writer's settings, and counts of kept, encoded, raw and resized images.
    """

    source: dict[str, Any]
    class_names: list[str]
    splits: dict[str, dict[str, Any]]

    @classmethod
    def read(cls, path: Path) -> "Manifest":
        """Raises UserError when the file is missing or is not a manifest."""
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content["format"] != FORMAT:
                raise UserError(
                    f"{path}: manifest format {content['format']} is not {FORMAT}; write the data again"
                )
            return cls(content["source"], content["class_names"], content["splits"])
        except FileNotFoundError as error:
            raise UserError(
                f"{path}: missing; write the data set with `python -m replicate data write`"
            ) from error
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{path}: not a manifest of this package ({error}); write the data again"
            ) from error

    @classmethod
    def beside(cls, beton: Path) -> "Manifest | None":
        """The manifest that lists `beton`. None for a file that another program wrote."""
        path = beton.parent / FILE_NAME
        if not path.is_file():
            return None
        manifest = cls.read(path)
        return manifest if any(record["file"] == beton.name for record in manifest.splits.values()) else None

    def write(self, path: Path) -> None:
        """Write the file atomically: its presence means that the data set is complete."""
        content = {"format": FORMAT, **vars(self)}
        text = json.dumps(content, indent=1) + "\n"
        atomic_write(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))

    def record(self, beton: Path) -> dict[str, Any]:
        return next(record for record in self.splits.values() if record["file"] == beton.name)

    def refuse_other(self, folder: Path, dataset: Any) -> None:
        """Raise UserError when the data in `folder` was written with other settings than `dataset` has."""
        source = {"minival": 0} | self.source
        settings = [(name, written, getattr(dataset, name, written)) for name, written in source.items()]
        for split, record in self.splits.items():
            encoding = getattr(dataset, split)
            for name, written in record["settings"].items():
                settings.append((f"{split}.{name}", written, getattr(encoding, name, written)))
        for name, written, asked in settings:
            if written != asked:
                again = f"write it again with `python -m replicate data write {folder.name}`"
                difference = f"was written with {name} {written!r}, where params.yaml now says {asked!r}"
                raise UserError(f"{folder}: {difference}; {again}")

    def check_tables(self, tables: Tables) -> None:
        """Compare size, count and labels with the record. Raises UserError that names the file."""
        record, path = self.record(tables.path), tables.path
        again = "write the data again"
        if tables.num_bytes != record["bytes"]:
            raise UserError(
                f"{path}: {tables.num_bytes} bytes where {FILE_NAME} says {record['bytes']}; {again}"
            )
        if len(tables) != record["images"]:
            raise UserError(
                f"{path}: {len(tables)} images where {FILE_NAME} says {record['images']}; {again}"
            )
        if tables.labels.min() < 0 or tables.labels.max() >= len(self.class_names):
            classes = f"the {len(self.class_names)} classes of {FILE_NAME}"
            raise UserError(f"{path}: a label lies outside {classes}; {again}")

"""The small file beside the large ones: what a data set holds, how it was written, and the checksums that tell whether it still
is that.

`manifest.json` is what pipeline stages depend on instead of gigabytes. Beside each <split>.beton lies <split>.csv, one line a
sample: name of the source file, label, stored bytes, CRC-32 of them, and how they came about (kept, encoded, raw).
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
from replicate.loaders.beton_format import Tables

FILE_NAME = "manifest.json"
FORMAT = 1
COLUMNS = ("name", "label", "bytes", "crc32", "how")
_CHUNK = 1 << 22


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file, read in pieces."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def write_samples(path: Path, rows: list[tuple[str, int, int, int, str]]) -> None:
    """The table beside `path` (a .beton file); rows in the order of COLUMNS."""
    with open(path.with_suffix(".csv"), "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(rows)


def read_samples(path: Path) -> Iterator[dict[str, str]]:
    """The table beside `path` (a .beton file), line by line; nothing where there is none."""
    table = path.with_suffix(".csv")
    if table.is_file():
        with open(table, newline="", encoding="utf-8") as file:
            yield from csv.DictReader(file)


def sample_name(path: Path, index: int) -> str:
    """ " (train/cat/1.jpg)" for a message about sample `index`, or nothing where its source file is not known."""
    row = next(islice(read_samples(path), index, None), None)
    return f" ({row['name']})" if row is not None else ""


@dataclass(frozen=True)
class Manifest:
    """Contents of manifest.json: `source` (kind and settings it was drawn from), `class_names`, and for each split a record of
    file, images, bytes, sha256, settings of the writer, and counts of kept, encoded, raw and resized images."""

    source: dict[str, Any]
    class_names: list[str]
    splits: dict[str, dict[str, Any]]

    @classmethod
    def read(cls, path: Path) -> "Manifest":
        """Raises UserError when the file is missing or is no manifest."""
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content["format"] != FORMAT:
                raise UserError(f"{path}: manifest format {content['format']} is not {FORMAT}; write the data again")
            return cls(content["source"], content["class_names"], content["splits"])
        except FileNotFoundError as error:
            raise UserError(f"{path}: missing; write the data set with `python -m replicate data write`") from error
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}: not a manifest of this package ({error}); write the data again") from error

    @classmethod
    def beside(cls, beton: Path) -> "Manifest | None":
        """The manifest that lists `beton`, or None: a file from another writer has none."""
        path = beton.parent / FILE_NAME
        if not path.is_file():
            return None
        manifest = cls.read(path)
        return manifest if any(record["file"] == beton.name for record in manifest.splits.values()) else None

    def write(self, path: Path) -> None:
        """Under its name only when complete: the manifest says that the data set is."""
        content = {"format": FORMAT, "source": self.source, "class_names": self.class_names, "splits": self.splits}
        part = path.with_name(path.name + ".part")
        part.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        part.replace(path)

    def record(self, beton: Path) -> dict[str, Any]:
        return next(record for record in self.splits.values() if record["file"] == beton.name)

    def refuse_other(self, folder: Path, dataset: Any) -> None:
        """Raise UserError, with the first setting that differs, where the data in `folder` was written for another data set than
        `dataset`, whose attributes are its settings now.
        """
        settings = [(name, written, getattr(dataset, name, written)) for name, written in self.source.items()]
        for split, record in self.splits.items():
            encoding = getattr(dataset, split)
            settings += [(f"{split}.{name}", written, getattr(encoding, name, written)) for name, written in record["settings"].items()]
        for name, written, asked in settings:
            if written != asked:
                again = f"write it again with `python -m replicate data write {folder.name}`"
                raise UserError(f"{folder}: was written with {name} {written!r}, where params.yaml now says {asked!r}; {again}")

    def check_tables(self, tables: Tables) -> None:
        """Size, count and labels against the record. Raises UserError naming the file."""
        record, path = self.record(tables.path), tables.path
        again = "write the data again"
        if tables.num_bytes != record["bytes"]:
            raise UserError(f"{path}: {tables.num_bytes} bytes where {FILE_NAME} says {record['bytes']}; {again}")
        if len(tables) != record["images"]:
            raise UserError(f"{path}: {len(tables)} images where {FILE_NAME} says {record['images']}; {again}")
        if tables.labels.min() < 0 or tables.labels.max() >= len(self.class_names):
            raise UserError(f"{path}: a label lies outside the {len(self.class_names)} classes of {FILE_NAME}; {again}")

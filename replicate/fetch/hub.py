"""The Hugging Face hub: one file of a model, a data set as class folders, and a folder to publish.

Needs the package huggingface_hub; data sets stored as Parquet need pyarrow too (`pip install
"replicate[hub]"`).
"""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from replicate.config.datasets import HUB
from replicate.errors import UserError

SPLITS = {"train": "train", "validation": "val", "valid": "val", "val": "val", "test": "val"}
"""A hub's name of a split -> ours. Where several are validation sets, the first in this order is taken."""


def hub_file(repository: str, name: str, revision: str | None = None) -> Path:
    """A file of a model's repository in the hub's own cache, downloaded once.

    Raises UserError, in one line that names repository and file, when it is not there or the hub cannot be
    reached.
    """
    hub = library()
    return Path(_asked(lambda: hub.hf_hub_download(repository, name, revision=revision), repository, name))


def fetch_dataset(source: str, work: Path, target: Path) -> None:
    """Lay out `hf://datasets/OWNER/NAME[@REVISION]` as `target`/{train,val}/<class>/.

    Reads repositories of class folders (train/<class>/...) and of Parquet files with an image and a label
    column. Raises UserError that names the repository when it has neither.
    """
    repository, _, revision = source.removeprefix(HUB).strip("/").partition("@")
    if repository.count("/") != 1:
        raise UserError(f"{source}: expected {HUB}OWNER/NAME, or {HUB}OWNER/NAME@REVISION")
    hub = library()
    folder = Path(
        _asked(
            lambda: hub.snapshot_download(
                repository, repo_type="dataset", revision=revision or None, local_dir=work
            ),
            repository,
            "its files",
        )
    )
    lay_out = _from_folders if (folder / "train").is_dir() else _from_parquet
    lay_out(folder, target, repository)


def publish(folder: Path, repository: str, private: bool = False) -> str:
    """Upload a folder as a model's repository, made if it is missing; returns its address.

    Raises UserError without a login, or where the hub refuses.
    """
    hub = library()
    api = hub.HfApi()
    _asked(lambda: api.create_repo(repository, private=private, exist_ok=True), repository, "")
    found = _asked(lambda: api.upload_folder(repo_id=repository, folder_path=str(folder)), repository, "")
    return str(found)


def library() -> Any:
    """The package huggingface_hub. Raises UserError with the command that installs it."""
    try:
        import huggingface_hub
    except ImportError:
        raise UserError('the Hugging Face hub needs a package: pip install "replicate[hub]"') from None
    return huggingface_hub


def _asked(call: Callable[[], Any], repository: str, name: str) -> Any:
    """A call to the hub, with its errors in one line."""
    try:
        return call()
    except Exception as error:
        text = " ".join(str(error).split()) or type(error).__name__
        what = f"hf:{repository}" + (f", {name}" if name else "")
        raise UserError(f"{what}: {type(error).__name__}: {text[:300]}") from None


def _from_folders(folder: Path, target: Path, repository: str) -> None:
    for ours in ("train", "val"):
        theirs = next(
            (split for split, own in SPLITS.items() if own == ours and (folder / split).is_dir()), None
        )
        if theirs is None:
            raise UserError(f"hf:{repository}: has train/ but none of validation/, val/ and test/")
        shutil.move(folder / theirs, target / ours)


def _from_parquet(folder: Path, target: Path, repository: str) -> None:
    try:
        from pyarrow import parquet
    except ImportError:
        raise UserError('a data set in Parquet files needs pyarrow: pip install "replicate[hub]"') from None
    files = sorted(folder.rglob("*.parquet"))
    for ours in ("train", "val"):
        splits = (split for split, own in SPLITS.items() if own == ours)
        shards = next(filter(None, ([p for p in files if p.name.startswith(s)] for s in splits)), [])
        if not shards:
            raise UserError(f"hf:{repository}: no folder {ours}/ and no Parquet file of that split")
        for number, (content, label) in enumerate(_rows(shards, parquet, repository)):
            place = target / ours / label / f"{number:07d}{_suffix(content, repository)}"
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(content)


def _rows(shards: list[Path], parquet: Any, repository: str) -> Iterator[tuple[bytes, str]]:
    """(bytes of an image, name of its class) of every row, a few rows in memory at a time."""
    for path in shards:
        file = parquet.ParquetFile(path)
        features = _features(file.schema_arrow.metadata)
        kinds = {name: feature.get("_type") for name, feature in features.items()}
        image, label = (
            next((n for n, k in kinds.items() if k == kind), None) for kind in ("Image", "ClassLabel")
        )
        if image is None or label is None:
            raise UserError(f"hf:{repository}: {path.name} has no column of images with one of class labels")
        names = features[label]["names"]
        for batch in file.iter_batches(batch_size=256, columns=[image, label]):
            for row in batch.to_pylist():
                if row[label] is not None and row[label] >= 0 and row[image]["bytes"]:
                    yield row[image]["bytes"], _folder_name(names[row[label]])


def _features(metadata: dict[bytes, bytes] | None) -> dict[str, dict[str, Any]]:
    """What the hub's library wrote of the columns."""
    content = json.loads((metadata or {}).get(b"huggingface", b"{}"))
    return content.get("info", {}).get("features", {})


def _folder_name(name: str) -> str:
    """A class's name as a folder's: "tench, Tinca tinca" -> "tench__Tinca_tinca"; no path leaves the
    folder.
    """
    return "".join(c if c.isalnum() or c in "-+." else "_" for c in name).strip(".") or "_"


def _suffix(content: bytes, repository: str) -> str:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(content)) as image:
            return {"JPEG": ".jpg"}.get(image.format, f".{image.format.lower()}")
    except UnidentifiedImageError:
        raise UserError(f"hf:{repository}: has an image that cannot be read") from None

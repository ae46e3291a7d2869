"""Damaged .beton files: every kind of damage gives one clear error with file and sample, in every loader."""

import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from replicate.errors import UserError
from replicate.loaders import Augmentation, crop_decode, data, open_loader, restart
from replicate.loaders import beton_format as fmt
from replicate.loaders.manifest import Manifest
from replicate.loaders.reader import BetonReader
from replicate.loaders.writer import WriteSettings

COUNT = 24


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for split, count in (("train", COUNT // 2), ("val", 2)):
        for name in ("cat", "dog"):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                Image.fromarray(rng.integers(0, 256, (32, 40, 3), np.uint8)).save(
                    folder / f"{i:02d}.jpg", quality=90
                )
    out = tmp_path_factory.mktemp("data")
    data.write(data.DataSettings(str(root)), out, progress=False)
    return out


@pytest.fixture
def folder(pristine: Path, tmp_path: Path) -> Path:
    for file in pristine.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def _header(path: Path) -> np.ndarray:
    return np.memmap(path, fmt.HEADER, mode="r+", shape=1)


def _tables(path: Path) -> fmt.Tables:
    return fmt.read_tables(path)


def _cut(path: Path, size: int) -> None:
    with open(path, "r+b") as file:
        file.truncate(size)


def _metadata(path: Path) -> np.ndarray:
    return np.memmap(
        path,
        fmt.metadata_dtype([2, 1]),
        mode="r+",
        offset=fmt.HEADER.itemsize + 2 * fmt.FIELD.itemsize,
        shape=COUNT,
    )


def _half(path: Path) -> None:
    _cut(path, path.stat().st_size // 2)


def _no_table(path: Path) -> None:
    _cut(path, int(_header(path)[0]["alloc_table_ptr"]))


def _half_a_table(path: Path) -> None:
    _cut(path, path.stat().st_size - 12 * fmt.ALLOCATION.itemsize)


def _header_only(path: Path) -> None:
    _cut(path, 10)


def _no_magic(path: Path) -> None:
    path.write_bytes(b"this is not a beton file at all, but long enough for a header")


def _unfinished(path: Path) -> None:
    header = _header(path)
    header["alloc_table_ptr"] = 0
    header.flush()


def _count(delta: int) -> object:
    def spoil(path: Path) -> None:
        header = _header(path)
        header["num_samples"] = int(header[0]["num_samples"]) + delta
        header.flush()

    return spoil


def _terabytes(path: Path) -> None:
    header = _header(path)
    header["num_samples"] = 1 << 50
    header.flush()


def _no_samples(path: Path) -> None:
    header = _header(path)
    header["num_samples"] = 0
    header.flush()


def _fields(path: Path) -> None:
    header = _header(path)
    header["num_fields"] = 9999
    header.flush()


def _page(path: Path) -> None:
    header = _header(path)
    header["page_size"] = 12345
    header.flush()


def _pointer(path: Path) -> None:
    metadata = _metadata(path)
    metadata["f0"]["data_ptr"][5] += 1
    metadata.flush()


def _outside(path: Path) -> None:
    table = np.memmap(
        path, fmt.ALLOCATION, mode="r+", offset=int(_header(path)[0]["alloc_table_ptr"]), shape=COUNT
    )
    table["size"][7] = 1 << 60
    table.flush()


def _no_pixels(path: Path) -> None:
    metadata = _metadata(path)
    metadata["f0"]["width"][3] = 0
    metadata.flush()


def _mode(path: Path) -> None:
    metadata = _metadata(path)
    metadata["f0"]["mode"][2] = 7
    metadata.flush()


DAMAGES = {
    _half: "cut short",
    _no_table: "allocation table has 0 entries for 24 samples",
    _half_a_table: "allocation table has 12 entries for 24 samples",
    _header_only: "shorter than its header",
    _no_magic: "not a .beton file",
    _unfinished: "never finished",
    _count(1): "24 entries|24 samples|25 samples",
    _count(-1): "24 entries for 23 samples",
    _terabytes: "more than its metadata has room for",
    _no_samples: "no samples|24 entries for 0",
    _fields: "9999 fields",
    _page: "page size 12345",
    _pointer: "sample 5: its data is missing",
    _outside: "sample 7: its data lies outside",
    _no_pixels: "sample 3: it has no pixels",
    _mode: "sample 2: it is stored in an unknown mode",
}


@pytest.mark.parametrize(
    ("spoil", "message"), DAMAGES.items(), ids=[message[:20] for message in DAMAGES.values()]
)
def test_damaged_tables_are_errors_on_opening(folder: Path, spoil: object, message: str) -> None:
    path = folder / "train.beton"
    spoil(path)
    for read in (lambda: BetonReader(path), lambda: data.check(path)):
        with pytest.raises(UserError, match=message) as caught:
            read()
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_file_says_how_to_write_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such .beton file; write it with"):
        BetonReader(tmp_path / "train.beton")


def _zero_tail(folder: Path, sample: int) -> Path:
    path = folder / "train.beton"
    tables = _tables(path)
    with open(path, "r+b") as file:
        file.seek(int(tables.pointers[sample] + tables.lengths[sample] // 2))
        file.write(bytes(int(tables.lengths[sample] - tables.lengths[sample] // 2)))
    return path


def _open(path: Path, kind: str = "beton", **options: object) -> object:
    defaults = dict(batch_size=8, image_size=16, augmentation=Augmentation(), seed=0, train=True)
    return open_loader(kind, path, **(defaults | options))


def test_a_zeroed_tail_names_sample_and_source_file(folder: Path) -> None:
    path = _zero_tail(folder, 13)
    with (
        _open(path) as loader,
        pytest.raises(
            UserError, match=r"train.beton: sample 13 \(train/dog/01.jpg\): damaged JPEG.*`on_error: skip`"
        ),
    ):
        list(loader.epoch(0))
    with pytest.raises(UserError, match=r"sample 13 \(train/dog/01.jpg\)"):
        data.check(folder)


def test_a_damaged_sample_can_be_skipped_and_counted(folder: Path) -> None:
    path = _zero_tail(folder, 13)
    with _open(path, on_error="skip", workers=2) as loader:
        seen = np.concatenate([batch.index for batch in loader.epoch(0)])
        assert loader.num_skipped == 1
        assert sorted(seen.tolist()) == [i for i in range(COUNT) if i != 13]
        list(loader.epoch(1))
        assert loader.num_skipped == 2
    with pytest.raises(UserError, match="on_error: 'ignore'"):
        _open(path, on_error="ignore")


def test_a_changed_bit_is_found_by_check_alone(folder: Path) -> None:
    path = folder / "val.beton"
    tables = _tables(path)
    with open(path, "r+b") as file:
        file.seek(int(tables.pointers[2] + tables.lengths[2] - 20))
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ 1]))
    with pytest.raises(
        UserError, match=r"val.beton: sample 2 \(val/dog/00.jpg\): its bytes are not those that were written"
    ):
        data.check(folder)


def test_a_changed_label_is_found_by_the_checksum(folder: Path) -> None:
    metadata = _metadata(folder / "train.beton")
    metadata["f1"][0] = 1
    metadata.flush()
    with pytest.raises(UserError, match="checksum is not the one in manifest.json"):
        data.check(folder)
    metadata["f1"][0] = 99
    metadata.flush()
    with pytest.raises(UserError, match="a label lies outside the 2 classes"):
        BetonReader(folder / "train.beton")


def test_a_file_that_shrinks_after_opening_is_an_error(folder: Path) -> None:
    with _open(folder / "train.beton") as loader:
        _cut(folder / "train.beton", 4000)
        with pytest.raises(UserError, match="has shrunk since it was opened"):
            list(loader.epoch(0))


@pytest.mark.skipif(not crop_decode.available(), reason="the C library is not built")
def test_a_seek_index_of_other_bytes_names_the_sample(folder: Path) -> None:
    """Two entries of the index are swapped, so that each belongs to another image."""
    source = Manifest.read(folder / "manifest.json").source["source"]
    data.write(data.DataSettings(source, train=WriteSettings(seek=2)), folder / "seek", progress=False)
    path = folder / "seek" / "train.beton"
    with BetonReader(path) as reader:
        indices = [reader.seek.read(sample) for sample in range(COUNT)]
    indices[3], indices[13] = indices[13], indices[3]
    restart.write_index(path.with_suffix(".seek"), indices)
    with (
        _open(path) as loader,
        pytest.raises(
            UserError,
            match=r"train.beton: sample (3 \(train/cat/03|13 \(train/dog/01).jpg\): wrong seek index",
        ),
    ):
        list(loader.epoch(0))
    with _open(path, on_error="skip") as loader:
        assert sum(len(batch.index) for batch in loader.epoch(0)) == COUNT - 2 and loader.num_skipped == 2


def test_a_file_of_another_run_does_not_match_the_manifest(folder: Path) -> None:
    (folder / "train.beton").write_bytes((folder / "val.beton").read_bytes())
    with pytest.raises(UserError, match=r"bytes where manifest.json says"):
        BetonReader(folder / "train.beton")


@pytest.mark.parametrize("text", ["", "{}", '{"format": 9}', "[1, 2]", '{"format": 1, "source": {}}'])
def test_an_invalid_manifest_is_an_error(folder: Path, text: str) -> None:
    (folder / "manifest.json").write_text(text)
    with pytest.raises(UserError, match=r"manifest.json: "):
        Manifest.read(folder / "manifest.json")


def test_a_beton_of_another_writer_needs_no_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()
    (folder / "train.csv").unlink()
    with _open(folder / "train.beton") as loader:
        assert loader.class_names == ["0", "1"]
        assert sum(len(batch.index) for batch in loader.epoch(0)) == COUNT
    assert data.check(folder / "train.beton")


@pytest.mark.parametrize("workers", [1, 3])
def test_leaving_early_leaves_no_thread_behind(folder: Path, workers: int) -> None:
    before = threading.active_count()
    with _open(folder / "train.beton", workers=workers, batch_size=2) as loader:
        for _ in loader.epoch(0):
            break
    assert threading.active_count() == before


def test_an_exception_in_a_worker_surfaces_at_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("boom")

    with _open(folder / "train.beton", workers=2) as loader:
        monkeypatch.setattr(loader, "_decode", fail)
        with pytest.raises(RuntimeError, match="boom"):
            list(loader.epoch(0))


def test_a_batch_larger_than_the_set_is_refused_only_where_it_would_be_dropped(folder: Path) -> None:
    with pytest.raises(UserError, match="holds 24 images, fewer than one batch of 32 x 2 ranks"):
        _open(folder / "train.beton", batch_size=32, world_size=2)
    with _open(folder / "train.beton", batch_size=32, drop_last=False) as loader:
        assert [len(batch.index) for batch in loader.epoch(0)] == [COUNT]
    with _open(folder / "train.beton", batch_size=32, train=False) as loader:
        assert np.concatenate([batch.index for batch in loader.epoch(0)]).tolist() == list(range(COUNT))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"batch_size": 0}, "batch_size: 0"), ({"image_size": 0}, "image_size: 0"), ({"rank": 2}, "rank: 2")],
)
def test_impossible_options_name_the_key(folder: Path, options: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        _open(folder / "train.beton", **options)
    with pytest.raises(UserError, match="loader: 'webdataset' is none of"):
        _open(folder / "train.beton", kind="webdataset")


def test_large_images_grow_the_page(tmp_path: Path) -> None:
    class Large:
        class_names, labels, names = ["a"], np.zeros(3, np.int64), ["x", "y", "z"]

        def __len__(self) -> int:
            return 3

        def read(self, index: int) -> np.ndarray:
            return np.full((1000 + index, 900, 3), index, np.uint8)

    from replicate.loaders.writer import write_beton

    write_beton(tmp_path / "x.beton", Large(), WriteSettings(mode="raw"), progress=False)
    with BetonReader(tmp_path / "x.beton") as reader:
        tables = reader.tables
        assert tables.page_size == 1 << 22
        assert (
            tables.pointers // tables.page_size == (tables.pointers + tables.lengths - 1) // tables.page_size
        ).all()
        assert (
            reader.crop(2, np.array([0, 0, 1002, 900]), False, 8).tolist() == np.full((8, 8, 3), 2).tolist()
        )

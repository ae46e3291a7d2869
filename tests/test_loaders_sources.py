"""Folder sources: subsets as the papers define them, and one clear error for each faulty folder."""

import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from replicate.errors import UserError
from replicate.loaders import Augmentation, crop_decode, data, open_loader, restart
from replicate.loaders.manifest import Manifest
from replicate.loaders.photos import LAYOUTS
from replicate.loaders.sources import open_folder, spread_classes
from replicate.loaders.writer import WriteSettings, write_beton

needs_c_library = pytest.mark.skipif(not crop_decode.available(), reason="the C library is not built")


def _fill(root: Path, classes: int = 5, train: int = 20, val: int = 4) -> Path:
    for split, count in (("train", train), ("val", val)):
        for label in range(classes):
            folder = root / split / f"n{label:03d}"
            folder.mkdir(parents=True)
            for i in range(count):
                Image.fromarray(np.full((12, 10, 3), 9 * i, np.uint8)).save(folder / f"{i:03d}.JPEG")
    return root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return _fill(tmp_path / "set")


def test_classes_and_files_come_in_order(root: Path) -> None:
    train, val = open_folder(root)
    assert train.class_names == val.class_names == [f"n{i:03d}" for i in range(5)]
    assert train.names[:2] == ["train/n000/000.JPEG", "train/n000/001.JPEG"]
    assert Counter(train.labels.tolist()) == dict.fromkeys(range(5), 20) and len(val) == 20


def test_a_class_subset_is_spread_and_relabelled(root: Path) -> None:
    train, val = open_folder(root, classes=2)
    assert train.class_names == val.class_names == ["n000", "n002"]
    assert set(train.labels) == {0, 1} and len(train) == 40
    assert open_folder(root, class_fraction=0.4)[0].names == train.names
    assert spread_classes([str(i) for i in range(200)], 40, root) == [str(5 * i) for i in range(40)]


def test_a_share_of_the_images_is_per_class_nested_and_of_training_alone(root: Path) -> None:
    tenth, half = (open_folder(root, fraction=fraction)[0] for fraction in (0.1, 0.5))
    assert Counter(tenth.labels.tolist()) == dict.fromkeys(range(5), 2)
    assert set(tenth.names) < set(half.names) and len(half) == 50
    assert len(open_folder(root, fraction=0.1)[1]) == 20
    assert (
        tenth.names
        == open_folder(root, fraction=0.1)[0].names
        != open_folder(root, fraction=0.1, seed=1)[0].names
    )
    assert len(open_folder(root, fraction=0.001)[0]) == 5


def test_a_cap_is_shared_evenly_by_the_classes(root: Path) -> None:
    train, val = open_folder(root, train_images=33, val_images=5)
    assert Counter(train.labels.tolist()) == {0: 7, 1: 7, 2: 7, 3: 6, 4: 6}
    assert Counter(val.labels.tolist()) == dict.fromkeys(range(5), 1)
    assert len(open_folder(root, train_images=10_000)[0]) == 100


def test_tiny_imagenets_nested_class_folders_are_read(root: Path) -> None:
    for folder in (root / "train").iterdir():
        images = folder / "images"
        images.mkdir()
        for file in list(folder.glob("*.JPEG")):
            file.rename(images / file.name)
        (folder / "boxes.txt").write_text("0 0 1 1")
    assert len(open_folder(root)[0]) == 100


def _remove(path: Path) -> None:
    for file in path.iterdir():
        file.unlink()


def _rename(path: Path) -> None:
    path.rename(path.with_name("zebra"))


@pytest.mark.parametrize(
    ("spoil", "options", "message"),
    [
        (lambda root: root.rename(root.with_name("away")), {}, "set: no such folder"),
        (lambda root: (root / "val").rename(root / "validation"), {}, "val: no such folder"),
        (lambda root: _remove(root / "train" / "n003"), {}, "n003: no image in it"),
        (lambda root: _rename(root / "val" / "n004"), {}, "class 'n004' is in train/ and not in val/"),
        (lambda root: None, {"classes": 9}, "classes: 9 must lie between 1 and 5"),
        (lambda root: None, {"fraction": 0.0}, "fraction: 0.0 must be above 0"),
        (lambda root: None, {"train_images": 3}, "images: 3 must be at least the number of classes, 5"),
    ],
)
def test_a_wrong_folder_gives_a_one_line_error(
    root: Path, spoil: object, options: dict[str, object], message: str
) -> None:
    spoil(root)
    with pytest.raises(UserError, match=message) as caught:
        data.open_sources(str(root), **options)
    assert "\n" not in str(caught.value)


def test_a_folder_without_class_folders_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    with pytest.raises(UserError, match="no class folders"):
        open_folder(tmp_path)


def _text(path: Path) -> None:
    path.write_text("this is no picture")


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-60])


def _empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize(
    ("spoil", "message"), [(_text, "not an image"), (_truncate, "damaged image"), (_empty, "not an image")]
)
def test_a_bad_image_is_named_and_leaves_no_file(
    root: Path, tmp_path: Path, spoil: object, message: str
) -> None:
    spoil(root / "train" / "n001" / "005.JPEG")
    with pytest.raises(UserError, match=f"train/n001/005.JPEG: {message}"):
        data.write(data.DataSettings(str(root)), tmp_path / "out", progress=False)
    assert list((tmp_path / "out").iterdir()) == []
    with (
        pytest.raises(UserError, match="train/n001/005.JPEG"),
        open_loader(
            "folder",
            root / "train",
            batch_size=10,
            image_size=8,
            augmentation=Augmentation(),
            seed=0,
            train=True,
        ) as loader,
    ):
        list(loader.epoch(0))


def test_a_killed_writer_leaves_no_file_that_a_reader_accepts(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    data.write(data.DataSettings(str(root)), out, progress=False)
    before = (out / "train.beton").read_bytes()

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        data.write(data.DataSettings(str(root), fraction=0.5), out, progress=False)
    assert (out / "train.beton").read_bytes() == before and not list(out.glob("*.part"))
    with pytest.raises(UserError, match=r"manifest.json: missing"):
        Manifest.read(out / "manifest.json")


@pytest.mark.parametrize("seek", [0, pytest.param(8, marks=needs_c_library)], ids=["beton", "seek index"])
def test_a_full_disk_is_an_error_and_leaves_no_file(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seek: int
) -> None:
    there_is_room, sync = iter([True] if seek else []), os.fsync

    def full(file: int) -> None:
        if not next(there_is_room, False):
            raise OSError(28, "No space left on device")
        sync(file)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"train.beton: cannot be written \(No space left on device\)"):
        write_beton(
            tmp_path / "out" / "train.beton", open_folder(root)[0], WriteSettings(seek=seek), progress=False
        )
    assert list((tmp_path / "out").iterdir()) == []


def test_a_seek_index_that_cannot_be_written_leaves_nothing_and_the_old_one_whole(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    restart.write_index(tmp_path / "train.seek", [b"old"])
    before, limits = (tmp_path / "train.seek").read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            restart.write_index(tmp_path / "train.seek", [bytes(1 << 21)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"train.seek": before}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"resolution": 0}, "resolution: 0"),
        ({"quality": 101}, "quality: 101"),
        ({"mode": "webp"}, "mode: 'webp'"),
        ({"proportion": 2.0}, "proportion: 2.0"),
    ],
)
def test_impossible_write_settings_name_the_key(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        WriteSettings(**settings)


def test_photos_is_a_source_like_any_other(tmp_path: Path) -> None:
    manifest = data.write(
        data.DataSettings(train_images=24, val_images=12, image_size=16), tmp_path, progress=False
    )
    assert manifest.class_names == list(LAYOUTS) and manifest.splits["train"]["images"] == 24
    with pytest.raises(UserError, match="photos classes: 99"):
        data.open_sources("photos", classes=99)


@pytest.mark.slow
def test_kill_9_in_mid_write_leaves_nothing_and_the_next_run_succeeds(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    code = (
        "import time; from replicate.loaders import data, sources, writer\n"
        "read = sources.FolderSource.read\n"
        "def slow(self, index):\n    time.sleep(0.05)\n    return read(self, index)\n"
        "sources.FolderSource.read = slow\n"
        "from pathlib import Path\n"
        f"data.write(data.DataSettings({str(root)!r}), Path({str(out)!r}), progress=False)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code])
    deadline = time.monotonic() + 60
    while not (out / "train.beton.part").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert (out / "train.beton.part").exists() and not (out / "train.beton").exists()
    with pytest.raises(UserError, match="no such .beton file"):
        open_loader(
            "beton",
            out / "train.beton",
            batch_size=2,
            image_size=8,
            augmentation=Augmentation(),
            seed=0,
            train=True,
        )
    data.write(data.DataSettings(str(root)), out, progress=False)
    assert sorted(file.name for file in out.iterdir()) == [
        "manifest.json",
        "train.beton",
        "train.csv",
        "val.beton",
        "val.csv",
    ]
    assert len(data.check(out)) == 2


def test_ten_of_two_hundred_classes_are_ten_of_every_fifth():
    """`classes: 10` takes the same classes of Tiny-ImageNet from all 200 as from a fifth of them."""
    names = [f"n{number:03d}" for number in range(200)]
    assert spread_classes(names, 10, Path()) == spread_classes(names[::5], 10, Path()) == names[::20]

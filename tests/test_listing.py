"""Which files of a folder count as images, and what the listing says about the others."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from replicate.errors import UserError
from replicate.loaders import Augmentation, data, listing, open_loader
from replicate.loaders.manifest import Manifest, read_samples
from replicate.loaders.sources import open_folder

OPTIONS = {"batch_size": 2, "image_size": 8, "augmentation": Augmentation(), "seed": 0, "train": False}


def _save(path: Path, value: int = 90) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((12, 10, 3), value, np.uint8)).save(
        path, format={".webp": "WEBP"}.get(path.suffix, "JPEG")
    )
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes with three training images and one validation image each."""
    for split, count in (("train", 3), ("val", 1)):
        for name in ("cat", "dog"):
            for number in range(count):
                _save(tmp_path / "set" / split / name / f"{number}.jpg")
    return tmp_path / "set"


@pytest.fixture(autouse=True)
def nothing_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "_reported", set())


def _names(root: Path) -> list[str]:
    return open_folder(root)[0].names


PLAIN = [f"train/{name}/{number}.jpg" for name in ("cat", "dog") for number in range(3)]


@pytest.mark.parametrize(
    "hidden",
    [
        "train/cat/.ipynb_checkpoints/0-checkpoint.jpg",
        "train/cat/deep/@eaDir/0.jpg/SYNOPHOTO_THUMB_M.jpg",
        "train/.Trash/9.jpg",
        "train/__MACOSX/9.jpg",
        "train/cat/__MACOSX/9.jpg",
        "val/.ipynb_checkpoints/9.jpg",
    ],
)
def test_hidden_folders_are_skipped_at_every_depth(
    root: Path, hidden: str, capsys: pytest.CaptureFixture
) -> None:
    _save(root / hidden)
    assert _names(root) == PLAIN
    said = capsys.readouterr().err
    skipped = next(part for part in Path(hidden).parts if part.startswith((".", "@", "__")))
    assert said.startswith(f"{root}: left out 1 hidden (") and skipped in said and said.count("\n") == 1


def test_resource_forks_of_macos_are_skipped_and_data_is_written(root: Path, tmp_path: Path) -> None:
    (root / "train" / "cat" / "._0.jpg").write_bytes(b"Mac OS X, not a JPEG")
    manifest = data.write(data.DataSettings(str(root)), tmp_path / "out", progress=False)
    assert manifest.splits["train"]["images"] == 6


def test_links_are_followed_and_loops_end(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    elsewhere = _save(tmp_path / "elsewhere" / "far.jpg")
    cat = root / "train" / "cat"
    (cat / "file.jpg").symlink_to(elsewhere)
    (cat / "folder").symlink_to(elsewhere.parent)
    (cat / "itself").symlink_to(cat)
    (cat / "up").symlink_to(root / "train")
    (cat / "again").symlink_to(elsewhere.parent)
    (cat / "dangling.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (cat / "self.jpg").symlink_to("self.jpg")
    found = [name for name in _names(root) if name not in PLAIN]
    assert found == ["train/cat/again/far.jpg", "train/cat/file.jpg"]
    said = capsys.readouterr().err
    assert "2 linked to nothing (train/cat/dangling.jpg, train/cat/self.jpg)" in said
    assert "3 linked to a folder that is listed already" in said and "train/cat/itself" in said


def test_a_class_folder_may_be_a_link(root: Path, tmp_path: Path) -> None:
    (root / "train" / "dog").rename(tmp_path / "dogs")
    (root / "train" / "dog").symlink_to(tmp_path / "dogs")
    assert _names(root) == PLAIN


def test_formats_of_pillow_are_read_and_the_others_are_counted(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8)
    lossless = {"a.webp": {"lossless": True}, "b.bmp": {}, "c.tif": {}, "d.PPM": {}, "e.tga": {}, "f.PNG": {}}
    for name, options in lossless.items():
        Image.fromarray(pixels).save(root / "train" / "cat" / name, **options)
    for number in range(5):
        (root / "train" / "cat" / f"{number}.txt").write_text("a caption")
    (root / "train" / "README.md").write_text("about")
    raw = data.WriteSettings(mode="raw")
    data.write(data.DataSettings(str(root), train=raw), tmp_path / "out", progress=False)
    said = capsys.readouterr().err
    assert "5 without an image suffix (train/cat/0.txt, train/cat/1.txt, train/cat/2.txt, ...)" in said
    assert "1 outside class folders (train/README.md)" in said
    with open_loader("folder", root / "train", **OPTIONS) as loader:
        served = {
            Path(name).name: loader.source.read(index) for index, name in enumerate(loader.source.names)
        }
    assert set(lossless) < set(served)
    names = [Path(row["name"]).name for row in read_samples(tmp_path / "out" / "train.beton")]
    with data.BetonReader(tmp_path / "out" / "train.beton") as reader:
        for name in lossless:
            assert reader.read(names.index(name)) == pixels.tobytes()


def test_every_place_that_lists_images_lists_the_same(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    _save(root / "train" / "cat" / ".hidden" / "1.jpg")
    _save(root / "train" / "cat" / "nested" / "1.webp")
    (root / "train" / "cat" / "._1.jpg").write_bytes(b"")
    (root / "train" / "cat" / "note.txt").write_text("")
    (root / "train" / "dog" / "linked").symlink_to(_save(tmp_path / "elsewhere" / "2.jpg").parent)
    from replicate.cost import data_size, photographs
    from replicate.loaders.sources import images_in

    assert len(_names(root)) == 8
    capsys.readouterr()
    monkeypatch.setattr(listing, "_reported", set())
    assert data_size._counted(root) == {"train": 8, "val": 2, "classes": 2}
    assert f"{root}: left out 2 hidden" in capsys.readouterr().err
    assert len(images_in(root / "train")) == len(photographs._below(root / "train")) == 8
    with open_loader("folder", root / "train", **OPTIONS) as loader:
        assert loader.num_images == 8


def test_tiny_imagenets_archive_may_hold_resource_forks(tmp_path: Path) -> None:
    from replicate.fetch import tiny_imagenet

    source = tmp_path / "tiny-imagenet-200"
    _save(source / "train" / "n01" / "images" / "n01_0.JPEG")
    (source / "train" / "n01" / "images" / "._n01_0.JPEG").write_bytes(b"fork")
    _save(source / "val" / "images" / "val_0.JPEG")
    (source / "val" / "val_annotations.txt").write_text("val_0.JPEG\tn01\t0\t32\t44\t62\n")
    assert [path.name for _, _, path in tiny_imagenet.images(source)] == ["n01_0.JPEG", "val_0.JPEG"]


@pytest.mark.skipif(sys.platform != "linux", reason="file names of any bytes")
@pytest.mark.parametrize(
    "name", [b"caf\xe9.jpg", b"a\nb.jpg", b"a\rb.jpg", b'a"b,c.jpg', "日本.jpg".encode()]
)
def test_file_names_of_any_bytes_are_written_read_and_named(root: Path, tmp_path: Path, name: bytes) -> None:
    odd = Path(os.fsdecode(os.path.join(os.fsencode(root / "train" / "cat"), name)))
    os.rename(root / "train" / "cat" / "0.jpg", odd)
    out = tmp_path / "out"
    data.write(data.DataSettings(str(root)), out, progress=False)
    assert len(data.check(out)) == 2
    written = [os.fsencode(row["name"]) for row in read_samples(out / "train.beton")]
    assert b"train/cat/" + name in written
    for kind in ("beton", "folder"):
        with open_loader(kind, out / "train.beton", **OPTIONS) as loader:
            assert sum(len(batch.index) for batch in loader.epoch(0)) == 6
    odd.write_bytes(b"")
    with pytest.raises(UserError) as caught:
        data.write(data.DataSettings(str(root)), out, progress=False)
    assert name in os.fsencode(str(caught.value))
    data.write(data.DataSettings(str(root), on_error="skip"), out, progress=False)
    assert name in os.fsencode(Manifest.read(out / "manifest.json").splits["train"]["skipped"][0])


@pytest.mark.skipif(sys.platform != "linux", reason="file names of any bytes")
def test_a_class_name_that_is_not_text_is_refused_before_anything_is_written(
    root: Path, tmp_path: Path
) -> None:
    for split in ("train", "val"):
        os.rename(root / split / "cat", os.path.join(os.fsencode(root / split), b"caf\xe9"))
    with pytest.raises(UserError, match=r"caf\\xe9': the class folder's name is not valid UTF-8"):
        data.write(data.DataSettings(str(root)), tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


def test_a_tilde_is_the_home_folder(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(root.parent))
    manifest = data.write(data.DataSettings("~/set"), tmp_path / "out", progress=False)
    assert manifest.splits["train"]["images"] == 6 and manifest.source["source"] == "~/set"
    with open_loader("folder", tmp_path / "out" / "train.beton", **OPTIONS) as loader:
        assert sum(len(batch.index) for batch in loader.epoch(0)) == 6
    with pytest.raises(UserError, match="data source ~nobody-of-this-name/set: no such user"):
        data.open_sources("~nobody-of-this-name/set")


def test_the_plan_counts_the_images_behind_a_tilde(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from replicate.config import Dataset
    from replicate.cost.data_size import _expected

    monkeypatch.setenv("HOME", str(root.parent))
    size = _expected(Dataset(source="~/set"))
    assert (size.train, size.val, size.classes) == (6, 2, 2)


def test_the_folder_loader_serves_what_the_beton_holds(root: Path, tmp_path: Path) -> None:
    """The folder has changed since, and the writer left an image out."""
    (root / "train" / "cat" / "1.jpg").write_bytes(b"")
    data.write(data.DataSettings(str(root), on_error="skip"), tmp_path / "out", progress=False)
    _save(root / "train" / "cat" / "00.jpg")
    with open_loader("folder", tmp_path / "out" / "train.beton", **OPTIONS) as loader:
        assert loader.source.names == ["train/cat/0.jpg", "train/cat/2.jpg", *PLAIN[3:]]
        assert loader.source.labels.tolist() == [0, 0, 1, 1, 1]


@pytest.fixture
def one_class(tmp_path: Path) -> Path:
    """A project whose budget reads a data set of one class."""
    from project import write_params

    for split in ("train", "val"):
        for number in range(40):
            _save(tmp_path / "only" / split / "cat" / f"{number}.jpg", 3 * number)
    return write_params(
        tmp_path, data={"source": str(tmp_path / "only"), "train_images": None, "val_images": None}
    )


def test_a_data_set_of_one_class_is_not_scored(one_class: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from replicate.config import load
    from replicate.pipeline import launch

    monkeypatch.chdir(one_class.parent)
    params = load(one_class)
    name = "light_90_llrd_80"
    launch.write_dataset(params, params.run(name).dataset)
    with pytest.raises(
        UserError, match=f"run {name}: data set .* has one class, 'cat'; classifying needs at least two"
    ):
        launch.launch(params, name, [])

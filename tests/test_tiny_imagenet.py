"""The layout of Tiny-ImageNet's archive as class folders."""

import sys
from pathlib import Path

import pytest

from replicate.loaders.sources import spread_classes

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))
import tiny_imagenet  # noqa: E402


@pytest.fixture
def archive(tmp_path):
    source = tmp_path / "tiny-imagenet-200"
    for name in ("n01", "n02"):
        (source / "train" / name / "images").mkdir(parents=True)
        (source / "train" / name / "images" / f"{name}_0.JPEG").write_bytes(name.encode())
    (source / "val" / "images").mkdir(parents=True)
    (source / "val" / "images" / "val_0.JPEG").write_bytes(b"val")
    (source / "val" / "val_annotations.txt").write_text("val_0.JPEG\tn02\t0\t32\t44\t62\n")
    return source


def test_images_lie_by_split_and_class(archive, tmp_path, capsys):
    target = tmp_path / "data" / "tiny-imagenet"
    assert tiny_imagenet.main([str(archive), str(target)]) == 0
    assert "3 images" in capsys.readouterr().out
    found = {path.relative_to(target).as_posix(): path.read_bytes() for path in target.rglob("*.JPEG")}
    assert found == {
        "train/n01/n01_0.JPEG": b"n01",
        "train/n02/n02_0.JPEG": b"n02",
        "val/n02/val_0.JPEG": b"val",
    }


def test_a_folder_that_is_not_the_archive_is_named(archive, tmp_path, capsys):
    assert tiny_imagenet.main([str(tmp_path), str(tmp_path / "out")]) == 1
    assert "no train and no val/images" in capsys.readouterr().err
    (archive / "val" / "images" / "val_0.JPEG").unlink()
    assert tiny_imagenet.main([str(archive), str(tmp_path / "out")]) == 1
    assert "val_0.JPEG is listed but missing" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_ten_of_two_hundred_classes_are_ten_of_every_fifth():
    """`classes: 10` takes the same classes from all 200 as from a fifth of them."""
    names = [f"n{number:03d}" for number in range(200)]
    assert spread_classes(names, 10, Path()) == spread_classes(names[::5], 10, Path()) == names[::20]

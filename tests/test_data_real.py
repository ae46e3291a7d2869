"""Loaders and writer on real photographs, if REPLICATE_REAL_DATA names the folder that holds them."""

import importlib.util
import os
from pathlib import Path

import pytest
import torch

from replicate.loaders import Augmentation, crop_decode, data, open_loader
from replicate.loaders.writer import WriteSettings

REAL = Path(os.environ.get("REPLICATE_REAL_DATA", "/nonexistent"))
pytestmark = pytest.mark.skipif(
    not (REAL / "imagenet-sample-167").is_dir(), reason="REPLICATE_REAL_DATA names no folder with them"
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The photographs' class folders as both splits, through links."""
    folder = tmp_path_factory.mktemp("photographs")
    for split in ("train", "val"):
        (folder / split).mkdir()
        for target in sorted((REAL / "imagenet-sample-167").iterdir())[:60]:
            (folder / split / target.name).symlink_to(target)
    return folder


def _write(root: Path, out: Path, settings: WriteSettings) -> dict[str, object]:
    data.write(data.DataSettings(str(root), train=settings, val=settings), out, progress=False)
    return data.describe(out)[0]


def _batches(kind: str, path: Path) -> list:
    options = dict(
        batch_size=16,
        image_size=96,
        augmentation=Augmentation(scale=(0.08, 1.0)),
        seed=3,
        train=True,
        drop_last=False,
    )
    with open_loader(kind, path, workers=2, **options) as loader:
        return list(loader.epoch(0))


def test_every_kind_of_loader_serves_the_same_pixels(root: Path, tmp_path: Path) -> None:
    content = _write(root, tmp_path, WriteSettings())
    assert content["counts"]["kept"] == content["images"] == 60
    kinds = ["folder", "beton"] + (
        ["ffcv"] if importlib.util.find_spec("ffcv") and crop_decode.available() else []
    )
    served = [_batches(kind, tmp_path / "train.beton") for kind in kinds]
    for other in served[1:]:
        for ours, theirs in zip(served[0], other, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_files_shrink_in_the_papers_order(root: Path, tmp_path: Path) -> None:
    """DailyMAE, Tables 4 and 5: lower resolution and quality, fewer bytes; FFCV's re-encoding never beats
    keeping.
    """
    order = (WriteSettings(), WriteSettings(500, 95), WriteSettings(500, 90), WriteSettings(256, 90))
    sizes = [_write(root, tmp_path / str(i), settings)["bytes"] for i, settings in enumerate(order)]
    assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) == len(sizes)
    assert _write(root, tmp_path / "again", WriteSettings(500, 95, keep=False))["bytes"] > sizes[1]

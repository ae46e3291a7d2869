"""`on_error: skip` when a whole batch is damaged: training and scoring continue.

They end with one error when no image is left.
"""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from test_engine import session_of

from replicate.errors import UserError
from replicate.loaders import Augmentation, crop_decode, data, open_loader
from replicate.loaders import beton_format as fmt
from replicate.report.reconstruct import sample_images
from replicate.trainers import accuracy, score

COUNT, BATCH = 24, 4
needs_c_library = pytest.mark.skipif(not crop_decode.available(), reason="the C library is not built")
KINDS = ["beton", "folder", pytest.param("ffcv", marks=[needs_c_library, pytest.mark.slow])]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes; image i of both splits is grey of level 10 * i."""
    for split in ("train", "val"):
        for i in range(COUNT):
            folder = tmp_path / "set" / split / "ab"[i // (COUNT // 2)]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((16, 16, 3), 10 * i, np.uint8)).save(folder / f"{i:02d}.jpg")
    return tmp_path / "set"


@pytest.fixture
def written(root: Path, tmp_path: Path) -> Path:
    data.write(data.DataSettings(str(root), on_error="skip"), tmp_path / "out", progress=False)
    return tmp_path / "out"


def _damage(root: Path, written: Path, samples: range) -> None:
    """Zero the samples of the .beton files, and empty their source files."""
    for split in ("train", "val"):
        tables = fmt.read_tables(written / f"{split}.beton")
        with open(written / f"{split}.beton", "r+b") as file:
            for sample in samples:
                file.seek(int(tables.pointers[sample]))
                file.write(bytes(int(tables.lengths[sample])))
        files = sorted((root / split).rglob("*.jpg"))
        for sample in samples:
            files[sample].write_bytes(b"")


def _open(path: Path, kind: str, **options: object) -> object:
    defaults = dict(
        batch_size=BATCH, image_size=8, augmentation=Augmentation(), seed=0, on_error="skip", train=False
    )
    return open_loader(kind, path, **(defaults | options))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("auto", [None, "three_augment"])
def test_no_batch_of_an_evaluation_is_empty(root: Path, written: Path, kind: str, auto: str | None) -> None:
    _damage(root, written, range(BATCH, 2 * BATCH))
    with _open(written / "val.beton", kind, augmentation=Augmentation(auto=auto)) as loader:
        batches = [batch.index.tolist() for batch in loader.epoch(0)]
    assert batches == [
        list(range(start, start + BATCH)) for start in range(0, COUNT, BATCH) if start != BATCH
    ]
    assert loader.num_skipped == BATCH


@pytest.mark.parametrize("kind", KINDS)
def test_training_keeps_its_number_of_steps(root: Path, written: Path, kind: str) -> None:
    _damage(root, written, range(COUNT - 2))
    with _open(written / "train.beton", kind, train=True, batch_size=1) as loader:
        sizes = [len(batch.index) for batch in loader.epoch(0)]
    assert len(sizes) == loader.num_batches == COUNT and sum(sizes) == 2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("training", [True, False])
def test_an_epoch_without_any_image_is_one_error(
    root: Path, written: Path, kind: str, training: bool
) -> None:
    _damage(root, written, range(COUNT))
    split = "train" if training else "val"
    with (
        _open(written / f"{split}.beton", kind, train=training) as loader,
        pytest.raises(
            UserError, match=rf"{split}.beton: no image can be read; for example .*{split}/[ab]/\d\d.jpg"
        ),
    ):
        list(loader.epoch(0))


class ByBrightness(torch.nn.Module):
    """Class a for dark images, class b for bright ones: always right on the images of `root`."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        bright = images.mean((1, 2, 3)) - (115 / 255 - 0.449) / 0.226
        return torch.stack([-bright, bright], 1)


def _context(written: Path, on_error: str = "skip") -> SimpleNamespace:
    run = SimpleNamespace(encoding=None, codec="pillow", dct=None, interpolation="area", image_size=8)
    session = session_of(loader="beton", workers=1)
    return SimpleNamespace(
        name="test", run=run, session=session, data_folder=written, on_error=on_error, num_classes=2
    )


@pytest.mark.parametrize("lost", [0, 3 * BATCH])
def test_scores_count_the_images_that_are_left(root: Path, written: Path, monkeypatch, lost: int) -> None:
    _damage(root, written, range(lost))
    monkeypatch.setattr("replicate.trainers.images.EVALUATION_BATCH", BATCH)
    monkeypatch.setattr(score, "EVALUATION_BATCH", BATCH)
    assert accuracy.accuracy(ByBrightness(), _context(written), 8) == {"top1": 100.0, "top5": 100.0}
    assert score._accuracy(ByBrightness(), _context(written))["top1"] == 100.0


def test_scores_without_an_image_are_one_error(root: Path, written: Path) -> None:
    _damage(root, written, range(COUNT))
    with pytest.raises(UserError, match="val.beton: no image can be read"):
        accuracy.accuracy(ByBrightness(), _context(written), 8)
    with pytest.raises(UserError, match="run test: none of the 24 validation images can be read"):
        score._accuracy(ByBrightness(), _context(written))
    with pytest.raises(UserError, match="val/a/00.jpg: not an image"):
        score._accuracy(ByBrightness(), _context(written, on_error="raise"))


def test_scores_leave_out_what_the_writer_left_out(root: Path, tmp_path: Path) -> None:
    (root / "val" / "a" / "03.jpg").write_bytes(b"")
    data.write(data.DataSettings(str(root), on_error="skip"), tmp_path / "out", progress=False)
    assert score._accuracy(ByBrightness(), _context(tmp_path / "out", on_error="raise"))["top1"] == 100.0


def test_pictures_of_validation_images_leave_out_damaged_ones(root: Path, written: Path) -> None:
    _damage(root, written, range(0, 2))
    shown = sample_images(written, 8, count=COUNT)
    assert shown[:, 0, 4, 4].tolist() == pytest.approx([10 * i for i in range(2, COUNT)], abs=2)

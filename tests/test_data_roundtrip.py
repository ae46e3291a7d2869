"""From image files to a .beton and back: which bytes stay, which are encoded again, and equal loaders."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from replicate.errors import UserError
from replicate.loaders import Augmentation, crop_decode, data, open_loader
from replicate.loaders import beton_format as fmt
from replicate.loaders.manifest import read_samples
from replicate.loaders.reader import BetonReader
from replicate.loaders.writer import WriteSettings, jpeg_quality


def _picture(seed: int, height: int, width: int) -> np.ndarray:
    """Smooth colour, so that JPEG losses stay small."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """3 classes, 7 training and 3 validation images each: JPEG, one grey, one PNG, one CMYK."""
    root = tmp_path_factory.mktemp("images")
    for split, count in (("train", 7), ("val", 3)):
        for label, name in enumerate(("cat", "dog", "eel")):
            target = root / split / name
            target.mkdir(parents=True)
            for i in range(count):
                image = Image.fromarray(_picture(100 * label + i, 40 + 9 * i, 70 - 5 * label))
                if i == 1:
                    image.save(target / f"{i}.png")
                elif i == 2:
                    image.convert("CMYK").save(target / f"{i}.JPEG")
                elif i == 3:
                    image.convert("L").save(target / f"{i}.jpg", quality=90)
                else:
                    image.save(target / f"{i}.jpg", quality=80 + 5 * (i % 4))
    return root


def _write(folder: Path, out: Path, split: dict[str, object] | None = None, **options: object) -> Path:
    encoding = WriteSettings(**(split or {}))
    data.write(data.DataSettings(str(folder), train=encoding, val=encoding, **options), out, progress=False)
    return out


def test_a_jpeg_keeps_its_bytes_where_the_settings_allow(folder: Path, tmp_path: Path) -> None:
    out = _write(folder, tmp_path)
    with BetonReader(out / "train.beton") as reader:
        kept = 0
        for index, row in enumerate(read_samples(reader.path)):
            file = folder / row["name"]
            if file.suffix == ".jpg":
                assert reader.read(index) == file.read_bytes()
                kept += 1
        assert reader.manifest.splits["train"]["counts"] == {
            "kept": kept,
            "encoded": 21 - kept,
            "raw": 0,
            "resized": 0,
            "transcoded": 0,
        }
        assert kept == 15


def test_quality_and_resolution_decide_what_is_encoded_again(folder: Path, tmp_path: Path) -> None:
    _write(folder, tmp_path, {"quality": 85, "resolution": 60})
    with BetonReader(tmp_path / "train.beton") as reader:
        assert reader.tables.sizes.max() == 60
        for index in range(len(reader)):
            with Image.open(io.BytesIO(reader.read(index))) as image:
                assert jpeg_quality(image) <= 85
                assert image.size[::-1] == tuple(reader.tables.sizes[index])
        counts = reader.manifest.splits["train"]["counts"]
        assert counts["kept"] > 0 and counts["encoded"] > 0 and counts["resized"] > 0


def test_keep_false_encodes_every_image_as_ffcv_does(folder: Path, tmp_path: Path) -> None:
    _write(folder, tmp_path, {"quality": 100, "keep": False})
    with BetonReader(tmp_path / "train.beton") as reader:
        assert reader.manifest.splits["train"]["counts"]["encoded"] == len(reader)


def test_raw_is_lossless_and_proportion_mixes(folder: Path, tmp_path: Path) -> None:
    _write(folder, tmp_path / "raw", {"mode": "raw"})
    _write(folder, tmp_path / "mixed", {"mode": "proportion", "proportion": 0.5})
    with BetonReader(tmp_path / "raw" / "train.beton") as reader:
        png = next(i for i, row in enumerate(read_samples(reader.path)) if row["name"].endswith("cat/1.png"))
        height, width = reader.tables.sizes[png]
        stored = np.frombuffer(reader.read(png), np.uint8).reshape(height, width, 3)
        assert np.array_equal(stored, _picture(1, height, width))
        assert (reader.tables.modes == fmt.RAW).all()
    with BetonReader(tmp_path / "mixed" / "train.beton") as reader:
        assert 0 < (reader.tables.modes == fmt.RAW).sum() < len(reader)


@pytest.mark.parametrize("quality", [30, 75, 90, 95, 100])
def test_the_quality_of_a_jpeg_is_read_off_its_tables(quality: int) -> None:
    buffer = io.BytesIO()
    Image.fromarray(_picture(0, 32, 32)).save(buffer, "JPEG", quality=quality)
    assert jpeg_quality(Image.open(buffer)) == quality


def test_writing_twice_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    settings = data.DataSettings(str(folder), train=WriteSettings(resolution=50))
    manifests = [data.write(settings, tmp_path / str(n), workers=n, progress=False) for n in (1, 3)]
    assert manifests[0] == manifests[1]


AUGMENTATIONS = {
    "pretrain": Augmentation(scale=(0.2, 1.0)),
    "fixed": Augmentation(crop="fixed"),
    "evaluation": Augmentation(crop="center", flip=False),
    "bicubic": Augmentation(crop="none", interpolation="bicubic"),
}


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_folder_and_beton_serve_the_same_pixels(folder: Path, tmp_path: Path, name: str) -> None:
    """Raw storage, so that nothing but the loaders is compared."""
    out = _write(folder, tmp_path, {"mode": "raw"})
    options = dict(
        batch_size=4, image_size=24, augmentation=AUGMENTATIONS[name], seed=5, train=name != "evaluation"
    )
    with (
        open_loader("beton", out / "train.beton", workers=2, **options) as ours,
        open_loader("folder", folder / "train", **options) as plain,
    ):
        assert (ours.num_images, ours.num_classes, ours.num_batches) == (
            plain.num_images,
            3,
            plain.num_batches,
        )
        assert ours.class_names == plain.class_names == ["cat", "dog", "eel"]
        for epoch in (0, 3):
            for mine, theirs in zip(ours.epoch(epoch), plain.epoch(epoch), strict=True):
                assert (
                    mine.images.dtype == torch.uint8
                    and mine.images.shape[1:] == (3, 24, 24)
                    and mine.images.is_contiguous()
                )
                for a, b in zip(mine, theirs, strict=True):
                    assert torch.equal(a, b)


def test_folder_opened_on_a_beton_serves_its_source(folder: Path, tmp_path: Path) -> None:
    out = _write(folder, tmp_path, {"mode": "raw"}, classes=2, fraction=0.5, seed=1)
    options = dict(batch_size=3, image_size=16, augmentation=Augmentation(), seed=0, train=False)
    for split in ("train", "val"):
        with (
            open_loader("beton", out / f"{split}.beton", **options) as ours,
            open_loader("folder", out / f"{split}.beton", **options) as plain,
        ):
            for mine, theirs in zip(ours.epoch(0), plain.epoch(0), strict=True):
                assert torch.equal(mine.images, theirs.images) and torch.equal(mine.labels, theirs.labels)


def test_crops_do_not_depend_on_workers_batch_size_or_ranks(folder: Path, tmp_path: Path) -> None:
    out = _write(folder, tmp_path)

    def seen(batch_size: int, workers: int, world_size: int = 1) -> dict[int, torch.Tensor]:
        images = {}
        for rank in range(world_size):
            options = dict(
                augmentation=Augmentation(),
                seed=2,
                train=True,
                drop_last=False,
                rank=rank,
                world_size=world_size,
            )
            with open_loader(
                "beton", out / "train.beton", batch_size=batch_size, image_size=20, workers=workers, **options
            ) as loader:
                for batch in loader.epoch(1):
                    images |= dict(zip(batch.index.tolist(), batch.images, strict=True))
        return images

    reference = seen(4, 1)
    assert sorted(reference) == list(range(21))
    for other in (seen(4, 2), seen(7, 4), seen(5, 1, world_size=2)):
        assert all(torch.equal(other[index], image) for index, image in reference.items())


def test_a_stage_changes_size_and_scale_between_epochs(folder: Path, tmp_path: Path) -> None:
    out = _write(folder, tmp_path)
    with open_loader(
        "beton",
        out / "train.beton",
        batch_size=4,
        image_size=32,
        augmentation=Augmentation(),
        seed=0,
        train=True,
    ) as loader:
        before = next(iter(loader.epoch(0))).images
        loader.set_stage(image_size=16, scale=(0.9, 1.0))
        after = next(iter(loader.epoch(0))).images
        loader.set_stage(image_size=32, scale=(0.2, 1.0))
        assert before.shape[-1] == 32 and after.shape[-1] == 16
        assert torch.equal(next(iter(loader.epoch(0))).images, before)


def test_info_describes_what_was_written(folder: Path, tmp_path: Path) -> None:
    out = _write(folder, tmp_path, {"resolution": 50})
    described = data.describe(out)
    assert [content["images"] for content in described] == [21, 9]
    assert described[0]["counts"]["resized"] > 0 and described[0]["settings"]["resolution"] == 50
    lines: list[str] = []
    assert data.info(out, lines.append) == described
    assert "train.beton" in lines[0] and any("resolution 50" in line for line in lines)


def test_check_passes_on_what_was_written(folder: Path, tmp_path: Path) -> None:
    out = _write(folder, tmp_path)
    assert data.check(out) == [out / "train.beton", out / "val.beton"] and data.check(out / "val.beton") == [
        out / "val.beton"
    ]


@pytest.mark.skipif(not crop_decode.available(), reason="the C library is not built")
@pytest.mark.parametrize("settings", [{"restart": 4}, {"seek": 4}, {"restart": 2, "seek": 2}])
def test_restart_markers_and_seek_indices_change_no_pixel(
    folder: Path, tmp_path: Path, settings: dict[str, int]
) -> None:
    plain, fast = _write(folder, tmp_path / "plain"), _write(folder, tmp_path / "fast", settings)
    options = dict(
        batch_size=4, image_size=24, augmentation=Augmentation(scale=(0.05, 0.4)), seed=5, train=True
    )
    with (
        open_loader("beton", plain / "train.beton", **options) as ours,
        open_loader("beton", fast / "train.beton", **options) as theirs,
    ):
        assert (theirs.reader.seek is not None) == ("seek" in settings)
        for a, b in zip(ours.epoch(0), theirs.epoch(0), strict=True):
            assert torch.equal(a.images, b.images)
    counts = data.describe(fast)[0]["counts"]
    assert counts["transcoded" if "restart" in settings else "kept"] == 15
    assert data.check(fast)


@pytest.mark.skipif(not crop_decode.available(), reason="the C library is not built")
def test_an_old_seek_index_never_outlives_its_file(folder: Path, tmp_path: Path) -> None:
    assert (_write(folder, tmp_path, {"seek": 4}) / "train.seek").is_file()
    with open(tmp_path / "train.seek", "r+b") as file:
        file.seek(-1, 2)
        file.write(b"\xff")
    with pytest.raises(UserError, match="train.seek: its checksum"):
        data.check(tmp_path)
    assert not (_write(folder, tmp_path) / "train.seek").exists()

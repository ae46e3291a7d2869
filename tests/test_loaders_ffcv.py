"""FFCV itself on our files, and our loader kind around it: same batches as the other kinds, and none of
FFCV's traps.
"""

import importlib.util
import itertools
import queue
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from replicate.errors import UserError
from replicate.loaders import Augmentation, crop_decode, crops, data, open_loader, resolve_kind
from replicate.loaders.decode import decode_image, resize_crop
from replicate.loaders.reader import BetonReader
from replicate.loaders.writer import WriteSettings, write_beton

needs_ffcv = pytest.mark.skipif(importlib.util.find_spec("ffcv") is None, reason="ffcv is not installed")
needs_c_library = pytest.mark.skipif(not crop_decode.available(), reason="the C library is not built")
COUNT = 40


class _Pictures:
    """Photograph-like pixels: smooth, with a little noise, all of one size if `size` is given."""

    class_names = ["a", "b"]

    def __init__(self, count: int = COUNT, size: tuple[int, int] | None = None) -> None:
        self.labels = np.arange(count, dtype=np.int64) % 2
        self.names = [f"train/{i}.jpg" for i in range(count)]
        self.size = size

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> np.ndarray:
        rng = np.random.default_rng(index)
        height, width = self.size or (40 + index, 70 - index // 2)
        coarse = Image.fromarray(rng.integers(0, 256, (4, 5, 3), np.uint8)).resize(
            (width, height), Image.Resampling.BICUBIC
        )
        return np.clip(np.asarray(coarse, int) + rng.integers(-6, 7, (height, width, 3)), 0, 255).astype(
            np.uint8
        )


def _write(path: Path, mode: str = "jpg", **options: object) -> Path:
    write_beton(path, _Pictures(**options), WriteSettings(mode=mode, quality=92), progress=False)
    return path


def _batches(kind: str, path: Path, epoch: int = 0, **options: object) -> list:
    defaults = dict(
        batch_size=16, image_size=24, augmentation=Augmentation(), seed=1, train=True, drop_last=False
    )
    with open_loader(kind, path, **(defaults | options)) as loader:
        return list(loader.epoch(epoch))


def _same(ours: list, theirs: list) -> bool:
    return len(ours) == len(theirs) and all(
        torch.equal(a, b) for x, y in zip(ours, theirs, strict=True) for a, b in zip(x, y, strict=True)
    )


@needs_ffcv
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("mode", ["jpg", "raw"])
@pytest.mark.parametrize("os_cache", [True, False])
def test_stock_ffcv_reads_what_we_write(tmp_path: Path, mode: str, os_cache: bool) -> None:
    """FFCV's own decoder, in both of its memory modes. JPEG pixels differ from Pillow's by its fast DCT,
    about one grey level.
    """
    from ffcv.fields.decoders import IntDecoder, SimpleRGBImageDecoder
    from ffcv.loader import Loader, OrderOption

    path = _write(tmp_path / "x.beton", mode, size=(48, 64))
    threads = torch.get_num_threads()
    pipelines = {"image": [SimpleRGBImageDecoder()], "label": [IntDecoder()]}
    loader = Loader(
        str(path),
        batch_size=16,
        num_workers=1,
        order=OrderOption.SEQUENTIAL,
        os_cache=os_cache,
        drop_last=False,
        pipelines=pipelines,
    )
    seen = [(np.array(images), np.array(labels)) for images, labels in loader]
    torch.set_num_threads(threads)
    images, labels = (np.concatenate(part) for part in zip(*seen, strict=True))
    assert np.array_equal(labels.ravel(), _Pictures().labels)
    with BetonReader(path) as reader:
        whole = np.array([0, 0, 48, 64])
        ours = np.stack([_full(reader, i, whole) for i in range(COUNT)])
    difference = np.abs(ours.astype(int) - images.astype(int))
    if mode == "raw":
        assert difference.max() == 0
    else:
        assert difference.mean() < 1.5 and difference.max() <= 40


def _full(reader: BetonReader, index: int, box: np.ndarray) -> np.ndarray:
    data_of_sample = reader.read(index)
    if reader.tables.modes[index]:
        return np.frombuffer(data_of_sample, np.uint8).reshape(box[2], box[3], 3)
    return crop_decode.decode_crop(data_of_sample, box)


@needs_ffcv
@needs_c_library
def test_ffcv_serves_the_batches_of_our_reader(tmp_path: Path) -> None:
    path = _write(tmp_path / "x.beton", "proportion")
    torch.set_num_threads(2)
    for options in (
        {},
        {"workers": 2},
        {"train": False},
        {"augmentation": Augmentation(auto="three_augment")},
    ):
        assert _same(_batches("ffcv", path, **options), _batches("beton", path, **options))
    assert torch.get_num_threads() == 2
    reference = {
        int(i): image
        for batch in _batches("beton", path)
        for i, image in zip(batch.index, batch.images, strict=True)
    }
    for options in (
        {"batch_size": 7, "workers": 2},
        {"rank": 0, "world_size": 2},
        {"rank": 1, "world_size": 2},
    ):
        for batch in _batches("ffcv", path, **options):
            assert all(
                torch.equal(reference[int(i)], image)
                for i, image in zip(batch.index, batch.images, strict=True)
            )


# 600 images: a last batch that is incomplete for every batch and number of ranks below.
MANY, SEED, EPOCH, SIDE = 600, 5, 3, 12


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    """A file of small images, and the epoch's crops of them as Pillow and OpenCV decode and resize them:
    (600, 3, 12, 12).
    """
    path = _write(tmp_path_factory.mktemp("many") / "x.beton", count=MANY, size=(24, 30))
    index = np.arange(MANY)
    with BetonReader(path) as reader:
        boxes = crops.random_resized_crop_boxes(
            reader.tables.sizes, index, seed=SEED, epoch=EPOCH, scale=Augmentation().scale
        )
        flips = crops.flips(index, seed=SEED, epoch=EPOCH)
        images = [
            resize_crop(decode_image(reader.read(i), ""), boxes[i], flips[i], SIDE) for i in range(MANY)
        ]
    return path, np.stack(images).transpose(0, 3, 1, 2)


def _every_setting() -> list:
    """FFCV compiles anew for each loader; four workers stand for the others in the quick tests."""
    settings = []
    for kind, workers, batch, ranks in itertools.product(("beton", "ffcv"), (1, 2, 4), (64, 256), (1, 2)):
        marks = [needs_ffcv, needs_c_library] if kind == "ffcv" else []
        if kind == "ffcv" and (workers, batch, ranks) != (4, 64, 2):
            marks.append(pytest.mark.slow)
        settings.append(pytest.param(kind, workers, batch, ranks, marks=marks))
    return settings


@pytest.mark.parametrize(("kind", "workers", "batch", "ranks"), _every_setting())
def test_order_and_crops_do_not_depend_on_workers_batch_kind_or_ranks(
    many: tuple[Path, np.ndarray], kind: str, workers: int, batch: int, ranks: int
) -> None:
    """The ranks' batches, dealt in turn, are the epoch's order: every sample once, with the reference's
    pixels.
    """
    path, reference = many
    options = dict(batch_size=batch, image_size=SIDE, seed=SEED, workers=workers, world_size=ranks)
    shares = [_batches(kind, path, EPOCH, rank=rank, **options) for rank in range(ranks)]
    assert len({len(share) for share in shares}) == 1
    dealt = [one for step in zip(*shares, strict=True) for one in step]
    index = np.concatenate([one.index.numpy() for one in dealt])
    assert index.tolist() == crops.epoch_order(MANY, seed=SEED, epoch=EPOCH).tolist() and sorted(
        index.tolist()
    ) == list(range(MANY))
    for one in dealt:
        np.testing.assert_array_equal(one.images.numpy(), reference[one.index.numpy()])
        assert one.labels.tolist() == (one.index % 2).tolist()


@needs_ffcv
@pytest.mark.slow
def test_a_stage_changes_size_and_scale_without_compiling_again(tmp_path: Path) -> None:
    path = _write(tmp_path / "x.beton")
    options = dict(batch_size=16, image_size=32, augmentation=Augmentation(), seed=0, train=True)
    with open_loader("ffcv", path, **options) as loader, open_loader("beton", path, **options) as ours:
        list(loader.epoch(0))
        for size, scale in ((16, (0.9, 1.0)), (40, (0.1, 0.3))):
            for one in (loader, ours):
                one.set_stage(image_size=size, scale=scale)
            started = time.process_time()
            batches = list(loader.epoch(1))
            assert time.process_time() - started < 1.0
            assert _same(batches, list(ours.epoch(1)))


@needs_ffcv
@pytest.mark.slow
def test_without_the_c_library_ffcv_decodes_whole_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = _write(tmp_path / "x.beton", "proportion")
    ours = _batches("beton", path)
    monkeypatch.setattr(crop_decode, "available", lambda: False)
    theirs = _batches("ffcv", path)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a.index, b.index) and torch.equal(a.labels, b.labels)
        assert (a.images.int() - b.images.int()).abs().float().mean() < 2
    with pytest.raises(UserError, match="use loader beton"):
        _batches("ffcv", path, augmentation=Augmentation(interpolation="bicubic"))


def _spoil(path: Path, sample: int) -> None:
    with BetonReader(path) as reader:
        start, length = int(reader.tables.pointers[sample]), int(reader.tables.lengths[sample])
    with open(path, "r+b") as file:
        file.seek(start + length // 2)
        file.write(bytes(length - length // 2))


@needs_ffcv
@pytest.mark.slow
@pytest.mark.parametrize("c_library", [True, False])
def test_a_damaged_image_is_raised_or_skipped_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, c_library: bool
) -> None:
    path = _write(tmp_path / "x.beton")
    _spoil(path, 11)
    if not c_library:
        monkeypatch.setattr(crop_decode, "available", lambda: False)
    with pytest.raises(UserError, match=r"x.beton: sample 11: damaged JPEG"):
        _batches("ffcv", path)
    options = dict(
        batch_size=8, image_size=24, augmentation=Augmentation(), seed=0, train=False, on_error="skip"
    )
    with open_loader("ffcv", path, **options) as loader:
        seen = np.concatenate([batch.index for batch in loader.epoch(0)])
        assert seen.tolist() == [i for i in range(COUNT) if i != 11] and loader.num_skipped == 1


@needs_ffcv
@pytest.mark.slow
def test_failure_surfaces_and_leaving_early_joins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _write(tmp_path / "x.beton")
    before = threading.active_count()
    options = dict(batch_size=4, image_size=24, augmentation=Augmentation(), seed=0, train=True)
    with open_loader("ffcv", path, **options) as loader:
        kept = []
        for batch in loader.epoch(0):
            kept.append(batch.images.clone() if len(kept) > 1 else batch.images)
            if len(kept) == 2:
                break
        assert threading.active_count() == before
        again = [batch.images for batch in loader.epoch(0)]
        assert torch.equal(kept[0], again[0]) and torch.equal(kept[1], again[1])

        left = loader.epoch(1)
        next(left)
        list(loader.epoch(2))
        with pytest.raises(RuntimeError, match="another one"):
            list(left)

        def fail(*_: object) -> None:
            raise RuntimeError("boom")

        from replicate.loaders import ffcv

        monkeypatch.setattr(ffcv._WatchedEpoch, "run_pipeline", fail)
        with pytest.raises(RuntimeError, match="boom"):
            list(loader.epoch(3))
        monkeypatch.undo()

        with open(path, "r+b") as file:
            file.truncate(5000)
        with pytest.raises(UserError, match="has shrunk since it was opened"):
            list(loader.epoch(4))
    assert threading.active_count() == before


class _LateQueue(queue.Queue):
    """Empty to who asks first, and full a moment later."""

    def __init__(self, items: list) -> None:
        super().__init__()
        self.late = items

    def get(self, block: bool = True, timeout: float | None = None) -> object:
        if not self.late:
            return super().get(block, 0.01)
        while self.late:
            self.put(self.late.pop(0))
        raise queue.Empty


def _ended_epoch(items: list, images: int) -> list:
    """What an epoch of `images` images gives whose thread puts `items` and ends after the consumer has found
    nothing.
    """
    from replicate.loaders import ffcv

    epoch = object.__new__(ffcv._WatchedEpoch)
    threading.Thread.__init__(epoch)
    epoch.output_queue, epoch.terminate_event = _LateQueue(items), threading.Event()
    epoch.order, epoch.reader, epoch.closed = np.arange(images), SimpleNamespace(path=Path("x.beton")), True
    return list(epoch.results())


@needs_ffcv
def test_batches_put_as_the_thread_ends_are_served() -> None:
    batches = [(np.arange(4), np.zeros(4)), (np.arange(4, 6), np.ones(2))]
    assert _ended_epoch([*batches, None], images=6) == batches
    assert _ended_epoch([], images=0) == []


@needs_ffcv
def test_an_epoch_that_ends_short_is_an_error() -> None:
    with pytest.raises(
        RuntimeError, match="x.beton: the pipeline's thread ended after 4 of the epoch's 6 images"
    ):
        _ended_epoch([(np.arange(4), np.zeros(4)), None], images=6)


@needs_ffcv
@pytest.mark.slow
def test_importing_ffcv_leaves_torchs_threads_alone() -> None:
    code = "import torch; torch.set_num_threads(3); import replicate.loaders.ffcv; "
    code += "print(torch.get_num_threads())"
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.strip()
        == "3"
    )


def test_without_ffcv_the_same_files_are_read_by_our_reader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "ffcv" else find(name, *rest)
    )
    with pytest.warns(UserWarning, match="ffcv is not installed"):
        assert len(_batches("ffcv", _write(tmp_path / "x.beton"))) == 3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert resolve_kind("auto") == "beton" and resolve_kind("folder") == "folder"


@needs_ffcv
@pytest.mark.slow
def test_parity_of_all_kinds_on_files(tmp_path: Path) -> None:
    """Kept bytes: all kinds equal, bit for bit. Encoded again: same images, labels and boxes, and the pixels
    differ by JPEG's loss alone.
    """
    root = tmp_path / "images"
    pictures = _Pictures()
    for split in ("train", "val"):
        for i in range(COUNT):
            folder = root / split / pictures.class_names[i % 2]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pictures.read(i)).save(folder / f"{i:02d}.jpg", quality=92)
    for name, settings in (("kept", WriteSettings()), ("again", WriteSettings(quality=75, keep=False))):
        data.write(
            data.DataSettings(str(root), train=settings, val=settings), tmp_path / name, progress=False
        )
    plain, kept, ffcv = (
        _batches(kind, tmp_path / "kept" / "train.beton") for kind in ("folder", "beton", "ffcv")
    )
    assert _same(plain, kept)
    assert _same(kept, ffcv) or not crop_decode.available()
    for a, b in zip(kept, _batches("beton", tmp_path / "again" / "train.beton"), strict=True):
        assert torch.equal(a.labels, b.labels) and torch.equal(a.index, b.index)
        assert 0 < (a.images.int() - b.images.int()).abs().float().mean() < 4

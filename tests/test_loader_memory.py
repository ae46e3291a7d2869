"""The memory of each kind of loader does not grow over 200 epochs."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from replicate.loaders import crop_decode, data
from replicate.loaders.writer import WriteSettings

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")]
EPOCHS, WARM_UP = 200, 20
MIB = 1 << 20
COUNT = 64
needs_c = pytest.mark.skipif(not crop_decode.available(), reason="needs the C library")
needs_ffcv = pytest.mark.skipif(importlib.util.find_spec("ffcv") is None, reason="needs ffcv")
# The kind of loader, and what decodes: the C library, or Pillow and OpenCV.
KINDS = [
    pytest.param("beton", "c", marks=needs_c),
    ("beton", "python"),
    ("folder", "python"),
    pytest.param("ffcv", "c", marks=[needs_c, needs_ffcv]),
    pytest.param("ffcv", "python", marks=needs_ffcv),
]

SCRIPT = """
import gc, os, sys
from pathlib import Path
from replicate.loaders import Augmentation, crop_decode, open_loader

kind, decoder, path, workers, epochs = sys.argv[1:]
assert crop_decode.available() == (decoder == "c")
augmentation = Augmentation(auto="three_augment")
options = dict(batch_size=16, image_size=32, augmentation=augmentation, seed=0, train=True)
with open_loader(kind, path, workers=int(workers), **options) as loader:
    for epoch in range(int(epochs)):
        served = sum(len(batch.images) for batch in loader.epoch(epoch))
        gc.collect()
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        print(served, pages * os.sysconf("SC_PAGE_SIZE"), len(os.listdir("/proc/self/fd")), flush=True)
"""


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for split, count in (("train", COUNT), ("val", 2)):
        for i in range(count):
            folder = root / split / "ab"[i % 2]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (90, 120, 3), np.uint8)).save(folder / f"{i:02d}.jpg")
    out = tmp_path_factory.mktemp("written")
    settings = WriteSettings(seek=8 if crop_decode.available() else 0)
    data.write(data.DataSettings(str(root), train=settings, val=settings), out, progress=False)
    return out


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(("kind", "decoder"), KINDS)
def test_memory_and_open_files_stay_flat(written: Path, kind: str, decoder: str, workers: int) -> None:
    arguments = [kind, decoder, str(written / "train.beton"), str(workers), str(EPOCHS)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "REPLICATE_CROP_DECODE": decoder}
    printed = subprocess.check_output(
        [sys.executable, "-c", SCRIPT, *arguments], text=True, env=environment, timeout=900
    )
    served, memory, files = np.array([line.split() for line in printed.splitlines()], np.int64).T
    assert served.tolist() == [COUNT] * EPOCHS
    growth = (memory[-1] - memory[WARM_UP - 1]) / MIB
    print(f"{kind}, {decoder}, workers {workers}: {memory[WARM_UP - 1] / MIB:.1f} MiB, {growth:+.2f} MiB")
    # One batch of 48 KiB kept each epoch would add 8.4 MiB.
    assert growth < 3
    assert files[-1] <= files[WARM_UP - 1]

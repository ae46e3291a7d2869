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
EPOCHS, WARM_UP = 200, 60
MIB = 1 << 20
COUNT = 64
needs_ffcv = pytest.mark.skipif(
    importlib.util.find_spec("ffcv") is None or not crop_decode.available(),
    reason="needs ffcv and the C library",
)
KINDS = ["beton", "folder", pytest.param("ffcv", marks=needs_ffcv)]

SCRIPT = """
import gc, os, sys from pathlib import Path from replicate.loaders import Augmentation, open_loader kind,
path, workers, epochs = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]) options =
dict(batch_size=16, image_size=32, augmentation=Augmentation(auto="three_augment"), seed=0, train=True) with
open_loader(kind, path, workers=workers, **options) as loader:
    for epoch in range(epochs):
        for batch in loader.epoch(epoch):
            pass
        gc.collect()
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        print(pages * os.sysconf("SC_PAGE_SIZE"), len(os.listdir("/proc/self/fd")), flush=True)
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


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("workers", [1, 2])
def test_memory_and_open_files_stay_flat(written: Path, kind: str, workers: int) -> None:
    command = [sys.executable, "-c", SCRIPT, kind, str(written / "train.beton"), str(workers), str(EPOCHS)]
    environment = os.environ | {"PYTHONPATH": os.getcwd(), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True, timeout=900)
    memory, files = np.array([line.split() for line in done.stdout.splitlines()], np.int64).T
    assert len(memory) == EPOCHS
    growth = np.polyfit(np.arange(EPOCHS - WARM_UP), memory[WARM_UP:], 1)[0] * (EPOCHS - WARM_UP)
    print(f"{kind}, {workers} workers: {memory[WARM_UP] / MIB:.1f} MiB, then {growth / MIB:+.2f} MiB")
    # One batch of 48 KiB leaked per epoch would add 6.6 MiB.
    assert growth < 2 * MIB
    assert files[-1] <= files[WARM_UP]

"""Epochs that end early, in every kind of loader.

An exception surfaces within two seconds, nothing hangs, no thread stays behind. A file that is cut while a
loader reads it raises an error instead of ending the process.
"""

import importlib.util
import json
import re
import subprocess
import sys
import threading
import time
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from replicate.loaders import crop_decode, data
from replicate.loaders.base import ahead
from replicate.loaders.writer import WriteSettings

SCRIPT = Path(__file__).parent / "loader_endings.py"
COUNT = 40
SECONDS = 2.0
# A hang fails the test. Long enough for the kind ffcv to compile on a busy machine.
TIMEOUT = 240
needs_ffcv = pytest.mark.skipif(importlib.util.find_spec("ffcv") is None, reason="ffcv is not installed")
needs_c_library = pytest.mark.skipif(not crop_decode.available(), reason="the C library is not built")
FFCV = pytest.param("ffcv", marks=[needs_ffcv, needs_c_library, pytest.mark.slow])
KINDS = ["beton", "folder", FFCV]
FILES = ["beton", FFCV]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for split, count in (("train", COUNT), ("val", 2)):
        for i in range(count):
            folder = root / split / "ab"[i % 2]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (60, 80, 3), np.uint8)).save(
                folder / f"{i:02d}.jpg", quality=90
            )
    return root


@pytest.fixture(scope="module")
def written(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out, settings = (
        tmp_path_factory.mktemp("written"),
        WriteSettings(seek=4 if crop_decode.available() else 0),
    )
    data.write(data.DataSettings(str(images), train=settings, val=settings), out, progress=False)
    return out


_OUTCOMES: dict[str, dict[str, dict]] = {}


@pytest.fixture
def outcomes(request: pytest.FixtureRequest, kind: str, images: Path, written: Path) -> dict[str, dict]:
    """The outcome of each case, all run in one process with this kind of loader."""
    if kind not in _OUTCOMES:
        command = [sys.executable, str(SCRIPT), kind, str(images if kind == "folder" else written)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT)
        cases = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        assert done.returncode == 0, (
            f"exit status {done.returncode} after {[case['case'] for case in cases]}\n{done.stderr[-3000:]}"
        )
        _OUTCOMES[kind] = {case["case"]: case for case in cases}
    return _OUTCOMES[kind]


def _names(message: str, file: str) -> bool:
    return re.search(rf"{file}: (sample \d+: )?the file has shrunk since it was opened", message) is not None


def _nothing_left(case: dict) -> bool:
    return case["threads"] == [] and case["children"] == 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("place", ["decode_fails", "augment_fails"])
def test_an_exception_surfaces_within_two_seconds(outcomes: dict[str, dict], place: str) -> None:
    assert "boom" in outcomes[place]["error"]
    assert outcomes[place]["seconds"] < SECONDS
    assert _nothing_left(outcomes[place])


@pytest.mark.parametrize("kind", KINDS)
def test_ctrl_c_and_an_early_break_leave_no_thread_behind(outcomes: dict[str, dict], kind: str) -> None:
    for case in ("interrupted", "interrupted_while_leaving"):
        assert outcomes[case]["error"] == "KeyboardInterrupt" and _nothing_left(outcomes[case])
    assert outcomes["interrupted_while_leaving"]["seconds"] < SECONDS
    # Torch ends its processes instead.
    assert kind == "folder" or outcomes["interrupted_while_leaving"]["in work"] == 0
    assert outcomes["left_early"]["while open"] == [] and _nothing_left(outcomes["left_early"])


@pytest.mark.parametrize("kind", FILES)
def test_a_file_cut_in_mid_epoch_is_an_error_for_every_policy(outcomes: dict[str, dict]) -> None:
    for case in ("cut_data", "cut_data_skipping"):
        assert "FileCutError" in outcomes[case]["error"] and _names(outcomes[case]["error"], "train.beton")
        assert _nothing_left(outcomes[case])


@needs_c_library
@pytest.mark.parametrize("kind", FILES)
def test_a_seek_index_cut_in_mid_epoch_is_an_error(outcomes: dict[str, dict]) -> None:
    assert _names(outcomes["cut_index"]["error"], "train.seek")
    assert _nothing_left(outcomes["cut_index"])


@pytest.mark.parametrize("kind", [FFCV])
def test_a_cut_between_the_size_check_and_the_decoder_is_an_error(outcomes: dict[str, dict]) -> None:
    lines = outcomes["cut_after_the_look"]["error"].splitlines()
    for name, line in zip(("train.beton", "train.seek"), lines, strict=True):
        assert _names(line, name) and "sample" in line


def test_ctrl_c_while_futures_are_cancelled_does_not_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    cancel, calls, raised = Future.cancel, [], []

    def interrupted_once(future: Future) -> bool:
        calls.append(future)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return cancel(future)

    def leave() -> None:
        numbers = ahead(lambda number: time.sleep(0.05) or number, range(40), 2)
        assert next(numbers) == 0
        monkeypatch.setattr(Future, "cancel", interrupted_once)
        try:
            numbers.close()
        except KeyboardInterrupt as error:
            raised.append(error)

    leaving = threading.Thread(target=leave, daemon=True)
    leaving.start()
    leaving.join(TIMEOUT)
    assert not leaving.is_alive() and raised and len(calls) > 1

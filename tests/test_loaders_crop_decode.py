"""The loaders with and without the package `crop_decode`, and the seek index beside a .beton."""

import io
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from skimage import data as skimage_data

from replicate.errors import UserError
from replicate.loaders import crop_decode, restart
from replicate.loaders.crop_decode import Decoding, decode_crop, decode_crop_resize, resize_pixels

needs_package = pytest.mark.skipif(not crop_decode.available(), reason="crop_decode is not installed")
BOX = (31, 17, 200, 150)


@pytest.fixture(scope="module")
def jpeg() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(skimage_data.astronaut()[:333, 100:411]).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


@needs_package
@pytest.mark.parametrize(
    "decoding", [Decoding(), Decoding(planar=True), Decoding(interpolation="bicubic")], ids=str
)
def test_pillow_and_opencv_give_the_same_pixels(jpeg, decoding, monkeypatch):
    pixels = np.asarray(Image.open(io.BytesIO(jpeg)))
    calls = (
        lambda: decode_crop(jpeg, BOX, True),
        lambda: decode_crop_resize(jpeg, BOX, True, 96, decoding),
        lambda: decode_crop_resize(
            jpeg,
            BOX,
            False,
            96,
            decoding,
            out=np.empty((3, 96, 96) if decoding.planar else (96, 96, 3), np.uint8),
        ),
        lambda: resize_pixels(pixels, True, (40, 70), decoding),
    )
    by_package = [call() for call in calls]
    monkeypatch.setattr(crop_decode, "_package", None)
    for call, expected in zip(calls, by_package, strict=True):
        np.testing.assert_array_equal(call(), expected)


@pytest.mark.parametrize("package", [pytest.param(True, marks=needs_package), False])
def test_bad_input_is_a_user_error(jpeg, package, monkeypatch):
    if not package:
        monkeypatch.setattr(crop_decode, "_package", None)
    with pytest.raises(UserError, match="^photo.jpg: damaged JPEG"):
        decode_crop_resize(jpeg[:3000], BOX, True, 96, name="photo.jpg")
    with pytest.raises(UserError, match="^photo.jpg: cannot be decoded .*box"):
        decode_crop(jpeg, (0, 0, 334, 10), name="photo.jpg")
    for call in (
        lambda: decode_crop_resize(jpeg, BOX, True, 0),
        lambda: resize_pixels(np.zeros((9, 9, 3), np.uint8), False, 0),
    ):
        with pytest.raises(UserError, match="output of 0 x 0 pixels, where a side may have 1 to 16384$"):
            call()
    assert crop_decode.fault(1) == "damaged JPEG (corrupt)"


def test_without_the_package_messages_name_the_command_that_installs_it(jpeg, monkeypatch):
    monkeypatch.setattr(crop_decode, "_package", None)
    calls = (
        lambda: restart.build_index(jpeg),
        lambda: restart.add_restarts(jpeg),
        lambda: crop_decode.function("crop_decode_resize"),
        lambda: decode_crop(jpeg, BOX, decoding=Decoding(dct="fast")),
    )
    for call in calls:
        with pytest.raises(
            UserError, match="crop_decode.* is not installed; run `pip install ./crop_decode`$"
        ):
            call()


def imported(environment: dict[str, str]) -> str:
    """What importing the decoder prints in a process of its own, and which `Decoding` it takes."""
    code = "from replicate.loaders import crop_decode as c; print(c.available(), c.Decoding.__module__)"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment, check=True)
    return done.stdout + done.stderr


@needs_package
def test_the_environment_variable_does_without_the_package():
    assert imported({}) == "True crop_decode._api\n"
    assert imported({"REPLICATE_CROP_DECODE": "python"}) == "False replicate.loaders.crop_decode\n"


def test_a_broken_package_is_reported_and_left_out(tmp_path):
    broken = tmp_path / "crop_decode" / "__init__.py"
    broken.parent.mkdir()
    broken.write_text(
        "raise ImportError('libcrop_decode.so: version 2, but this package needs version 3', path=__file__)"
    )
    path = os.pathsep.join([str(tmp_path), *sys.path])
    printed = imported({"PYTHONPATH": path, "REPLICATE_CROP_DECODE": ""})
    assert "version 2, but this package needs version 3; PIL and OpenCV decode instead" in printed
    assert printed.startswith("False")


@needs_package
def test_the_stand_in_has_the_options_of_the_package():
    code = (
        "import dataclasses, crop_decode; from replicate.loaders import crop_decode as c\n"
        "fields = lambda kind: [(field.name, field.default) for field in dataclasses.fields(kind)]\n"
        "assert c.Decoding is not crop_decode.Decoding\n"
        "assert fields(c.Decoding) == fields(crop_decode.Decoding)\n"
        "assert c.STATUS == crop_decode.STATUS and c.MAX_OUTPUT_SIDE == crop_decode.MAX_OUTPUT_SIDE"
    )
    subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"REPLICATE_CROP_DECODE": "python"}, check=True
    )


@needs_package
def test_a_seek_index_is_read_back_and_damage_is_a_user_error(jpeg, tmp_path):
    progressive = io.BytesIO()
    Image.open(io.BytesIO(jpeg)).save(progressive, "JPEG", progressive=True)
    indices = [
        restart.build_index(jpeg),
        restart.build_index(progressive.getvalue()),
        restart.build_index(jpeg, 3),
    ]
    assert [bool(index) for index in indices] == [True, False, True]
    path = tmp_path / "train.seek"
    restart.write_index(path, indices)
    index = restart.SeekIndex(path, 3)
    assert [index.read(i) for i in range(3)] == [indices[0], None, indices[2]]
    stored = path.read_bytes()
    assert [
        stored[start : start + n] for start, n in zip(index.offsets, index.lengths, strict=True)
    ] == indices
    index.close()
    with pytest.raises(UserError, match="3 samples beside a data set of 4"):
        restart.SeekIndex(path, 4)
    (tmp_path / "cut.seek").write_bytes(stored[:-5])
    with pytest.raises(UserError, match="damaged seek index"):
        restart.SeekIndex(tmp_path / "cut.seek", 3)
    (tmp_path / "old.seek").write_bytes(b"RPLSEEK1" + stored[8:])
    with pytest.raises(UserError, match="old.seek: seek index of an older version.*write the data set again"):
        restart.SeekIndex(tmp_path / "old.seek", 3)
    (tmp_path / "other.seek").write_bytes(b"something else entirely")
    with pytest.raises(UserError, match="other.seek: not a seek index"):
        restart.SeekIndex(tmp_path / "other.seek", 3)

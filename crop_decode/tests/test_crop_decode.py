"""Crop decode gives the bytes of Pillow's full decode and of OpenCV's and Pillow's resize, and survives
damaged files.
"""

import ctypes
import importlib.util
import io
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from skimage import data as skimage_data

try:
    import crop_decode
    from crop_decode import EXACT, DecodeError, Decoding
    from crop_decode._library import ABI_VERSION, MESSAGE_BYTES, library, load
except ImportError as error:
    pytest.skip(f"crop_decode is not installed: {error}", allow_module_level=True)

ROOT = Path(__file__).resolve().parent.parent
FUZZ = ROOT / "tests" / "fuzz" / "mutate_jpegs.py"
SAMPLING = {
    "411": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_411,
    "420": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420,
    "422": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_422,
    "440": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_440,
    "444": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444,
}
PIL_FORMATS = {
    "grey": {"mode": "L"},
    "progressive": {"progressive": True},
    "progressive_444": {"progressive": True, "subsampling": 0},
    "optimized": {"optimize": True},
    "restart_rows": {"restart_marker_rows": 1},
    "restart_7": {"restart_marker_blocks": 7},
    "restart_1": {"restart_marker_blocks": 1, "subsampling": 0},
    "quality_20": {"quality": 20},
    "quality_100": {"quality": 100},
    "rgb": {"keep_rgb": True},
}
FORMATS = [*SAMPLING, *PIL_FORMATS]


def crop(jpeg: bytes, box, flip: bool = False, decoding: Decoding = EXACT, **options) -> np.ndarray:
    return crop_decode.decode_jpeg(jpeg, box, flip=flip, decoding=decoding, **options)


def resized_crop(jpeg: bytes, box, flip: bool, size, decoding: Decoding = EXACT, **options) -> np.ndarray:
    return crop_decode.decode_jpeg(jpeg, box, size, flip=flip, decoding=decoding, **options)


def resize(pixels: np.ndarray, flip: bool, size, decoding: Decoding = EXACT) -> np.ndarray:
    return crop_decode.resize_pixels(pixels, size, flip=flip, decoding=decoding)


def reference_resize(pixels: np.ndarray, flip: bool, size, decoding: Decoding = EXACT) -> np.ndarray:
    """OpenCV's area filter, or Pillow's bicubic one in two calls, columns first, because the order changes
    the rounding.
    """
    rows, columns = (size, size) if isinstance(size, int) else size
    if decoding.interpolation == "bicubic":
        narrow = Image.fromarray(pixels).resize((columns, pixels.shape[0]), Image.Resampling.BICUBIC)
        resized = np.asarray(narrow.resize((columns, rows), Image.Resampling.BICUBIC))
    else:
        resized = cv2.resize(pixels, (columns, rows), interpolation=cv2.INTER_AREA)
    resized = resized[:, ::-1] if flip else resized
    return resized.transpose(2, 0, 1) if decoding.planar else resized


def encode(pixels: np.ndarray, form: str, quality: int = 90) -> bytes:
    if form in SAMPLING:
        options = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, SAMPLING[form]]
        return cv2.imencode(".jpg", pixels[..., ::-1], options)[1].tobytes()
    options = {"quality": quality, **PIL_FORMATS[form]}
    image = Image.fromarray(pixels).convert(options.pop("mode", "RGB"))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **options)
    return buffer.getvalue()


def decode_whole(jpeg: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB"))


def random_box(rng: np.random.Generator, height: int, width: int) -> tuple[int, int, int, int]:
    h, w = int(rng.integers(1, height + 1)), int(rng.integers(1, width + 1))
    return int(rng.integers(0, height - h + 1)), int(rng.integers(0, width - w + 1)), h, w


def cut(pixels: np.ndarray, box: tuple[int, int, int, int]) -> np.ndarray:
    top, left, height, width = box
    return pixels[top : top + height, left : left + width]


@pytest.fixture(scope="module")
def photos() -> list[np.ndarray]:
    return [
        skimage_data.astronaut()[:333, 100:411],
        skimage_data.coffee()[:, :500],
        skimage_data.chelsea()[20:180, 100:301],
    ]


@pytest.fixture(scope="module")
def example(photos) -> tuple[bytes, np.ndarray]:
    jpeg = encode(photos[0], "420")
    return jpeg, decode_whole(jpeg)


def test_self_test_passes_with_this_libjpeg():
    """If it failed, libjpeg's entropy decoder would be used, and the tests below would not test ours."""
    assert library.crop_decode_trusted() == 1


# ---- pixels ----


@pytest.mark.parametrize("form", FORMATS)
def test_crop_equals_full_decode(photos, form):
    rng = np.random.default_rng(FORMATS.index(form))
    for photo in photos:
        jpeg = encode(photo, form)
        whole = decode_whole(jpeg)
        index = (
            crop_decode.build_index(jpeg, int(rng.integers(1, 20)))
            if crop_decode.jpeg_info(jpeg).seekable
            else None
        )
        for i in range(25):
            box, flip = random_box(rng, *whole.shape[:2]), bool(i % 2)
            expected = cut(whole, box)[:, ::-1] if flip else cut(whole, box)
            for decoding in (
                Decoding(),
                Decoding(seek=False),
                Decoding(entropy="libjpeg"),
                Decoding(verify=True),
            ):
                np.testing.assert_array_equal(crop(jpeg, box, flip, decoding), expected, str((box, decoding)))
            np.testing.assert_array_equal(crop(jpeg, box, flip, index=index), expected, str(box))


@pytest.mark.parametrize("form", ["420", "422", "440", "444", "411", "grey", "progressive"])
def test_small_and_narrow_images(photos, form):
    """Below three chroma columns libjpeg upsamples differently, and so must this decoder."""
    rng = np.random.default_rng(3)
    for width in (*range(1, 20), 31, 32, 33, 47, 48, 49):
        for height in (1, 2, 3, 8, 15, 16, 17, 33):
            jpeg = encode(np.ascontiguousarray(photos[1][50 : 50 + height, 80 : 80 + width]), form, 95)
            whole = decode_whole(jpeg)
            for _ in range(3):
                box = random_box(rng, height, width)
                np.testing.assert_array_equal(crop(jpeg, box), cut(whole, box), str((height, width, box)))


@pytest.mark.parametrize("form", ["420", "422", "444", "grey", "progressive"])
def test_fast_dct_equals_its_own_full_decode(photos, form):
    rng = np.random.default_rng(4)
    jpeg = encode(photos[0], form)
    size = photos[0].shape[:2]
    whole = crop(jpeg, (0, 0, *size), decoding=Decoding(dct="fast", full=True, entropy="libjpeg"))
    assert 0.05 < np.abs(whole.astype(float) - decode_whole(jpeg)).mean() < 2
    for _ in range(25):
        box = random_box(rng, *size)
        np.testing.assert_array_equal(crop(jpeg, box, decoding=Decoding(dct="fast")), cut(whole, box))


@pytest.mark.parametrize("interval", [0, 1, 3, 8, 1000])
@pytest.mark.parametrize("form", ["420", "444", "grey", "progressive", "restart_7"])
def test_transcode_is_lossless(photos, form, interval):
    jpeg = encode(photos[2], form)
    marked = crop_decode.add_restarts(jpeg, interval, optimize=interval == 3)
    info = crop_decode.jpeg_info(marked)
    assert (info.restart_interval, info.progressive, info.seekable) == (interval, 0, 1)
    whole = decode_whole(jpeg)
    np.testing.assert_array_equal(decode_whole(marked), whole)
    rng = np.random.default_rng(interval)
    for _ in range(10):
        box = random_box(rng, *whole.shape[:2])
        np.testing.assert_array_equal(crop(marked, box), cut(whole, box))


def test_transcode_keeps_or_drops_metadata(photos):
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x010E] = "a description"
    Image.fromarray(photos[2]).save(buffer, "JPEG", exif=exif, comment=b"a comment")
    kept = Image.open(io.BytesIO(crop_decode.add_restarts(buffer.getvalue(), keep_markers=True)))
    assert kept.getexif()[0x010E] == "a description" and kept.info["comment"] == b"a comment"
    assert not Image.open(io.BytesIO(crop_decode.add_restarts(buffer.getvalue()))).getexif()


# ---- resize ----


def resize_cases() -> list[tuple[int, int, int, int]]:
    rng = np.random.default_rng(5)
    cases = [tuple(rng.integers(1, 500, 2)) + (224, 224) for _ in range(60)] + [
        tuple(rng.integers(1, 300, 4)) for _ in range(60)
    ]
    cases += [(k * 32, m * 24, 32, 24) for k in range(1, 5) for m in range(1, 5)]
    return [
        tuple(int(v) for v in case)
        for case in cases + [(224, 300, 224, 224), (300, 224, 224, 224), (1, 1, 224, 224), (500, 500, 1, 1)]
    ]


def test_area_equals_opencv():
    rng = np.random.default_rng(6)
    for i, (height, width, rows, columns) in enumerate(resize_cases()):
        pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        expected = cv2.resize(pixels, (columns, rows), interpolation=cv2.INTER_AREA)
        expected = expected[:, ::-1] if i % 2 else expected
        np.testing.assert_array_equal(
            resize(pixels, bool(i % 2), (rows, columns)), expected, str((height, width, rows, columns))
        )


def test_bicubic_equals_pillow():
    rng = np.random.default_rng(7)
    bicubic = Decoding(interpolation="bicubic")
    for i, (height, width, rows, columns) in enumerate(resize_cases()):
        pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        narrow = Image.fromarray(pixels).resize((columns, height), Image.Resampling.BICUBIC)
        expected = np.asarray(narrow.resize((columns, rows), Image.Resampling.BICUBIC))
        expected = expected[:, ::-1] if i % 2 else expected
        np.testing.assert_array_equal(resize(pixels, bool(i % 2), (rows, columns), bicubic), expected)


def test_resize_takes_a_view_of_a_larger_array(photos):
    view = photos[1][40:300, 30:400]
    expected = cv2.resize(view, (64, 64), interpolation=cv2.INTER_AREA)
    np.testing.assert_array_equal(resize(view, False, 64), expected)
    np.testing.assert_array_equal(
        resize(view[:, ::-1], True, 64), resize(np.ascontiguousarray(view[:, ::-1]), True, 64)
    )


@pytest.mark.parametrize("planar", [False, True])
@pytest.mark.parametrize("interpolation", ["area", "bicubic"])
def test_crop_resize_flip_layout(example, planar, interpolation):
    jpeg, whole = example
    rng = np.random.default_rng(8)
    for size in (224, 64, 57, (40, 70)):
        box = random_box(rng, *whole.shape[:2])
        decoding = Decoding(planar=planar, interpolation=interpolation)
        for flip in (False, True):
            got = resized_crop(jpeg, box, flip, size, decoding)
            expected = reference_resize(np.ascontiguousarray(cut(whole, box)), flip, size, decoding)
            np.testing.assert_array_equal(got, expected)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB, 99 for equal images."""
    error = ((a.astype(float) - b) ** 2).mean()
    return 99.0 if error == 0 else float(10 * np.log10(255**2 / error))


@pytest.mark.parametrize("form", ["420", "422", "440", "444", "grey", "restart_7"])
@pytest.mark.parametrize("interpolation", ["area", "bicubic"])
def test_fused_differs_from_exact_by_rounding(photos, form, interpolation):
    rng = np.random.default_rng(11)
    exact, fused = (
        Decoding(interpolation=interpolation),
        Decoding(interpolation=interpolation, resize="fused"),
    )
    ratios = []
    for photo in photos:
        jpeg = encode(photo, form)
        index = crop_decode.build_index(jpeg)
        for size in (224, 96, 33, (50, 70), 1):
            box, flip = random_box(rng, *photo.shape[:2]), bool(rng.integers(2))
            expected, got = (
                resized_crop(jpeg, box, flip, size, mode, index=index) for mode in (exact, fused)
            )
            ratios.append(psnr(got, expected))
            assert ratios[-1] > 42, (box, size)
    assert np.median(ratios) > 50


def test_fused_reaches_every_edge_of_small_images(photos):
    rng = np.random.default_rng(12)
    for form in ("420", "422", "440", "444"):
        for width in (1, 2, 3, 4, 5, 6, 7, 15, 16, 17, 33):
            for height in (1, 2, 3, 5, 16, 17):
                jpeg = encode(
                    np.ascontiguousarray(photos[0][150 : 150 + height, 100 : 100 + width]), form, 95
                )
                box = random_box(rng, height, width)
                expected, got = (
                    resized_crop(jpeg, box, False, 20, mode)
                    for mode in (Decoding(), Decoding(resize="fused"))
                )
                assert psnr(got, expected) > 35, (form, height, width, box)


@pytest.mark.parametrize("form", ["progressive", "411", "rgb"])
def test_fused_falls_back_to_exact(photos, form):
    jpeg, box = encode(photos[0], form), (20, 30, 200, 100)
    exact, fused = (
        resized_crop(jpeg, box, True, 64, mode) for mode in (Decoding(), Decoding(resize="fused"))
    )
    np.testing.assert_array_equal(exact, fused)


# ---- batches ----


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("resize", ["exact", "fused"])
def test_batch_equals_single_samples_and_isolates_the_bad_one(photos, threads, resize):
    jpegs = [encode(photo, form) for photo in photos for form in ("420", "444", "progressive", "grey")]
    sizes = [photo.shape[:2] for photo in photos for _ in range(4)]
    rng = np.random.default_rng(1)
    boxes, flips = (
        np.array([random_box(rng, *size) for size in sizes]),
        rng.integers(2, size=len(jpegs)).astype(bool),
    )
    decoding = Decoding(resize=resize, planar=True)
    expected = [resized_crop(*case, 64, decoding) for case in zip(jpegs, boxes, flips, strict=True)]
    jpegs[5] = jpegs[5][: len(jpegs[5]) // 3]
    boxes[7, 2] = 10_000
    result = crop_decode.decode_jpegs(jpegs, boxes, 64, flips=flips, decoding=decoding, threads=threads)
    assert (
        set(result.messages) == {5, 7}
        and "box" in result.messages[7]
        and [crop_decode.STATUS[s] for s in result.status[[5, 7]]] == ["corrupt", "box"]
    )
    for i, image in enumerate(result.images):
        np.testing.assert_array_equal(image, 0 if i in (5, 7) else expected[i])


def test_batch_with_seek_indices(photos):
    jpegs = [encode(photo, "420") for photo in photos]
    indices = [crop_decode.build_index(jpegs[0]), None, crop_decode.build_index(jpegs[2], 3)]
    boxes, flips = np.array([[40, 60, 100, 90]] * 3), np.array([True, False, True])
    expected = crop_decode.decode_jpegs(jpegs, boxes, 48, flips=flips).images
    found = crop_decode.decode_jpegs(jpegs, boxes, 48, flips=flips, indices=indices, threads=2)
    np.testing.assert_array_equal(found.images, expected)
    wrong = crop_decode.decode_jpegs(jpegs, boxes, 48, flips=flips, indices=indices[::-1])
    assert [crop_decode.STATUS[s] for s in wrong.status] == ["index", "ok", "index"]


def test_batch_refuses_arrays_that_do_not_fit(example):
    jpeg, _ = example
    with pytest.raises(ValueError, match="the numbers differ"):
        crop_decode.decode_jpegs([jpeg], np.zeros((2, 4), np.int32), 32)
    with pytest.raises(ValueError, match="contiguous uint8"):
        resized_crop(jpeg, (0, 0, 9, 9), False, 32, out=np.empty((32, 32), np.uint8))


@pytest.mark.parametrize("side", [0, crop_decode.MAX_OUTPUT_SIDE + 1])
def test_a_refused_output_names_size_and_limit(example, side):
    jpeg, whole = example
    calls = (
        lambda: resized_crop(jpeg, (0, 0, 9, 9), False, side),
        lambda: resize(whole, False, (side, 8)),
        lambda: crop_decode.decode_jpegs([jpeg, jpeg], [[0, 0, 9, 9]] * 2, side),
    )
    for call in calls:
        limit = f"output of {side} x .* pixels, where a side may have 1 to {crop_decode.MAX_OUTPUT_SIDE}$"
        with pytest.raises(DecodeError, match=limit) as caught:
            call()
        assert caught.value.status == "too large"


def test_c_fails_every_sample_of_a_refused_output():
    side, n = crop_decode.MAX_OUTPUT_SIDE + 1, 3
    status, messages = np.zeros(n, np.int32), np.zeros((n, MESSAGE_BYTES), np.uint8)
    tables = [0] * 7  # C reads no sample
    batch = crop_decode.function("crop_decode_batch")
    assert batch(n, *tables, side, side, 0, 2, status.ctypes.data, messages.ctypes.data) == n
    assert [crop_decode.STATUS[s] for s in status] == ["too large"] * n
    one = crop_decode.function("crop_decode_resize_indexed")
    message = ctypes.create_string_buffer(MESSAGE_BYTES)
    assert crop_decode.STATUS[one(*[0] * 5, side, side, *[0] * 6, ctypes.addressof(message))] == "too large"
    expected = (
        f"output of {side} x {side} pixels, where a side may have 1 to {crop_decode.MAX_OUTPUT_SIDE}".encode()
    )
    assert {message.value, *(bytes(text).rstrip(b"\0") for text in messages)} == {expected}


# ---- damage ----


def test_errors_name_the_image_and_the_reason(example):
    jpeg, whole = example
    height, width = whole.shape[:2]
    cmyk = io.BytesIO()
    Image.fromarray(whole).convert("CMYK").save(cmyk, "JPEG")
    cases = {
        "CMYK": (cmyk.getvalue(), "unsupported"),
        "not a JPEG": (b"\x89PNG" + bytes(100), "corrupt"),
        "photo.jpg": (b"", "corrupt"),
        "[Pp]remature|marker": (jpeg[: len(jpeg) // 2], "corrupt"),
        "[Qq]uantization": (jpeg.replace(b"\xff\xdb", b"\xff\xee"), "corrupt"),
    }
    for text, (data, status) in cases.items():
        with pytest.raises(DecodeError, match=text) as caught:
            crop(data, (height - 20, 0, 20, 20), name="photo.jpg")
        assert str(caught.value).startswith("photo.jpg: ") and caught.value.status == status
    for box in ((-1, 0, 5, 5), (0, 0, height + 1, 5), (0, width - 4, 5, 5), (0, 0, 0, 5), (2**40, 0, 5, 5)):
        with pytest.raises(DecodeError) as caught:
            crop(jpeg, box)
        assert caught.value.status == "box"


@pytest.mark.parametrize(
    "decoding", [Decoding(), Decoding(entropy="libjpeg"), Decoding(resize="fused"), Decoding(full=True)]
)
@pytest.mark.parametrize("form", ["420", "progressive", "restart_rows"])
def test_overwritten_tails_are_errors(photos, form, decoding):
    """Zeros parse as Huffman codes, so the decoder looks for the end marker."""
    jpeg = encode(photos[0], form)
    zeroed = jpeg[: len(jpeg) // 2] + bytes(len(jpeg) - len(jpeg) // 2)
    for box in ((0, 0, 333, 311), (10, 10, 300, 200)):
        with pytest.raises(DecodeError):
            resized_crop(zeroed, box, False, 64, decoding)
    harmless = jpeg + bytes(512)
    np.testing.assert_array_equal(
        resized_crop(harmless, (5, 5, 99, 98), False, 64, decoding),
        resized_crop(jpeg, (5, 5, 99, 98), False, 64, decoding),
    )


def test_damage_outside_the_crop_is_found_by_verify(example):
    jpeg, whole = example
    broken = bytearray(jpeg)
    broken[-400:-390] = b"\xff\xd9" * 5
    crop(bytes(broken), (0, 0, 30, 30))
    with pytest.raises(DecodeError):
        crop(bytes(broken), (0, 0, 30, 30), decoding=Decoding(verify=True))


def test_one_image_leaves_nothing_to_the_next(example):
    """A file without tables must not be decoded with the tables of the file before."""
    jpeg, _ = example
    crop(jpeg, (0, 0, 50, 50))
    with pytest.raises(DecodeError, match="[Qq]uantization"):
        crop(jpeg.replace(b"\xff\xdb", b"\xff\xee"), (0, 0, 50, 50))


def refused(
    jpeg: bytes, box: tuple[int, int, int, int], expected: np.ndarray, index: bytes | np.ndarray
) -> bool:
    """Whether the index was refused. If not, the pixels must be those of the full decode."""
    try:
        got = crop(jpeg, box, index=index)
    except DecodeError as error:
        assert error.status == "index", str(error)
        return True
    np.testing.assert_array_equal(got, expected)
    return False


@pytest.mark.parametrize("form", ["420", "restart_7"])
def test_damaged_seek_index_is_refused_or_harmless(photos, form):
    """Whatever bit of an index is damaged, the result is an error or the pixels of the full decode."""
    jpeg, box = encode(photos[0], form), (20, 20, 280, 280)
    expected, rng = cut(decode_whole(jpeg), box), np.random.default_rng(9)
    index = np.frombuffer(crop_decode.build_index(jpeg, 4), np.uint8)
    assert not refused(jpeg, box, expected, index)
    for i in range(300):
        bad, changed = index.copy(), 1 + i % 20
        bad[rng.integers(0, len(bad), changed)] ^= rng.integers(1, 256, changed, dtype=np.uint8)
        assert refused(jpeg, box, expected, bad) == (bad != index).any()
    for bit in range(0, 8 * len(index), 5):
        bad = index.copy()
        bad[bit // 8] ^= 1 << bit % 8
        assert refused(jpeg, box, expected, bad)


def test_a_jpeg_that_changed_after_its_index_was_made_is_refused(example):
    """The old index would skip the rows before the crop, where the damage would show."""
    jpeg, _ = example
    index, rng = crop_decode.build_index(jpeg), np.random.default_rng(14)
    for _ in range(200):
        bad = bytearray(jpeg)
        bad[rng.integers(400, len(jpeg) - 2)] ^= 1 << int(rng.integers(8))
        with pytest.raises(DecodeError) as caught:
            crop(bytes(bad), (200, 100, 90, 80), index=index)
        assert caught.value.status in ("index", "corrupt")


def test_the_index_of_another_jpeg_of_the_same_length_is_refused(photos):
    """Same header, size, length and place of the scan: only the bytes differ."""
    first, box = encode(photos[0], "420"), (30, 40, 200, 100)
    second = bytearray(first)
    second[-2000:-1000] = second[-3000:-2000]
    try:
        index = crop_decode.build_index(bytes(second))
    except DecodeError:
        second = bytearray(first)
        second[-1000] ^= 1
        index = crop_decode.build_index(bytes(second))
    assert refused(first, box, cut(decode_whole(first), box), index)


def test_both_cores_agree_on_an_index(example, tmp_path):
    jpeg, _ = example
    (tmp_path / "a.jpg").write_bytes(jpeg)
    script = (
        "import sys; from pathlib import Path; import crop_decode; from crop_decode._library import library\n"
        "index = crop_decode.build_index(Path(sys.argv[1]).read_bytes())\n"
        "print(library.crop_decode_isa().decode(), index.hex())\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "a.jpg")]
    generic = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "CROP_DECODE_GENERIC": "1"}, check=True
    ).stdout.split()
    assert generic == ["generic", crop_decode.build_index(jpeg).hex()]


@pytest.mark.parametrize(
    "key, value", [("dct", "slow"), ("interpolation", "linear"), ("resize", "dct"), ("entropy", "none")]
)
def test_unknown_options_are_refused(key, value):
    with pytest.raises(ValueError, match=f"crop decode {key}"):
        Decoding(**{key: value})


def run_fuzz(count: int) -> None:
    """Run the fuzzer in a process of its own, so that a crash fails the test."""
    done = subprocess.run(
        [sys.executable, str(FUZZ), str(count)], capture_output=True, text=True, timeout=3600
    )
    assert done.returncode == 0, (
        f"exit status {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    )


def test_mutated_files_never_crash():
    run_fuzz(3000)


@pytest.mark.slow
def test_mutated_files_never_crash_100_000():
    run_fuzz(100_000)


# ---- data in, pixels out ----


def test_without_roi_and_size_the_whole_image_is_decoded(example):
    jpeg, whole = example
    np.testing.assert_array_equal(crop_decode.decode_jpeg(jpeg), whole)
    np.testing.assert_array_equal(
        crop_decode.decode_jpeg(jpeg, size=(40, 30)), reference_resize(whole, False, (40, 30))
    )
    planar = crop_decode.decode_jpeg(jpeg, (3, 5, 20, 30), flip=True, decoding=Decoding(planar=True))
    np.testing.assert_array_equal(planar, whole[3:23, 5:35][:, ::-1].transpose(2, 0, 1))
    with pytest.raises(ValueError, match="`out` needs `size`"):
        crop_decode.decode_jpeg(jpeg, out=np.empty(whole.shape, np.uint8))


@pytest.mark.parametrize("form", [bytearray, memoryview, lambda jpeg: np.frombuffer(jpeg, np.uint8)])
def test_every_kind_of_buffer_is_read(example, form):
    jpeg, whole = example
    np.testing.assert_array_equal(crop_decode.decode_jpeg(form(jpeg), (9, 8, 7, 6)), whole[9:16, 8:14])


def test_tensors_in_and_out(example):
    torch = pytest.importorskip("torch")
    jpeg, whole = example
    data, box = torch.frombuffer(bytearray(jpeg), dtype=torch.uint8), (9, 8, 70, 60)
    expected = torch.from_numpy(cut(whole, box).transpose(2, 0, 1).copy())
    assert torch.equal(crop_decode.decode_jpeg(data, box, output="torch"), expected)
    small = torch.from_numpy(resized_crop(jpeg, box, True, 32).transpose(2, 0, 1).copy())
    assert torch.equal(crop_decode.decode_jpeg(data, box, 32, flip=True, output="torch"), small)
    batch = crop_decode.decode_jpegs([data, jpeg], [box, box], 32, flips=[True, True], output="torch").images
    assert batch.shape == (2, 3, 32, 32) and torch.equal(batch[0], small) and torch.equal(batch[1], small)
    with pytest.raises(ValueError, match="output: 'jax' is none of numpy, torch"):
        crop_decode.decode_jpeg(jpeg, output="jax")


@pytest.mark.parametrize("threads", [1, 3])
def test_a_stream_is_decoded_in_order_and_raises_in_its_turn(photos, threads):
    rng = np.random.default_rng(15)
    jpegs = [encode(photos[i % 3], "420", 60 + i) for i in range(20)]
    boxes = [random_box(rng, *photos[i % 3].shape[:2]) for i in range(20)]
    flips = [bool(i % 2) for i in range(20)]
    read = []
    source = (read.append(i) or jpeg for i, jpeg in enumerate(jpegs))
    stream = crop_decode.decode_stream(source, boxes, 32, flips=flips, threads=threads)
    np.testing.assert_array_equal(next(stream), resized_crop(jpegs[0], boxes[0], flips[0], 32))
    assert len(read) <= 2 * threads
    for i, image in enumerate(stream, 1):
        np.testing.assert_array_equal(image, resized_crop(jpegs[i], boxes[i], flips[i], 32))
    whole = crop_decode.decode_stream([jpegs[0], b"no JPEG", jpegs[1]], [None] * 3, threads=threads)
    np.testing.assert_array_equal(next(whole), decode_whole(jpegs[0]))
    with pytest.raises(DecodeError, match="^image 1: damaged JPEG"):
        next(whole)


# ---- the build ----


def load_builder():
    spec = importlib.util.spec_from_file_location("build_library", ROOT / "build_library.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_build_without_a_compiler_fails_with_one_line(monkeypatch, tmp_path):
    builder = load_builder()
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CC", raising=False)
    with pytest.raises(builder.BuildError, match="^crop_decode: no C compiler found .*$"):
        builder.build_library(tmp_path / "a.so")


@pytest.mark.parametrize(
    "report, reason",
    [
        (
            "internal.h:14:10: fatal error: jpeglib.h: No such file or directory",
            "libjpeg-turbo or its header is missing",
        ),
        (
            "/usr/bin/ld: cannot find -ljpeg: No such file or directory",
            "libjpeg-turbo or its header is missing",
        ),
        (
            "note: x\ncore.c:1:2: error: expected ';'",
            "the C compiler failed: core.c:1:2: error: expected ';'",
        ),
    ],
)
def test_a_failing_compiler_is_reported_in_one_line(monkeypatch, tmp_path, report, reason):
    builder, compiler = load_builder(), tmp_path / "failing-cc"
    compiler.write_text(f"#!/bin/sh\ncat >&2 <<'END'\n{report}\nEND\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", str(compiler))
    with pytest.raises(builder.BuildError) as caught:
        builder.build_library(tmp_path / "a.so")
    assert reason in str(caught.value) and "\n" not in str(caught.value)


def test_the_header_states_the_version_and_the_limits_that_python_expects():
    header, internal = ((ROOT / "csrc" / name).read_text() for name in ("crop_decode.h", "internal.h"))
    assert f"#define CROP_DECODE_VERSION {ABI_VERSION}\n" in header
    assert f"#define CROP_DECODE_MESSAGE {MESSAGE_BYTES} " in header
    assert f"#define MAX_OUTPUT_SIDE {crop_decode.MAX_OUTPUT_SIDE}\n" in internal


@pytest.mark.parametrize(
    "code, reason",
    [
        (
            f"long long crop_decode_version(void) {{ return {ABI_VERSION - 1}; }}",
            f"version {ABI_VERSION - 1}, but .* {ABI_VERSION}",
        ),
        (
            f"long long crop_decode_version(void) {{ return {ABI_VERSION}; }}",
            "cannot be loaded .*crop_decode_info",
        ),
        ("int other;", "cannot be loaded .*crop_decode_version"),
    ],
)
def test_a_library_of_other_sources_is_refused(tmp_path, code, reason):
    compiler = shutil.which("cc") or pytest.skip("no C compiler")
    (tmp_path / "old.c").write_text(code)
    subprocess.run([compiler, "-shared", "-fPIC", tmp_path / "old.c", "-o", tmp_path / "old.so"], check=True)
    with pytest.raises(
        ImportError, match=f"old.so: {reason}.*; install crop_decode again with `pip install ./crop_decode`"
    ):
        load(tmp_path / "old.so")
    with pytest.raises(ImportError, match="absent.so: cannot be loaded"):
        load(tmp_path / "absent.so")


def test_the_code_of_the_readme_runs(example, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("photo.jpg").write_bytes(example[0])
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    names: dict = {}
    for block in blocks:
        exec(block, names)
    np.testing.assert_array_equal(names["pixels"], resized_crop(example[0], (40, 60, 200, 180), False, 224))
    assert len(blocks) >= 4


def test_importing_needs_numpy_alone():
    code = "import sys, crop_decode; print({'torch', 'cv2', 'PIL', 'replicate', 'scipy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


# ---- the other core, numba, FFCV, real photographs ----


def test_generic_core_gives_the_same_pixels(example, tmp_path):
    jpeg, _ = example
    (tmp_path / "a.jpg").write_bytes(jpeg)
    script = (
        "import sys, zlib; from pathlib import Path\n"
        "import crop_decode as c; from crop_decode._library import library\n"
        "jpeg = Path(sys.argv[1]).read_bytes()\n"
        "for d in (c.Decoding(), c.Decoding(interpolation='bicubic'), c.Decoding(resize='fused')):\n"
        "    print(zlib.crc32(c.decode_jpeg(jpeg, (7, 9, 201, 190), 64, flip=True, decoding=d)))\n"
        "print(library.crop_decode_isa().decode())\n"
    )
    outputs = []
    for environment in ({}, {"CROP_DECODE_GENERIC": "1"}):
        command = [sys.executable, "-c", script, str(tmp_path / "a.jpg")]
        outputs.append(
            subprocess.run(
                command, capture_output=True, text=True, env={**os.environ, **environment}, check=True
            ).stdout.split()
        )
    assert outputs[0][:3] == outputs[1][:3] and outputs[1][3] == "generic"


def test_numba_calls_the_function(example):
    numba = pytest.importorskip("numba")
    jpeg, _ = example
    c_decode_crop_resize = crop_decode.function("crop_decode_resize")

    @numba.njit(nogil=True)
    def decode(source, out, size, box, flip, flags):
        return c_decode_crop_resize(
            source.ctypes.data,
            source.size,
            out.ctypes.data,
            size,
            box[0],
            box[1],
            box[2],
            box[3],
            flip,
            flags,
        )

    out, box = np.zeros((64, 64, 3), np.uint8), np.array([7, 9, 201, 190])
    assert decode(np.frombuffer(jpeg, np.uint8), out, 64, box, True, Decoding().flags) == 0
    np.testing.assert_array_equal(out, resized_crop(jpeg, box, True, 64))
    assert decode(np.frombuffer(jpeg[:900], np.uint8), out, 64, box, True, 0) == crop_decode.STATUS.index(
        "corrupt"
    )


def ffcv_functions() -> tuple:
    """FFCV's imdecode and resize from its library, without the seconds that importing FFCV takes."""
    spec = importlib.util.find_spec("ffcv")
    paths = (
        [path for folder in spec.submodule_search_locations for path in Path(folder).glob("_libffcv*.so")]
        if spec
        else []
    )
    if not paths:
        pytest.skip("ffcv is not installed")
    library = ctypes.CDLL(str(paths[0]))
    u32, u64, pointer = ctypes.c_uint32, ctypes.c_uint64, ctypes.c_void_p
    library.imdecode.argtypes = [pointer, u64, u32, u32, pointer, *[u32] * 6, ctypes.c_bool, ctypes.c_bool]
    library.resize.argtypes = [ctypes.c_int64] * 11
    return library.imdecode, library.resize


def test_exact_equals_what_ffcv_computes(example):
    """FFCV's own decoder (fast DCT) and resize, called directly."""
    imdecode, resize = ffcv_functions()
    jpeg, whole = example
    height, width = whole.shape[:2]
    source, pixels, out = (
        np.frombuffer(jpeg, np.uint8),
        np.empty(whole.shape, np.uint8),
        np.empty((64, 64, 3), np.uint8),
    )
    imdecode(
        source.ctypes.data,
        source.size,
        height,
        width,
        pixels.ctypes.data,
        height,
        width,
        0,
        0,
        1,
        1,
        False,
        False,
    )
    rng = np.random.default_rng(13)
    for _ in range(200):
        top, left, tall, wide = random_box(rng, height, width)
        resize(
            0, pixels.ctypes.data, height, width, top, top + tall, left, left + wide, out.ctypes.data, 64, 64
        )
        np.testing.assert_array_equal(
            resized_crop(jpeg, (top, left, tall, wide), False, 64, Decoding(dct="fast")), out
        )


@pytest.mark.slow
def test_20_000_crops_of_real_photographs():
    """Every photograph as it is, with restart markers, and encoded again at 500 pixels.

    REPLICATE_REAL_DATA names a folder with imagenet-sample-167/.
    """
    rng, done = np.random.default_rng(10), 0
    for path in photographs():
        jpeg = path.read_bytes()
        small = cv2.resize(decode_whole(jpeg), (500, 375), interpolation=cv2.INTER_AREA)
        for data in (
            jpeg,
            crop_decode.add_restarts(jpeg),
            encode(small, "420", 90),
            encode(small, "420", 95),
        ):
            whole = decode_whole(data)
            index = crop_decode.build_index(data)
            for _ in range(31):
                box, flip = random_box(rng, *whole.shape[:2]), bool(rng.integers(2))
                expected = cv2.resize(cut(whole, box), (224, 224), interpolation=cv2.INTER_AREA)
                expected = expected[:, ::-1] if flip else expected
                for hint in (None, index):
                    got = resized_crop(data, box, flip, 224, index=hint)
                    np.testing.assert_array_equal(got, expected, f"{path} {box} {flip}")
                done += 1
    assert done >= 20_000


def photographs() -> list[Path]:
    root = Path(os.environ.get("REPLICATE_REAL_DATA", "")) / "imagenet-sample-167"
    if not os.environ.get("REPLICATE_REAL_DATA") or not root.is_dir():
        pytest.skip("REPLICATE_REAL_DATA names no folder with imagenet-sample-167")
    return sorted(root.rglob("*.*"))


def narrow_or_random_box(rng: np.random.Generator, height: int, width: int) -> tuple[int, int, int, int]:
    """One box in three is 1 to 4 pixels wide."""
    top, left, h, w = random_box(rng, height, width)
    return (top, left, h, min(w, int(rng.integers(1, 5)))) if rng.integers(3) == 0 else (top, left, h, w)


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind",
    [
        "444",
        "422",
        "420",
        "440",
        "grey",
        "progressive",
        "restart_7",
        "restart_rows",
        "marked",
        "marked_progressive",
    ],
)
def test_thousands_of_crops_of_real_photographs_of_each_kind(kind):
    """Every photograph resized to a size of its own and encoded; "marked" adds restart markers afterwards."""
    form = {"marked": "422", "marked_progressive": "progressive"}.get(kind, kind)
    rng, done, narrowest = np.random.default_rng(20), 0, 500
    for path in photographs():
        height, width = (int(side) for side in rng.integers(40, 500, 2))
        small = cv2.resize(decode_whole(path.read_bytes()), (width, height), interpolation=cv2.INTER_AREA)
        jpeg = encode(small, form, int(rng.integers(60, 101)))
        whole = decode_whole(jpeg)
        if kind.startswith("marked"):
            jpeg = crop_decode.add_restarts(jpeg, int(rng.integers(1, 12)))
            np.testing.assert_array_equal(decode_whole(jpeg), whole)
        index = (
            crop_decode.build_index(jpeg, int(rng.integers(1, 20)))
            if crop_decode.jpeg_info(jpeg).seekable
            else None
        )
        for _ in range(18):
            box, flip = narrow_or_random_box(rng, height, width), bool(rng.integers(2))
            expected = cut(whole, box)[:, ::-1] if flip else cut(whole, box)
            for hint in (None, index)[: 1 if index is None else 2]:
                np.testing.assert_array_equal(
                    crop(jpeg, box, flip, index=hint), expected, f"{path} {box} {flip}"
                )
            narrowest, done = min(narrowest, box[3]), done + 1
        resized = cv2.resize(cut(whole, box), (96, 96), interpolation=cv2.INTER_AREA)
        np.testing.assert_array_equal(
            resized_crop(jpeg, box, flip, 96, index=index), resized[:, ::-1] if flip else resized, path
        )
    assert done >= 3000 and narrowest == 1

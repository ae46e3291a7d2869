"""Every kind of pixel that Pillow opens: the right 8-bit RGB, or refused by name."""

import io
import struct
import threading
import time
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms
from skimage.color import lab2rgb

from replicate.errors import UserError
from replicate.loaders import data
from replicate.loaders.decode import decode_image
from replicate.loaders.listing import suffixes

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (11, 13), np.uint8)
RGB = RNG.integers(0, 256, (11, 13, 3), np.uint8)
ALPHA = RNG.integers(0, 256, (11, 13), np.uint8)
GREY_TYPE, RGB_TYPE, PALETTE_TYPE, GREY_ALPHA_TYPE, RGBA_TYPE = 0, 2, 3, 4, 6


def _as_rgb(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[..., None], 3, axis=2)


def _png(rows: list[bytes], width: int, depth: int, colour: int, chunks: bytes = b"") -> bytes:
    """A PNG by its specification, without a library: rows are packed samples."""
    header = struct.pack(">IIBBBBB", width, len(rows), depth, colour, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    return (
        b"\x89PNG\r\n\x1a\n"
        + _chunk(b"IHDR", header)
        + chunks
        + _chunk(b"IDAT", pixels)
        + _chunk(b"IEND", b"")
    )


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _saved(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _tiff(pixels: np.ndarray, **options: object) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, pixels, **options)
    return buffer.getvalue()


SIXTEEN = GREY.astype(np.uint16) * 257
PALETTE = RNG.integers(0, 256, (256, 3), np.uint8)
PLTE = _chunk(b"PLTE", PALETTE.tobytes())
TWO_BITS = RNG.integers(0, 4, (11, 12), np.uint8)
TWO_BIT_ROWS = [(row[0::4] << 6 | row[1::4] << 4 | row[2::4] << 2 | row[3::4]).tobytes() for row in TWO_BITS]
BITS = RNG.integers(0, 2, (11, 16), np.uint8)

EXACT = {
    "PNG, 1-bit grey": (
        _png([np.packbits(row).tobytes() for row in BITS], 16, 1, GREY_TYPE),
        _as_rgb(BITS * 255),
    ),
    "PNG, 2-bit grey": (_png(TWO_BIT_ROWS, 12, 2, GREY_TYPE), _as_rgb(TWO_BITS * 85)),
    "PNG, 8-bit grey": (_png([row.tobytes() for row in GREY], 13, 8, GREY_TYPE), _as_rgb(GREY)),
    "PNG, 16-bit grey": (
        _png([row.astype(">u2").tobytes() for row in SIXTEEN], 13, 16, GREY_TYPE),
        _as_rgb(GREY),
    ),
    "PNG, RGB": (_png([row.tobytes() for row in RGB], 13, 8, RGB_TYPE), RGB),
    "PNG, 16-bit RGB": (
        _png([(row.astype(np.uint16) * 257).astype(">u2").tobytes() for row in RGB], 13, 16, RGB_TYPE),
        RGB,
    ),
    "PNG, palette": (_png([row.tobytes() for row in GREY], 13, 8, PALETTE_TYPE, PLTE), PALETTE[GREY]),
    "PNG, palette with transparent colours": (
        _png([row.tobytes() for row in GREY], 13, 8, PALETTE_TYPE, PLTE + _chunk(b"tRNS", bytes(range(256)))),
        PALETTE[GREY],
    ),
    "PNG, grey and alpha": (
        _png([np.stack(row, 1).tobytes() for row in zip(GREY, ALPHA, strict=True)], 13, 8, GREY_ALPHA_TYPE),
        _as_rgb(GREY),
    ),
    "PNG, RGB and alpha": (
        _png([row.tobytes() for row in np.concatenate([RGB, ALPHA[..., None]], 2)], 13, 8, RGBA_TYPE),
        RGB,
    ),
    "TIFF, 16-bit grey": (_tiff(SIXTEEN, photometric="minisblack"), _as_rgb(GREY)),
    "TIFF, 16-bit grey, big-endian": (_tiff(SIXTEEN, photometric="minisblack", byteorder=">"), _as_rgb(GREY)),
    "TIFF, 16-bit grey, 0 is white": (_tiff(65535 - SIXTEEN, photometric="miniswhite"), _as_rgb(GREY)),
    "TIFF, 8-bit grey, 0 is white": (_tiff(255 - GREY, photometric="miniswhite"), _as_rgb(GREY)),
    "TIFF, 16-bit RGB": (_tiff(RGB.astype(np.uint16) * 257, photometric="rgb"), RGB),
    "TIFF, several pages": (_tiff(np.stack([RGB, 255 - RGB]), photometric="rgb"), RGB),
    "PGM, 8 bits": (b"P5 13 11 255\n" + GREY.tobytes(), _as_rgb(GREY)),
    "PGM, 16 bits": (b"P5 13 11 65535\n" + SIXTEEN.astype(">u2").tobytes(), _as_rgb(GREY)),
    "PGM, 1020 levels": (
        b"P5 13 11 1020\n" + (GREY.astype(np.uint16) * 4).astype(">u2").tobytes(),
        _as_rgb(GREY),
    ),
    "PBM": (b"P4 16 11\n" + np.packbits(1 - BITS, axis=1).tobytes(), _as_rgb(BITS * 255)),
    "GIF, animated": (
        _saved(Image.fromarray(GREY), "GIF", save_all=True, append_images=[Image.fromarray(255 - GREY)]),
        _as_rgb(GREY),
    ),
    "WebP, lossless": (_saved(Image.fromarray(RGB), "WEBP", lossless=True), RGB),
    "WebP, lossless, animated": (
        _saved(
            Image.fromarray(RGB),
            "WEBP",
            lossless=True,
            save_all=True,
            append_images=[Image.fromarray(255 - RGB)],
        ),
        RGB,
    ),
    "BMP": (_saved(Image.fromarray(RGB), "BMP"), RGB),
    "JPEG 2000, lossless": (_saved(Image.fromarray(RGB), "JPEG2000"), RGB),
    "JPEG 2000, lossless, 16-bit grey": (_saved(Image.fromarray(SIXTEEN), "JPEG2000"), _as_rgb(GREY)),
}


@pytest.mark.parametrize("kind", EXACT)
def test_pixels_are_those_that_were_stored(kind: str) -> None:
    encoded, expected = EXACT[kind]
    pixels = decode_image(encoded, "image")
    assert pixels.dtype == np.uint8 and pixels.flags.c_contiguous
    np.testing.assert_array_equal(pixels, expected)


def test_sixteen_bits_are_divided_by_257() -> None:
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    pixels = decode_image(_png([row.astype(">u2").tobytes() for row in values], 256, 16, GREY_TYPE), "image")
    assert np.abs(pixels[..., 0] - values / 257).max() <= 0.5


def test_twelve_bits_of_a_tiff_reach_white() -> None:
    """Two 12-bit samples in three bytes, as TIFF 6.0 packs them."""
    ramp = np.linspace(0, 4095, 16).astype(np.uint16).reshape(1, 16)
    packed = b"".join(
        bytes([int(a) >> 4, (int(a) & 15) << 4 | int(b) >> 8, int(b) & 255])
        for a, b in zip(ramp[0, ::2], ramp[0, 1::2], strict=True)
    )
    tags = {256: 16, 257: 1, 258: 12, 259: 1, 262: 1, 273: 8, 277: 1, 278: 1, 279: len(packed)}
    offset = 8 + len(packed)
    entries = b"".join(struct.pack("<HHIHH", tag, 3, 1, value, 0) for tag, value in tags.items())
    encoded = (
        b"II*\0" + struct.pack("<I", offset) + packed + struct.pack("<H", len(tags)) + entries + b"\0" * 4
    )
    pixels = decode_image(encoded, "image")[0, :, 0]
    np.testing.assert_allclose(pixels, ramp[0] * (255 / 4095), atol=0.51)


@pytest.mark.parametrize("kind", ["TIFF", "JPEG"])
def test_cmyk_is_converted_by_the_inks(kind: str) -> None:
    """(1 - C)(1 - K) for each colour. Adobe's JPEGs store inverted inks, as Pillow's writer does."""
    inks = np.full((16, 16, 4), (40, 90, 200, 30), np.uint8)
    options = {"quality": 100} if kind == "JPEG" else {}
    pixels = decode_image(_saved(Image.fromarray(inks, "CMYK"), kind, **options), "image")
    expected = (255 - inks[..., :3].astype(float)) * (255 - inks[..., 3:]) / 255
    np.testing.assert_allclose(pixels, expected, atol=2)


def test_ycbcr_is_converted_as_jfif_says() -> None:
    ycbcr = np.full((16, 16, 3), (130, 90, 170), np.uint8)
    pixels = decode_image(_saved(Image.fromarray(ycbcr, "YCbCr"), "TIFF"), "image")
    y, cb, cr = 130, 90 - 128, 170 - 128
    np.testing.assert_allclose(
        pixels[0, 0], (y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb), atol=1
    )


@pytest.mark.skipif(not hasattr(ImageCms, "createProfile"), reason="Pillow without littlecms")
def test_lab_is_converted_to_srgb() -> None:
    lab = np.full((16, 16, 3), (150, 20, 256 - 20), np.uint8)  # a* and b* are signed bytes
    pixels = decode_image(_tiff(lab, photometric="cielab"), "image")
    expected = lab2rgb(np.array([[[150 * 100 / 255, 20, -20]]]))[0, 0] * 255
    np.testing.assert_allclose(pixels[0, 0], expected, atol=3)


REFUSED = {
    "TIFF, 32-bit integers": _tiff(GREY.astype(np.int32)),
    "TIFF, 16-bit signed": _tiff(GREY.astype(np.int16)),
    "TIFF, 8-bit signed": _tiff(GREY.astype(np.int8)),
    "TIFF, floats": _tiff(GREY.astype(np.float32)),
    "PFM": b"Pf\n13 11\n-1.0\n" + GREY.astype("<f4").tobytes(),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_pixels_without_a_range_are_refused_by_name(kind: str) -> None:
    with pytest.raises(
        UserError, match=r"^set/a.tif: \w+ image with pixels of mode .*, which have no defined range"
    ):
        decode_image(REFUSED[kind], "set/a.tif")


@pytest.mark.parametrize(
    "kind", ["PNG", "GIF", "TIFF", "WEBP", "BMP", "TGA", "JPEG2000", "ICO", "PCX", "SGI", "AVIF"]
)
def test_a_cut_file_of_any_format_gives_one_error(kind: str) -> None:
    encoded = _saved(Image.fromarray(np.repeat(np.repeat(RGB, 8, 0), 8, 1)), kind)
    for share in (0.02, 0.3, 0.6):
        try:
            pixels = decode_image(encoded[: int(len(encoded) * share)], "set/a.img")
        except UserError as error:
            assert str(error).startswith("set/a.img: ")
        else:
            assert pixels.dtype == np.uint8 and pixels.ndim == 3


@pytest.mark.parametrize(
    "content", [b"", b"this is no picture", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"]
)
def test_what_is_no_image_is_refused_by_name(content: bytes) -> None:
    with pytest.raises(UserError, match="^set/a.jpg: not an image that Pillow can read$"):
        decode_image(content, "set/a.jpg")


def test_threads_that_decode_leave_the_warning_filters_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second thread starts while the first one decodes, and ends after it."""
    started, first_done = threading.Event(), threading.Event()

    def opened(file: io.BytesIO, **_: object) -> None:
        if file.getvalue() == b"first":
            started.wait(5)
        else:
            started.set()
            first_done.wait(5)
        raise Image.UnidentifiedImageError

    def decode_first() -> None:
        with pytest.raises(UserError):
            decode_image(b"first", "first")
        first_done.set()

    monkeypatch.setattr(Image, "open", opened)
    before = list(warnings.filters)
    thread = threading.Thread(target=decode_first)
    thread.start()
    time.sleep(0.05)
    with pytest.raises(UserError):
        decode_image(b"second", "second")
    thread.join()
    assert warnings.filters == before


def test_exif_orientation_is_ignored_as_by_torchvisions_image_folder() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decode_image(_saved(Image.fromarray(RGB), "PNG", exif=exif), "image").shape == (11, 13, 3)


def test_suffixes_are_those_of_formats_that_pillow_decodes() -> None:
    assert {
        ".jpg",
        ".jpeg",
        ".jfif",
        ".png",
        ".webp",
        ".tif",
        ".tiff",
        ".bmp",
        ".gif",
        ".ppm",
        ".jp2",
    } <= suffixes()
    assert not suffixes() & {".pdf", ".eps", ".ps", ".mpg", ".h5", ".wmf", ".txt", ".npy"}


def test_the_writer_stores_the_decoded_pixels(tmp_path: Path) -> None:
    for split in ("train", "val"):
        folder = tmp_path / "set" / split / "a"
        folder.mkdir(parents=True)
        (folder / "grey.png").write_bytes(EXACT["PNG, 16-bit grey"][0])
    raw = data.WriteSettings(mode="raw")
    data.write(data.DataSettings(str(tmp_path / "set"), train=raw), tmp_path / "out", progress=False)
    with data.BetonReader(tmp_path / "out" / "train.beton") as reader:
        assert reader.read(0) == _as_rgb(GREY).tobytes()

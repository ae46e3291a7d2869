"""HOG against scikit-image's cell histograms, and the conventions that make the paper's numbers come out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import sobel
from skimage.feature import _hoghistogram

from replicate.errors import UserError
from replicate.loaders.pixels import normalise
from replicate.report.glyphs import hog_image
from replicate.targets import build, hog


def scikit_cells(images: np.ndarray, cell: int = 8) -> np.ndarray:
    """Sobel gradients in scikit-image's cell histograms, transposed: its angle is atan2(rows, columns)."""
    batch, channels, height, width = images.shape
    out = np.zeros((batch, channels, hog.BINS, height // cell, width // cell))
    for image, image_out in zip(images.astype(np.float64), out, strict=True):
        for plane, plane_out in zip(image, image_out, strict=True):
            across, down = sobel(plane, axis=1, mode="mirror"), sobel(plane, axis=0, mode="mirror")
            cells = np.zeros((height // cell, width // cell, hog.BINS))
            _hoghistogram.hog_histograms(
                down, across, cell, cell, width, height, width // cell, height // cell, hog.BINS, cells
            )
            cells /= np.maximum(np.linalg.norm(cells, axis=-1, keepdims=True), hog.EPSILON)
            plane_out[:] = cells.transpose(2, 0, 1)
    return out


def random_pixels(batch: int, size: int, levels: int = 256) -> torch.Tensor:
    seeded = torch.Generator().manual_seed(size + levels)
    return torch.randint(0, levels, (batch, 3, size, size), dtype=torch.uint8, generator=seeded)


@pytest.mark.parametrize("size", [64, 96, 128, 192, 224])
@pytest.mark.parametrize("levels", [256, 4])  # with four grey levels, ties are everywhere
def test_integer_images_match_scikit_image(size: int, levels: int) -> None:
    pixels = random_pixels(2, size, levels)
    expected = scikit_cells(pixels.numpy())
    for images in (pixels, pixels.float(), pixels.double(), normalise(pixels), normalise(pixels).double()):
        np.testing.assert_allclose(hog.dense_hog(images).numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_noise_matches_scikit_image(dtype: torch.dtype) -> None:
    noise = torch.randn(3, 3, 112, 112, dtype=dtype, generator=torch.Generator().manual_seed(0))
    np.testing.assert_allclose(hog.dense_hog(noise).numpy(), scikit_cells(noise.numpy()), atol=1e-6)


def test_an_image_alone_and_in_a_batch_of_several_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels, target = random_pixels(7, 64), hog.Target(16)
    whole = target(pixels)
    monkeypatch.setitem(hog._CHUNK, "cpu", 2 * 3 * 64 * 64)
    assert torch.equal(target(pixels), whole)
    assert all(torch.equal(target(pixels[i : i + 1]), whole[i : i + 1]) for i in range(7))


def test_the_number_of_threads_is_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    hog.Target(16)(random_pixels(8, 224))
    monkeypatch.setattr(hog, "_histograms", lambda images, cell: torch.zeros(5))
    with pytest.raises(RuntimeError):
        hog.dense_hog(random_pixels(2, 64))
    assert torch.get_num_threads() == before


def test_images_need_not_be_square() -> None:
    pixels = random_pixels(2, 96)[:, :, :64]
    np.testing.assert_allclose(hog.dense_hog(pixels).numpy(), scikit_cells(pixels.numpy()), atol=1e-6)
    assert hog.Target(16)(pixels).shape == (2, 4 * 6, 108)


def test_every_integer_gradient_falls_into_its_bin_in_single_precision() -> None:
    side = torch.arange(-1020, 1021)
    grad_x, grad_y = (grid.flatten() for grid in torch.meshgrid(side, side, indexing="ij"))
    moving = (grad_x != 0) | (grad_y != 0)
    grad_x, grad_y = grad_x[moving], grad_y[moving]
    magnitude, ratio = hog._polar(grad_x.float(), grad_y.float())
    edges = list(zip(hog._EDGES[1:], hog._EDGES, strict=False))
    bins = [hog._keep_between(magnitude, ratio, low, high, torch.empty_like(ratio)) for low, high in edges]
    expected = (torch.atan2(grad_x.double(), grad_y.double()) / torch.pi * 9).floor().long() % 9
    stacked = torch.stack(bins)
    assert torch.equal(stacked.argmax(dim=0), expected)
    assert torch.equal(stacked.sum(dim=0), magnitude)


def photographs(folder: Path) -> list[torch.Tensor]:
    crops = []
    for file in sorted((folder / "imagenet-sample-167").rglob("*.JPEG")):
        image = Image.open(file).convert("RGB")
        crops.append(
            torch.from_numpy(np.array(image.resize((224, 224), Image.Resampling.BILINEAR))).permute(2, 0, 1)[
                None
            ]
        )
    return crops


def test_photographs_give_the_same_cells_in_every_precision(real_data: Path) -> None:
    crops = photographs(real_data)
    assert len(crops) == 167
    pixels = torch.cat(crops)
    cells = hog.dense_hog(pixels)
    assert torch.equal(cells, hog.dense_hog(normalise(pixels)))
    assert torch.equal(cells, hog.dense_hog(normalise(pixels).double()))
    np.testing.assert_allclose(cells.numpy(), scikit_cells(pixels.numpy()), atol=1e-6)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(
    "form",
    [lambda p: p, lambda p: p.float(), lambda p: p.double(), normalise, lambda p: normalise(p).double()],
)
@pytest.mark.parametrize("autocast", [False, True])
def test_gpu_gives_the_same(form: Callable[[torch.Tensor], torch.Tensor], autocast: bool) -> None:
    pixels, target = random_pixels(4, 96), hog.Target(16)
    with torch.autocast("cuda", torch.bfloat16, enabled=autocast):
        cells, units = hog.dense_hog(form(pixels.cuda())), target(form(pixels.cuda()))
        of_normalised = hog.dense_hog(form(pixels).cuda())
    assert cells.is_cuda and units.is_cuda and cells.dtype == units.dtype == torch.float32
    for found in (cells, of_normalised):
        np.testing.assert_allclose(found.cpu().numpy(), scikit_cells(pixels.numpy()), atol=1e-6)
    torch.testing.assert_close(units.cpu(), target(pixels), atol=1e-6, rtol=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_gives_the_same_of_real_valued_pixels() -> None:
    noise = torch.randn(3, 3, 112, 112, generator=torch.Generator().manual_seed(0))
    for images in (noise, noise.double()):
        torch.testing.assert_close(
            hog.dense_hog(images.cuda()).cpu(), hog.dense_hog(images), atol=1e-6, rtol=0
        )


def test_real_valued_pixels_give_the_same_cells_in_both_precisions() -> None:
    smooth = torch.nn.functional.interpolate(random_pixels(4, 32).float(), size=96, mode="bicubic")
    assert torch.equal(hog.dense_hog(smooth), hog.dense_hog(smooth.double()))


@pytest.mark.parametrize(
    "images", [torch.full((2, 3, 64, 64), 7, dtype=torch.uint8), torch.full((2, 3, 64, 64), 0.3)]
)
def test_a_constant_image_has_no_histogram(images: torch.Tensor) -> None:
    assert not hog.Target(32)(images).any()


@pytest.mark.parametrize(("unit", "values"), [(8, 27), (16, 108), (32, 432)])
def test_predicting_zeros_costs_a_ninth(unit: int, values: int) -> None:
    target = build("hog", patch_size=unit)
    units = target(random_pixels(2, 64))
    assert target.dim == values == units.shape[-1]
    assert units.square().mean().item() == pytest.approx(1 / 9, abs=1e-6)


def test_order_of_a_units_values() -> None:
    pixels, side = random_pixels(2, 64), 2
    cells, units = hog.dense_hog(pixels), hog.Target(16)(pixels)
    for colour, bin_, cell_y, cell_x in [(0, 0, 0, 0), (1, 3, 0, 1), (2, 8, 1, 0), (2, 5, 1, 1)]:
        index = ((colour * 9 + bin_) * side + cell_y) * side + cell_x
        assert torch.equal(units[:, :, index], cells[:, colour, bin_, cell_y::side, cell_x::side].flatten(1))


@pytest.mark.parametrize("unit", [8, 16, 32])
def test_units_and_dense_histograms_are_two_views_of_the_same(unit: int) -> None:
    target, pixels = hog.Target(unit), random_pixels(2, 96)[:, :, :64]
    cells, units = hog.dense_hog(pixels), target(pixels)
    assert torch.equal(target.to_units(cells), units)
    assert torch.equal(target.to_dense(units, (64 // unit, 96 // unit)), cells)


def test_an_edge_is_drawn_along_itself() -> None:
    pixels = torch.zeros(1, 3, 16, 16, dtype=torch.uint8)
    pixels[..., 8:] = 200  # a vertical edge: the gradient is horizontal, 90 degrees from the vertical, bin 4
    cells = hog.dense_hog(pixels)
    assert (cells[0, 0, 4] == 1).all() and cells[0, 0].sum() == 4
    glyph = hog_image(cells, side=16)[0, 0]
    assert glyph.shape == (32, 32)
    assert glyph[:16, 7:9].sum() > 0.99 * glyph[:16, :16].sum()


def test_no_gradient_reaches_the_image() -> None:
    image = torch.rand(1, 3, 32, 32, requires_grad=True)
    assert not hog.Target(16)(image).requires_grad


@pytest.mark.parametrize("form", [torch.uint8, torch.float32])
def test_a_batch_may_be_empty(form: torch.dtype) -> None:
    images = torch.zeros(0, 3, 64, 64, dtype=form)
    assert hog.Target(16)(images).shape == (0, 16, 108)
    assert hog.dense_hog(images).shape == (0, 3, 9, 8, 8)


@pytest.mark.parametrize("cell", [0, -8, 2.5])
def test_a_cell_has_pixels(cell: float) -> None:
    with pytest.raises(UserError, match=f"cell {cell} must be a whole number of pixels >= 1"):
        hog.Target(16, cell=cell)
    with pytest.raises(UserError, match=f"cell {cell} must be a whole number of pixels >= 1"):
        hog.dense_hog(torch.zeros(1, 3, 40, 40), cell)


def test_mistakes_raise_user_errors() -> None:
    with pytest.raises(UserError, match="12 pixels is no whole number of cells"):
        hog.Target(12)
    with pytest.raises(UserError, match="40x40 is not a multiple of patch_size 16"):
        hog.Target(16)(torch.zeros(1, 3, 40, 40))
    with pytest.raises(UserError, match="multiple of the HOG cell"):
        hog.dense_hog(torch.zeros(1, 3, 36, 36))

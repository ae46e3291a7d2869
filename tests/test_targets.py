"""Targets against formulas and libraries that the package does not use for them."""

import numpy as np
import pytest
import torch

from replicate import targets
from replicate.errors import UserError
from replicate.targets.pixel import patchify, unpatchify


@pytest.fixture
def images():
    return torch.randn(3, 3, 32, 48, generator=torch.Generator().manual_seed(0))


def test_patch_vector_is_row_column_channel(images):
    patches = patchify(images, 16)
    assert patches.shape == (3, 6, 768)
    for index, (top, left) in enumerate((r, c) for r in (0, 16) for c in (0, 16, 32)):
        expected = images[1, :, top : top + 16, left : left + 16].permute(1, 2, 0).reshape(-1)
        assert torch.equal(patches[1, index], expected)
    assert torch.equal(unpatchify(patches, (2, 3), 16), images)


def test_normalised_pixels_use_the_unbiased_variance(images):
    target = targets.build("pixel", 16)
    assert target.dim == 768 and target.loss == "mse" and not list(target.parameters())
    patches = patchify(images, 16).double().numpy()
    expected = (patches - patches.mean(-1, keepdims=True)) / np.sqrt(patches.var(-1, keepdims=True, ddof=1) + 1e-6)
    np.testing.assert_allclose(target(images).numpy(), expected, atol=2e-6)
    flat = target(torch.full((1, 3, 16, 16), 0.5))
    assert flat.abs().max() < 1e-3


def test_unnormalise_gives_the_pixels_back(images):
    target = targets.build("pixel", 16, norm_pix=True)
    torch.testing.assert_close(target.unnormalise(target(images), images), patchify(images, 16), atol=1e-5, rtol=1e-5)
    plain = targets.build("pixel", 16, norm_pix=False)
    assert torch.equal(plain(images), patchify(images, 16))
    assert torch.equal(plain.unnormalise(plain(images), images), plain(images))


def test_user_errors(images):
    with pytest.raises(UserError, match="pixel, pca, hog, token"):
        targets.build("pixels", 16)
    with pytest.raises(UserError, match="norm_pixel"):
        targets.build("pixel", 16, norm_pixel=True)
    with pytest.raises(UserError, match="32x48 is not a multiple of patch size 15"):
        targets.build("pixel", 15)(images)

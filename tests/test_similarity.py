"""PSNR and SSIM of targets at two resolutions, against scikit-image."""

from __future__ import annotations

import pytest
import torch
from skimage import metrics

from replicate.errors import UserError
from replicate.targets.similarity import psnr, reduced, similarities, ssim


def maps(seed: int, channels: int = 3, size: int = 20) -> torch.Tensor:
    return torch.rand(2, channels, size, size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("channels", [3, 27])
def test_measures_are_scikit_images(channels: int) -> None:
    left = maps(0, channels)
    right = (left + 0.2 * maps(1, channels)).clamp(0, 1)
    for k in range(2):
        pair = [item[k].double().permute(1, 2, 0).numpy() for item in (left, right)]
        assert psnr(left, right)[k].item() == pytest.approx(
            metrics.peak_signal_noise_ratio(*pair, data_range=1), rel=1e-5
        )
        assert ssim(left, right)[k].item() == pytest.approx(
            metrics.structural_similarity(*pair, data_range=1, channel_axis=-1), rel=1e-4
        )


def test_equal_images_are_as_alike_as_can_be() -> None:
    images = (maps(2, size=64) * 255).to(torch.uint8)
    found = similarities(images, 64)
    assert all(
        found[name].allclose(torch.ones(2, dtype=torch.float64)) for name in ("ssim_pixel", "ssim_hog")
    )
    assert (found["psnr_pixel"] == 100).all()
    assert torch.equal(reduced(images, 64), images)


def test_less_resolution_is_less_alike() -> None:
    images = (maps(3, size=64) * 255).to(torch.uint8)
    half, quarter = similarities(images, 32), similarities(images, 16)
    assert all((half[name] >= quarter[name]).all() for name in ("psnr_pixel", "ssim_pixel"))


def test_maps_smaller_than_the_window_are_refused() -> None:
    with pytest.raises(UserError, match="smaller than its window of 7"):
        ssim(maps(0, size=6), maps(1, size=6))

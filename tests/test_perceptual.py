"""DailyMAE Eqs. 1-3 against its Table 8 and against torchvision's own RandomResizedCrop."""

import math

import numpy as np
import pytest

from replicate.schedules.perceptual import (
    apparent_size,
    expected_apparent_size,
    masked_perceptual_ratio,
    perceptual_ratio,
    sides,
)


def test_values_of_the_formulas_at_the_default_crop():
    low, high = sides((0.08, 1.0))
    assert low == pytest.approx(0.283, abs=5e-4)
    assert perceptual_ratio(0.28, high) == pytest.approx(0.7075, abs=5e-5)
    assert [apparent_size(s, 0.28, 1) for s in (160, 192, 224)] == pytest.approx(
        [226.1, 271.4, 316.6], abs=0.1
    )
    assert [expected_apparent_size(s, 0.28, 1) for s in (160, 192, 224)] == pytest.approx(
        [250, 300, 350], abs=1e-9
    )


def test_table_8_prints_two_thirds_of_its_own_formulas():
    assert 2 / 3 * perceptual_ratio(0.28, 1) == pytest.approx(0.47, abs=0.005)
    printed = [151, 181, 211, 210]
    rows = [(160, 1), (192, 1), (224, 1), (160, 0.68)]
    assert [2 / 3 * apparent_size(size, 0.28, high) for size, high in rows] == pytest.approx(printed, abs=0.5)


def test_limits():
    assert perceptual_ratio(1, 1) == 1 and perceptual_ratio(0.5, 0.5 + 1e-6) == pytest.approx(0.5, abs=1e-5)
    assert apparent_size(224, 1, 1) == 224 == expected_apparent_size(224, 1, 1)
    assert masked_perceptual_ratio(0.75, 16, 224) == pytest.approx(0.75 / 14)


@pytest.mark.parametrize("scale", [(0.08, 1.0), (0.08, 0.4624), (0.2, 1.0)])
def test_against_random_resized_crop(scale):
    import torch

    import replicate.compat  # noqa: F401

    # isort: split
    from torchvision.transforms import RandomResizedCrop

    torch.manual_seed(0)
    side = 8000  # large, so that rounding to whole pixels does not show
    image = torch.empty(3, side, side, device="meta")
    boxes = np.array([RandomResizedCrop.get_params(image, list(scale), [1.0, 1.0]) for _ in range(20_000)])
    sigma = boxes[:, 2] / side
    assert (boxes[:, 2] == boxes[:, 3]).all()
    low, high = sides(scale)

    def within_4_errors(values, expected):
        return abs(values.mean() - expected) < 4 * values.std() / math.sqrt(len(values)) + 1e-3 * expected

    assert within_4_errors(sigma, perceptual_ratio(low, high))
    assert within_4_errors(224 / sigma, expected_apparent_size(224, low, high))
    assert not within_4_errors(224 / sigma, apparent_size(224, low, high))

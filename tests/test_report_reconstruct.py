"""Pictures of reconstructions, from a run made on the spot."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from replicate.errors import UserError
from replicate.report import reconstruct as module
from replicate.report.reconstruct import BORROWED, MASKED, ORIGINAL, PASTED, PREDICTED, reconstruct


class Params:
    """As much of `replicate.params.Params` as the function uses."""

    def __init__(self, **options):
        self.run = SimpleNamespace(target="pixel", target_options=options, patch_size=8, image_size=32, mask_ratio=0.75, method="mae", dataset="full")

    def resolve(self, name, budget):
        return self.run

    def results_folder(self, name, budget):
        return "results"

    def data_folder(self, dataset, budget):
        return "data"


class Perfect(torch.nn.Module):
    """Predicts each image's own target."""

    num_patches = 16

    def __init__(self, target):
        super().__init__()
        self.target = target

    def forward(self, images, noise, mask_ratio):
        from replicate.masking import random_masking
        from replicate.models.prediction import Prediction

        mask = random_masking(noise, mask_ratio).mask
        return Prediction(self.target(images), mask, mask, None, None, (4, 4))


@pytest.fixture
def images(monkeypatch):
    batch = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(module, "_images", lambda folder, size, count: batch[:count])

    def model(run, weights):
        from replicate import targets

        target = targets.build(run.target, run.patch_size, **run.target_options)
        return Perfect(target), target

    monkeypatch.setattr(module, "_model", model)
    return batch


@pytest.mark.parametrize(("norm_pix", "title"), [(True, BORROWED), (False, PREDICTED)])
def test_a_perfect_prediction_gives_the_image_back(images, norm_pix, title):
    rows = reconstruct(Params(norm_pix=norm_pix), "run", images=3)
    assert list(rows[0]) == [MASKED, title, PASTED, ORIGINAL]
    for row in rows:
        assert np.abs(row[PASTED] - row[ORIGINAL]).max() < 0.51 / 255
        assert np.abs(row[title] - row[ORIGINAL]).max() < 0.51 / 255


def test_three_quarters_are_hidden_and_the_same_ones_each_time(images):
    first, again = (reconstruct(Params(), "run", images=2)[0][MASKED] for _ in range(2))
    hidden = (first == 0.5).all(axis=2).mean()
    assert hidden == pytest.approx(0.75, abs=0.01) and np.array_equal(first, again)


def test_a_target_that_is_no_picture_is_refused(images):
    params = Params()
    params.run.target = "hog"
    with pytest.raises(UserError, match="predicts hog, which is no picture"):
        reconstruct(params, "run")

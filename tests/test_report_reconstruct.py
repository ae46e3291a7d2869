"""Pictures of reconstructions, from a run made on the spot."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from replicate.errors import UserError
from replicate.loaders.pixels import denormalise, normalise
from replicate.papers.mae import joined
from replicate.report import reconstruct as module
from replicate.report.reconstruct import (
    BORROWED,
    MASKED,
    ORIGINAL,
    PASTED,
    PASTED_BORROWED,
    PREDICTED,
    STATED,
    reconstruct,
)


class Params:
    """As much of `replicate.config.Params` as the function uses."""

    def __init__(self, **options):
        self.run = SimpleNamespace(
            target="pixel",
            target_options=options,
            patch_size=8,
            image_size=32,
            mask_ratio=0.75,
            method="mae",
            dataset="full",
        )

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
    batch = torch.randint(
        0, 256, (3, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    monkeypatch.setattr(module, "sample_images", lambda folder, size, count: batch[:count])

    def model(run, weights):
        from replicate import targets

        target = targets.build(run.target, run.patch_size, **run.target_options)
        return Perfect(target), target

    monkeypatch.setattr(module, "load_model", model)
    return batch


@pytest.mark.parametrize(
    ("norm_pix", "views"),
    [
        (True, [MASKED, STATED, BORROWED, PASTED_BORROWED, ORIGINAL]),
        (False, [MASKED, PREDICTED, PASTED, ORIGINAL]),
    ],
)
def test_a_perfect_prediction_gives_the_image_back(images, norm_pix, views):
    rows = reconstruct(Params(norm_pix=norm_pix), "run", images=3)
    assert list(rows[0]) == views
    for row in rows:
        for title in views[-3:-1]:
            assert np.abs(row[title] - row[ORIGINAL]).max() < 0.51 / 255


def test_the_prediction_as_it_is_knows_nothing_of_a_patchs_mean_and_contrast(images):
    """Brighter and flatter images have the same target and picture, unless statistics are borrowed."""
    first = reconstruct(Params(norm_pix=True), "run", images=3)
    images.copy_(denormalise(0.4 * normalise(images) + 0.5))
    second = reconstruct(Params(norm_pix=True), "run", images=3)
    assert np.abs(first[0][STATED] - second[0][STATED]).mean() < 2 / 255
    assert np.abs(first[0][BORROWED] - second[0][BORROWED]).mean() > 20 / 255


def test_several_ratios_and_several_runs_stand_beside_one_original(images):
    params = Params(norm_pix=False)
    rows = joined({f"{r:.0%}": reconstruct(params, "run", mask_ratio=r, images=2) for r in (0.75, 0.95)})
    assert list(rows[0]) == [
        ORIGINAL,
        f"75%,\n{MASKED}",
        f"75%,\n{PREDICTED}",
        f"95%,\n{MASKED}",
        f"95%,\n{PREDICTED}",
    ]
    hidden = [(rows[0][f"{ratio},\n{MASKED}"] == 0.5).all(axis=2).mean() for ratio in ("75%", "95%")]
    assert hidden == pytest.approx([12 / 16, 15 / 16], abs=0.01)
    runs = {"random": "a", "block": "b"}
    beside = joined({label: reconstruct(Params(norm_pix=True), run, images=2) for label, run in runs.items()})
    assert list(beside[0]) == [
        ORIGINAL,
        f"random,\n{MASKED}",
        f"random,\n{BORROWED}",
        f"block,\n{MASKED}",
        f"block,\n{BORROWED}",
    ]


def test_three_quarters_are_hidden_and_the_same_ones_each_time(images):
    first, again = (reconstruct(Params(), "run", images=2)[0][MASKED] for _ in range(2))
    hidden = (first == 0.5).all(axis=2).mean()
    assert hidden == pytest.approx(0.75, abs=0.01) and np.array_equal(first, again)


def test_a_target_that_is_no_picture_is_refused(images):
    params = Params()
    params.run.target = "hog"
    with pytest.raises(UserError, match="predicts hog, which is no picture"):
        reconstruct(params, "run")

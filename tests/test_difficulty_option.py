"""The option `difficulty` from the runs to the loss: the metric of the weightings and of decoder masking."""

from pathlib import Path
from typing import get_args

import pytest
import torch

from replicate.config import PretrainRun, load
from replicate.config.lens import resolve_pretrain
from replicate.config.schema import Difficulty
from replicate.difficulty import METRICS, difficulty
from replicate.errors import UserError
from replicate.losses import build_weighting
from replicate.models.mae import MAE
from replicate.trainers.pretrain import PretrainTask

ROOT = Path(__file__).resolve().parents[1]
EASIEST_UNSEEN = {"neighbours_3x3": 1.0, "inverse_distance_5x5": 46.0}
"""Thresholds that keep every patch with a visible neighbour: one of 3x3, or one at 16 * sqrt(8) pixels."""


def small(**options) -> MAE:
    torch.manual_seed(0)
    sizes = {"image_size": 112, "patch_size": 16, "embed_dim": 16, "depth": 1, "num_heads": 1}
    return MAE(
        **sizes, decoder_embed_dim=16, decoder_depth=1, decoder_num_heads=1, mask_ratio=0.85, **options
    )


@pytest.fixture(scope="module")
def params():
    return load(ROOT / "params.yaml")


@pytest.fixture(scope="module")
def batch():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(4, 3, 112, 112, generator=generator), torch.rand(4, 49, generator=generator)


def stated(params, **changes) -> PretrainRun:
    return PretrainRun(**params.run("light_90").model_dump() | changes)


def test_the_option_names_the_metrics_that_exist():
    assert list(get_args(Difficulty)) == list(METRICS)


def test_the_default_is_exact_p2dist(batch):
    images, noise = batch
    pred, mask, *_, measured, _ = small(decoder_beta=26.0)(images, noise)
    named = small(decoder_beta=26.0, difficulty="p2dist")(images, noise)
    assert torch.equal(pred, named.pred)
    assert torch.equal(measured, METRICS["p2dist"](mask, (7, 7), 16))


@pytest.mark.parametrize("metric", METRICS)
def test_decoder_masking_drops_by_the_metric_of_the_run(batch, metric):
    beta = EASIEST_UNSEEN.get(metric, 20.0)
    _, mask, scored, _, measured, grid = small(decoder_beta=beta, difficulty=metric)(*batch)
    expected = difficulty(mask, grid, 16, metric)
    assert torch.equal(measured, expected)
    assert torch.equal(scored > 0, (mask > 0) & (expected <= beta))
    assert 0 < scored.sum() <= mask.sum()
    if metric in EASIEST_UNSEEN:
        assert torch.equal(scored > 0, (mask > 0) & expected.isfinite())


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("weighting", ["flatten", "normalisation"])
def test_every_metric_can_weigh(metric, weighting):
    mask = (torch.rand(8, 49, generator=torch.Generator().manual_seed(2)).argsort(1) >= 7).float()
    options = {"interval": 0.25} if (metric, weighting) == ("neighbours_3x3", "normalisation") else {}
    weights = build_weighting(weighting, difficulty=metric, **options)(
        difficulty(mask, (7, 7), 16, metric), mask
    )
    torch.testing.assert_close(weights.sum(1), torch.ones(8))
    assert (weights >= 0).all() and (weights[mask == 0] == 0).all()


def test_counts_have_no_usual_interval():
    with pytest.raises(UserError, match="state `interval`"):
        build_weighting("normalisation", difficulty="neighbours_3x3")


def test_from_params_to_the_loss(params):
    options = {"weighting": "flatten", "weighting_options": {"gamma": 0.6}, "decoder_beta": 40.0}
    run = resolve_pretrain(stated(params, difficulty="nearest_patch", **options), params.budgets["smoke"])
    assert run.decoder_beta == 20.0
    loss, (_, mask, scored, _, measured, grid) = reconstructed(run)
    expected = difficulty(mask, grid, run.patch_size, "nearest_patch")
    assert loss.isfinite() and torch.equal(measured, expected)
    assert torch.equal(scored > 0, (mask > 0) & (expected <= 20.0))


@pytest.mark.parametrize("metric", ["p2dist", "inverse_distance_5x5"])
def test_image_space_masking_measures_the_same(params, metric):
    run = stated(params, difficulty=metric, method="mim", weighting="flatten")
    run = resolve_pretrain(run, params.budgets["smoke"])
    loss, (_, mask, _, _, measured, grid) = reconstructed(run)
    assert loss.isfinite() and torch.equal(measured, difficulty(mask, grid, run.patch_size, metric))


def reconstructed(run):
    images = torch.randint(0, 255, (2, 3, run.image_size, run.image_size), dtype=torch.uint8)
    return PretrainTask(run, 0, 10).reconstruct(images, torch.arange(2), 0, 0.5)


def test_counts_are_no_pixels_and_follow_no_patch(params):
    smoke = params.budgets["smoke"]
    assert (
        resolve_pretrain(
            stated(params, difficulty="inverse_distance_5x5", decoder_beta=46.0), smoke
        ).decoder_beta
        == 23.0
    )
    assert (
        resolve_pretrain(stated(params, difficulty="neighbours_3x3", decoder_beta=1.0), smoke).decoder_beta
        == 1.0
    )


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"difficulty": "euclid"}, "'nearest_patch'"),
        ({"difficulty": "nearest_patch"}, "has no effect"),
        ({"method": "mim", "decoder_beta": 26.0}, "decoder_beta drops tokens of MAE's decoder"),
    ],
)
def test_mistakes_raise_errors(params, changes, told):
    with pytest.raises(ValueError, match=told):
        stated(params, **changes)

"""The option `difficulty` from params.yaml to the loss: which metric the weightings and decoder masking read."""

from pathlib import Path
from typing import get_args

import pytest
import torch

from replicate.config.lens import resolve_pretrain
from replicate.difficulty import METRICS, difficulty
from replicate.errors import UserError
from replicate.losses import build_weighting
from replicate.models.build import build_pretraining_model
from replicate.models.mae import MAE
from replicate.config import Difficulty, PretrainRun, load
from replicate.trainers.pretrain import PretrainTask

ROOT = Path(__file__).resolve().parents[1]
EASIEST_UNSEEN = {"neighbours_3x3": 1.0, "inverse_distance_5x5": 46.0}
"""Thresholds that keep whoever sees a visible patch: one neighbour of 3x3, and one patch at 16 * sqrt(8) pixels."""


def small(**options) -> MAE:
    torch.manual_seed(0)
    sizes = {"image_size": 112, "patch_size": 16, "embed_dim": 16, "depth": 1, "num_heads": 1}
    return MAE(**sizes, decoder_embed_dim=16, decoder_depth=1, decoder_num_heads=1, mask_ratio=0.85, **options)


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


def test_the_default_is_exact_p2dist_bit_for_bit(batch):
    images, noise = batch
    default, named = small(decoder_beta=26.0)(images, noise), small(decoder_beta=26.0, difficulty="p2dist")(images, noise)
    assert torch.equal(default.pred, named.pred) and torch.equal(default.difficulty, named.difficulty)
    assert torch.equal(default.difficulty, METRICS["p2dist"](default.mask, (7, 7), 16))


@pytest.mark.parametrize("metric", METRICS)
def test_a_run_s_metric_is_what_is_measured_and_dropped_by(batch, metric):
    beta = EASIEST_UNSEEN.get(metric, 20.0)
    found = small(decoder_beta=beta, difficulty=metric)(*batch)
    expected = difficulty(found.mask, (7, 7), 16, metric)
    assert torch.equal(found.difficulty, expected)
    assert torch.equal(found.scored > 0, (found.mask > 0) & (expected <= beta))
    assert 0 < found.scored.sum() <= found.mask.sum()
    if metric in EASIEST_UNSEEN:
        assert torch.equal(found.scored > 0, (found.mask > 0) & expected.isfinite())


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("weighting", ["flatten", "normalisation"])
def test_every_metric_can_weigh(metric, weighting):
    mask = (torch.rand(8, 49, generator=torch.Generator().manual_seed(2)).argsort(1) >= 7).float()
    options = {"interval": 0.25} if (metric, weighting) == ("neighbours_3x3", "normalisation") else {}
    weights = build_weighting(weighting, difficulty=metric, **options)(difficulty(mask, (7, 7), 16, metric), mask)
    torch.testing.assert_close(weights.sum(1), torch.ones(8))
    assert (weights >= 0).all() and (weights[mask == 0] == 0).all()


def test_counts_have_no_usual_interval():
    with pytest.raises(UserError, match="state `interval`"):
        build_weighting("normalisation", difficulty="neighbours_3x3")


def test_from_params_to_the_loss(params):
    run = stated(params, difficulty="nearest_patch", weighting="flatten", weighting_options={"gamma": 0.6}, decoder_beta=40.0)
    resolved = resolve_pretrain(run, params.budgets["smoke"])
    task = PretrainTask(resolved, 0, 10)
    assert task.model.options.difficulty == "nearest_patch" and task.model.options.decoder_beta == 20.0
    images = torch.randint(0, 255, (2, 3, resolved.image_size, resolved.image_size), dtype=torch.uint8)
    loss, prediction = task.reconstruct(images, torch.arange(2), 0, 0.5)
    expected = difficulty(prediction.mask, prediction.grid, resolved.patch_size, "nearest_patch")
    assert loss.isfinite() and torch.equal(prediction.difficulty, expected)


def test_image_space_masking_measures_the_same(params):
    for metric in ("p2dist", "inverse_distance_5x5"):
        run = resolve_pretrain(stated(params, difficulty=metric, method="mim", built_by="backbones", weighting="flatten"), params.budgets["smoke"])
        model = build_pretraining_model(run, 12, with_difficulty=True)
        prediction = model(torch.randn(2, 3, run.image_size, run.image_size))
        assert torch.equal(prediction.difficulty, difficulty(prediction.mask, prediction.grid, model.patch_size, metric))


def test_counts_are_no_pixels_and_follow_no_patch(params):
    smoke = params.budgets["smoke"]
    assert resolve_pretrain(stated(params, difficulty="inverse_distance_5x5", decoder_beta=46.0), smoke).decoder_beta == 23.0
    assert resolve_pretrain(stated(params, difficulty="neighbours_3x3", decoder_beta=1.0), smoke).decoder_beta == 1.0


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"difficulty": "euclid"}, "'nearest_patch'"),
        ({"difficulty": "nearest_patch"}, "read by nothing"),
        ({"method": "mim", "decoder_beta": 26.0}, "decoder_beta drops tokens of MAE's decoder"),
    ],
)
def test_mistakes_are_told(params, changes, told):
    with pytest.raises(ValueError, match=told):
        stated(params, **changes)

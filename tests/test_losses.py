"""Reconstruction loss, weightings and objectives, against formulas that the package does not use."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck

from replicate.difficulty import p2dist
from replicate.errors import UserError
from replicate.losses import WEIGHTINGS, build_weighting
from replicate.losses.distillation import Distillation
from replicate.losses.reconstruction import per_unit_error, reconstruction_loss
from replicate.losses.supmae import build as build_supmae
from replicate.models.prediction import Prediction


def reference_mae_loss(pred, target, mask):
    return (((pred - target) ** 2).mean(dim=-1) * mask).sum() / mask.sum()


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    pred = torch.randn(5, 16, 12, generator=generator)
    target = torch.randn(5, 16, 12, generator=generator)
    mask = torch.zeros(5, 16)
    for row in mask:
        row[torch.randperm(16, generator=generator)[:12]] = 1
    return pred, target, mask


def test_uniform_weights_at_equal_counts_are_the_reference_loss(batch):
    pred, target, mask = batch
    expected = reference_mae_loss(pred, target, mask)
    weights = build_weighting("uniform")(None, mask, 0.5)
    torch.testing.assert_close(reconstruction_loss(pred, target, mask), expected)
    assert torch.equal(
        reconstruction_loss(pred, target, mask, weights), reconstruction_loss(pred, target, mask)
    )


def test_ragged_counts_give_every_image_the_same_say(batch):
    pred, target, mask = batch
    mask[0, :8] = 0
    expected = torch.stack(
        [reference_mae_loss(p, t, m) for p, t, m in zip(pred, target, mask, strict=True)]
    ).mean()
    torch.testing.assert_close(reconstruction_loss(pred, target, mask), expected)


def test_image_without_scored_units_is_left_out(batch):
    pred, target, mask = batch
    mask[2] = 0
    others = [0, 1, 3, 4]
    torch.testing.assert_close(
        reconstruction_loss(pred, target, mask),
        reconstruction_loss(pred[others], target[others], mask[others]),
    )
    nothing = reconstruction_loss(pred.requires_grad_(), target, torch.zeros_like(mask))
    nothing.backward()
    assert nothing.item() == 0 and pred.grad.abs().max() == 0


def test_l2_norm_is_equation_2_as_printed(batch):
    pred, target, mask = batch
    expected = (torch.sqrt(((pred - target) ** 2).sum(-1)) * mask).sum() / mask.sum()
    torch.testing.assert_close(reconstruction_loss(pred, target, mask, norm="l2"), expected)
    same = reconstruction_loss(pred.requires_grad_(), pred.detach(), mask, norm="l2")
    same.backward()
    assert pred.grad.isfinite().all()
    with pytest.raises(UserError, match="choose one of mse, l1, l2"):
        per_unit_error(pred, target, "huber")


def test_l1_norm_is_the_mean_absolute_error(batch):
    pred, target, mask = batch
    expected = torch.nn.functional.l1_loss(pred[mask > 0], target[mask > 0])
    torch.testing.assert_close(reconstruction_loss(pred, target, mask, norm="l1"), expected)


def test_integer_targets_are_scored_by_cross_entropy(batch):
    pred, _, mask = batch
    ids = torch.randint(0, 12, mask.shape)
    expected = -pred.log_softmax(-1).gather(-1, ids[..., None])[..., 0]
    torch.testing.assert_close(per_unit_error(pred, ids), expected)
    torch.testing.assert_close(reconstruction_loss(pred, ids, mask), (expected * mask).sum() / mask.sum())


def test_half_precision_predictions_are_accumulated_in_float32(batch):
    pred, target, mask = batch
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = reconstruction_loss(pred.bfloat16(), target, mask)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, reference_mae_loss(pred.bfloat16().float(), target, mask))


@pytest.mark.parametrize("norm", ["mse", "l2"])
def test_gradients_of_the_loss(batch, norm):
    pred, target, mask = (
        tensor[:2, :, :3].double() if tensor.dim() == 3 else tensor[:2].double() for tensor in batch
    )
    weights = torch.rand_like(mask) * mask
    weights = weights / weights.sum(1, keepdim=True)
    pred.requires_grad_()
    assert gradcheck(lambda p: reconstruction_loss(p, target, mask, weights, norm), pred)


def masks_and_distances(count: int, visible: int, seed: int = 0, grid=(14, 14), patch_size=16):
    noise = torch.rand(count, grid[0] * grid[1], generator=torch.Generator().manual_seed(seed))
    mask = (noise.argsort(dim=1) >= visible).float()
    return mask, p2dist(mask, grid, patch_size)


@settings(max_examples=80, deadline=None)
@given(
    st.sampled_from(WEIGHTINGS),
    st.integers(0, 2**32 - 1),
    st.floats(0, 1),
    st.integers(1, 8),
    st.floats(0, 1),
    st.booleans(),
)
def test_weights_are_shares_of_the_scored_units(name, seed, progress, side, ratio, score_all):
    generator = torch.Generator().manual_seed(seed)
    visible = round(side * side * (1 - ratio))
    mask, distance = masks_and_distances(3, visible, seed, (side, side), 4)
    scored = (
        torch.ones_like(mask) if score_all else mask * (torch.rand(mask.shape, generator=generator) < 0.8)
    )
    weights = build_weighting(name, patch_size=4)(distance, scored, progress)
    assert weights.shape == mask.shape and weights.isfinite().all() and (weights >= 0).all()
    assert (weights[scored == 0] == 0).all()
    for total, row, reach in zip(weights.sum(dim=1), scored, distance, strict=True):
        somebody = bool(row.any()) and (name == "uniform" or bool(reach[row > 0].isfinite().any()))
        allowed = (1.0,) if somebody and name in ("uniform", "flatten") else (0.0, 1.0)
        assert any(abs(total - value) < 1e-5 for value in allowed)


def test_gamma_0_is_uniform_bit_for_bit(batch):
    pred, target, mask = batch
    distance = p2dist(mask, (4, 4), 8)
    flat = build_weighting("flatten", gamma=0)
    assert not flat.needs_difficulty and build_weighting("flatten").needs_difficulty
    for weights in (flat(distance, mask), flat(None, mask)):
        assert torch.equal(weights, build_weighting("uniform")(None, mask))
        assert torch.equal(
            reconstruction_loss(pred, target, mask, weights), reconstruction_loss(pred, target, mask)
        )


@pytest.mark.parametrize("gamma", [0.4, 0.6, 2.0])
def test_flatten_is_equation_2(batch, gamma):
    pred, target, mask = batch
    distance = p2dist(mask, (4, 4), 8)
    loss = reconstruction_loss(pred, target, mask, build_weighting("flatten", gamma=gamma)(distance, mask))
    images = []
    for p, t, m, d in zip(pred, target, mask, distance, strict=True):
        chosen = m.bool()
        factor = d[chosen] ** -gamma
        images.append((factor * ((p - t) ** 2).mean(-1)[chosen]).sum() / factor.sum())
    torch.testing.assert_close(loss, torch.stack(images).mean())


def test_flatten_gradients(batch):
    pred, target, mask = (
        tensor[:2, :, :3].double() if tensor.dim() == 3 else tensor[:2].double() for tensor in batch
    )
    weights = build_weighting("flatten")(p2dist(mask, (4, 4), 8).double(), mask)
    assert weights.dtype == torch.float64
    assert gradcheck(lambda p: reconstruction_loss(p, target, mask, weights), pred.requires_grad_())


def test_infinitely_hard_units_get_no_weight():
    distance, scored = (
        torch.tensor([[0.0, 3.0, torch.inf], [torch.inf] * 3]),
        torch.tensor([[0.0, 1, 1], [1, 1, 1]]),
    )
    weights = build_weighting("flatten")(distance, scored)
    assert weights.tolist() == [[0, 1, 0], [0, 0, 0]]


def test_thresholding_and_curriculum():
    mask, distance = masks_and_distances(64, 29)
    near = (distance <= 13) & (mask > 0)
    weights = build_weighting("thresholding", beta=13)(distance, mask, 0.3)
    torch.testing.assert_close(weights, near.float() / near.sum(1, keepdim=True))
    rising = build_weighting("curriculum", start=9, end=70)
    assert rising.threshold(0) == 9 and rising.threshold(0.5) == 39.5 and rising.threshold(1) == 70
    admitted = [(rising(distance, mask, step) > 0).sum().item() for step in (0, 0.25, 0.5, 1)]
    assert admitted == sorted(admitted) and admitted[0] / 64 == pytest.approx(76, abs=3)
    assert admitted[-1] / mask.sum() > 0.998
    with pytest.raises(UserError, match="must rise"):
        build_weighting("curriculum", start=9, end=8)


def test_normalisation_brings_the_distribution_back_to_ratio_75():
    mask, distance = masks_and_distances(4096, 29, seed=1, patch_size=4)
    weights = build_weighting("normalisation", patch_size=4)(distance, mask)
    reference_mask, reference = masks_and_distances(4096, 49, seed=2, patch_size=4)
    edges = torch.arange(0, 11, 1.0)
    ours = torch.histogram(distance[mask > 0], edges, weight=weights[mask > 0], density=False).hist
    theirs = torch.histogram(reference[reference_mask > 0], edges).hist
    torch.testing.assert_close(ours / ours.sum(), theirs / theirs.sum(), atol=0.006, rtol=0.0)


def test_normalisation_at_its_reference_ratio_is_uniform():
    mask, distance = masks_and_distances(8, 49, patch_size=4)
    weights = build_weighting("normalisation", patch_size=4)(distance, mask)
    assert torch.equal(weights, build_weighting("uniform")(None, mask))


def test_normalisation_follows_patch_size_and_grid():
    mask, distance = masks_and_distances(64, 10, grid=(8, 8))
    coarse = build_weighting("normalisation")(distance, mask)
    fine = build_weighting("normalisation", patch_size=8)(p2dist(mask, (8, 8), 8), mask)
    assert (coarse - fine).abs().sum(dim=1).mean() < 0.1  # of a sum of 1: values near an edge change sides
    oblong, far = masks_and_distances(8, 10, grid=(6, 8), patch_size=4)
    with pytest.raises(UserError, match="48 patches make no square grid"):
        build_weighting("normalisation", patch_size=4)(far, oblong)
    weights = build_weighting("normalisation", patch_size=4, grid=(6, 8))(far, oblong)
    assert weights.sum(1) == pytest.approx(torch.ones(8))


def test_supmae_head_and_term():
    torch.manual_seed(0)
    supmae = build_supmae(768, 1000)
    shapes = [tuple(parameter.shape) for parameter in supmae.parameters()]
    assert shapes == [(3072, 768), (3072,), (3072,), (3072,), (1000, 3072), (1000,)]
    latent, mask, labels = torch.randn(4, 50, 768), torch.ones(4, 196), torch.arange(4)
    mask[:, :49] = 0

    def predicted(tokens):
        return Prediction(None, mask, mask, tokens, None, (14, 14))

    term, logs = supmae(predicted(latent), labels)
    logits = supmae.head(latent[:, 1:].mean(1))
    torch.testing.assert_close(term, -0.01 * (logits / 10).softmax(-1)[range(4), labels].log().mean())
    assert logs["supervised_accuracy"] == (logits.argmax(1) == labels).float().mean()
    masked = torch.full((4, 147, 768), 99.0)
    for tokens in (torch.cat([latent, masked], dim=1), torch.cat([latent[:, 1:], masked], dim=1)):
        torch.testing.assert_close(supmae(predicted(tokens), labels)[0], term)
    fine = torch.randn(4, 28 * 28, 768)
    seen = torch.nn.functional.interpolate(1 - mask.reshape(4, 1, 14, 14), scale_factor=2).flatten(1)[
        ..., None
    ]
    mean = (fine * seen).sum(1) / seen.sum(1)
    torch.testing.assert_close(
        supmae(predicted(fine), labels)[0], supmae(predicted(mean[:, None].expand(-1, 784, -1)), labels)[0]
    )


def test_distillation_term():
    torch.manual_seed(0)
    distillation = Distillation(8, 12)
    student, teacher = torch.randn(2, 5, 8, requires_grad=True), torch.randn(2, 5, 12, requires_grad=True)
    term = distillation.distance(student, teacher)
    term.backward()
    torch.testing.assert_close(
        term.detach(), (distillation.projection(student) - teacher).abs().mean().detach()
    )
    assert teacher.grad is None and student.grad.abs().sum() > 0
    with pytest.raises(UserError, match="same patches"):
        distillation.distance(student[:, :4], teacher)


def test_unknown_weighting_or_option():
    with pytest.raises(UserError, match="thresholding, uniform"):
        build_weighting("focal")
    with pytest.raises(UserError, match="gama"):
        build_weighting("uniform", gama=1)

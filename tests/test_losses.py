"""Reconstruction loss, its weightings and its companions, against formulas written independently of the package."""

import pytest
import torch
from torch.autograd import gradcheck

from replicate.errors import UserError
from replicate.losses import build_weighting
from replicate.losses.reconstruction import per_unit_error, reconstruction_loss


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
    assert torch.equal(reconstruction_loss(pred, target, mask, weights), reconstruction_loss(pred, target, mask))


def test_ragged_counts_give_every_image_the_same_say(batch):
    pred, target, mask = batch
    mask[0, :8] = 0
    expected = torch.stack([reference_mae_loss(p, t, m) for p, t, m in zip(pred, target, mask, strict=True)]).mean()
    torch.testing.assert_close(reconstruction_loss(pred, target, mask), expected)


def test_image_without_scored_units_is_left_out(batch):
    pred, target, mask = batch
    mask[2] = 0
    others = [0, 1, 3, 4]
    torch.testing.assert_close(
        reconstruction_loss(pred, target, mask), reconstruction_loss(pred[others], target[others], mask[others])
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
    with pytest.raises(UserError, match="choose one of mse, l2"):
        per_unit_error(pred, target, "l1")


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
    pred, target, mask = (tensor[:2, :, :3].double() if tensor.dim() == 3 else tensor[:2].double() for tensor in batch)
    weights = torch.rand_like(mask) * mask
    weights = weights / weights.sum(1, keepdim=True)
    pred.requires_grad_()
    assert gradcheck(lambda p: reconstruction_loss(p, target, mask, weights, norm), pred)


def test_unknown_weighting_or_option():
    with pytest.raises(UserError, match="uniform, flatten"):
        build_weighting("focal")
    with pytest.raises(UserError, match="gama"):
        build_weighting("uniform", gama=1)

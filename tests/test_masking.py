"""Masks of every kind: exact counts, the reference's order, and the distributions of the papers."""

import math
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from replicate.difficulty import p2dist
from replicate.errors import UserError
from replicate.masking import SAMPLERS, _more_uniforms, expand_units, num_visible, sample_mask, unit_grid

grids = st.tuples(st.integers(1, 16), st.integers(1, 16))
ratios = st.one_of(st.sampled_from([0.0, 0.01, 0.25, 0.5, 0.75, 0.85, 0.9, 0.95]), st.floats(0, 0.999))


@pytest.mark.parametrize(
    ("ratio", "visible"), [(0.75, 49), (0.85, 29), (0.90, 19), (0.95, 9), (0.01, 194), (0.0, 196)]
)
def test_visible_patches_of_the_papers(ratio, visible):
    assert num_visible(196, ratio) == visible


@pytest.mark.parametrize("length", [10, 20, 50, 100, 200, 300, 1000])
def test_no_patch_is_lost_to_binary_fractions(length):
    for percent in range(0, 100):
        assert num_visible(length, percent / 100) == max(1, length * (100 - percent) // 100)


@pytest.mark.parametrize("ratio", [-0.1, 1.0, 1.2, float("nan")])
def test_impossible_ratio_is_refused(ratio):
    with pytest.raises(UserError, match="mask_ratio"):
        num_visible(196, ratio)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(list(SAMPLERS)), grids, ratios, st.integers(1, 5), st.integers(0, 2**31))
def test_every_image_meets_the_ratio_and_restore_inverts(kind, grid, ratio, images, seed):
    length = grid[0] * grid[1]
    noise = torch.rand(images, length, generator=torch.Generator().manual_seed(seed))
    ids_keep, ids_restore, mask = sample_mask(kind, noise, ratio, grid)
    visible = num_visible(length, ratio)
    assert ids_keep.shape == (images, visible)
    assert torch.equal(mask.sum(1), torch.full((images,), float(length - visible)))
    assert torch.equal(ids_restore.sort(1).values, torch.arange(length).expand(images, -1))
    ids_shuffle = ids_restore.argsort(1)
    assert torch.equal(ids_shuffle[:, :visible], ids_keep)
    assert torch.equal(ids_shuffle.gather(1, ids_restore), torch.arange(length).expand(images, -1))
    assert torch.equal(mask.gather(1, ids_keep), torch.zeros(images, visible))


def test_random_masking_follows_the_reference_semantics():
    noise = torch.tensor([[0.4, 0.1, 0.9, 0.2]])
    ids_keep, ids_restore, mask = sample_mask("random", noise, 0.5, (2, 2))
    assert ids_keep.tolist() == [[1, 3]]
    assert ids_restore.tolist() == [[2, 0, 3, 1]]
    assert mask.tolist() == [[1, 0, 1, 0]]


@pytest.mark.parametrize("ratio", [0.5, 0.75, 0.95])
def test_random_masking_is_uniform(ratio):
    """Every patch, and every pair of patches, is visible equally often: chi-square over 20,000 masks."""
    images, length = 20_000, 36
    noise = torch.rand(images, length, generator=torch.Generator().manual_seed(1))
    visible = 1 - sample_mask("random", noise, ratio, (6, 6)).mask.double()
    share = num_visible(length, ratio) / length
    z = (visible.mean(0) - share) / (share * (1 - share) / images) ** 0.5
    assert (z**2).sum() < 75  # 99.99 % quantile of chi-square with 36 - 1 degrees of freedom
    pairs = (visible.T @ visible / images)[~torch.eye(length, dtype=torch.bool)]
    kept = num_visible(length, ratio)
    expected = kept * (kept - 1) / (length * (length - 1))
    assert (pairs - expected).abs().max() < 5 * (max(expected, 1e-4) / images) ** 0.5


def test_grid_masking_keeps_one_of_every_four():
    noise = torch.rand(64, 196, generator=torch.Generator().manual_seed(2))
    visible = (1 - sample_mask("grid", noise, 0.75, (14, 14)).mask).reshape(64, 7, 2, 7, 2)
    assert torch.equal(visible.sum((2, 4)), torch.ones(64, 7, 7))
    phases = {tuple(image[0, :, 0, :].flatten().tolist()) for image in visible}
    assert len(phases) == 4


def test_grid_masking_spreads_any_ratio():
    noise = torch.rand(8, 256, generator=torch.Generator().manual_seed(3))
    for ratio in (0.5, 0.9375):
        visible = 1 - sample_mask("grid", noise, ratio, (16, 16)).mask.reshape(8, 16, 16)
        quadrants = visible.reshape(8, 2, 8, 2, 8).sum((2, 4))
        assert quadrants.min() == quadrants.max()


def beit_mask(rng, grid, quota, least):
    """BEiT's generator, written from its description; it may stop below the quota."""
    (rows, columns), mask = grid, np.zeros(grid)
    while mask.sum() < quota:
        for _ in range(10):
            remaining = quota - mask.sum()
            area, aspect = rng.uniform(least, remaining), math.exp(rng.uniform(math.log(0.3), -math.log(0.3)))
            height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if height >= rows or width >= columns:
                continue
            top, left = rng.randint(0, rows - height), rng.randint(0, columns - width)
            block = mask[top : top + height, left : left + width]
            if 0 < (block == 0).sum() <= remaining:
                block[:] = 1
                break
        else:
            return mask
    return mask


def mean_edges(masks):
    return ((masks[:, 1:] != masks[:, :-1]).sum() + (masks[:, :, 1:] != masks[:, :, :-1]).sum()).item() / len(
        masks
    )


@pytest.mark.parametrize(
    ("grid", "ratio", "distance"),
    [((14, 14), 0.4, None), ((14, 14), 0.5, 24.1), ((14, 14), 0.75, 36.1), ((7, 7), 0.5, None)],
)
def test_block_masks_are_distributed_as_those_of_beit(grid, ratio, distance):
    length, images = grid[0] * grid[1], 1500
    quota, rng = length - num_visible(length, ratio), random.Random(0)
    theirs = torch.tensor(np.stack([beit_mask(rng, grid, quota, 16 / 196 * length) for _ in range(images)]))
    noise = torch.rand(images, length, generator=torch.Generator().manual_seed(4))
    ours = sample_mask("block", noise, ratio, grid).mask.view(images, *grid)
    assert (ours.sum((1, 2)) == quota).all() and 0 <= quota - theirs.sum((1, 2)).mean() < 1
    # Fill theirs up to the quota at random: these single patches add about 1.5 edges a mask.
    scores = theirs.flatten(1) + torch.rand(images, length, generator=torch.Generator().manual_seed(5))
    theirs = (scores.argsort(1, descending=True).argsort(1) < quota).double().view(-1, *grid)
    assert mean_edges(ours) == pytest.approx(mean_edges(theirs), rel=0.025)
    assert (ours.mean(0) - theirs.mean(0)).abs().max() < 0.07
    mean = [p2dist(m[:500].flatten(1), grid, 16).sum().item() / (500 * quota) for m in (ours, theirs)]
    assert mean[0] == pytest.approx(mean[1], rel=0.025)
    assert distance is None or mean[0] == pytest.approx(distance, abs=0.6)


@pytest.mark.parametrize("factor", range(1, 41, 13))
def test_continued_noise_is_uniform_and_uncorrelated(factor):
    noise = torch.rand(4000, 25, generator=torch.Generator().manual_seed(7))
    more = _more_uniforms(noise, 960)
    assert more.min() >= 0 and more.max() < 1
    assert more.mean().item() == pytest.approx(0.5, abs=1e-3)
    assert more.var().item() == pytest.approx(1 / 12, abs=1e-3)
    pairs = torch.stack([more[:, 0], more[:, factor], noise[:, factor % 25]])
    assert (torch.corrcoef(pairs) - torch.eye(3)).abs().max() < 5 / 4000**0.5


def test_block_masks_differ_between_images():
    noise = torch.rand(200, 196, generator=torch.Generator().manual_seed(5))
    masks = sample_mask("block", noise, 0.75, (14, 14)).mask
    assert len(torch.unique(masks, dim=0)) == 200
    assert masks.mean(0).min() > 0.1  # no place is always visible


@pytest.mark.parametrize("kind", SAMPLERS)
def test_masks_depend_on_their_own_noise_alone(kind):
    noise = torch.rand(6, 64, generator=torch.Generator().manual_seed(6))
    together = sample_mask(kind, noise, 0.75, (8, 8)).mask
    alone = torch.cat([sample_mask(kind, row[None], 0.75, (8, 8)).mask for row in noise])
    assert torch.equal(together, alone)


def test_wrong_inputs_are_named():
    with pytest.raises(UserError, match="diagonal"):
        sample_mask("diagonal", torch.rand(1, 4), 0.5, (2, 2))
    with pytest.raises(UserError, match="5 values"):
        sample_mask("random", torch.rand(1, 5), 0.5, (2, 2))


def test_mask_units_cover_whole_patches():
    assert unit_grid((224, 192), 32, 16) == (7, 6)
    with pytest.raises(UserError, match="mask_unit 24"):
        unit_grid((224, 224), 24, 16)
    with pytest.raises(UserError, match="not a multiple of mask_unit 32"):
        unit_grid((208, 224), 32, 16)
    mask = torch.tensor([[1.0, 0.0, 0.0, 1.0, 1.0, 0.0]])
    pixels = expand_units(mask, (2, 3), 4)
    assert pixels.shape == (1, 8, 12)
    assert np.array_equal(pixels[0].numpy(), np.kron(mask.reshape(2, 3).numpy(), np.ones((4, 4))))

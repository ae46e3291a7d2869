"""Crops against torchvision's own, and the properties that make every loader serve the same ones."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare, ks_2samp, kstest

import replicate.compat  # noqa: F401
from replicate.loaders import crops

SIDES = st.integers(1, 3000)
RATIO = (3 / 4, 4 / 3)
FIRST_HASHES = [8695987549771912286, 3271064386196677695]
FIRST_ORDER = [5, 1, 7, 3, 2, 4, 6, 0]


def _inside(boxes: np.ndarray, sizes: np.ndarray) -> bool:
    top, left, height, width = boxes.T
    return bool(
        (height > 0).all()
        and (width > 0).all()
        and (top >= 0).all()
        and (left >= 0).all()
        and (top + height <= sizes[:, 0]).all()
        and (left + width <= sizes[:, 1]).all()
    )


@settings(deadline=None, max_examples=100)
@given(
    st.lists(st.tuples(SIDES, SIDES), min_size=1, max_size=20),
    st.integers(0, 2**40),
    st.integers(0, 999),
    st.floats(0.05, 0.9),
)
def test_every_box_lies_inside_its_image(
    sizes: list[tuple[int, int]], seed: int, epoch: int, low: float
) -> None:
    shapes, index = np.array(sizes), np.arange(len(sizes))
    for boxes in (
        crops.random_resized_crop_boxes(shapes, index, seed=seed, epoch=epoch, scale=(low, 1.0)),
        crops.fixed_size_boxes(shapes, index, seed=seed, epoch=epoch),
        crops.center_boxes(shapes),
        crops.whole_boxes(shapes),
    ):
        assert boxes.dtype == np.int32 and boxes.shape == (len(sizes), 4)
        assert _inside(boxes, shapes)


@pytest.mark.parametrize("size", [(375, 500), (64, 64), (100, 600), (40, 7)])
def test_boxes_are_distributed_as_torchvision_draws_them(size: tuple[int, int]) -> None:
    from torchvision.transforms import RandomResizedCrop

    torch.manual_seed(0)
    image, count = torch.empty(3, *size), 4000
    theirs = np.array(
        [RandomResizedCrop.get_params(image, [0.08, 1.0], list(RATIO)) for _ in range(count)], float
    )
    ours = crops.random_resized_crop_boxes(
        np.tile(size, (count, 1)), np.arange(count), seed=3, epoch=5
    ).astype(float)
    area, aspect = (lambda b: b[:, 2] * b[:, 3]), (lambda b: b[:, 3] / b[:, 2])
    for measure in (area, aspect, lambda b: b[:, 0], lambda b: b[:, 1], lambda b: b[:, 2]):
        assert ks_2samp(measure(ours), measure(theirs)).pvalue > 1e-3
    np.testing.assert_allclose(
        np.quantile(area(ours), [0.1, 0.5, 0.9]), np.quantile(area(theirs), [0.1, 0.5, 0.9]), rtol=0.12
    )


def test_an_image_too_narrow_for_any_attempt_gets_torchvisions_fallback() -> None:
    boxes = crops.random_resized_crop_boxes(
        np.array([[10, 1000]]), np.array([0]), seed=0, epoch=0, scale=(0.9, 1.0)
    )
    assert boxes.tolist() == [[0, (1000 - 13) // 2, 10, 13]]


def test_a_box_depends_on_seed_epoch_and_index_alone() -> None:
    sizes, index = np.tile((300, 400), (50, 1)), np.arange(50)
    whole = crops.random_resized_crop_boxes(sizes, index, seed=1, epoch=2)
    one_by_one = [
        crops.random_resized_crop_boxes(sizes[i : i + 1], index[i : i + 1], seed=1, epoch=2)[0]
        for i in reversed(range(50))
    ]
    assert np.array_equal(whole, np.array(one_by_one[::-1]))
    for other in ({"seed": 1, "epoch": 3}, {"seed": 2, "epoch": 2}):
        assert not np.array_equal(whole, crops.random_resized_crop_boxes(sizes, index, **other))


def test_a_fixed_crop_has_one_size_and_moves() -> None:
    boxes = crops.fixed_size_boxes(np.tile((64, 64), (500, 1)), np.arange(500), seed=0, epoch=0)
    assert (boxes[:, 2:] == 56).all()
    assert set(boxes[:, 0]) == set(range(9)) == set(boxes[:, 1])


def test_the_central_crop_of_a_256_pixel_side_is_224() -> None:
    assert crops.center_boxes(np.array([[256, 256], [256, 300]])).tolist() == [
        [16, 16, 224, 224],
        [16, 38, 224, 224],
    ]


def test_hashes_are_uniform_and_streams_independent() -> None:
    index = np.arange(20_000)
    crop, flip = (crops.uniforms(0, 0, stream, index) for stream in (crops.CROP, crops.FLIP))
    assert kstest(crop, "uniform").pvalue > 1e-3
    assert abs(np.corrcoef(crop, flip)[0, 1]) < 0.03
    assert abs(np.corrcoef(crop, crops.uniforms(0, 1, crops.CROP, index))[0, 1]) < 0.03
    assert abs(np.corrcoef(crop[:-1], crop[1:])[0, 1]) < 0.03
    pairs, _, _ = np.histogram2d(crop, crops.uniforms(1, 0, crops.CROP, index), bins=10)
    assert chisquare(pairs.ravel()).pvalue > 1e-3
    assert abs(crops.flips(index, seed=0, epoch=0).mean() - 0.5) < 0.02


def test_the_first_numbers_never_change() -> None:
    """Published runs stay reproducible: another hash would silently change every result."""
    assert crops.hashes(0, 0, crops.CROP, np.arange(2), 0).tolist() == FIRST_HASHES
    assert crops.epoch_order(8, seed=0, epoch=0).tolist() == FIRST_ORDER


def test_an_order_is_a_permutation_and_changes_each_epoch() -> None:
    first, second = (crops.epoch_order(1000, seed=7, epoch=epoch) for epoch in (0, 1))
    assert np.array_equal(np.sort(first), np.arange(1000))
    assert (first == second).mean() < 0.05
    assert abs(np.corrcoef(first, np.arange(1000))[0, 1]) < 0.1


@settings(deadline=None)
@given(st.integers(1, 300), st.integers(1, 40), st.integers(1, 5), st.booleans())
def test_ranks_share_an_epoch_evenly(
    num_images: int, batch_size: int, world_size: int, drop_last: bool
) -> None:
    order = crops.epoch_order(num_images, seed=0, epoch=0)
    ranks = [
        crops.training_batches(order, batch_size, rank=rank, world_size=world_size, drop_last=drop_last)
        for rank in range(world_size)
    ]
    assert len({len(batches) for batches in ranks}) == 1
    seen = np.concatenate([np.concatenate([*batches, np.empty(0, int)]) for batches in ranks])
    rest = num_images % (batch_size * world_size)
    padding = world_size - rest if not drop_last and 0 < rest < world_size else 0
    assert len(seen) == num_images - (rest if drop_last else 0) + padding
    assert len(np.unique(seen)) == min(len(seen), num_images)


def test_two_ranks_see_the_batches_of_one_process() -> None:
    order = crops.epoch_order(100, seed=0, epoch=0)
    alone = crops.training_batches(order, 20)
    pair = [crops.training_batches(order, 10, rank=rank, world_size=2) for rank in (0, 1)]
    for step, batch in enumerate(alone):
        assert np.array_equal(batch, np.concatenate([pair[0][step], pair[1][step]]))


@settings(deadline=None)
@given(st.integers(1, 300), st.integers(1, 40), st.integers(1, 5))
def test_evaluation_counts_every_image_once(num_images: int, batch_size: int, world_size: int) -> None:
    batches = [
        b
        for rank in range(world_size)
        for b in crops.evaluation_batches(num_images, batch_size, rank=rank, world_size=world_size)
    ]
    assert np.concatenate(batches).tolist() == list(range(num_images))

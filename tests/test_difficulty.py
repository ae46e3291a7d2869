"""P2Dist against scipy, Algorithm 1 against its literal reading, and the counts that Efficient MAE prints."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import distance_transform_edt

from replicate.difficulty import METRICS, difficulty, p2dist, p2dist_approx
from replicate.errors import UserError

MASKS = 2048
GRIDS = [
    ((14, 14), 16),
    ((7, 7), 32),
    ((16, 16), 14),
    ((8, 8), 8),
    ((10, 14), 16),
    ((5, 9), 4),
    ((1, 12), 16),
    ((9, 1), 3),
    ((6, 4), 1),
]


def random_masks(count: int, grid: tuple[int, int], visible: int, seed: int = 0) -> torch.Tensor:
    noise = torch.rand(count, grid[0] * grid[1], generator=torch.Generator().manual_seed(seed))
    return (noise.argsort(dim=1) >= visible).float()


def scipy_p2dist(mask: torch.Tensor, grid: tuple[int, int], patch_size: int) -> np.ndarray:
    (rows, columns), p = grid, patch_size
    hidden = np.kron(mask.numpy().reshape(rows, columns), np.ones((p, p)))
    return distance_transform_edt(hidden).reshape(rows, p, columns, p).mean(axis=(1, 3)).reshape(-1)


@pytest.mark.parametrize(("grid", "patch_size"), GRIDS)
def test_exact_is_the_distance_transform(grid, patch_size):
    patches = grid[0] * grid[1]
    fractions = (0.02, 0.05, 0.1, 0.15, 0.25, 0.5, 0.9)
    masks = torch.cat(
        [random_masks(16, grid, max(1, round(patches * f)), seed) for seed, f in enumerate(fractions)]
    )
    ragged = (torch.rand(8, patches, generator=torch.Generator().manual_seed(7)) < 0.8).float()
    ragged[:, patches // 2] = 0
    masks = torch.cat([masks, ragged])
    expected = np.stack([scipy_p2dist(mask, grid, patch_size) for mask in masks])
    np.testing.assert_allclose(p2dist(masks, grid, patch_size).numpy(), expected, atol=1e-5, rtol=1e-6)


def test_exact_where_visible_patches_leave_large_holes():
    masks = torch.ones(40, 14, 14)
    generator = torch.Generator().manual_seed(0)
    for mask in masks:
        top, left = torch.randint(0, 9, (2,), generator=generator).tolist()
        mask[: top + 1], mask[:, : left + 1] = 0, 0
    masks = masks.flatten(1)
    expected = np.stack([scipy_p2dist(mask, (14, 14), 16) for mask in masks])
    np.testing.assert_allclose(p2dist(masks, (14, 14), 16).numpy(), expected, atol=1e-5, rtol=1e-6)


@pytest.mark.parametrize("metric", METRICS)
def test_images_without_visible_or_without_masked_patches(metric):
    masks = torch.stack([torch.ones(12), torch.zeros(12), (torch.arange(12) > 0).float()])
    values = difficulty(masks, (3, 4), 16, metric)
    assert values.shape == masks.shape and values.dtype == torch.float32
    assert torch.isinf(values[0]).all()
    assert torch.equal(values[1], torch.zeros(12))
    assert values[2, 0] == 0 and (values[2, 1:] > 0).all() and not values.isnan().any()
    assert difficulty(masks[:0], (3, 4), 16, metric).shape == (0, 12)


def literal_algorithm_1(mask: np.ndarray, grid: tuple[int, int], p: int, k: int) -> np.ndarray:
    rows, columns = grid
    centres = np.array([(r * p, c * p) for r in range(rows) for c in range(columns)], dtype=float)
    r = np.array([(a, b) for a in (-p / 2, 0, p / 2) for b in (-p / 2, 0, p / 2)])
    candidates = np.unique((centres[mask == 0][:, None] + r).reshape(-1, 2), axis=0)
    pixels = np.stack(np.meshgrid(*[np.arange(p) - p // 2] * 2, indexing="ij"), axis=-1).reshape(-1, 1, 2)
    result = np.zeros(len(centres))
    for index in np.flatnonzero(mask):
        relative = candidates - centres[index]
        nearest = relative[np.lexsort((relative[:, 1], relative[:, 0], (relative**2).sum(1)))[:k]]
        result[index] = np.linalg.norm(pixels - nearest, axis=-1).min(axis=1).mean()
    return result


@pytest.mark.parametrize(
    ("grid", "patch_size", "visible", "k"), [((14, 14), 16, 29, 8), ((5, 8), 8, 3, 8), ((4, 4), 7, 1, 12)]
)
def test_approximation_is_algorithm_1(grid, patch_size, visible, k):
    masks = random_masks(4, grid, visible)
    expected = np.stack([literal_algorithm_1(mask, grid, patch_size, k) for mask in masks.numpy()])
    np.testing.assert_allclose(
        p2dist_approx(masks, grid, patch_size, k).numpy(), expected, atol=1e-5, rtol=1e-6
    )


@pytest.fixture(scope="module")
def masks_at_85() -> torch.Tensor:
    return random_masks(MASKS, (14, 14), 29)


def kept(values: torch.Tensor, mask: torch.Tensor, beta: float) -> float:
    return ((values <= beta) & (mask > 0)).sum().item() / len(mask)


@pytest.mark.parametrize(
    ("metric", "counts"),
    [("p2dist", (76.1, 113.9, 145.2, 167)), ("p2dist_approx", (78.2, 113.9, 150.3, 167))],
)
def test_patches_within_beta(masks_at_85, metric, counts):
    """Table 8 prints 82 / 114 / 150 / 167. Algorithm 1 gives the last three; no reading gives 82."""
    values = torch.cat([difficulty(part, (14, 14), 16, metric) for part in masks_at_85.split(1024)])
    for beta, count in zip((9, 13, 26, math.inf), counts, strict=True):
        assert kept(values, masks_at_85, beta) == pytest.approx(count, abs=0.5)


@pytest.mark.parametrize(
    ("metric", "count"), [("neighbours_3x3", 114), ("inverse_distance_5x5", 159), ("nearest_patch", 167)]
)
def test_patches_that_the_rival_metrics_keep(masks_at_85, metric, count):
    values = difficulty(masks_at_85, (14, 14), 16, metric)
    finite = ((values < math.inf) & (masks_at_85 > 0)).sum().item() / MASKS
    assert finite == pytest.approx(count, abs=0.6)


@pytest.mark.parametrize(("visible", "share"), [(49, 86.6), (29, 68.2), (19, 52.1)])
def test_masked_patches_with_a_visible_neighbour(visible, share):
    """Sec 3.3 prints 87 / 68 / 52 % at mask ratios .75 / .85 / .90."""
    mask = random_masks(MASKS, (14, 14), visible)
    values = difficulty(mask, (14, 14), 16, "neighbours_3x3")
    assert 100 * ((values < math.inf) & (mask > 0)).sum() / mask.sum() == pytest.approx(share, abs=0.3)


def test_rival_metrics_against_loops():
    grid, p = (6, 9), 16
    masks = random_masks(3, grid, 8)
    for mask, counted, summed, nearest in zip(
        masks.reshape(3, *grid), *(difficulty(masks, grid, p, m) for m in list(METRICS)[2:]), strict=True
    ):
        visible = [(r, c) for r in range(6) for c in range(9) if mask[r, c] == 0]
        for r, c in ((r, c) for r in range(6) for c in range(9) if mask[r, c] == 1):
            away = [(abs(r - a), abs(c - b), math.dist((r, c), (a, b)) * p) for a, b in visible]
            count = sum(max(a, b) <= 1 for a, b, _ in away)
            total = sum(1 / d for a, b, d in away if max(a, b) <= 2)
            assert counted[r * 9 + c] == pytest.approx(1 / count if count else math.inf)
            assert summed[r * 9 + c] == pytest.approx(1 / total if total else math.inf)
            assert nearest[r * 9 + c] == pytest.approx(min(d for _, _, d in away))


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 8),
    st.integers(1, 8),
    st.sampled_from([1, 2, 5, 8, 16]),
    st.integers(0, 2**32 - 1),
    st.floats(0.3, 1),
)
def test_symmetry_and_monotonicity(rows, columns, patch_size, seed, ratio):
    generator = torch.Generator().manual_seed(seed)
    mask = (torch.rand(3, rows * columns, generator=generator) < ratio).float()
    values = p2dist(mask, (rows, columns), patch_size)
    for dims in ((1,), (2,), (1, 2)):
        flipped = mask.reshape(3, rows, columns).flip(dims).flatten(1)
        mirrored = (
            p2dist(flipped, (rows, columns), patch_size).reshape(3, rows, columns).flip(dims).flatten(1)
        )
        torch.testing.assert_close(mirrored, values, atol=1e-4, rtol=1e-6)
    fewer = mask * (torch.rand(mask.shape, generator=generator) < 0.8)
    assert (p2dist(fewer, (rows, columns), patch_size) <= values + 1e-4).all()
    assert (values[mask > 0] >= 1).all() and (values[mask == 0] == 0).all()


def test_user_errors():
    with pytest.raises(UserError, match="2, 12.* grid of 3x5"):
        p2dist(torch.ones(2, 12), (3, 5), 16)
    with pytest.raises(UserError, match="p2dist, p2dist_approx"):
        difficulty(torch.ones(2, 12), (3, 4), 16, "euclid")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("metric", METRICS)
def test_gpu_gives_the_same(metric):
    masks = random_masks(64, (14, 14), 29)
    on_gpu = difficulty(masks.cuda(), (14, 14), 16, metric)
    assert on_gpu.is_cuda
    torch.testing.assert_close(on_gpu.cpu(), difficulty(masks, (14, 14), 16, metric), atol=1e-4, rtol=1e-5)


@pytest.mark.slow
def test_compiles_without_a_graph_break():
    mask = random_masks(4, (4, 4), 3)
    for metric in (p2dist, p2dist_approx):
        compiled = torch.compile(
            lambda m, metric=metric: 2 * metric(m, (4, 4), 8), backend="eager", fullgraph=True
        )
        assert torch.equal(compiled(mask), 2 * metric(mask, (4, 4), 8))

"""How hard a masked patch is to reconstruct: P2Dist and its rivals (Efficient MAE, sec 3.3, Eq. 1, Algorithm 1, Table 5).

Every metric takes `mask` (N, L), 0 = visible and 1 = masked, the grid (rows, columns) with L = rows * columns in raster
order, and the patch size in pixels. It returns float32 (N, L) on the mask's device: larger is harder, 0 at visible patches.
Where nothing is visible, in the image or in the neighbourhood that the metric looks at, a masked patch is infinitely hard:
any threshold drops it and d**-gamma gives it no weight. An image with nothing masked is all zeros. Neither raises.

What makes exact P2Dist cheap. Seen from a masked patch, a visible patch A dominates a visible patch B when A is at least as
near to every pixel. Along either axis the difference of two squared gaps is monotone, so looking at the four corner pixels
decides it. Of all visible patches only 1.3 to 1.8 are undominated on average (14x14 grid, ratios .95 to .75), and the
same few constellations come back all the time. So each distinct constellation is measured once, pixel by pixel, and those
that fit into 5x5 patches and shield the rest of the image are looked up in a table.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from replicate.errors import UserError

Grid = tuple[int, int]
Offset = tuple[int, int]

_CODED = 62  # boundary points that fit into the bits of a number
_INNER = [(row, column) for row in (-1, 0, 1) for column in (-1, 0, 1) if (row, column) != (0, 0)]
_RING = [(row, column) for row in range(-2, 3) for column in range(-2, 3) if max(abs(row), abs(column)) == 2]


def p2dist(mask: Tensor, grid: Grid, patch_size: int) -> Tensor:
    """P2Dist, exactly (Eq. 1): the mean over a patch's pixels of the Euclidean distance to the nearest visible pixel.

    mask (N, L) -> (N, L) in pixels, between pixel centres. Raises UserError when the mask does not fit the grid.
    """
    _check(mask, grid)
    # Only where something compiles: an operator's first call imports half of torch's compiler, over a second in every process.
    measure = _p2dist_operator if torch.compiler.is_compiling() else _p2dist
    return measure(mask, grid[0], grid[1], patch_size)


def _p2dist(mask: Tensor, rows: int, columns: int, patch_size: int) -> Tensor:
    visible = _visible(mask, (rows, columns))
    table = _near_table(patch_size, mask.device)
    inner = _bits(visible, _INNER)
    ring = _bits(visible, _RING) & _look_up(table.ring_matters, inner)
    distance = _look_up(table.value, _look_up(table.start, inner) + ring)
    unsettled = (distance.isnan() & ~visible).flatten().nonzero()[:, 0]
    if len(unsettled):
        distance.view(-1)[unsettled] = _solve(visible, unsettled, patch_size)
    return _as_batch(distance.masked_fill_(visible, 0.0))


_p2dist_operator = torch.library.custom_op("replicate::p2dist", _p2dist, mutates_args=())
"""An operator of its own, so that torch.compile neither looks inside nor rebuilds the tables."""


@_p2dist_operator.register_fake
def _(mask: Tensor, rows: int, columns: int, patch_size: int) -> Tensor:
    return mask.new_empty(mask.shape, dtype=torch.float32)


def _check(mask: Tensor, grid: Grid) -> None:
    rows, columns = grid
    if mask.dim() != 2 or mask.shape[1] != rows * columns:
        raise UserError(f"mask of shape {tuple(mask.shape)} does not fit a grid of {rows}x{columns} patches")


def _visible(mask: Tensor, grid: Grid) -> Tensor:
    """(N, L) mask -> (rows, columns, N) flags: with the batch innermost, a shift on the grid is one contiguous slice."""
    rows, columns = grid
    return mask.detach().eq(0).t().reshape(rows, columns, -1).contiguous()


def _cells(device: torch.device) -> int:
    """Numbers worked on at a time: on a CPU they should stay in a core's cache, on a GPU every launch should be worth it."""
    return 1 << 18 if device.type == "cpu" else 1 << 24


def _look_up(table: Tensor, index: Tensor) -> Tensor:
    """table (T,)[index]: several times faster than indexing, because int32 indices are used as they are."""
    return table.index_select(0, index.reshape(-1)).view(index.shape)


def _as_batch(values: Tensor) -> Tensor:
    """(rows, columns, N) -> (N, L)."""
    return values.flatten(0, 1).t().contiguous()


def _bits(visible: Tensor, offsets: list[Offset]) -> Tensor:
    """(rows, columns, N) int32: bit b is set where the patch at offset b is visible."""
    rows, columns, _ = visible.shape
    padded = functional.pad(visible.to(torch.int32), (0, 0, 2, 2, 2, 2))
    bits = torch.zeros(visible.shape, dtype=torch.int32, device=visible.device)
    for bit, (row, column) in enumerate(offsets):
        bits.add_(padded[2 + row : 2 + row + rows, 2 + column : 2 + column + columns], alpha=1 << bit)
    return bits


class _Offsets(NamedTuple):
    """All offsets at which a visible patch can lie, numbered by nearness; the last number, `none`, stands for no patch."""

    number: Tensor  # (O,) integer: raster index of an offset -> its number
    strikes: Tensor  # ((none + 1)**2,) at first * (none + 1) + second: `none` where first dominates second (or is it), else 0
    row_gap: Tensor  # (P, none + 1) float32: squared vertical gap of each pixel row of the masked patch
    column_gap: Tensor  # (P, none + 1) float32

    @property
    def none(self) -> int:
        return len(self.number)


@lru_cache(maxsize=32)
def _offsets(grid: Grid, patch_size: int, device: torch.device) -> _Offsets:
    row_gap, column_gap = (_squared_gaps(extent, patch_size) for extent in grid)
    raster = torch.cartesian_prod(torch.arange(len(row_gap)), torch.arange(len(column_gap)))
    row_gap, column_gap = row_gap[raster[:, 0]], column_gap[raster[:, 1]]
    ends = [0, patch_size - 1]
    corners = (row_gap[:, ends, None] + column_gap[:, None, ends]).flatten(1)
    order = corners.sum(dim=1).argsort(stable=True)  # whoever dominates another has a smaller sum, so comes first
    corners = functional.pad(corners[order], (0, 0, 0, 1), value=torch.inf).t()
    dominates = torch.ones(corners.shape[1], corners.shape[1], dtype=torch.bool)
    for corner in corners:
        dominates &= corner[:, None] <= corner
    gaps = (functional.pad(gap[order], (0, 0, 0, 1), value=torch.inf).t().contiguous() for gap in (row_gap, column_gap))
    dtype = torch.int16 if len(order) < torch.iinfo(torch.int16).max else torch.int32
    strikes = dominates.flatten().to(dtype) * len(order)
    return _Offsets(*(part.to(device) for part in (order.argsort().to(dtype), strikes, *gaps)))


def _squared_gaps(extent: int, patch_size: int) -> Tensor:
    """(2 * extent - 1, P): squared gap along one axis from each pixel of a patch to a patch -extent+1 .. extent-1 away."""
    away, pixel = torch.arange(1 - extent, extent)[:, None], torch.arange(patch_size)
    gap = torch.where(away > 0, away * patch_size - pixel, (-away - 1) * patch_size + 1 + pixel)
    return gap.where(away != 0, 0).float().square()


def _solve(visible: Tensor, patches: Tensor, patch_size: int) -> Tensor:
    """P2Dist (M,) of the masked patches with these flat indices into `visible` (rows, columns, N)."""
    rows, columns, images = visible.shape
    offsets = _offsets((rows, columns), patch_size, visible.device)
    place = torch.arange(rows * columns, device=visible.device)
    place = (place // columns * (2 * columns - 1) + place % columns).int()  # a difference of places is an offset's raster index
    seen = _visible_places(visible, place) + (rows - 1) * (2 * columns - 1) + columns
    number = functional.pad(offsets.number, (1, 0), value=offsets.none)  # entry 0 answers for an image's unused slots
    constellations = []
    for part in patches.split(max(1, _cells(seen.device) // max(1, seen.shape[1]))):
        index = (seen[part % images] - place[part // images, None]).clamp_(min=0)
        constellations.append(_undominated(_look_up(number, index), offsets))
    size = max(map(len, constellations))
    padded = [functional.pad(part, (0, 0, 0, size - len(part)), value=offsets.none) for part in constellations]
    distinct, same = _distinct(torch.cat(padded, dim=1), offsets.none)
    return _mean_distance(distinct, offsets)[same]


def _visible_places(visible: Tensor, place: Tensor) -> Tensor:
    """(N, V) int32: the places of each image's visible patches, V being the most that any image has; unused slots are very
    negative.
    """
    image, patch = visible.flatten(0, 1).t().nonzero(as_tuple=True)
    count = visible.sum(dim=(0, 1))
    slot = torch.arange(len(image), device=visible.device) - (count.cumsum(0) - count)[image]
    places = torch.full((len(count), int(count.max()) if len(count) else 0), -(1 << 30), dtype=torch.int32, device=visible.device)
    places[image, slot] = place[patch]
    return places


def _undominated(numbers: Tensor, offsets: _Offsets) -> Tensor:
    """(M, V) offset numbers of visible patches -> (K, M) those that no other dominates, ascending, filled up with `none`.

    The nearest one is never dominated: keep it, strike out all that it dominates, and go on with what is left.
    """
    none, count, row = offsets.none, len(numbers), torch.arange(len(numbers), device=numbers.device)
    found, nearest = [], _smallest(numbers, none)
    while len(row):
        found.append(numbers.new_full((count,), none).index_copy_(0, row, nearest))
        struck = _look_up(offsets.strikes, (nearest.int() * (none + 1))[:, None] + numbers)
        numbers = torch.maximum(numbers, struck)
        nearest = _smallest(numbers, none)
        left = (nearest < none).nonzero()[:, 0]
        row, numbers, nearest = row[left], numbers[left], nearest[left]
    return torch.stack(found)


def _smallest(numbers: Tensor, none: int) -> Tensor:
    return numbers.amin(dim=1) if numbers.shape[1] else numbers.new_full((len(numbers),), none)


def _distinct(constellations: Tensor, none: int) -> tuple[Tensor, Tensor]:
    """(K, M) -> the distinct columns (K, U), and for each of the M columns which of them it is."""
    count = constellations.shape[1]
    label, bound = torch.zeros(count, dtype=torch.int64, device=constellations.device), 1
    for row in constellations:
        if bound * (none + 1) > 1 << 62:
            label, bound = label.unique(return_inverse=True)[1], count
        label = label * (none + 1) + row
        bound *= none + 1
    distinct, same = label.unique(return_inverse=True)
    example = torch.empty_like(distinct).index_copy_(0, same, torch.arange(count, device=label.device))
    return constellations[:, example], same


def _mean_distance(constellations: Tensor, gaps: _Offsets | _Points) -> Tensor:
    """(K, U) numbers -> (U,): the mean over a patch's pixels of the distance to the nearest of K visible things."""
    patch_size = len(gaps.row_gap)
    means = []
    for part in constellations.int().split(max(1, _cells(constellations.device) // patch_size**2), dim=1):
        nearest = torch.full((patch_size, patch_size, part.shape[1]), torch.inf, device=part.device)
        for number in part:
            down, across = gaps.row_gap.index_select(1, number), gaps.column_gap.index_select(1, number)
            torch.minimum(nearest, down[:, None] + across, out=nearest)
        means.append(nearest.sqrt_().mean(dim=(0, 1)))
    return torch.cat(means)


class _NearTable(NamedTuple):
    """P2Dist by what is visible within 5x5 patches, NaN where that does not settle it. Index: start[inner] + (ring &
    ring_matters[inner]).
    """

    value: Tensor  # float32
    start: Tensor  # (256,) int32, by the 3x3 neighbourhood's bits
    ring_matters: Tensor  # (256,) int32: all 16 bits of the 5x5 ring, or 0 where the 3x3 neighbourhood shields everything behind it


@lru_cache(maxsize=32)
def _near_table(patch_size: int, device: torch.device) -> _NearTable:
    offsets = _offsets((4, 4), patch_size, torch.device("cpu"))
    wide = [(row, column) for row in range(-3, 4) for column in range(-3, 4) if max(abs(row), abs(column)) == 3]
    inner, ring, beyond = (offsets.number[[(row + 3) * 7 + column + 3 for row, column in part]].int() for part in (_INNER, _RING, wide))
    inner_sets = _chosen(torch.arange(256), inner, offsets.none)
    values = [_if_settled(inner_sets, ring, offsets)]
    start, ring_matters = torch.arange(256, dtype=torch.int32), torch.zeros(256, dtype=torch.int32)
    ring_states = torch.arange(1 << 16)
    for state in values[0].isnan().nonzero()[:, 0].tolist():
        useful = ring_states & ~_dominated_bits(inner_sets[:, state], ring, offsets)
        for bit, number in enumerate(ring):
            useful &= ~torch.where(useful >> bit & 1 == 1, _dominated_bits(number[None], ring, offsets), 0)
        distinct, same = useful.unique(return_inverse=True)
        ring_sets = _chosen(distinct, ring, offsets.none)
        sets = torch.cat([inner_sets[:, state, None].expand(-1, len(distinct)), ring_sets])
        start[state], ring_matters[state] = sum(map(len, values)), len(ring_states) - 1
        values.append(_if_settled(sets, beyond, offsets)[same])
    return _NearTable(*(part.to(device) for part in (torch.cat(values), start, ring_matters)))


def _chosen(states: Tensor, numbers: Tensor, none: int) -> Tensor:
    """(S,) bit sets over (B,) offset numbers -> (B, S): the number where the bit is set, else `none`."""
    return numbers[:, None].where(states >> torch.arange(len(numbers))[:, None] & 1 == 1, none)


def _dominated_bits(by: Tensor, numbers: Tensor, offsets: _Offsets) -> int:
    """The bits of those of `numbers` that one of `by` dominates (itself not counted)."""
    return sum(
        1 << bit
        for bit, number in enumerate(numbers.tolist())
        if any(first not in (number, offsets.none) and offsets.strikes[first * (offsets.none + 1) + number] for first in by.tolist())
    )


def _if_settled(constellations: Tensor, behind: Tensor, offsets: _Offsets) -> Tensor:
    """The mean distance of (B, S) constellations where all of `behind` being visible too would not change it, else NaN."""
    alone = _mean_distance(constellations, offsets)
    surrounded = _mean_distance(torch.cat([constellations, behind[:, None].expand(-1, len(alone))]), offsets)
    return alone.where(alone == surrounded, torch.nan)


def p2dist_approx(mask: Tensor, grid: Grid, patch_size: int, k: int = 8) -> Tensor:
    """P2Dist as Algorithm 1 approximates it: distances to the k boundary points of visible patches nearest to the patch's centre.

    Every visible patch offers its corners, the middles of its sides and its centre, {-P/2, 0, P/2}^2 about the centre; points
    that patches share count once, and of equally near ones those higher, then further left, are taken first. Of these k the
    nearest to each pixel counts. Two things the paper leaves open are settled by the counts of its Table 8: it is the MINIMUM
    over the k points that is averaged over the pixels (averaging over all k would leave nothing below 9), and a patch's pixels
    lie at the integers -P/2 .. P/2 - 1 about its centre (150.3 patches within 26 at ratio .85, printed 150; half-pixel centres
    would keep 155).
    """
    _check(mask, grid)
    measure = _p2dist_approx_operator if torch.compiler.is_compiling() else _p2dist_approx
    return measure(mask, grid[0], grid[1], patch_size, k)


def _p2dist_approx(mask: Tensor, rows: int, columns: int, patch_size: int, k: int) -> Tensor:
    visible = _visible(mask, (rows, columns))
    points = _points((rows, columns), patch_size, mask.device)
    codes, enough = _near_points(_lattice(visible), points, k)
    distance = torch.zeros(visible.shape, device=mask.device)
    near = (enough & ~visible).flatten().nonzero()[:, 0]
    if len(near):
        distinct, same = codes.flatten()[near].unique(return_inverse=True)
        distance.view(-1)[near] = _mean_distance(_lowest_bits(distinct, k, points.none), points)[same]
    far = (~enough & ~visible).flatten().nonzero()[:, 0]
    if len(far):
        distance.view(-1)[far] = _solve_approx(visible, far, points, k)
    return _as_batch(distance)


_p2dist_approx_operator = torch.library.custom_op("replicate::p2dist_approx", _p2dist_approx, mutates_args=())


@_p2dist_approx_operator.register_fake
def _(mask: Tensor, rows: int, columns: int, patch_size: int, k: int) -> Tensor:
    return mask.new_empty(mask.shape, dtype=torch.float32)


class _Points(NamedTuple):
    """Boundary points on the half-patch lattice by their offset from a patch's centre, numbered by nearness; `none` is the
    last.
    """

    nearest: list[Offset]  # the offsets numbered 0 .. _CODED - 1
    number: Tensor  # (O,): raster index of a lattice offset -> its number
    row_gap: Tensor  # (P, none + 1) float32: squared vertical distance of each pixel row of the patch
    column_gap: Tensor

    @property
    def none(self) -> int:
        return len(self.number)


@lru_cache(maxsize=32)
def _points(grid: Grid, patch_size: int, device: torch.device) -> _Points:
    away = torch.cartesian_prod(*(torch.arange(-2 * extent, 2 * extent + 1) for extent in grid))
    order = away.square().sum(dim=1).argsort(stable=True)
    pixel = torch.arange(patch_size)[:, None] - patch_size // 2
    gaps = (pixel - away[order].t()[:, None] * (patch_size / 2)).square()
    dtype = torch.int16 if len(order) < torch.iinfo(torch.int16).max else torch.int32
    nearest = [(row, column) for row, column in away[order[:_CODED]].tolist()]
    return _Points(nearest, order.argsort().to(device, dtype), *functional.pad(gaps, (0, 1), value=torch.inf).to(device))


def _near_points(lattice: Tensor, points: _Points, k: int) -> tuple[Tensor, Tensor]:
    """(rows, columns, N) int64 with one bit for each of the k nearest visible points, and whether there were k among those
    coded.
    """
    reach = max(max(abs(row), abs(column)) for row, column in points.nearest)
    codes, enough = [], []
    for part in lattice.split(_cells(lattice.device) // 2048, dim=2):  # some images at a time, for the cache
        padded = functional.pad(part.long(), (0, 0, reach, reach, reach, reach))
        height, width, _ = part.shape
        code = torch.zeros_like(part[1::2, 1::2], dtype=torch.int64)
        for bit, (row, column) in enumerate(points.nearest):
            from_row, from_column = reach + 1 + row, reach + 1 + column
            code.add_(padded[from_row : from_row + height - 1 : 2, from_column : from_column + width - 1 : 2], alpha=1 << bit)
        others = code.clone()
        for taken in range(k):
            if taken == k - 1:
                enough.append(others != 0)
            others &= others - 1  # clears the lowest bit
        codes.append(code ^ others)
    return torch.cat(codes, dim=2), torch.cat(enough, dim=2)


def _lowest_bits(codes: Tensor, k: int, none: int) -> Tensor:
    """(U,) int64 -> (k, U): the indices of the k lowest bits set, filled up with `none`."""
    bits = []
    for _ in range(k):
        lowest = codes & -codes
        bits.append(torch.where(lowest > 0, torch.frexp(lowest.double()).exponent - 1, none))
        codes = codes ^ lowest
    return torch.stack(bits)


def _solve_approx(visible: Tensor, patches: Tensor, points: _Points, k: int) -> Tensor:
    """Algorithm 1 for the masked patches (M,) with these flat indices into `visible` (rows, columns, N), wherever the points
    lie.
    """
    rows, columns, images = visible.shape
    width = 4 * columns + 1
    row, column = torch.arange(2 * rows + 1, device=visible.device), torch.arange(2 * columns + 1, device=visible.device)
    place = (row[:, None] * width + column).int()
    centre = place[1::2, 1::2].flatten()
    seen = _visible_places(_lattice(visible), place.flatten()) + 2 * rows * width + 2 * columns + 1
    number = functional.pad(points.number, (1, 0), value=points.none)
    nearest = []
    for part in patches.split(max(1, _cells(seen.device) // max(1, seen.shape[1]))):
        index = (seen[part % images] - centre[part // images, None]).clamp_(min=0)
        nearest.append(_nearest(_look_up(number, index), points.none, k))
    distinct, same = _distinct(torch.cat(nearest, dim=1), points.none)
    return _mean_distance(distinct, points)[same]


def _nearest(numbers: Tensor, none: int, k: int) -> Tensor:
    """(M, V) numbers -> (k, M): the k smallest of each row, ascending, each value once, filled up with `none`.

    Counting every row down past its smallest number makes what was taken wrap round to the largest values of the integer type.
    That is one vectorised subtraction, where masking out or sorting would take ten times as long.
    """
    lowest = torch.iinfo(numbers.dtype).min
    left = numbers + lowest
    taken = numbers.new_zeros(len(numbers), dtype=torch.int64)
    nearest = []
    for _ in range(k):
        step = left.amin(dim=1).long() - lowest if left.shape[1] else taken.new_full(taken.shape, none)
        nearest.append((taken + step).clamp_(max=none))
        taken = taken + step + 1
        left -= (step + 1).to(left.dtype)[:, None]
    return torch.stack(nearest).to(numbers.dtype)


def _lattice(visible: Tensor) -> Tensor:
    """(rows, columns, N) flags -> (2 rows + 1, 2 columns + 1, N): which half-patch lattice points belong to a visible patch."""
    rows, columns, images = visible.shape
    lattice = visible.new_zeros(2 * rows + 1, 2 * columns + 1, images)
    for down in range(3):
        for right in range(3):
            lattice[down : down + 2 * rows : 2, right : right + 2 * columns : 2] |= visible
    return lattice


def neighbours_3x3(mask: Tensor, grid: Grid, patch_size: int) -> Tensor:
    """Table 5 (a): 1 / the number of visible patches in the 3x3 neighbourhood; infinite where there is none. Without unit."""
    return _hardness(mask, grid, {offset: 1.0 for offset in _INNER})


def inverse_distance_5x5(mask: Tensor, grid: Grid, patch_size: int) -> Tensor:
    """Table 5 (b): 1 / the sum over visible patches in the 5x5 neighbourhood of 1 / distance between centres, in pixels."""
    return _hardness(mask, grid, {offset: 1 / (patch_size * math.hypot(*offset)) for offset in _INNER + _RING})


def _hardness(mask: Tensor, grid: Grid, ease: dict[Offset, float]) -> Tensor:
    """1 / the summed ease of the visible patches at these offsets, so that harder is larger, as with the distances."""
    _check(mask, grid)
    visible = _visible(mask, grid)
    rows, columns, _ = visible.shape
    padded = functional.pad(visible.float(), (0, 0, 2, 2, 2, 2))
    total = torch.zeros_like(padded[2:-2, 2:-2])
    for (row, column), gain in ease.items():
        total.add_(padded[2 + row : 2 + row + rows, 2 + column : 2 + column + columns], alpha=gain)
    return _as_batch(total.reciprocal_().masked_fill_(visible, 0.0))


def nearest_patch(mask: Tensor, grid: Grid, patch_size: int) -> Tensor:
    """Table 5 (c): the distance between the centres of a patch and its nearest visible patch, in pixels."""
    return p2dist(mask, grid, 1) * patch_size


METRICS: dict[str, Callable[[Tensor, Grid, int], Tensor]] = {
    function.__name__: function for function in (p2dist, p2dist_approx, neighbours_3x3, inverse_distance_5x5, nearest_patch)
}


def difficulty(mask: Tensor, grid: Grid, patch_size: int, metric: str = "p2dist") -> Tensor:
    """Any of METRICS by its name. Raises UserError when there is none of that name.

    The rivals of Table 5 have a place in DFLoss and in decoder masking through the same rule as P2Dist: weight d**-gamma, and
    patches with d > beta are dropped. The paper gives no beta for them, yet prints 114 and 159 decoded patches of 167: those
    are the patches that have any visible neighbour, which is beta = the largest finite difficulty.
    """
    if metric not in METRICS:
        raise UserError(f"difficulty metric: {metric!r} does not exist; choose one of {', '.join(METRICS)}")
    return METRICS[metric](mask, grid, patch_size)

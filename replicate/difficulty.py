"""How hard a masked patch is to reconstruct: P2Dist and its rivals (Efficient MAE sec 3.3 and Table 5).

Every metric takes `mask` (N, L) with 0 = visible and 1 = masked, the grid (rows, columns) with L = rows *
columns in raster order, and the patch size in pixels. It returns float32 (N, L) on the mask's device: 0 at
visible patches, and larger where a patch is harder. A masked patch is infinitely hard if there is no visible
patch in its image (for the neighbourhood metrics: in its neighbourhood). Decoder masking drops such a patch,
and DFLoss gives it no weight.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.nn import functional

from replicate.errors import UserError

Grid = tuple[int, int]


def p2dist(mask: Tensor, grid: Grid, patch_size: int) -> Tensor:
    """Exact P2Dist (Eq. 1): the mean over a patch's pixels of the distance to the nearest visible pixel.

    mask (N, L) -> (N, L) in pixels, between pixel centres. Raises UserError if mask and grid do not fit. The
    distance transform is separable: squared gaps down to the nearest visible patch of each column, then the
    minimum over the columns of their sums with the squared gaps across.
    """
    rows, columns = grid
    down, across = (_squared_gaps(extent, patch_size, mask.device) for extent in grid)
    across = across.t().contiguous()

    def measure(visible: Tensor) -> Tensor:
        hidden = torch.where(visible, 0.0, torch.inf).view(-1, 1, rows, columns)
        gaps = (hidden + down[:, :, None]).amin(dim=2)  # (n, rows * P, columns)
        distance = _nearest((gaps[..., k, None], across[k]) for k in range(columns))
        return distance.view(-1, rows, patch_size, columns, patch_size).mean(dim=(2, 4)).flatten(1)

    return _in_chunks(measure, mask, grid, rows * columns * patch_size**2)


def _squared_gaps(extent: int, patch_size: int, device: torch.device) -> Tensor:
    """(extent * P, extent): squared gaps along one axis from every pixel to every patch, 0 inside it."""
    pixel = torch.arange(extent * patch_size, device=device)[:, None]
    first = torch.arange(extent, device=device) * patch_size
    return (first - pixel).maximum(pixel - first - patch_size + 1).clamp(min=0).float().square()


def _nearest(squared: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """The smallest distance, from pairs of squared gaps down and across, which broadcast to the pixels."""
    (down, across), *others = squared
    nearest = down + across
    candidate = torch.empty_like(nearest)  # written in place: twice as fast as a new tensor each time
    for down, across in others:
        torch.add(down, across, out=candidate)
        torch.minimum(nearest, candidate, out=nearest)
    return nearest.sqrt()


def _in_chunks(measure: Callable[[Tensor], Tensor], mask: Tensor, grid: Grid, numbers: int) -> Tensor:
    """`measure` on the visible flags (n, L) of as many images as fit into the cache at `numbers` an image."""
    rows, columns = grid
    if mask.dim() != 2 or mask.shape[1] != rows * columns:
        raise UserError(f"mask of shape {tuple(mask.shape)} does not fit a grid of {rows}x{columns} patches")
    at_a_time = max(1, (1 << 17 if mask.device.type == "cpu" else 1 << 25) // numbers)
    return torch.cat([measure(part.detach() == 0) for part in mask.split(at_a_time)])


def p2dist_approx(mask: Tensor, grid: Grid, patch_size: int, k: int = 8) -> Tensor:
    """P2Dist by Algorithm 1: the mean distance to the nearest of k boundary points, (N, L) in pixels.

    Every visible patch offers nine points, {-P/2, 0, P/2}^2 about its centre; a point that patches share
    counts once. The k points nearest to the masked patch's centre are candidates. Of equally near points the
    upper ones come first, then the left ones. The paper leaves two things open, and the counts of its Table 8
    settle them. The mean is over the minimum of the k distances (the mean of all k would never be below 9). A
    patch's pixels lie at the integers -P/2 .. P/2 - 1 about its centre: 150.3 patches lie within 26 at ratio
    .85 (printed: 150), against 155 with half pixels. Raises UserError as `p2dist` does.
    """
    lattice = [
        torch.arange(2 * extent + 1, device=mask.device) for extent in grid
    ]  # points half a patch apart
    away = [
        points - points[1::2, None] for points in lattice
    ]  # from the patches' centres: (rows, .), (columns, .)
    apart = (away[0].square()[:, None, :, None] + away[1].square()[:, None]).flatten(2).flatten(0, 1)
    points = apart.shape[1]
    rank = (apart * points + torch.arange(points, device=mask.device)).int()  # equally far: in raster order
    pixel = torch.arange(patch_size, device=mask.device) - patch_size // 2
    down, across = ((pixel - gap[..., None] * (patch_size / 2)).square() for gap in away)
    patch = torch.arange(len(rank), device=mask.device)[:, None]
    reach, none = torch.ones(1, 1, 3, 3, device=mask.device), torch.iinfo(rank.dtype).max

    def measure(visible: Tensor) -> Tensor:
        offered = functional.conv_transpose2d(visible.float().view(-1, 1, *grid), reach, stride=2).flatten(1)
        nearest, point = rank.where(offered[:, None] > 0, none).topk(min(k, points), largest=False)
        from_row = down[patch // grid[1], point // len(lattice[1])]  # (n, L, k, P)
        from_row = from_row.masked_fill((nearest == none)[..., None], torch.inf)
        from_column = across[patch % grid[1], point % len(lattice[1])]
        distance = _nearest(
            (from_row[:, :, j, :, None], from_column[:, :, j, None]) for j in range(min(k, points))
        )
        return distance.mean(dim=(2, 3)).masked_fill(visible, 0.0)

    return _in_chunks(measure, mask, grid, rank.numel())


def neighbours_3x3(mask: Tensor, grid: Grid, patch_size: int) -> Tensor:
    """Table 5 (a): 1 / the number of visible patches in the 3x3 neighbourhood. No unit."""
    return _hardness(mask, grid, torch.ones(3, 3))


def inverse_distance_5x5(mask: Tensor, grid: Grid, patch_size: int) -> Tensor:
    """Table 5 (b): 1 / the sum of 1 / distance (pixels) to the visible patches of the 5x5 neighbourhood."""
    offset = torch.arange(-2, 3)
    return _hardness(mask, grid, 1 / (patch_size * torch.hypot(offset[:, None].float(), offset.float())))


def _hardness(mask: Tensor, grid: Grid, ease: Tensor) -> Tensor:
    """1 / the summed `ease` (S, S) of the visible patches around each masked one."""
    side, weights = len(ease), ease.flatten()[:, None].to(mask.device)

    def measure(visible: Tensor) -> Tensor:
        around = functional.unfold(visible.float().view(-1, 1, *grid), side, padding=side // 2)
        return torch.where(around > 0, weights, 0.0).sum(dim=1).reciprocal().masked_fill(visible, 0.0)

    return _in_chunks(measure, mask, grid, side**2 * mask.shape[-1])


def nearest_patch(mask: Tensor, grid: Grid, patch_size: int) -> Tensor:
    """Table 5 (c): the distance in pixels between the centres of a patch and its nearest visible patch."""
    return p2dist(mask, grid, 1) * patch_size


METRICS: dict[str, Callable[[Tensor, Grid, int], Tensor]] = {
    metric.__name__: metric
    for metric in (p2dist, p2dist_approx, neighbours_3x3, inverse_distance_5x5, nearest_patch)
}


def difficulty(mask: Tensor, grid: Grid, patch_size: int, metric: str = "p2dist") -> Tensor:
    """The metric of METRICS with this name. Raises UserError for an unknown name.

    DFLoss and decoder masking use the rivals of Table 5 as they use P2Dist: weight d**-gamma, drop where d >
    beta. The paper gives no beta for the rivals, but prints 114 and 159 decoded patches of 167. These are the
    patches with any visible neighbour, so beta is the largest finite difficulty.
    """
    if metric not in METRICS:
        raise UserError(f"difficulty metric: {metric!r} does not exist; choose one of {', '.join(METRICS)}")
    return METRICS[metric](mask, grid, patch_size)

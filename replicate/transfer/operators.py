"""Detection's two operators in plain torch, for a torch build that torchvision's compiled ones do not match.

Importing this module registers them with torch, but only where the compiled operators cannot be loaded; a
user who has the compiled ones gets those. Both equal the compiled kernels' definition: NMS keeps a box unless
a better one that is kept overlaps it by more than the threshold; RoIAlign averages bilinear samples on a
regular grid in each bin (He et al. 2017, section 3).
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor

from replicate import compat

ROIS_AT_ONCE = 32
BOXES_AT_ONCE = 1024
_ROI_ALIGN = (
    "roi_align(Tensor input, Tensor rois, float spatial_scale, SymInt pooled_height, SymInt pooled_width, "
    "int sampling_ratio, bool aligned) -> Tensor"
)
_library: torch.library.Library | None = None


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Non-maximum suppression: (n, 4) boxes as x1, y1, x2, y2 and (n,) scores -> int64 numbers of those kept.

    The best comes first. Memory grows with n times `BOXES_AT_ONCE`.
    """
    order = scores.sort(descending=True, stable=True).indices
    kept = order[:0]
    for block in order.split(BOXES_AT_ONCE):
        if len(kept):
            block = block[~_overlap(boxes[kept], boxes[block], iou_threshold).any(0)]
        kept = torch.cat([kept, block[_unsuppressed(boxes[block], iou_threshold)]])
    return kept


def _unsuppressed(boxes: Tensor, iou_threshold: float) -> Tensor:
    """Which of the boxes (n, 4), best first, greedy suppression keeps, bool (n,).

    Repeats "kept unless a kept better box overlaps it" for all boxes at once. After k rounds the first k
    boxes are decided. So the only fixed point is the greedy result, and real boxes reach it in a few rounds.
    """
    suppresses = _overlap(boxes, boxes, iou_threshold).triu(1).float()
    kept = torch.ones(len(boxes), dtype=torch.bool, device=boxes.device)
    while True:
        again = kept.float() @ suppresses == 0
        if torch.equal(again, kept):
            return kept
        kept = again


def _overlap(one: Tensor, other: Tensor, iou_threshold: float) -> Tensor:
    """Whether boxes (n, 4) and (m, 4) have an intersection over union above the threshold, bool (n, m)."""
    one, other = (boxes if boxes.dtype == torch.float64 else boxes.float() for boxes in (one, other))
    low = torch.maximum(one[:, None, :2], other[None, :, :2])
    high = torch.minimum(one[:, None, 2:], other[None, :, 2:])
    shared = (high - low).clamp(min=0).prod(2)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(1) for boxes in (one, other)]
    return shared / (areas[0][:, None] + areas[1][None] - shared) > iou_threshold


def roi_align(
    input: Tensor,
    rois: Tensor,
    spatial_scale: float,
    pooled_height: int,
    pooled_width: int,
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    """(N, C, H, W) and (K, 5) regions as image number, x1, y1, x2, y2 -> (K, C, pooled_height, pooled_width).

    spatial_scale   cells of the map per unit of the regions
    sampling_ratio  samples along each side of a bin; 0 or less: as many as the bin is cells long
    aligned         a cell's centre lies half a cell from its corner; without it, regions are a cell at least

    Bilinear interpolation on a grid is a weighted mean over rows and one over columns. So a region needs two
    small matrix products, whose cost does not grow with the number of samples. Sampling the points one by one
    takes longer, above all backwards. Regions are taken `ROIS_AT_ONCE` at a time, sorted by their upper edge,
    and only the rows that they reach are read.
    """
    result = input.new_zeros(len(rois), input.shape[1], pooled_height, pooled_width)
    if not len(rois):
        return result + input.sum() * 0
    double = input.dtype == torch.float64
    features = input if double else input.float()
    regions = rois.detach().to(features.dtype)
    offset = 0.5 if aligned else 0.0
    corners = regions[:, 1:] * spatial_scale - offset
    sides = corners[:, 2:] - corners[:, :2]
    if not aligned:
        sides = sides.clamp(min=1)
    with torch.autocast(input.device.type, enabled=False):
        across = _bin_weights(corners[:, 0], sides[:, 0], pooled_width, sampling_ratio, input.shape[3])
        down = _bin_weights(corners[:, 1], sides[:, 1], pooled_height, sampling_ratio, input.shape[2])
        pooled, places = [], []
        for image in regions[:, 0].unique().tolist():
            of_image = torch.nonzero(regions[:, 0] == image)[:, 0]
            of_image = of_image[corners[of_image, 1].argsort()]
            rows_first = features[int(image)].transpose(0, 1).contiguous()
            for chosen in of_image.split(ROIS_AT_ONCE):
                pooled.append(_pool(rows_first, down[chosen], across[chosen]))
                places.append(chosen)
    back = torch.cat(places).argsort()
    return torch.cat(pooled)[back].to(input.dtype)


def _pool(rows_first: Tensor, down: Tensor, across: Tensor) -> Tensor:
    """A map (H, C, W) and weights (k, P, H), (k, Q, W) -> (k, C, P, Q)."""
    reached = torch.nonzero(down.flatten(0, 1).any(0))[:, 0]
    first, last = (int(reached[0]), int(reached[-1]) + 1) if len(reached) else (0, 1)
    rows = rows_first[first:last]
    count, height = down.shape[:2]
    by_row = down[..., first:last].flatten(0, 1) @ rows.flatten(1)
    by_row = by_row.view(count, height * rows.shape[1], rows.shape[2])
    both = torch.bmm(by_row, across.transpose(1, 2))
    return both.view(count, height, rows.shape[1], -1).transpose(1, 2)


def _bin_weights(start: Tensor, side: Tensor, bins: int, sampling_ratio: int, length: int) -> Tensor:
    """What each of `length` cells weighs in each bin along one axis, (k, bins, length).

    start, side  (k,) of the regions, in cells

    A sample up to one cell outside the map takes the border's value, and one further off is zero.
    """
    bin_side = side / bins
    if sampling_ratio > 0:
        samples = torch.full_like(bin_side, sampling_ratio)
    else:
        samples = bin_side.ceil().clamp(min=0)
    numbers = torch.arange(max(int(samples.max()), 1), device=start.device, dtype=start.dtype)
    within = (numbers + 0.5) * (bin_side / samples.clamp(min=1))[:, None]  # (k, most samples)
    edges = start[:, None] + torch.arange(bins, device=start.device) * bin_side[:, None]  # (k, bins)
    at = edges[:, :, None] + within[:, None, :]
    counts = (numbers < samples[:, None])[:, None] & (at >= -1) & (at <= length)
    share = counts / samples.clamp(min=1)[:, None, None]
    at = at.clamp(0, length - 1)
    low = at.floor()
    upper_share = at - low
    low = low.long()
    weights = at.new_zeros(*at.shape[:2], length)
    weights.scatter_add_(2, low, share * (1 - upper_share))
    return weights.scatter_add_(2, (low + 1).clamp(max=length - 1), share * upper_share)


def _register() -> None:
    """Give torchvision these implementations where its own cannot be loaded.

    torchvision asks `_has_ops` before it dispatches. Its module `ops.roi_align` imported that name; the
    package's attribute of the same name is the function, so the module comes from `sys.modules`.
    """
    global _library
    if _library is not None or not compat.compiled_operators_missing():
        return
    import torchvision.extension
    import torchvision.ops

    _library = torch.library.Library("torchvision", "FRAGMENT")
    _library.define(_ROI_ALIGN)
    for name, function in (("nms", nms), ("roi_align", roi_align)):
        _library.impl(name, function, "CompositeImplicitAutograd")
    for module in (torchvision.extension, sys.modules["torchvision.ops.roi_align"]):
        module._has_ops = lambda: True


_register()

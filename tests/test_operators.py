"""RoIAlign and NMS in plain torch: hand-computed cases, and brute force in float64 by the definition."""

import math

import pytest
import torch

from replicate import compat
from replicate.transfer import operators

from torchvision.ops import MultiScaleRoIAlign, batched_nms, nms, roi_align  # isort: skip  (after compat)

RAMP = torch.arange(4.0)[None, None, :, None] * 10 + torch.arange(4.0)  # value 10 y + x


def region(*corners):
    return torch.tensor([[0.0, *corners]])


def sample(plane, y, x):
    """Bilinear in a plane of Python numbers: the border's value up to a cell outside, zero beyond."""
    height, width = plane.shape
    if not (-1 <= y <= height and -1 <= x <= width):
        return 0.0
    y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
    top, left = int(y), int(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    dy, dx = y - top, x - left
    upper = plane[top, left] * (1 - dx) + plane[top, right] * dx
    lower = plane[bottom, left] * (1 - dx) + plane[bottom, right] * dx
    return float(upper * (1 - dy) + lower * dy)


def by_definition(features, rois, scale, size, ratio, aligned):
    """Mask R-CNN, section 3: each bin is the mean of its samples."""
    result = torch.zeros(len(rois), features.shape[1], *size, dtype=torch.float64)
    for k, roi in enumerate(rois):
        x1, y1, x2, y2 = (float(value) * scale - 0.5 * aligned for value in roi[1:])
        width, height = x2 - x1, y2 - y1
        if not aligned:
            width, height = max(width, 1.0), max(height, 1.0)
        bin_height, bin_width = height / size[0], width / size[1]
        rows, columns = (ratio or math.ceil(side) for side in (bin_height, bin_width))
        for c in range(features.shape[1]):
            plane = features[int(roi[0]), c]
            for i in range(size[0]):
                for j in range(size[1]):
                    values = [
                        sample(
                            plane,
                            y1 + (i + (a + 0.5) / rows) * bin_height,
                            x1 + (j + (b + 0.5) / columns) * bin_width,
                        )
                        for a in range(rows)
                        for b in range(columns)
                    ]
                    result[k, c, i, j] = sum(values) / max(len(values), 1)
    return result


def test_aligned_regions_on_a_ramp_give_the_values_at_bin_centres():
    # Cell (y, x) covers y..y+1, so the region 1..3 has bins of one cell, centred on cells 1 and 2.
    pooled = operators.roi_align(RAMP, region(1, 1, 3, 3), 1.0, 2, 2, 0, True)
    assert pooled[0, 0].tolist() == [[11, 12], [21, 22]]


def test_unaligned_regions_take_corners_for_centres():
    pooled = operators.roi_align(RAMP, region(1, 1, 3, 3), 1.0, 2, 2, 0, False)
    assert pooled[0, 0].tolist() == [[16.5, 17.5], [26.5, 27.5]]


def test_unaligned_regions_are_a_cell_at_least():
    pooled = operators.roi_align(RAMP, region(1, 1, 1.2, 1.2), 1.0, 1, 1, 1, False)
    assert pooled.item() == pytest.approx(16.5)


def test_adaptive_samples_weigh_every_cell_of_a_bin_alike():
    features = torch.zeros(1, 1, 4, 4)
    features[0, 0, 0, 3] = 16.0
    pooled = operators.roi_align(features, region(0, 0, 4, 4), 1.0, 1, 1, 0, True)
    assert pooled.item() == pytest.approx(1.0)


def test_samples_outside_the_map_are_the_border_within_a_cell_and_then_zero():
    ones = torch.ones(1, 1, 4, 4)
    near = operators.roi_align(ones, region(-0.4, -0.4, 0.4, 0.4), 1.0, 1, 1, 1, True)
    far = operators.roi_align(ones, region(-6, 0, -4, 2), 1.0, 1, 1, 1, True)
    assert near.item() == 1.0 and far.item() == 0.0


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("ratio", [0, 1, 3])
def test_regions_of_every_kind_equal_the_definition_in_float64(aligned, ratio):
    generator = torch.Generator().manual_seed(7)
    features = torch.randn(2, 2, 7, 9, generator=generator, dtype=torch.float64)
    corners = torch.rand(12, 2, generator=generator, dtype=torch.float64) * 40 - 8
    sides = torch.rand(12, 2, generator=generator, dtype=torch.float64) * 30
    images = torch.tensor([0.0, 1.0]).double().repeat(6)[:, None]
    rois = torch.cat([images, corners, corners + sides], 1)
    found = operators.roi_align(features, rois, 0.25, 3, 2, ratio, aligned)
    expected = by_definition(features, rois, 0.25, (3, 2), ratio, aligned)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_gradients_of_the_features_are_those_of_finite_differences(monkeypatch):
    monkeypatch.setattr(operators, "ROIS_AT_ONCE", 2)
    features = torch.randn(2, 1, 4, 5, dtype=torch.float64, requires_grad=True)
    rois = torch.tensor([[0, 0, 0, 9, 7], [1, 3, 2, 8, 8], [0, 2, 2, 5, 4]], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda f: operators.roi_align(f, rois, 0.5, 2, 2, 0, True), features)


def test_chunks_and_their_order_change_nothing(monkeypatch):
    features = torch.randn(2, 3, 8, 8)
    rois = torch.tensor([[i % 2, i, 20 - i, i + 9, 30 - i] for i in range(10)], dtype=torch.float32)
    whole = operators.roi_align(features, rois, 0.25, 2, 2, 0, True)
    monkeypatch.setattr(operators, "ROIS_AT_ONCE", 3)
    torch.testing.assert_close(operators.roi_align(features, rois, 0.25, 2, 2, 0, True), whole)


def test_no_regions_give_an_empty_result_that_has_a_gradient():
    features = torch.randn(1, 3, 4, 4, requires_grad=True)
    pooled = operators.roi_align(features, torch.zeros(0, 5), 0.5, 2, 2, 0, True)
    pooled.sum().backward()
    assert pooled.shape == (0, 3, 2, 2) and features.grad.abs().sum() == 0


def test_half_precision_pools_in_single_precision():
    features, rois = torch.randn(1, 2, 8, 8).bfloat16(), region(1, 1, 7, 7)
    half = operators.roi_align(features, rois.bfloat16(), 1.0, 2, 2, 0, True)
    single = operators.roi_align(features.float(), rois, 1.0, 2, 2, 0, True)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half, single.bfloat16())


def greedy(boxes, scores, threshold):
    kept = []
    for number in sorted(range(len(boxes)), key=lambda n: (-float(scores[n]), n)):
        x1, y1, x2, y2 = boxes[number].tolist()
        suppressed = False
        for other in kept:
            a1, b1, a2, b2 = boxes[other].tolist()
            shared = max(min(x2, a2) - max(x1, a1), 0) * max(min(y2, b2) - max(y1, b1), 0)
            union = (x2 - x1) * (y2 - y1) + (a2 - a1) * (b2 - b1) - shared
            suppressed |= union > 0 and shared / union > threshold
        if not suppressed:
            kept.append(number)
    return kept


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 0.7, 1.0])
def test_nms_is_greedy_suppression(threshold, monkeypatch):
    monkeypatch.setattr(operators, "BOXES_AT_ONCE", 16)
    generator = torch.Generator().manual_seed(3)
    corners = torch.rand(80, 2, generator=generator, dtype=torch.float64) * 20
    boxes = torch.cat([corners, corners + torch.rand(80, 2, generator=generator) * 12], 1)
    scores = (torch.rand(80, generator=generator) * 20).round()  # with ties
    assert operators.nms(boxes, scores, threshold).tolist() == greedy(boxes, scores, threshold)


def test_nms_follows_a_chain_of_suppression():
    # 0 removes 1, so 1 cannot remove 2; 2 removes 3.
    boxes = torch.tensor([[0.0, 0, 10, 10], [4, 0, 14, 10], [8, 0, 18, 10], [12, 0, 22, 10]])
    assert operators.nms(boxes, torch.tensor([4.0, 3, 2, 1]), 0.4).tolist() == [0, 2]


def test_an_overlap_equal_to_the_threshold_is_kept():
    boxes = torch.tensor([[0.0, 0, 2, 1], [0, 0, 1, 1]])
    assert operators.nms(boxes, torch.tensor([2.0, 1.0]), 0.5).tolist() == [0, 1]


def test_boxes_without_area_and_no_boxes_at_all():
    boxes = torch.tensor([[1.0, 1, 1, 1], [1, 1, 1, 1]])
    assert operators.nms(boxes, torch.tensor([1.0, 2.0]), 0.5).tolist() == [1, 0]
    assert operators.nms(boxes[:0], torch.zeros(0), 0.5).tolist() == []


def test_torchvisions_functions_work_in_this_environment():
    boxes = torch.tensor([[0.0, 0, 2, 2], [0, 0, 2, 2], [5, 5, 6, 6]])
    assert nms(boxes, torch.tensor([1.0, 2, 3]), 0.5).tolist() == [2, 1]
    assert batched_nms(boxes, torch.tensor([1.0, 2, 3]), torch.tensor([0, 1, 0]), 0.5).tolist() == [2, 1, 0]
    assert roi_align(RAMP, region(1, 1, 3, 3), 2, 1.0, 0, True)[0, 0].tolist() == [[11, 12], [21, 22]]
    pooler = MultiScaleRoIAlign(["0"], 2, 2)
    assert pooler({"0": RAMP}, [boxes[:, :4]], [(4, 4)]).shape == (3, 1, 2, 2)


@pytest.mark.skipif(
    compat.compiled_operators_missing(), reason="torchvision's compiled operators do not load"
)
def test_plain_and_compiled_operators_are_equal():
    features = torch.randn(2, 3, 16, 12)
    corners = torch.rand(20, 2) * 40 - 6
    rois = torch.cat([torch.arange(20)[:, None] % 2, corners, corners + torch.rand(20, 2) * 50], 1)
    for aligned in (True, False):
        for ratio in (0, 2):
            arguments = (features, rois, 0.25, 7, 7, ratio, aligned)
            compiled = torch.ops.torchvision.roi_align(*arguments)
            torch.testing.assert_close(operators.roi_align(*arguments), compiled, rtol=1e-4, atol=1e-5)
    boxes, scores = torch.cat([corners, corners + torch.rand(20, 2) * 50], 1), torch.rand(20)
    compiled = torch.ops.torchvision.nms(boxes, scores, 0.4)
    assert operators.nms(boxes, scores, 0.4).tolist() == compiled.tolist()

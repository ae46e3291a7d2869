"""Large-scale jitter, copy-paste, masks within boxes, and average precision against pycocotools."""

import contextlib
import io
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from replicate.errors import UserError
from replicate.loaders.decode import decode_image
from replicate.transfer.coco import CocoImages, Objects
from replicate.transfer.crops import PADDING
from replicate.transfer.jitter import Sample, boxes_around, jitter, paste
from replicate.transfer.masks import draw, run_lengths
from replicate.transfer.precision import average_precision
from replicate.transfer.scenes import Settings, draw_scene, write_scenes

pytest.importorskip("pycocotools")
pytest.importorskip("faster_coco_eval")

SETTINGS = Settings(2, 6, image_size=64, objects=(3, 6))


def settings(**changes):
    return SimpleNamespace(**{"image_size": 40, "jitter": (0.1, 2.0)} | changes)


def picture():
    """20 x 30 pixels: a red block of 10 x 8 from (row 4, column 6) on black."""
    pixels, mask = np.zeros((20, 30, 3), np.uint8), np.zeros((1, 20, 30), bool)
    mask[0, 4:14, 6:14] = True
    pixels[mask[0]] = (255, 0, 0)
    return pixels, Objects(np.array([3]), mask)


class Chosen:
    """A generator whose `uniform` gives `scale`, `random` gives `flip`, and `integers` the last place."""

    def __init__(self, scale, flip=1.0):
        self.scale, self.flip = scale, flip

    def uniform(self, low, high):
        return self.scale

    def random(self):
        return self.flip

    def integers(self, count):
        return count - 1


def test_scale_one_fits_the_longer_side_and_pads_right_and_below():
    sample = jitter(*picture(), settings(image_size=60), Chosen(1.0))
    assert sample.image.shape == (3, 60, 60) and sample.image.dtype == torch.uint8
    assert sample.target()["boxes"].tolist() == [[12, 8, 28, 28]]
    assert sample.image[:, 18, 20].tolist() == [255, 0, 0]
    assert sample.image[:, 45, 5].tolist() == list(PADDING)
    assert sample.labels.tolist() == [3]


def test_a_mirrored_sample_is_padded_on_the_same_side():
    sample = jitter(*picture(), settings(image_size=60), Chosen(0.5, flip=0.0))
    assert sample.target()["boxes"].tolist() == [[16, 4, 24, 14]]  # 30 columns wide: 30 - 14 .. 30 - 6
    assert sample.image[:, 5, 40].tolist() == list(PADDING)


def test_a_large_scale_crops_and_leaves_out_what_falls_outside():
    # Four times as large, the lower right corner of 15 x 15 pixels fills the square; the block lies outside.
    sample = jitter(*picture(), settings(image_size=60), Chosen(2.0))
    assert sample.image.shape == (3, 60, 60) and len(sample.labels) == 0
    assert sample.target()["boxes"].shape == (0, 4)


def test_the_same_generator_gives_the_same_sample_and_every_box_fits_its_mask():
    pixels, objects = picture()
    for seed in range(20):
        one, same = (jitter(pixels, objects, settings(), np.random.default_rng(seed)) for _ in "ab")
        assert torch.equal(one.image, same.image) and torch.equal(one.masks, same.masks)
        for (left, top, right, bottom), mask in zip(
            boxes_around(one.masks).int().tolist(), one.masks, strict=True
        ):
            assert mask[top:bottom, left:right].any() and mask.sum() == mask[top:bottom, left:right].sum()


def test_pasted_objects_hide_what_is_below_them():
    below, above = (torch.zeros(3, 4, 4, dtype=torch.uint8), torch.full((3, 4, 4), 9, dtype=torch.uint8))
    masks = torch.zeros(2, 4, 4, dtype=torch.bool)
    masks[0, :2], masks[1, 2] = True, True
    cover = torch.zeros(1, 4, 4, dtype=torch.bool)
    cover[0, 1:3] = True
    both = paste(
        Sample(below, torch.tensor([1, 2]), masks), Sample(above, torch.tensor([5]), cover), _Always()
    )
    assert both.labels.tolist() == [1, 5]  # the second was hidden entirely
    assert both.masks.sum((1, 2)).tolist() == [4, 8]
    assert both.image[0].tolist() == [[0] * 4, [9] * 4, [9] * 4, [0] * 4]


class _Always:
    def random(self, count):
        return np.zeros(count)


def test_drawing_gives_back_the_masks_that_torchvision_projects():
    from replicate.transfer import operators

    from torchvision.models.detection.roi_heads import project_masks_on_boxes  # isort: skip

    assert operators
    overlaps = []
    for index in range(6):
        scene = draw_scene(SETTINGS, "train", index)
        masks = torch.from_numpy(scene.masks)
        boxes = boxes_around(masks)
        projected = project_masks_on_boxes(masks.float(), boxes, torch.arange(len(masks)), 28)
        drawn = draw(projected, boxes, masks.shape[1:])
        overlaps += ((drawn & masks).sum((1, 2)) / (drawn | masks).sum((1, 2))).tolist()
    assert min(overlaps) > 0.95


def test_boxes_beyond_the_image_are_cut_off_and_empty_ones_draw_nothing():
    ones, boxes = torch.ones(3, 4, 4), torch.tensor([[-3.0, 2, 2, 9], [1, 1, 1, 1], [50, 50, 60, 60]])
    drawn = draw(ones, boxes, (5, 6))
    expected = torch.zeros(5, 6, dtype=torch.bool)
    expected[2:, :2] = True
    assert torch.equal(drawn[0], expected) and not drawn[1:].any()
    assert draw(ones[:0], boxes[:0], (5, 6)).shape == (0, 5, 6)


@pytest.fixture(scope="module")
def truth(tmp_path_factory):
    folder = write_scenes(tmp_path_factory.mktemp("scenes") / "set", SETTINGS)
    return CocoImages(folder / "val2017", folder / "annotations/instances_val2017.json")


def noisy(images, seed, share=0.8):
    """Detections that miss some objects, shift the others, and confuse some classes."""
    rng, found = np.random.default_rng(seed), []
    for number, record in enumerate(images.images):
        objects = images.objects(number)
        for label, mask in zip(objects.labels, objects.masks, strict=True):
            if rng.random() > share:
                continue
            moved = torch.from_numpy(np.roll(mask, rng.integers(-2, 3, 2), (0, 1)))[None]
            left, top, right, bottom = boxes_around(moved)[0].tolist()
            wrong = rng.random() < 0.2
            found.append(
                {
                    "image_id": record["id"],
                    "category_id": images.category_ids[(label + wrong) % images.num_classes - 1],
                    "score": float(rng.random()),
                    "bbox": [left, top, right - left, bottom - top],
                    "segmentation": run_lengths(moved)[0],
                }
            )
    return found


def by_pycocotools(content, found):
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    scores = {}
    with contextlib.redirect_stdout(io.StringIO()):
        reference = COCO()
        reference.dataset = json.loads(json.dumps(content))
        reference.createIndex()
        for kind, name in (("bbox", "box"), ("segm", "mask")):
            detections = reference.loadRes(json.loads(json.dumps(found)))
            evaluation = COCOeval(reference, detections, kind)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
            for key, value in zip(("ap", "ap50", "ap75"), evaluation.stats, strict=False):
                scores[f"{key}_{name}"] = 100 * value
    return scores


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_average_precision_equals_pycocotools(truth, seed):
    found = noisy(truth, seed)
    content = truth.content
    if seed == 2:  # a crowd region, which hides false positives
        crowd = content["annotations"][0] | {"iscrowd": 1}
        content = content | {"annotations": [crowd, *content["annotations"][1:]]}
    ours, theirs = average_precision(content, found), by_pycocotools(content, found)
    assert ours.keys() == theirs.keys()
    assert [ours[key] for key in ours] == pytest.approx([theirs[key] for key in ours], abs=1e-6)
    assert 1 < ours["ap_mask"] < 99


def test_perfect_detections_score_a_hundred_and_none_score_zero(truth):
    perfect = []
    for number, record in enumerate(truth.images):
        objects = truth.objects(number)
        masks = torch.from_numpy(objects.masks)
        for label, box, mask in zip(objects.labels, boxes_around(masks), run_lengths(masks), strict=True):
            left, top, right, bottom = box.tolist()
            entry = {"image_id": record["id"], "category_id": truth.category_ids[label - 1], "score": 0.9}
            perfect.append(entry | {"bbox": [left, top, right - left, bottom - top], "segmentation": mask})
    assert list(average_precision(truth.content, perfect).values()) == pytest.approx([100] * 6)
    assert set(average_precision(truth.content, []).values()) == {0.0}


def test_annotations_without_area_are_scored_and_nothing_to_find_is_named(truth):
    bare = [
        {k: v for k, v in n.items() if k not in ("area", "iscrowd")} for n in truth.content["annotations"]
    ]
    content = truth.content | {"annotations": bare}
    assert average_precision(content, noisy(truth, 0)) == average_precision(truth.content, noisy(truth, 0))
    with pytest.raises(UserError, match="no object"):
        average_precision(truth.content | {"annotations": []}, [])


def test_the_pictures_of_a_written_set_are_read(truth):
    record = truth.images[0]
    stored = (truth.folder / record["file_name"]).read_bytes()
    assert np.array_equal(truth.pixels(0), decode_image(stored, "x"))
    scene = draw_scene(SETTINGS, "val", 0)
    assert np.array_equal(truth.objects(0).masks, scene.masks)
    assert (truth.objects(0).labels == scene.labels + 1).all()


# Average precision on what COCO's files hold and scenes do not


SIDE, CLASSES, CROWDED = 160, 4, 150
EDGES = (32, 96)
"""Sides of squares whose areas are the limits of COCO's small, medium and large objects."""


def placed(rng, side=None):
    """A box left, top, width, height within the image, and a mask: the box with a corner cut off."""
    width, height = (side, side) if side else rng.integers(4, 120, 2)
    left, top = rng.integers(0, SIDE - width + 1), rng.integers(0, SIDE - height + 1)
    mask = np.zeros((SIDE, SIDE), bool)
    mask[top : top + height, left : left + width] = True
    if not side:
        mask[top : top + height // 3, left : left + width // 3] = False
    return [float(left), float(top), float(width), float(height)], mask


def moved(rng, mask):
    """The mask shifted by up to four pixels, perhaps not at all, and the box around it."""
    shifted = np.roll(mask, rng.integers(-4, 5, 2) * (rng.random() < 0.8), (0, 1))
    rows, columns = np.flatnonzero(shifted.any(1)), np.flatnonzero(shifted.any(0))
    size = [columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1]
    return [float(columns[0]), float(rows[0]), *map(float, size)], shifted


def coco_like(seed, images=40):
    """(truth, detections): crowds, ties, areas at the limits, images without objects, and over 100 finds."""
    rng, notes, found = np.random.default_rng(seed), [], []
    for image in range(1, images + 1):
        objects = 0 if image % 10 == 0 else CROWDED if image == 1 else rng.integers(1, 12)
        for number in range(objects):
            edge = EDGES[number % 2] if rng.random() < 0.3 else None
            box, mask = placed(rng, edge)
            label, crowd = int(rng.integers(1, CLASSES + 1)), int(rng.random() < 0.1)
            label = 1 if image == 1 else label  # one class has more than the 100 detections that count
            packed = run_lengths(torch.from_numpy(mask)[None])[0]
            area = float(mask.sum()) - (0.5 if edge and rng.random() < 0.5 else 0.0)
            note = {"id": len(notes) + 1, "image_id": image, "category_id": label, "iscrowd": crowd}
            notes.append(note | {"bbox": box, "area": area, "segmentation": packed})
            for _ in range(3 if crowd else int(rng.random() < 0.9) + int(rng.random() < 0.2)):
                near, shifted = moved(rng, mask)
                kind = label if rng.random() < 0.9 else int(rng.integers(1, CLASSES + 1))
                entry = {"image_id": image, "category_id": kind, "score": round(float(rng.random()), 1)}
                packed = run_lengths(torch.from_numpy(shifted)[None])[0]
                found.append(entry | {"bbox": near, "segmentation": packed})
    shapes = [{"id": k, "height": SIDE, "width": SIDE} for k in range(1, images + 1)]
    # the last class has detections and no object, as rare classes may in a part of the images
    classes = [{"id": k, "name": f"class {k}"} for k in range(1, CLASSES + 2)]
    found += [dict(found[k], category_id=CLASSES + 1) for k in range(0, len(found), 50)]
    return {"images": shapes, "annotations": notes, "categories": classes}, found


def twelve(truth, found, kind, library):
    """COCO's twelve numbers of boxes or masks by one of two libraries."""
    if library == "pycocotools":
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval as evaluator
    else:
        from faster_coco_eval import COCO
        from faster_coco_eval import COCOeval_faster as evaluator
    with contextlib.redirect_stdout(io.StringIO()):
        reference = COCO()
        reference.dataset = json.loads(json.dumps(truth))
        reference.createIndex()
        evaluation = evaluator(reference, reference.loadRes(json.loads(json.dumps(found))), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return [float(value) for value in evaluation.stats[:12]]


@pytest.mark.parametrize("seed", [0, 1])
def test_all_twelve_numbers_equal_pycocotools_on_crowds_ties_and_areas_at_the_limits(seed):
    truth, found = coco_like(seed)
    counts = np.bincount([entry["image_id"] for entry in found if entry["category_id"] == 1])
    assert counts.max() > 100 and sum(note["iscrowd"] for note in truth["annotations"]) > 10
    areas = {note["area"] for note in truth["annotations"]}
    assert {1024.0, 1023.5, 9216.0, 9215.5} <= areas, "both sides of the limits"
    without = {"bbox": "segmentation", "segm": "bbox"}
    for kind, name in (("bbox", "box"), ("segm", "mask")):
        alone = [{key: value for key, value in entry.items() if key != without[kind]} for entry in found]
        theirs = twelve(truth, alone, kind, "pycocotools")
        assert len(theirs) == 12 and all(0.02 < value < 0.98 for value in theirs), theirs
        assert twelve(truth, alone, kind, "faster-coco-eval") == pytest.approx(theirs, abs=1e-6)
        ours = average_precision(truth, found)
        assert [ours[f"{ap}_{name}"] / 100 for ap in ("ap", "ap50", "ap75")] == pytest.approx(
            theirs[:3], abs=1e-6
        )

"""Scenes: exact masks, overlaps, both layouts on disk, and nothing that depends on anything but the seed."""

import json

import numpy as np
import pytest
from PIL import Image

from replicate.errors import UserError
from replicate.transfer.scenes import Settings, draw_scene, run_lengths, write_scenes

SETTINGS = Settings(train_images=3, val_images=2, image_size=64, objects=(3, 6), seed=4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_scenes(tmp_path_factory.mktemp("scenes") / "set", SETTINGS)


def test_a_scene_is_a_function_of_seed_split_and_index():
    one, same = (draw_scene(SETTINGS, "train", 1) for _ in "ab")
    assert np.array_equal(one.image, same.image) and np.array_equal(one.masks, same.masks)
    for other in (draw_scene(SETTINGS, "train", 2), draw_scene(SETTINGS, "val", 1)):
        assert one.image.shape != other.image.shape or not np.array_equal(one.image, other.image)


def test_sizes_run_from_tiny_to_large_and_objects_cover_one_another():
    scenes = [draw_scene(SETTINGS, "train", index) for index in range(40)]
    sides = np.concatenate([scene.masks.sum((1, 2)) ** 0.5 for scene in scenes]) / 64
    assert sides.min() < 0.1 and sides.max() > 0.4
    assert all(scene.masks.sum(0).max(initial=0) <= 1 for scene in scenes)
    assert {int(label) for scene in scenes for label in scene.labels} == set(range(6))


def test_a_larger_scene_shows_the_same_objects():
    large = Settings(3, 2, image_size=192, objects=(3, 6), seed=4)
    small_mask, large_mask = (draw_scene(settings, "val", 0).index_mask() for settings in (SETTINGS, large))
    shrunk = large_mask[1::3, 1::3]
    assert (shrunk == small_mask).mean() > 0.95


def test_index_masks_hold_the_ground_and_every_instance():
    scene = draw_scene(SETTINGS, "train", 0)
    classes = scene.index_mask()
    for mask, label in zip(scene.masks, scene.labels, strict=True):
        assert set(classes[mask]) == {label + 2}
    assert set(classes[~scene.masks.any(0)]) == {1}


def test_both_layouts_hold_the_same_scenes(folder):
    coco_mask = pytest.importorskip("pycocotools.mask")
    content = json.loads((folder / "annotations/instances_val2017.json").read_text())
    labels = {number: label for label, number in enumerate(SETTINGS.category_ids)}
    for image in content["images"]:
        stem = image["file_name"].removesuffix(".jpg")
        classes = np.asarray(Image.open(folder / f"annotations/validation/{stem}.png"))
        first, second = folder / f"val2017/{stem}.jpg", folder / f"images/validation/{stem}.jpg"
        assert first.read_bytes() == second.read_bytes()
        assert Image.open(first).size == (image["width"], image["height"])
        seen = np.ones_like(classes)
        for note in (n for n in content["annotations"] if n["image_id"] == image["id"]):
            rle = coco_mask.frPyObjects(note["segmentation"], image["height"], image["width"])
            mask = coco_mask.decode(rle).astype(bool)
            seen[mask] = labels[note["category_id"]] + 2
            assert note["area"] == coco_mask.area(rle) and note["bbox"] == coco_mask.toBbox(rle).tolist()
        assert np.array_equal(seen, classes)


def test_run_lengths_start_with_zeros():
    assert run_lengths(np.array([[True, False], [True, True]])) == [0, 2, 1, 1]
    assert run_lengths(np.array([[False, False], [False, True]])) == [3, 1]


def test_a_finished_set_stays_and_another_is_refused(folder):
    before = (folder / "scenes.json").stat().st_mtime_ns
    write_scenes(folder, SETTINGS)
    assert (folder / "scenes.json").stat().st_mtime_ns == before
    with pytest.raises(UserError, match="other settings"):
        write_scenes(folder, Settings(3, 2, image_size=64, seed=5))


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"num_classes": 13}, "num_classes"),
        ({"image_size": 8}, "image_size"),
        ({"objects": (4, 2)}, "objects"),
        ({"sides": (0.0, 0.5)}, "sides"),
        ({"train_images": 0}, "train_images"),
    ],
)
def test_settings_that_do_not_fit_are_named(wrong, named):
    with pytest.raises(UserError, match=named):
        Settings(**{"train_images": 1, "val_images": 1} | wrong)

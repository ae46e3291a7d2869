"""COCO files as they ship: crowds, gaps in ids, polygons, run lengths; one clear line for what is wrong."""

import json

import numpy as np
import pytest
from PIL import Image

from replicate.errors import UserError
from replicate.transfer.coco import CocoImages

pytest.importorskip("pycocotools")

SQUARE = [[1, 1, 5, 1, 5, 3, 1, 3]]  # 4 x 2 pixels from (1, 1)


def note(number, image=7, category=3, **changes):
    stated = {"id": number, "image_id": image, "category_id": category, "bbox": [1, 1, 4, 2]}
    return stated | {"area": 8, "iscrowd": 0, "segmentation": SQUARE} | changes


def content(*notes, images=None):
    images = images or [{"id": 7, "file_name": "a.png", "height": 6, "width": 8}]
    categories = [{"id": 90, "name": "last"}, {"id": 3, "name": "first"}]
    return {"images": images, "annotations": list(notes), "categories": categories}


def opened(folder, stated, empty="keep"):
    (folder / "images").mkdir(exist_ok=True)
    Image.fromarray(np.arange(144, dtype=np.uint8).reshape(6, 8, 3)).save(folder / "images/a.png")
    path = folder / "annotations.json"
    path.write_text(stated if isinstance(stated, str) else json.dumps(stated))
    return CocoImages(folder / "images", path, empty)


def square_mask():
    mask = np.zeros((6, 8), bool)
    mask[1:3, 1:5] = True
    return mask


def test_labels_follow_the_order_of_ids_that_have_gaps(tmp_path):
    images = opened(tmp_path, content(note(1), note(2, category=90)))
    assert images.class_names == ["first", "last"] and images.category_ids == [3, 90]
    assert images.objects(0).labels.tolist() == [1, 2]


def test_polygons_and_both_kinds_of_run_lengths_give_the_same_mask(tmp_path):
    from pycocotools import mask as coco

    counts = [7, 2, 4, 2, 4, 2, 4, 2, 21]
    packed = coco.encode(np.asfortranarray(square_mask().astype(np.uint8)))["counts"].decode()
    kinds = [SQUARE, {"size": [6, 8], "counts": counts}, {"size": [6, 8], "counts": packed}]
    images = opened(tmp_path, content(*(note(n, segmentation=kind) for n, kind in enumerate(kinds))))
    assert [np.array_equal(mask, square_mask()) for mask in images.objects(0).masks] == [True] * 3


def test_an_object_of_several_polygons_is_their_union(tmp_path):
    other = [6, 4, 8, 4, 8, 6, 6, 6]
    mask = opened(tmp_path, content(note(1, segmentation=[*SQUARE, other]))).objects(0).masks[0]
    expected = square_mask()
    expected[4:6, 6:8] = True
    assert np.array_equal(mask, expected)


def test_crowds_are_no_objects(tmp_path):
    crowd = note(2, iscrowd=1, segmentation={"size": [6, 8], "counts": [0, 48]})
    images = opened(tmp_path, content(note(1), crowd))
    assert len(images.objects(0).labels) == 1 and len(images.content["annotations"]) == 2


def test_lines_and_boxes_without_area_are_no_objects(tmp_path):
    line, flat = note(1, segmentation=[[1, 1, 5, 1]]), note(2, bbox=[1, 1, 0, 2])
    assert len(opened(tmp_path, content(line, flat)).objects(0).labels) == 0


def test_images_without_an_object_are_kept_or_dropped(tmp_path):
    both = [{"id": n, "file_name": "a.png", "height": 6, "width": 8} for n in (7, 2)]
    kept = opened(tmp_path, content(note(1), images=both))
    assert [record["id"] for record in kept.images] == [2, 7]
    assert kept.objects(0).masks.shape == (0, 6, 8)
    assert [r["id"] for r in opened(tmp_path, content(note(1), images=both), "drop").images] == [7]
    with pytest.raises(UserError, match="no image has an object"):
        opened(tmp_path, content(), "drop")


@pytest.mark.parametrize(
    ("stated", "named"),
    [
        (content(note(1, image=8)), "annotation 1 is of image 8"),
        (content(note(1, category=4)), "annotation 1 has category 4"),
        (content(note(5, segmentation=[])), "annotation 5 has no segmentation"),
        ({"images": [], "annotations": []}, "'categories' is missing"),
        ({**content(), "images": [{"id": 1}]}, "'file_name' is missing in an entry of 'images'"),
        ("{", "no readable JSON"),
        ("[]", "no COCO annotations"),
    ],
)
def test_what_is_wrong_is_named_with_its_file(tmp_path, stated, named):
    with pytest.raises(UserError, match=named) as error:
        opened(tmp_path, stated)
    assert "annotations.json" in str(error.value)


@pytest.mark.parametrize("counts", [[48], [0, 47]])
def test_run_lengths_of_another_size_are_refused(tmp_path, counts):
    size = [8, 6] if counts == [48] else [6, 8]
    images = opened(tmp_path, content(note(1, segmentation={"size": size, "counts": counts})))
    with pytest.raises(UserError, match="annotation 1 has run lengths that do not fit its image of 8x6"):
        images.objects(0)


def test_a_size_that_the_image_does_not_have_is_named(tmp_path):
    wrong = [{"id": 7, "file_name": "a.png", "height": 8, "width": 6}]
    images = opened(tmp_path, content(note(1), images=wrong))
    with pytest.raises(UserError, match=r"image 7 .*a\.png.* 6x8 pixels, but it has 8x6"):
        images.pixels(0)


def test_missing_files_are_named(tmp_path):
    gone = [{"id": 7, "file_name": "b.png", "height": 6, "width": 8}]
    with pytest.raises(UserError, match=r"b\.png: cannot be read"):
        opened(tmp_path, content(note(1), images=gone)).pixels(0)
    with pytest.raises(UserError, match="no such folder of images"):
        CocoImages(tmp_path / "nowhere", tmp_path / "annotations.json")
    with pytest.raises(UserError, match="none.json: cannot be read"):
        CocoImages(tmp_path, tmp_path / "none.json")

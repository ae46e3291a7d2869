"""Segmentation: reading masks, crops, the sliding test, scores by hand, and the loop that trains it."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from replicate.config import Dataset, PretrainRun, SegmentRun
from replicate.errors import UserError
from replicate.loaders.manifest import Manifest
from replicate.trainers.checkpoints import Checkpoints
from replicate.trainers.session import Session
from replicate.transfer import ade, crops, data, train
from replicate.transfer.dense_probe import fit_linear, patch_classes
from replicate.transfer.overlap import Overlap
from replicate.transfer.schedule import learning_rate
from replicate.transfer.segmentation import (
    SegmentTask,
    TrainCrops,
    build_model,
    cross_entropy,
    predict,
    slide,
    window_places,
)

SESSION = Session(torch.device("cpu"), torch.float32, workers=1)
STATED = {"paper": "mae", "dataset": "ade20k", "pretrain": "x", "batch_size": 4, "base_lr": 1e-3}
STATED |= {"weight_decay": 0.05, "betas": (0.9, 0.999), "iterations": 6, "decay": "linear"}
SMALL = {"image_size": 32, "stride": 21, "taps": (0, 0, 1, 1), "head_width": 16, "auxiliary_width": 8}


def run_of(**changed) -> SegmentRun:
    """Built without the check that taps rise, as the lens of a shallow encoder makes it."""
    made = SegmentRun(**STATED)
    return made.model_copy(update=SMALL | changed)


def source() -> PretrainRun:
    kwargs = {"patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 1}
    common = {"weight_decay": 0.0, "betas": (0.9, 0.95), "crop_scale": (0.2, 1.0), "mask_ratio": 0.75}
    common |= {"epochs": 1, "warmup_epochs": 0.0, "batch_size": 4, "base_lr": 1e-3}
    return PretrainRun(
        paper="mae", backbone="vit", backbone_kwargs=kwargs, decoder_depth=1, decoder_width=8, **common
    )


def save(path, pixels) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def write_ade(folder, count=5, size=(40, 56), classes=3, seed=0):
    """Two halves of two classes; each image has the colours of its classes."""
    rng = np.random.default_rng(seed)
    for number in range(count):
        mask = np.zeros(size, np.uint8)
        left, right = rng.permutation(classes)[:2] + 1
        mask[:, : size[1] // 2], mask[:, size[1] // 2 :] = left, right
        mask[0] = 0
        image = np.stack([mask * 60, 255 - mask * 60, mask * 20], -1).astype(np.uint8)
        for split in ("training", "validation"):
            save(folder / "images" / split / f"{number}.jpg", image)
            save(folder / "annotations" / split / f"{number}.png", mask)
    return folder


# Masks


def test_zero_is_unlabelled_and_classes_count_from_zero(tmp_path):
    found = ade.open_ade(write_ade(tmp_path), "train")
    image, mask = found.pair(0)
    assert image.shape == (40, 56, 3) and len(found) == 5
    assert (mask[0] == ade.IGNORED).all() and set(np.unique(mask[1:])) <= {0, 1, 2}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "annotations/training/1.png").unlink(), r"1\.png: missing"),
        (lambda f: (f / "images/training/1.jpg").write_bytes(b"no image"), r"1\.jpg: cannot be read"),
        (lambda f: save(f / "annotations/training/1.png", np.zeros((9, 9), np.uint8)), r"1\.png: 9 x 9"),
        (lambda f: save(f / "annotations/training/1.png", np.zeros((40, 56, 3), np.uint8)), "mode RGB"),
        (lambda f: [p.unlink() for p in (f / "images/training").iterdir()], "holds no image"),
    ],
)
def test_bad_input_gets_one_error_that_names_the_file(tmp_path, damage, message):
    folder = write_ade(tmp_path)
    damage(folder)
    with pytest.raises(UserError, match=message):
        ade.open_ade(folder, "train").pair(1)


def test_names_of_ade20ks_list_and_too_few_of_them(tmp_path):
    assert ade.class_names(tmp_path, 1) == ["class 1", "class 2"]
    (tmp_path / ade.NAMES_FILE).write_text("Idx\tName\n1\t0.1\twall, partition\n2\t0.1\tsky\n")
    assert ade.class_names(tmp_path, 1) == ["wall", "sky"]
    with pytest.raises(UserError, match="names 2 classes"):
        ade.class_names(tmp_path, 2)


def test_cocos_panoptic_masks(tmp_path):
    ids = np.array([[0, 7], [7, 300]])
    save(tmp_path / "images" / "a.jpg", np.zeros((2, 2, 3), np.uint8))
    save(tmp_path / "masks" / "a.png", np.stack([ids % 256, ids // 256, 0 * ids], -1).astype(np.uint8))
    segments = [{"id": 7, "category_id": 9}, {"id": 300, "category_id": 2}]
    content = {
        "categories": [{"id": 2, "name": "cat"}, {"id": 9, "name": "sky"}],
        "annotations": [{"file_name": "a.png", "segments_info": segments}],
    }
    path = tmp_path / "panoptic.json"
    path.write_text(json.dumps(content))
    found, names = ade.open_panoptic(tmp_path / "images", tmp_path / "masks", path)
    assert names == ["cat", "sky"]
    assert found.mask(0).tolist() == [[255, 1], [1, 0]]
    content["annotations"][0]["segments_info"] = segments[:1]
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"a\.png: has segment 300"):
        ade.open_panoptic(tmp_path / "images", tmp_path / "masks", path)[0].mask(0)
    path.write_text("{}")
    with pytest.raises(UserError, match=r"panoptic\.json: not COCO's panoptic JSON"):
        ade.open_panoptic(tmp_path / "images", tmp_path / "masks", path)


def test_a_folder_of_ones_own_is_recorded_where_it_lies(tmp_path):
    folder, out = write_ade(tmp_path / "mine"), tmp_path / "out"
    stated = Dataset(source=str(folder), layout="ade20k")
    made = data.write(stated, out)
    assert made.class_names == ["class 1", "class 2", "class 3"]
    assert [record["images"] for record in made.splits.values()] == [5, 5]
    assert [path.name for path in out.iterdir()] == ["manifest.json"]
    found = data.masked_images(Manifest.read(out / "manifest.json"), "val")
    assert len(found) == 5 and found.images[0].is_relative_to(folder)
    made.refuse_other(out, stated)
    with pytest.raises(UserError, match="was written with source"):
        made.refuse_other(out, stated.model_copy(update={"source": "elsewhere"}))
    with pytest.raises(UserError, match="'nowhere': no such folder"):
        data.write(Dataset(source="nowhere", layout="ade20k"), out)


# Crops


def test_a_crop_avoids_one_class_where_it_can():
    striped = np.tile(np.repeat([0, 1], 8).astype(np.uint8), (64, 4))
    shares = []
    for seed in range(20):
        rows, columns = crops.crop_box(striped, 12, 0.75, np.random.default_rng(seed))
        shares.append(np.bincount(striped[rows, columns].ravel()).max() / 144)
    assert max(shares) < 0.75


def test_crop_image_and_mask_stay_together_and_padding_is_ignored():
    rng = np.random.default_rng(0)
    mask = rng.integers(0, 2, (20, 30)).repeat(2, 0).repeat(2, 1).astype(np.uint8)
    image = np.repeat(mask[..., None] * 200, 3, 2).astype(np.uint8)
    for seed in range(8):
        drawn = np.random.default_rng(seed)
        cut, classes = crops.training_crop(image, mask, 48, (0.5, 2.0), 0.75, drawn)
        assert cut.shape == (48, 48, 3) and classes.shape == (48, 48)
        inside = classes != ade.IGNORED
        bright, dark = cut[inside & (classes == 1)].mean(), cut[inside & (classes == 0)].mean()
        assert bright > dark + 30
        outside = cut[~inside]
        assert outside.size == 0 or (outside == np.array(crops.PADDING)).all()


def test_scale_keeps_the_ratio_and_caps_the_long_side():
    assert crops.scale_to((100, 200), 50, 200) == (50, 100)
    assert crops.scale_to((100, 1000), 50, 200) == (20, 200)


def test_a_crop_depends_on_its_generator_alone():
    image = np.random.default_rng(1).integers(0, 255, (50, 50, 3)).astype(np.uint8)
    mask = np.random.default_rng(2).integers(0, 3, (50, 50)).astype(np.uint8)
    first, again, other = (
        crops.training_crop(image, mask, 32, (0.5, 2.0), 0.75, np.random.default_rng(seed))
        for seed in (5, 5, 6)
    )
    assert (first[0] == again[0]).all() and (first[1] == again[1]).all()
    assert (first[0] != other[0]).any()


# Scores


def test_scores_of_a_case_by_hand():
    found = Overlap(4)
    truth = torch.tensor([[0, 0, 1, 1], [255, 2, 2, 2]])
    predicted = torch.tensor([[0, 1, 1, 1], [0, 2, 2, 0]])
    found.add(predicted, truth)
    scores = found.percent(SESSION)
    # Class 0: 1 of 3, class 1: 2 of 3, class 2: 2 of 3; class 3 occurs nowhere.
    assert scores["miou"] == pytest.approx(100 * (1 / 3 + 2 / 3 + 2 / 3) / 3)
    assert scores["macc"] == pytest.approx(100 * (1 / 2 + 2 / 2 + 2 / 3) / 3)
    assert scores["aacc"] == pytest.approx(100 * 5 / 7)


def test_a_class_that_is_only_predicted_counts_against_the_mean():
    found = Overlap(2)
    found.add(torch.tensor([0, 1]), torch.tensor([0, 0]))
    assert found.percent(SESSION) == {"miou": 25.0, "macc": 50.0, "aacc": 50.0}
    with pytest.raises(UserError, match="no pixel"):
        Overlap(2).percent(SESSION)


def test_the_loss_averages_over_all_pixels():
    scores = torch.zeros(1, 2, 2, 2)
    masks = torch.tensor([[[0, 1], [255, 255]]], dtype=torch.uint8)
    assert cross_entropy(scores, masks).item() == pytest.approx(np.log(2) / 2)


# The sliding test


def test_windows_cover_the_image_and_end_at_its_border():
    assert window_places(512, 683, 512, 341) == [(0, 0), (0, 171)]
    assert window_places(600, 512, 512, 341) == [(0, 0), (88, 0)]
    assert window_places(512, 1194, 512, 341) == [(0, 0), (0, 341), (0, 682)]


class Colours(torch.nn.Module):
    """Scores that are the pixels themselves: any stitching of windows must give the image back."""

    def forward(self, images):
        return images, None


def test_sliding_over_windows_equals_one_pass_of_a_pixelwise_model():
    for shape in ((40, 70), (32, 32), (20, 50)):
        image = np.random.default_rng(0).integers(0, 255, (*shape, 3)).astype(np.uint8)
        found = slide(Colours(), image, 32, 21, SESSION)
        from replicate.loaders.pixels import normalise

        torch.testing.assert_close(found, normalise(torch.from_numpy(image).permute(2, 0, 1)[None])[0])


def test_prediction_has_the_images_size_and_averages_scales():
    image = np.random.default_rng(0).integers(0, 255, (40, 70, 3)).astype(np.uint8)
    for scales in ((1.0,), (0.75, 1.25)):
        found = predict(Colours(), image, run_of(test_scales=scales), SESSION)
        assert found.shape == (3, 40, 70)
        torch.testing.assert_close(found.sum(0), torch.ones(40, 70))


# The loop


def test_rates_of_each_schedule():
    linear = run_of(iterations=100, warmup_iterations=10)
    rates = [learning_rate(linear, step, 100, 50) for step in (0, 5, 10, 50, 99)]
    assert rates == pytest.approx([0.0, 1e-3 * 0.5 * 0.95, 1e-3 * 0.9, 1e-3 * 0.5, 1e-3 * 0.01])
    steps = run_of(iterations=100, decay="step", steps=(0.6, 0.9))
    assert [learning_rate(steps, step, 100, 50) for step in (59, 60, 90)] == pytest.approx([1e-3, 1e-4, 1e-5])
    cosine = run_of(iterations=100, decay="cosine", min_lr=1e-4)
    assert learning_rate(cosine, 50, 100, 50) == pytest.approx(5.5e-4)
    epochs = run_of(iterations=None, epochs=10, warmup_epochs=0.5)
    assert epochs.total_steps(50) == 125 and epochs.warmup_steps(50) == 6.25


class Numbers:
    """Data whose items say what was asked for."""

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def item(self, index, rng):
        return torch.full((3, 2, 2), index, dtype=torch.uint8), {"drawn": torch.tensor(rng.random())}


def items(loader):
    found = []
    for number in range(loader.rounds):
        for batch in loader.epoch(number):
            found.append([(int(i[0, 0, 0]), float(t["drawn"])) for i, t in zip(*batch, strict=True)])
    return found


def test_batches_do_not_depend_on_rounds_or_processes():
    whole = items(train.DenseLoader(Numbers(5), 4, 7, 7, 3, SESSION))
    cut = items(train.DenseLoader(Numbers(5), 4, 7, 2, 3, SESSION))
    assert whole == cut and len(whole) == 7
    halves = [
        items(
            train.DenseLoader(
                Numbers(5), 4, 7, 2, 3, Session(torch.device("cpu"), torch.float32, rank=rank, world_size=2)
            )
        )
        for rank in range(2)
    ]
    assert [left + right for left, right in zip(*halves, strict=True)] == whole
    seen = [index for batch in whole for index, _ in batch]
    assert [sorted(seen[start : start + 5]) for start in (0, 5, 10, 15, 20)] == [list(range(5))] * 5
    assert items(train.DenseLoader(Numbers(5), 4, 7, 7, 4, SESSION)) != whole


def trained(folder, checkpoints, most_steps=None):
    """(weights, history, steps) of training on `folder`, killed after `most_steps`."""
    run = run_of()
    session = Session(torch.device("cpu"), torch.float32, workers=1, checkpoint_every=1)
    context = SimpleNamespace(run=run, session=session, name="x")
    torch.manual_seed(0)
    model = build_model(source(), run, 3)
    task, steps = SegmentTask(model, run), []
    forward = task.forward

    def counted(*arguments):
        if len(steps) == most_steps:
            raise KeyboardInterrupt
        steps.append(1)
        return forward(*arguments)

    task.forward = counted
    history = train.fit(context, 0, checkpoints, task, TrainCrops(ade.open_ade(folder, "train"), run))
    return model.state_dict(), history, len(steps)


def test_a_resumed_run_equals_an_unbroken_one_bit_for_bit(tmp_path):
    folder = write_ade(tmp_path / "ade")
    whole, history, steps = trained(folder, Checkpoints(tmp_path / "whole"))
    assert len(history) == steps == 6  # five images in batches of four: a round is one step
    with pytest.raises(KeyboardInterrupt):
        trained(folder, Checkpoints(tmp_path / "broken"), most_steps=4)
    broken, again, left = trained(folder, Checkpoints(tmp_path / "broken"))
    assert left == 2
    assert [row["loss"] for row in history] == [row["loss"] for row in again]
    assert all(torch.equal(whole[name], broken[name]) for name in whole)


def test_the_optimiser_holds_every_parameter_once():
    task = SegmentTask(build_model(source(), run_of(), 3), run_of(layer_decay=0.65))
    groups = task.parameter_groups()
    held = [id(parameter) for group in groups for parameter in group["params"]]
    assert len(held) == len(set(held)) == sum(p.requires_grad for p in task.parameters())
    scales = {round(group["lr_scale"], 6) for group in groups}
    assert scales == {1.0, 0.65, round(0.65**2, 6), round(0.65**3, 6)}


# The frozen probe


def test_a_patch_has_the_class_of_most_of_its_pixels():
    mask = np.array([[0, 0, 2, 2], [0, 1, 255, 2], [255, 255, 1, 1], [255, 255, 1, 1]], np.uint8)
    assert patch_classes(mask, (2, 2), 3).tolist() == [[0, 2], [255, 1]]


def test_the_linear_probe_separates_what_is_separable():
    torch.manual_seed(0)
    labels = torch.arange(90) % 3
    features = torch.nn.functional.one_hot(labels, 3).float() + 0.05 * torch.randn(90, 3)
    probe = fit_linear(features, labels, 3)
    assert (probe(features).argmax(1) == labels).all()


class WholeScenes(TrainCrops):
    """Scenes without augmentation: what a model can learn by heart."""

    def item(self, index, rng):
        size = self.run.image_size
        image, mask = (crops.padded(pixels, size) for pixels in self.images.pair(index))
        return torch.from_numpy(image).permute(2, 0, 1).contiguous(), {"mask": torch.from_numpy(mask)}


@pytest.mark.slow
def test_overfits_eight_scenes(tmp_path):
    """A small segmenter learns 8 pictures of `scenes` by heart, outlines and all."""
    from replicate.loaders.pixels import normalise
    from replicate.transfer.scenes import Settings, write_scenes

    folder = write_scenes(tmp_path, Settings(8, 1, image_size=48, objects=(1, 3), sides=(0.4, 0.7)))
    kwargs = {"patch_size": 8, "embed_dim": 64, "depth": 4, "num_heads": 2}
    run = run_of(image_size=48, taps=(0, 1, 2, 3), head_width=48, auxiliary=0.0, dropout=0.0)
    run = run.model_copy(
        update={"iterations": 300, "batch_size": 8, "warmup_iterations": 20, "base_lr": 1e-3}
    )
    torch.manual_seed(0)
    model = build_model(source().model_copy(update={"backbone_kwargs": kwargs}), run, 7)
    data = WholeScenes(ade.open_ade(folder, "train"), run)
    context = SimpleNamespace(run=run, session=SESSION, name="overfit")
    train.fit(context, 0, Checkpoints(tmp_path / "run"), SegmentTask(model, run), data)
    found = Overlap(7)
    with torch.no_grad():
        for index in range(8):
            image, target = data.item(index, None)
            found.add(model.eval()(normalise(image[None]))[0][0].argmax(0), target["mask"])
    assert found.percent(SESSION)["miou"] >= 95

"""Many unlabelled images, few labels: the subset for evaluations, the minival, and their budget keys."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from project import write_params

from replicate.config import Budget, Dataset, load
from replicate.config.lens import resolve_evaluate, resolve_pretrain
from replicate.cost import plan
from replicate.cost.data_size import DataSize
from replicate.errors import UserError
from replicate.loaders import Augmentation, crops, data, open_loader
from replicate.loaders.sources import open_folder
from replicate.pipeline import launch
from replicate.pipeline.seeds import train_seeds
from replicate.pipeline.store import store_of
from replicate.report.results import changed
from replicate.schedules.scoring import scored_epochs
from replicate.trainers import knn
from replicate.trainers.classify import ClassifyTask, _top1_at
from replicate.trainers.session import open_session

ROOT = Path(__file__).resolve().parents[1]
CLASSES = 12


@pytest.fixture(scope="module")
def params():
    return load(ROOT / "params.yaml")


def train(params, name, session):
    context = launch.context_of(params, name, session)
    train_seeds(context, launch.trainer_of(context.run))


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """A project of 120 images, 10 a class, with one pre-training; evaluations take 3 labels a class."""
    folder = tmp_path_factory.mktemp("few")
    path = write_params(
        folder,
        budget={"seeds": 2, "labels_per_class": 3, "max_batch": 8},
        data={"train_images": 120, "val_images": 24},
    )
    found = load(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        launch.write_dataset(found, "full")
        with open_session(found.machine, "float32", "beton") as session:
            train(found, "light_75", session)
    return folder, found


def test_the_subset_is_stratified_nested_and_drawn_by_its_own_seed():
    labels = np.random.default_rng(0).integers(0, 5, 200)
    ten, twenty, other = (
        crops.first_of_each_class(labels, count, seed=seed) for count, seed in ((10, 0), (20, 0), (10, 1))
    )
    assert Counter(labels[ten].tolist()) == dict.fromkeys(range(5), 10)
    assert set(ten) < set(twenty) and ten.tolist() != other.tolist()
    assert ten.tolist() == sorted(ten.tolist())
    assert crops.first_of_each_class(labels, 1000, seed=0).tolist() == list(range(200))
    for label in range(5):  # neither the first images of the class nor the last
        group = np.flatnonzero(labels == label)
        assert set(group[:10]) != set(ten) & set(group) != set(group[-10:])


@pytest.mark.parametrize("kind", ["beton", "folder", "ffcv"])
def test_a_loader_serves_the_subset_alone_and_the_same_pixels(few, kind):
    if kind == "ffcv":
        pytest.importorskip("ffcv")
    path = few[0] / "data/smoke/full/train.beton"
    options = {"batch_size": 9, "image_size": 32, "augmentation": Augmentation(), "train": True}
    seen = {}
    for seed in (0, 1):
        with (
            open_loader(kind, path, per_class=3, seed=seed, **options) as loader,
            open_loader(kind, path, seed=seed, **options) as whole,
        ):
            assert loader.num_images == 3 * CLASSES
            all_pixels = {
                int(i): pixels
                for batch in whole.epoch(2)
                for i, pixels in zip(batch.index, batch.images, strict=True)
            }
            batches = list(loader.epoch(2))
        assert len(batches) == 4
        for batch in batches:
            for i, pixels in zip(batch.index, batch.images, strict=True):
                assert int(i) not in all_pixels or torch.equal(pixels, all_pixels[int(i)])
        labels = torch.cat([batch.labels for batch in batches])
        assert Counter(labels.tolist()) == dict.fromkeys(range(CLASSES), 3)
        seen[seed] = {int(i) for batch in batches for i in batch.index}
    assert seen[0] == seen[1]


def test_a_subset_smaller_than_a_batch_is_an_error(few):
    path = few[0] / "data/smoke/full/train.beton"
    with pytest.raises(UserError, match="holds 12 images, fewer than one batch of 16"):
        open_loader(
            "beton",
            path,
            per_class=1,
            batch_size=16,
            image_size=32,
            augmentation=Augmentation(),
            seed=0,
            train=True,
        )


@pytest.mark.parametrize("name", ["light_75_llrd_80", "mae_base_lin"])
def test_an_evaluation_trains_on_the_same_few_labels_for_every_seed(few, monkeypatch, name):
    folder, found = few
    monkeypatch.chdir(folder)
    seen: dict[int, set[int]] = {}
    forward = ClassifyTask.forward

    def watching(task, images, labels, index, epoch, progress):
        seen.setdefault(seed, set()).update(index.tolist())
        return forward(task, images, labels, index, epoch, progress)

    monkeypatch.setattr(ClassifyTask, "forward", watching)
    with open_session(found.machine, "float32", "beton") as session:
        for upstream in launch.with_upstream(found, [name])[:-1]:
            train(found, upstream, session)
        context = launch.context_of(found, name, session)
        object.__setattr__(
            context, "run", context.run.model_copy(update={"epochs": 12, "warmup_epochs": 1.0})
        )
        for seed in (0, 1):
            launch.trainer_of(context.run)(context, seed, store_of(context, seed))
    assert seen[0] == seen[1] and len(seen[0]) == 3 * CLASSES


def test_a_pretraining_keeps_all_images(few):
    history = pd.read_csv(few[0] / "results/smoke/efficient_learners/light_75/history.csv")
    assert set(history["images"]) == {120}


def test_the_bank_of_a_knn_holds_the_few_labels(few, monkeypatch):
    folder, found = few
    monkeypatch.chdir(folder)
    banks = []
    votes = knn.knn_votes
    monkeypatch.setattr(
        knn,
        "knn_votes",
        lambda queries, bank, *rest: banks.append((len(queries), len(bank))) or votes(queries, bank, *rest),
    )
    with open_session(found.machine, "float32", "beton") as session:
        context = launch.context_of(found, "light_75_llrd_80", session)
        knn.train_seed(context, 0, store_of(context, 0))
    assert banks == [(24, 3 * CLASSES)]


def test_the_budget_takes_labels_from_evaluations_alone(params):
    lens = Budget(labels_per_class=20)
    run = params.run("light_75_llrd_80")
    assert (
        run.labels_per_class is None and params.resolve("light_75_llrd_80", "paper").labels_per_class is None
    )
    assert resolve_evaluate(run, params.run("light_75"), lens).labels_per_class == 20
    fewer = run.model_copy(update={"labels_per_class": 5})
    assert resolve_evaluate(fewer, params.run("light_75"), lens).labels_per_class == 5


def test_the_plan_counts_the_labelled_images_and_the_scorings(params):
    run = resolve_evaluate(
        params.run("light_75_llrd_80"), params.run("light_75"), Budget(labels_per_class=20)
    )
    size = DataSize(train=16000, val=6000, classes=40, bytes=0, assumed=False)
    assert plan._labelled_images(run, size) == 800
    assert (
        plan._scored_images(run, size) == 10 * 6000
    )  # 100 epochs: ten of them see 8,000 images between two scorings
    short = run.model_copy(update={"epochs": 20})
    assert plan._scored_images(short, size) == 6000


def scored(epochs, train_images, labels=10, ends=()):
    stages = tuple(SimpleNamespace(until=end) for end in ends)
    run = SimpleNamespace(epochs=epochs, stages=stages, labels_per_class=labels)
    return scored_epochs(run, train_images, val_images=6000)


def test_a_run_is_scored_every_tenth_unless_that_costs_more_than_training_on_few_labels():
    assert scored(100, 16000) == set(range(10, 101, 10))
    assert scored(100, 500) == {100}
    assert scored(100, 500, ends=(0.3, 0.6, 1.0)) == {30, 60, 100}
    assert scored(100, 500, labels=None) == set(range(10, 101, 10))
    assert scored(1, 10) == scored(1, 10, ends=(0.2, 1.0)) == {1}
    assert scored(0, 10) == set()


def test_the_accuracy_at_a_share_of_a_run_needs_a_scoring_near_it():
    history = [{"top1": float(epoch)} if epoch in (30, 58, 100) else {} for epoch in range(1, 101)]
    assert _top1_at(history, 0.3) == 30 and _top1_at(history, 0.6) == 58
    assert _top1_at([{}] * 99 + [{"top1": 5.0}], 0.6) is None
    assert _top1_at([{"top1": 5.0}], 0.3) == 5.0, "one epoch holds every share"


@pytest.mark.parametrize(
    ("power", "expected"),
    [(1.0, [0, 1, 2, 4, 8, 12]), (2 / 3, [0, 1, 2, 3, 4, 5]), (0.5, [0, 1, 1, 2, 3, 3])],
)
def test_a_light_decoder_keeps_the_order_of_the_depths(params, power, expected):
    """MAE Table 1a asks for 1, 2, 4, 8 and 12 blocks: at 2/3 all five stay different."""
    run = params.run("light_75")
    depths = [
        resolve_pretrain(
            run.model_copy(update={"decoder_depth": d}), Budget(decoder_depth_power=power)
        ).decoder_depth
        for d in (0, 1, 2, 4, 8, 12)
    ]
    assert depths == expected


def test_the_encoders_cap_still_holds_for_the_decoder(params):
    run = params.run("light_75").model_copy(update={"decoder_depth": 8})
    assert resolve_pretrain(run, Budget(max_depth=2)).decoder_depth == 2


def test_a_lens_can_take_the_layer_decay_from_random_weights_alone(params):
    lens = Budget(scratch_layer_decay=1.0)
    assert resolve_evaluate(params.run("scratch_llrd_80"), params.run("scratch"), lens).layer_decay == 1.0
    assert resolve_evaluate(params.run("light_75_llrd_80"), params.run("light_75"), lens).layer_decay == 0.8
    assert params.resolve("scratch_llrd_80", "paper").layer_decay == 0.8


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Four classes of 20 training and 3 validation images."""
    for split, count in (("train", 20), ("val", 3)):
        for label in range(4):
            folder = tmp_path / "set" / split / f"n{label}"
            folder.mkdir(parents=True)
            for i in range(count):
                Image.fromarray(np.full((8, 8, 3), 9 * i, np.uint8)).save(folder / f"{i:03d}.JPEG")
    return tmp_path / "set"


def test_a_minival_leaves_training_and_joins_validation(root):
    plain_train, plain_val = open_folder(root)
    train, val = open_folder(root, minival=5)
    held = set(plain_train.names) - set(train.names)
    assert Counter(train.labels.tolist()) == dict.fromkeys(range(4), 15)
    assert Counter(val.labels.tolist()) == dict.fromkeys(range(4), 8)
    assert set(val.names) == set(plain_val.names) | held
    assert all(
        name.split("/")[1] == val.class_names[label]
        for name, label in zip(val.names, val.labels, strict=True)
    )


def test_every_part_of_a_source_holds_out_the_same_images(root):
    _, val = open_folder(root, minival=5)
    train, of_a_part = open_folder(root, minival=5, fraction=0.2, val_images=4)
    assert len(train) == 4 * 3
    held = {name for name in val.names if name.startswith("train/")}
    assert {name for name in of_a_part.names if name.startswith("train/")} == held and not held & set(
        train.names
    )
    assert len(of_a_part) == 4 + 20


def test_a_minival_that_leaves_nothing_and_one_of_photos_are_errors(root):
    with pytest.raises(UserError, match="minival 20 leaves nothing to train on; the class has 20 images"):
        open_folder(root, minival=20)
    with pytest.raises(UserError, match="minival: 5 .* photos"):
        data.open_sources("photos", minival=5)


def test_a_written_data_set_holds_the_minival_in_val(root, tmp_path):
    manifest = data.write(Dataset(source=str(root), minival=5), tmp_path / "out", workers=1, progress=False)
    assert (manifest.splits["train"]["images"], manifest.splits["val"]["images"]) == (60, 32)
    with open_loader(
        "folder",
        tmp_path / "out/val.beton",
        batch_size=8,
        image_size=8,
        augmentation=Augmentation(crop="none"),
        seed=0,
        train=False,
    ) as images:
        assert images.num_images == 32


def test_data_without_a_minival_keep_their_identity_and_data_with_another_one_are_refused(root, tmp_path):
    plain = data.write(Dataset(source=str(root)), tmp_path / "out", workers=1, progress=False)
    assert "minival" not in plain.source
    plain.refuse_other(tmp_path / "out", Dataset(source=str(root)))
    with pytest.raises(UserError, match="written with minival 0, where params.yaml now says 5"):
        plain.refuse_other(tmp_path / "out", Dataset(source=str(root), minival=5))


def test_labels_of_a_protocol_that_learns_from_none_are_an_error_and_no_lens_states_them(params):
    run = params.run("light_75_llrd_80")
    with pytest.raises(ValueError, match="labels_per_class: protocol invariance learns from no label"):
        type(run).model_validate(run.model_dump() | {"protocol": "invariance", "labels_per_class": 5})
    unlabelled = run.model_copy(update={"protocol": "invariance"})
    assert (
        resolve_evaluate(unlabelled, params.run("light_75"), Budget(labels_per_class=5)).labels_per_class
        is None
    )


def test_kept_numbers_of_all_labels_are_not_those_of_a_lens_with_few(params):
    """A run kept before `labels_per_class` existed does not state it, and had all labels."""
    name = "light_75_llrd_80"
    resolved = params.resolve(name, "paper").model_dump(mode="json")
    del resolved["labels_per_class"]
    kept = SimpleNamespace(name=name, resolved=resolved)
    assert changed(kept, params, "paper") == {}
    few = params.budgets["paper"].model_copy(update={"labels_per_class": 20})
    lens = params.model_copy(update={"budgets": params.budgets | {"paper": few}})
    assert changed(kept, lens, "paper") == {"labels_per_class": (None, 20)}

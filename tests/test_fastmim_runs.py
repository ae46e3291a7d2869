"""FastMIM's runs: hierarchies, stages, dropped blocks, teachers, frozen features."""

from __future__ import annotations

import math
from importlib import import_module

import pandas as pd
import pytest
import torch
import yaml

from replicate.config import load
from replicate.pipeline import launch
from replicate.pipeline.seeds import train_one_seed, train_seeds
from replicate.pipeline.store import store_of
from replicate.trainers import classify, invariance, loop
from replicate.trainers.context import weights_path
from replicate.trainers.pretrain import PretrainTask
from replicate.trainers.session import open_session


@pytest.fixture
def train(small_folder, small_params, monkeypatch):
    """Trains a run, and what it needs, at the smoke budget; returns its metrics of seed 0."""
    monkeypatch.chdir(small_folder)
    if not small_params.data_folder("full").exists():
        launch.write_dataset(small_params, "full")

    def run(*names: str) -> dict[str, float]:
        with open_session(small_params.machine, "float32", "beton") as session:
            for name in launch.with_upstream(small_params, names):
                context = launch.context_of(small_params, name, session)
                metrics = train_seeds(context, launch.trainer_of(context.run))
        return metrics["results"]["per_seed"][0]

    return run


def slow(*values):
    return [pytest.param(value, marks=pytest.mark.slow) for value in values]


OTHERS = (
    "vit_l",
    "swin_l",
    "pvt",
    "pvt_v2_b5",
    "twins",
    "convnext",
    "convnext_b",
    "convnextv2",
    "cmt_s",
    "cmt_b",
)


@pytest.mark.parametrize("short", ["vit", "swin", "pvt_v1_l", *slow(*OTHERS)])
def test_every_kind_of_backbone_pretrains_and_fine_tunes(train, short):
    result = train(f"fastmim_{short}_hog_128_ft")
    assert 0 <= result["top1"] <= 100 and math.isfinite(result["loss"])


@pytest.mark.parametrize(
    "name",
    [
        "fastmim_swin_depth_2-2-16-2_ft",
        *slow("fastmim_depth_8_ft", "fastmim_simmim_swin_ft", "fastmim_maskfeat_vit_ft"),
    ],
)
def test_dropped_blocks_and_the_baselines(train, name):
    assert math.isfinite(train(name)["loss"])


def test_a_fine_tuned_sibling_teaches(train, small_folder):
    result = train("fastmim_distillation")
    assert result["loss"] > result["val_loss"]  # the term is added while training
    assert weights_path(small_folder / "results/smoke/grid/fastmim/fastmim_vit_l_hog_128_ft", 0).exists()
    assert not weights_path(small_folder / "results/smoke/fastmim/fastmim_vit_hog_128_ft", 0).exists()


@pytest.mark.parametrize("protocol", ["knn", "linear"])
def test_frozen_features_of_a_hierarchy(train, small_params, protocol):
    train("fastmim_swin_hog_128")
    with open_session(small_params.machine, "float32", "beton") as session:
        context = launch.context_of(small_params, "fastmim_swin_hog_128_ft", session)
        object.__setattr__(context, "run", context.run.model_copy(update={"protocol": protocol}))
        outcome = train_one_seed(context, 0, import_module(f"replicate.trainers.{protocol}").train_seed)
    assert 0 <= outcome["results"]["top1"] <= 100


def test_invariance_reports_both_targets(train):
    result = train("fastmim_invariance")
    assert {"psnr_pixel", "ssim_pixel", "psnr_hog", "ssim_hog"} <= set(result) and result["images"] == 64


def test_invariance_takes_no_more_images_a_seed_than_it_says(train, small_params, monkeypatch):
    train("fastmim_invariance")
    monkeypatch.setattr(invariance, "IMAGES", 25)
    with open_session(small_params.machine, "float32", "beton") as session:
        context = launch.context_of(small_params, "fastmim_invariance", session)
        found = invariance.train_seed(context, 0, store_of(context, 0))
    assert found["results"]["images"] == 22  # every sixth of 128


@pytest.mark.parametrize("stop_at", [2, *slow(3)])
def test_a_resumed_progressive_run_equals_an_unbroken_one(
    train, small_folder, small_params, monkeypatch, tmp_path, stop_at
):
    """Swin-L in three stages; its position tables change shape after the second epoch of four."""
    monkeypatch.setattr(loop, "CHECKPOINT_SHARE", math.inf)  # a checkpoint after every epoch
    weights = {}
    for kind in ("unbroken", "resumed"):
        home = tmp_path / kind
        home.mkdir()
        for name in ("params.yaml", "budgets.yaml", "data"):
            (home / name).symlink_to(small_folder / name)
        monkeypatch.chdir(home)
        with open_session(small_params.machine, "float32", "beton") as session:
            context = launch.context_of(small_params, "fastmim_progressive_swin_l", session)
            trainer = launch.trainer_of(context.run)
            if kind == "resumed":
                with monkeypatch.context() as patch:
                    patch.setattr(loop, "view_at", _stopping(loop.view_at, stop_at))
                    with pytest.raises(KeyboardInterrupt):
                        train_one_seed(context, 0, trainer)
                assert store_of(context, 0).checkpoint_path.exists()
            train_one_seed(context, 0, trainer)
            weights[kind] = store_of(context, 0).weights_path.read_bytes()
    assert weights["unbroken"] == weights["resumed"]


def _stopping(view_at, epoch):
    def stop(run, now):
        if now == epoch:
            raise KeyboardInterrupt
        return view_at(run, now)

    return stop


def test_a_stage_changes_the_loaders_batches_and_colours(train, small_folder):
    from replicate.loaders import Augmentation, open_loader

    train("fastmim_vit_hog_128")
    options = {"image_size": 16, "augmentation": Augmentation(), "seed": 0, "train": True}
    with open_loader(
        "beton", small_folder / "data/smoke/full/train.beton", batch_size=32, **options
    ) as loader:
        loader.set_stage(image_size=24, batch_size=16, auto="three_augment")
        batches = list(loader.epoch(0))
        assert loader.num_batches == len(batches) == 4 and batches[0].images.shape == (16, 3, 24, 24)
        assert loader.augmentation.auto == "three_augment"
        assert batches[0].images.dtype == torch.uint8


def test_a_stage_without_automatic_augmentation_ends_that_of_the_stage_before(train, small_folder):
    """The same images as a loader that was opened for that stage, as a resumed run opens it."""
    from replicate.loaders import Augmentation, open_loader

    train("fastmim_vit_hog_128")
    options = {"batch_size": 32, "image_size": 16, "augmentation": Augmentation(), "seed": 0, "train": True}
    path = small_folder / "data/smoke/full/train.beton"
    with open_loader("beton", path, **options) as going_on, open_loader("beton", path, **options) as opened:
        going_on.set_stage(auto="three_augment")
        list(going_on.epoch(0))
        going_on.set_stage(image_size=16)
        assert going_on.augmentation.auto == "three_augment"
        going_on.set_stage(auto=None)
        assert all(
            torch.equal(one.images, other.images)
            for one, other in zip(going_on.epoch(1), opened.epoch(1), strict=True)
        )


@pytest.mark.parametrize("short", ["swin_l", *slow("pvt_v1_l", "cmt_s", "convnext")])
def test_a_backbone_of_fixed_size_is_fine_tuned_in_stages_with_its_average(
    train, small_params, monkeypatch, short
):
    """FastMIM Table 4: Swin-L from scratch at 192, then 224 pixels, scored at each; its average follows."""
    train(f"fastmim_{short}_scratch")
    staged, sizes, accuracy = small_params.resolve("fastmim_swin_l_scratch_ft"), [], classify.accuracy

    def watched(model, context, image_size):
        sizes.append(image_size)
        return accuracy(model, context, image_size)

    monkeypatch.setattr(classify, "accuracy", watched)
    with open_session(small_params.machine, "float32", "beton") as session:
        context = launch.context_of(small_params, f"fastmim_{short}_scratch_ft", session)
        update = {
            "ema": 0.5,
            "epochs": 2,
            "warmup_epochs": 0.0,
            "stages": tuple(map(_halves, staged.stages, (0.5, 1.0))),
        }
        object.__setattr__(context, "run", context.run.model_copy(update=update))
        outcome = train_one_seed(context, 0, import_module("replicate.trainers.finetune").train_seed)
    small, large = staged.stages[0].image_size, staged.image_size
    assert small < large and sizes == [small, large, large]
    assert math.isfinite(outcome["results"]["loss"]) and 0 <= outcome["results"]["top1_without_ema"] <= 100


def _halves(stage, until):
    return stage.model_copy(update={"until": until})


def test_stages_reach_the_batches_and_the_learning_rate(train, small_folder, tmp_path, monkeypatch):
    """FastMIM-P's linear scaling rule follows the stage's batch: 8 images in the first half, then 16."""
    train("fastmim_vit_hog_128")  # writes the data
    content = yaml.safe_load((small_folder / "params.yaml").read_text())
    stages = [
        {"until": 0.5, "image_size": 128, "batch_size": 256},
        {"until": 1.0, "image_size": 192, "batch_size": 512},
    ]
    content["runs"]["fastmim_vit_hog_128"] = {"image_size": 192, "stages": stages}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(content))
    (tmp_path / "budgets.yaml").symlink_to(small_folder / "budgets.yaml")
    (tmp_path / "data").symlink_to(small_folder / "data")
    monkeypatch.chdir(tmp_path)
    seen, forward = [], PretrainTask.forward

    def watched(task, images, labels, index, epoch, progress):
        seen.append((epoch, tuple(images.shape)))
        return forward(task, images, labels, index, epoch, progress)

    monkeypatch.setattr(PretrainTask, "forward", watched)
    params = load(tmp_path / "params.yaml")
    with open_session(params.machine, "float32", "beton") as session:
        context = launch.context_of(params, "fastmim_vit_hog_128", session)
        train_seeds(context, launch.trainer_of(context.run))
    epochs, warmup = context.run.epochs, context.run.warmup_epochs
    assert epochs == 8 and warmup < 1 and context.run.batch_size == 64 and context.run.min_lr == 0
    views = [
        (epoch, batch, size) for epoch in range(8) for batch, size in [(8, 16) if epoch < 4 else (16, 24)]
    ]
    assert seen == [
        (epoch, (batch, 3, size, size)) for epoch, batch, size in views for _ in range(64 // batch)
    ]
    expected = []
    for epoch, batch, _ in views:
        peak = 1.5e-4 * 10 * batch / 256  # at smoke, ten times the paper's rate
        last_step = epoch + 1 - batch / 64  # in epochs: a row holds the rate of its epoch's last step
        expected.append(peak * (1 + math.cos(math.pi * (last_step - warmup) / (epochs - warmup))) / 2)
    history = pd.read_csv(params.results_folder("fastmim_vit_hog_128") / "history.csv")
    assert history["lr"].tolist() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("name", "sibling", "baseline", "image_size"),
    [
        ("fastmim_simmim_vit", "fastmim_vit_hog_128", "simmim", 224),
        ("fastmim_simmim_swin", "fastmim_swin_hog_128_ep800", "simmim", 192),
        ("fastmim_simmim_swin_l", "fastmim_swin_l_hog_128", "simmim", 192),
        ("fastmim_maskfeat_vit", "fastmim_vit_hog_128", "maskfeat", 224),
    ],
)
def test_the_baselines_are_fastmim_but_for_what_defines_them(name, sibling, baseline, image_size):
    """SimMIM (raw pixels, L1 loss) and MaskFeat: `BASELINES` at full resolution, else FastMIM's recipe."""
    from project import ROOT

    from replicate.models.mim import BASELINES

    params = load(ROOT / "params.yaml")
    stated, usual = (params.run(run).model_dump() for run in (name, sibling))
    wanted = BASELINES[baseline] | {"image_size": image_size}
    if baseline == "simmim":
        wanted |= {"target": "pixel", "target_options": {"norm_pix": False}, "loss_norm": "l1"}
    assert {key: value for key, value in stated.items() if value != usual[key]} == wanted

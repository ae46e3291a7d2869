"""Runs of detection and segmentation: printed recipes, the lens, models at full size, the pipeline."""

import json
import os
import re

import pytest
import torch
from project import ROOT, write_params

from replicate import cli
from replicate.config import DenseRun, DetectRun, SegmentRun, load, published
from replicate.config.dense_lens import DenseLens, resolve_dense
from replicate.cost.dense import _known, dense_cost
from replicate.cost.shapes import shapes_only
from replicate.errors import UserError
from replicate.pipeline import launch
from replicate.report import tables
from replicate.transfer import data, scenes

PARAMS = load(ROOT / "params.yaml")
DENSE = {name: run for name, run in PARAMS.runs.items() if isinstance(run, DenseRun)}
CLASSES = {"coco": 80, "ade20k": 150}


def source_of(name, budget="paper"):
    return PARAMS.resolve(PARAMS.run(name).pretrain, budget)


# Recipes


def test_paper_changes_no_dense_run():
    assert all(PARAMS.resolve(name, "paper") == run for name, run in DENSE.items())


def test_fastmims_recipes_are_those_of_its_tables_13_and_14():
    coco, ade = (published.recipes()["fastmim"][key] for key in ("coco", "ade20k"))
    for name, size in (
        ("fastmim_vit_hog_128_coco", "vit_b"),
        ("fastmim_swin_hog_128_coco", "swin_b"),
        ("fastmim_swin_l_hog_128_coco", "swin_l"),
    ):
        run = DENSE[name]
        assert (run.peak_lr, run.weight_decay) == (coco["lr"][size], coco["weight_decay"][size])
        assert (run.drop_path, run.decay) == (coco["drop_path"][size], coco["schedule"][size])
        assert run.epochs in (coco["epochs"][size] if size == "vit_b" else [coco["epochs"][size]])
        assert (run.batch_size, run.warmup_iterations) == (coco["batch_size"], coco["warmup_steps"])
        assert [run.image_size] * 2 == coco["input_size"] and list(run.betas) == coco["betas"]
        assert not run.copy_paste
    assert DENSE["fastmim_vit_hog_128_coco25"].epochs == coco["epochs"]["vit_b"][0]
    green, printed = DENSE["fastmim_swin_hog_128_coco_green"], published.recipes()["fastmim"]
    assert green.peak_lr == printed["coco_greenmim_setting"]["lr"] and green.classifier is None
    assert green.batch_size == printed["coco_greenmim_setting"]["batch_size"]
    for name, size in (("fastmim_vit_hog_128_ade20k", "vit_b"), ("fastmim_swin_hog_128_ade20k", "swin_b")):
        run = DENSE[name]
        assert (run.peak_lr, run.layer_decay) == (ade["lr"][size], ade["layer_decay"][size])
        assert (run.batch_size, run.iterations) == (ade["batch_size"], ade["steps"])
        assert (run.warmup_iterations, run.decay) == (ade["warmup_steps"], ade["schedule"])
        assert run.weight_decay == ade["weight_decay"] and [run.image_size] * 2 == ade["input_size"]
    windows = published.recipes()["fastmim"]["window"] if "window" in printed else None
    assert windows is None or DENSE["fastmim_swin_hog_128_coco"].window == windows["swin_b"]["coco"]


def test_maes_recipes():
    coco, ade = DENSE["mae_vit_b_coco"], DENSE["mae_vit_b_ade20k"]
    printed = published.recipes()["mae"]["ade20k"]
    assert ade.batch_size == printed["batch_size"]
    assert ade.iterations * ade.batch_size / 20_210 == pytest.approx(printed["epochs"], abs=0.01)
    assert ade.relative_bias and ade.taps == (3, 5, 7, 11) and ade.auxiliary == 0.4
    assert (ade.head_width, ade.pools, ade.stride) == (768, (1, 2, 3, 6), 341)
    assert (coco.peak_lr, coco.weight_decay, coco.layer_decay) == (8e-5, 0.1, 1.0)
    assert coco.total_steps(118_000) == 184_375 and (coco.window, coco.neck) == (16, "taps_fpn")
    vitdet = DENSE["emae_vit_b_85_coco"]
    assert (vitdet.neck, vitdet.window, vitdet.norm, vitdet.layer_decay) == ("simple_fpn", 14, "ln", 0.7)
    assert vitdet.decay == "step" and vitdet.warmup_iterations == 250


def test_every_dense_number_of_the_five_papers_has_a_run():
    for paper, table, least in (
        ("mae", ["table_4", "table_5", "table_6"], 18),
        ("fastmim", ["table_1", "table_5", "table_6"], 57),
        ("efficient_mae", ["table_10"], 8),
    ):
        rules, found = published.mapped(paper), 0
        for cell in published.cells({"paper": paper, "table": table}):
            if not re.fullmatch(r"ap\d*_(box|mask)|miou|macc", cell["column"]):
                continue
            rule = rules[cell["id"]]
            if "ours" not in rule:
                assert rule["status"] == tables.QUOTED
                continue
            run, _, metric = tables.fill(rule["ours"], published.setting(cell["row"])).partition("/")
            assert run in DENSE and metric == cell["column"].replace("val_", "")
            found += 1
        assert found >= least - 2  # two of FastMIM's are hours
        assert not any(rule.get("status") == tables.NOT_BUILT for rule in rules.values())


# The lens


def test_the_lens_keeps_shares_of_windows_taps_and_strides():
    lens = DenseLens(detect_scale=0.125, segment_scale=0.125, segment_length=0.01, segment_width=0.125)
    detect = DENSE["mae_vit_b_coco"]
    found = resolve_dense(detect, lens, (8, 16), (6, 12))
    assert (found["image_size"], found["test_size"]) == (128, 128)
    assert found["window"] == 4  # 16 of 64 patches are 4 of 16
    segment = resolve_dense(DENSE["mae_vit_b_ade20k"], lens, (8, 16), (6, 12))
    assert (segment["image_size"], segment["stride"]) == (64, 42)
    assert segment["taps"] == (1, 2, 3, 5) and segment["head_width"] == 96
    assert (segment["iterations"], segment["warmup_iterations"]) == (1263, 15)
    assert resolve_dense(DENSE["mae_vit_b_ade20k"], lens, (8, 16), (2, 12))["taps"] == (0, 0, 1, 1)


def test_a_warm_up_in_iterations_becomes_a_share_of_the_run():
    lens = DenseLens(detect_epochs=0.1)
    found = resolve_dense(DENSE["emae_vit_b_85_coco"], lens, (16, 16), (12, 12))
    assert found["epochs"] == 10 and found["warmup_iterations"] == 0
    assert found["warmup_epochs"] == pytest.approx(250 * 64 / 118_287 / 100 * 10)


@pytest.mark.parametrize(
    ("model", "changed", "message"),
    [
        (SegmentRun, {"epochs": 3}, "state epochs, or iterations"),
        (SegmentRun, {"taps": (3, 3, 7, 11)}, "four rising numbers"),
        (SegmentRun, {"stride": 600}, "leaves gaps"),
        (SegmentRun, {"mixup": 0.8}, "mixup: protocol segment has no such option"),
        (SegmentRun, {"decay": "step"}, "steps belong to decay step"),
        (DetectRun, {"protocol": "segment"}, "protocol"),
    ],
)
def test_impossible_runs_are_refused_in_words(model, changed, message):
    stated = {"paper": "mae", "dataset": "coco", "pretrain": "x", "batch_size": 4, "base_lr": 1e-3}
    stated |= {"weight_decay": 0.05, "betas": (0.9, 0.999), "iterations": 6}
    with pytest.raises(ValueError, match=message):
        model(**stated | changed)


def test_a_run_refuses_data_of_another_layout(tmp_path):
    path = write_params(tmp_path, runs={"mae_vit_b_coco": {"dataset": "ade20k"}})
    with pytest.raises(UserError, match="'mae_vit_b_coco' uses dataset 'ade20k' of layout ade20k"):
        load(path)


# At full size


def shape_of(name):
    run, source = PARAMS.resolve(name, "paper"), source_of(name)
    kind = (run.protocol, run.neck if run.protocol == "detect" else run.taps, run.window)
    return (*kind, source.backbone, run.image_size)


SHAPES = {shape_of(name): name for name, run in DENSE.items() if run.protocol in ("detect", "segment")}


@pytest.mark.parametrize("name", SHAPES.values())
def test_every_shape_of_model_builds_at_full_size(name):
    run, source = PARAMS.resolve(name, "paper"), source_of(name)
    if run.protocol == "detect":
        from replicate.transfer.detection import DetectionTask as Task
        from replicate.transfer.detection import build_model
    else:
        from replicate.transfer.segmentation import SegmentTask as Task
        from replicate.transfer.segmentation import build_model
    with shapes_only():
        model = build_model(source, run, CLASSES[run.dataset])
    groups = Task(model, run).parameter_groups()
    held = [id(parameter) for group in groups for parameter in group["params"]]
    assert len(set(held)) == len(held) == sum(p.requires_grad for p in model.parameters())
    scales = [group["lr_scale"] for group in groups]
    assert max(scales) == 1.0 and (min(scales) < 0.1) == (run.layer_decay < 1.0)
    assert {group["weight_decay"] for group in groups} == {0.0, run.weight_decay}
    if name == SHAPES[shape_of("mae_vit_b_coco")]:
        # As MIMDet reports for its ViT-B (118.67M).
        assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(118.67, abs=0.01)


def test_the_planner_counts_pyramid_and_heads():
    name = "mae_vit_b_ade20k"
    run, source = PARAMS.resolve(name, "smoke"), source_of(name, "smoke")
    cost = dense_cost(run, source, 7, 4)
    wider = dense_cost(run.model_copy(update={"head_width": 2 * run.head_width}), source, 7, 4)
    assert wider.macs > 1.5 * cost.macs and wider.trainable > cost.trainable
    known = len(_known)
    assert dense_cost(run.model_copy(update={"base_lr": 0.5}), source, 7, 4) == cost and len(_known) == known


# The pipeline


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder in which a pre-training, a segmentation, a detection and a probe have run at `smoke`."""
    folder, before = tmp_path_factory.mktemp("dense"), os.getcwd()
    params = load(write_params(folder))
    os.chdir(folder)
    try:
        for dataset in ("full", "ade20k", "coco"):
            launch.write_dataset(params, dataset)
        for name in ("full_75", "mae_vit_b_ade20k", "mae_vit_b_coco", "mae_vit_b_patches"):
            launch.launch(params, name, ())
    finally:
        os.chdir(before)
    return folder


def metrics(folder, name):
    return json.loads((folder / "results/smoke/grid/mae" / name / "metrics.json").read_text())


@pytest.mark.parametrize(
    ("name", "scores"),
    [
        ("mae_vit_b_ade20k", ("miou", "macc", "aacc")),
        ("mae_vit_b_coco", ("ap_box", "ap50_box", "ap75_box", "ap_mask", "ap50_mask", "ap75_mask")),
        ("mae_vit_b_patches", ("miou", "macc", "aacc")),
    ],
)
def test_a_run_leaves_its_scores_settings_and_provenance(finished, name, scores):
    found = metrics(finished, name)
    assert all(0.0 <= found["results"][score]["mean"] <= 100.0 for score in scores)
    assert found["run"] == PARAMS.run(name).model_dump(mode="json")
    assert found["resolved"]["image_size"] == 64 and found["provenance"]["manifest_sha256"]
    assert found["resolved"]["peak_lr"] == found["resolved"]["base_lr"]


def test_the_weights_of_a_dense_run_stay_for_pictures(finished, monkeypatch):
    from replicate.report.dense import IMAGE, PREDICTION, TRUTH, predictions

    monkeypatch.chdir(finished)
    params = load("params.yaml")
    for name in ("mae_vit_b_ade20k", "mae_vit_b_coco"):
        for views in predictions(params, name, images=2, least_score=0.0):
            assert list(views) == [IMAGE, TRUTH, PREDICTION]
            assert len({view.shape for view in views.values()}) == 1
            assert all(view.min() >= 0 and view.max() <= 1 for view in views.values())
            assert (views[TRUTH] != views[IMAGE]).any()


def test_data_info_tells_what_scenes_hold(finished, monkeypatch, capsys):
    monkeypatch.chdir(finished)
    cli.main(["data", "info", "ade20k"])
    printed = capsys.readouterr().out
    assert "images 12" in printed and "classes 7" in printed and "split val" in printed


def test_the_second_time_nothing_is_trained(finished, monkeypatch):
    monkeypatch.chdir(finished)
    before = metrics(finished, "mae_vit_b_ade20k")["results"]
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda *_: pytest.fail("trained again"))
    launch.launch(load("params.yaml"), "mae_vit_b_ade20k", ())
    assert metrics(finished, "mae_vit_b_ade20k")["results"] == before


@pytest.mark.parametrize("budget", PARAMS.budgets)
def test_scenes_fit_every_budget_whatever_classes_its_images_have(budget, tmp_path, monkeypatch):
    """Scenes have at most twelve classes; a budget of forty once asked for forty."""
    made = []
    monkeypatch.setattr(scenes, "write_scenes", lambda folder, settings, _: made.append(settings) or folder)
    for name in ("coco", "ade20k"):
        dataset = PARAMS.dataset(name, budget)
        if dataset.source == "scenes":
            data._make_scenes(dataset, tmp_path, {"train_images": 4, "val_images": 4})
            assert (made[-1].num_classes, dataset.minival, dataset.fraction) == (6, 0, 1.0)
    assert made or budget == "paper"


def test_a_data_set_of_another_source_takes_no_counts_from_data():
    params = load(ROOT / "params.yaml")
    shared = {"source": "mine", "classes": 40, "minival": 3, "on_error": "skip", "seed": 5}
    named = {"coco": {"source": "scenes"}, "full": {"seed": 7}}
    lens = params.budgets["proxy"].model_copy(update={"data": shared, "datasets": named})
    params = params.model_copy(update={"budgets": params.budgets | {"mine": lens}})
    own, full = params.dataset("coco", "mine"), params.dataset("full", "mine")
    assert (own.classes, own.minival, own.on_error, own.seed) == (None, 0, "skip", 5)
    assert (full.source, full.classes, full.minival, full.seed) == ("mine", 40, 3, 7)

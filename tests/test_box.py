"""Pre-trainings in the box: what they stand for, and when they do not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from project import write_params

from replicate.config import box, load
from replicate.errors import UserError
from replicate.models.weights import load_weights
from replicate.pipeline import launch
from replicate.pipeline.seeds import train_seeds
from replicate.trainers.session import open_session

ROOM = Path("results/smoke/efficient_learners")


def train(params, *names):
    with open_session(params.machine, "float32", "beton") as session:
        for name in names:
            context = launch.context_of(params, name, session)
            train_seeds(context, launch.trainer_of(context.run))


def metrics(name: str) -> dict:
    return json.loads((ROOM / name / "metrics.json").read_text())


@pytest.fixture(scope="module")
def boxed(tmp_path_factory):
    """A project with one pre-training in the box, its results unpacked, and an evaluation of two seeds."""
    folder = tmp_path_factory.mktemp("box")
    params = load(write_params(folder, budget={"seeds": 2, "boxed": True}))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        launch.write_dataset(params, "full")
        train(params, "light_75")
        trained = load_weights(ROOM / "light_75/weights/seed0.safetensors"), metrics("light_75")
        launch.fill_box(params, ["light_75"])
        train(params, "light_75", "light_75_llrd_80")
        yield folder, params, trained


@pytest.fixture(autouse=True)
def inside(boxed, monkeypatch):
    monkeypatch.chdir(boxed[0])


def test_the_box_holds_what_training_gave_in_bfloat16(boxed):
    trained, numbers = boxed[2]
    unpacked = load_weights(ROOM / "light_75/weights/seed0.safetensors")
    assert unpacked.keys() == trained.keys()
    for name, tensor in trained.items():
        torch.testing.assert_close(unpacked[name], tensor.bfloat16().float(), rtol=0, atol=0)
    found = metrics("light_75")["results"]["per_seed"]
    assert found[0]["val_loss"] == numbers["results"]["per_seed"][0]["val_loss"] and len(found) == 1
    assert "seconds_per_epoch" in numbers["results"] and "seconds_per_epoch" not in found[0]


def test_provenance_names_the_box(boxed):
    found = metrics("light_75")["provenance"]
    assert found["box"] == "weights/smoke/light_75.safetensors"
    assert "wall_seconds" not in found and found["git"]["revision"]


def test_all_seeds_of_an_evaluation_start_from_the_same_weights(boxed):
    params = boxed[1]
    assert params.seeds("light_75") == 1 and params.seeds("light_75_llrd_80") == 2
    with open_session(params.machine, "float32", "beton") as session:
        context = launch.context_of(params, "light_75_llrd_80", session)
        assert context.upstream_weights(0) == context.upstream_weights(1)
    first, second = metrics("light_75_llrd_80")["results"]["per_seed"]
    assert first["loss"] != second["loss"]  # seeds of fine-tuning still differ


@pytest.mark.parametrize(
    "change", [{"runs": {"light_75": {"mask_ratio": 0.8}}}, {"data": {"train_images": 144}}]
)
def test_another_recipe_or_data_set_is_trained(boxed, tmp_path, change):
    there = load(write_params(tmp_path, **({"budget": {"seeds": 2, "boxed": True}} | change)))
    assert there.box("light_75") is None and there.seeds("light_75") == 2


def test_a_setting_that_came_later_leaves_a_box_valid_at_its_default(boxed):
    """A box holds the settings of its time; one that is added later must not retrain everything."""
    path = Path("weights/smoke/light_75.json")
    text = path.read_text()
    older = json.loads(text)
    del older["resolved"]["online_probe"]  # its default
    lacking = json.loads(text)
    del lacking["resolved"]["mask_ratio"]  # which the run states
    try:
        for content, found in ((older, True), (lacking, False)):
            box._read.cache_clear()
            path.write_text(json.dumps(content))
            assert bool(boxed[1].box("light_75")) is found
    finally:
        path.write_text(text)
        box._read.cache_clear()


def test_a_budget_without_a_box_trains(boxed, tmp_path):
    there = load(write_params(tmp_path, budget={"seeds": 2}))
    assert there.box("light_75") is None
    with pytest.raises(UserError, match="budget smoke has no box"):
        launch.fill_box(there, ["light_75"])


def test_missing_weights_are_named(boxed):
    path = Path("weights/smoke/light_75.safetensors")
    content = path.read_bytes()
    path.unlink()
    try:
        with pytest.raises(UserError, match=r"light_75.safetensors, which is missing"):
            boxed[1].box("light_75")
    finally:
        path.write_bytes(content)


def test_only_pre_trainings_go_into_the_box(boxed):
    with pytest.raises(UserError, match="light_75_llrd_80 is no pre-training"):
        launch.fill_box(boxed[1], ["light_75_llrd_80"])

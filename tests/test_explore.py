"""The explore notebooks: controls at the ends of their ranges, what they draw, and execution."""

import base64
import datetime
import html
import importlib
import io
import json
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import project
import pytest
import torch
from PIL import Image

from replicate.config import box, load
from replicate.errors import UserError
from replicate.explore import (
    emergence,
    images,
    loader,
    masking,
    recipe,
    reconstruction,
    runs,
    schedules,
    side_by_side,
)
from replicate.explore.panel import panel
from replicate.report.notebook import read
from replicate.report.style import Figure

ROOT = Path(__file__).resolve().parents[1]
IDEAS = ("masking", "reconstruction", "hog", "schedules", "loader", "recipe")
"""Ideas with a notebook of their own."""
SHOWN = (*IDEAS, "side_by_side")


LONG_LIST = 5
"""Of a longer list only the first and the last choice are tried."""


def extremes(controls):
    """Values at the ends of all controls: all lowest, all highest, then mixtures with every end of every
    control.
    """
    ends = {name: _ends(control) for name, control in controls.items()}
    yield {name: found[0] for name, found in ends.items()}
    yield {name: found[-1] for name, found in ends.items()}
    for turn in range(max(map(len, ends.values()))):
        yield {name: found[(turn + place) % len(found)] for place, (name, found) in enumerate(ends.items())}


def _ends(control):
    if hasattr(control, "options"):
        found = [option[1] if isinstance(option, tuple) else option for option in control.options]
        return found if len(found) <= LONG_LIST else [found[0], found[-1]]
    return [control.min, control.max]


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def opened(idea, **changes):
    controls = importlib.import_module(f"replicate.explore.{idea}").controls()
    return {name: control.value for name, control in controls.items()} | changes


@pytest.mark.parametrize("idea", [idea for idea in SHOWN if idea != "recipe"])
def test_every_control_can_be_moved_to_its_ends(idea):
    module = importlib.import_module(f"replicate.explore.{idea}")
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        for values in extremes(module.controls()):
            try:
                assert isinstance(module.draw(**values), Figure), values
            except UserError as error:  # the boxed runs of `laptop` have another grid than those of `smoke`
                assert idea == "side_by_side" and "share no mask" in str(error)


def test_a_mix_at_its_ends_is_costed_or_refused_in_one_line():
    refused = 0
    for values in extremes(recipe.controls()):
        try:
            assert isinstance(recipe.draw(**values), Figure)
        except UserError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > 0


@pytest.mark.parametrize("idea", SHOWN)
def test_the_panel_shows_a_picture_and_a_caption_that_follow_its_controls(idea):
    module = importlib.import_module(f"replicate.explore.{idea}")
    view = panel(module)
    assert list(view.named) == list(module.controls())
    opened = view.shown.value
    assert module.caption(**view.values) in html.unescape(opened)
    slider = next(one for one in view.named.values() if hasattr(one, "step") and one.value > one.min)
    slider.value = slider.min
    assert pixels(view.shown.value).shape == pixels(opened).shape
    assert (pixels(view.shown.value) != pixels(opened)).any()
    assert module.caption(**view.values) in html.unescape(view.shown.value)


def pixels(shown):
    """The picture within a panel's HTML."""
    encoded = re.search("base64,([^']+)", shown)[1]
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded))))


def test_sliders_report_while_they_are_dragged_where_drawing_is_fast():
    for idea in IDEAS:
        for control in importlib.import_module(f"replicate.explore.{idea}").controls().values():
            assert getattr(control, "continuous_update", True) == (
                idea != "recipe" or not hasattr(control, "step")
            )


def test_a_redraw_keeps_the_places_of_the_panels():
    """The layout is searched once: the axes stay where they were, whatever the numbers beside them."""
    view = panel(masking)
    before = view._places
    view.named["mask_ratio"].value = 0.9
    assert [place.bounds for place in view._places] == [place.bounds for place in before]


def upload(button, name, content):
    """What Jupyter sends once a file has been chosen."""
    file = {"name": name, "type": "", "size": len(content), "content": memoryview(content)}
    button.value = [file | {"last_modified": datetime.datetime.now(datetime.timezone.utc)}]


def png_of(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    return buffer.getvalue()


def test_an_uploaded_image_is_chosen_and_drawn():
    view = panel(masking)
    button = view.children[0].children[-1]
    uploaded = np.zeros((300, 500, 3), np.uint8)
    uploaded[:, :, 0] = 200
    upload(button, "red.png", png_of(uploaded))
    chosen = view.named["image"].value
    assert chosen.startswith("red.png") and chosen in view.named["image"].options
    assert images.square(chosen, 32)[:, 0, 0].tolist() == [200, 0, 0]
    assert images.photograph(chosen).shape == (300, 500, 3)


def test_an_upload_that_is_no_image_is_named_and_changes_nothing():
    view = panel(masking)
    button, before = view.children[0].children[-1], view.shown.value
    upload(button, "notes.txt", b"hi")
    assert "notes.txt: cannot be read as an image" in button.description and view.shown.value == before


def test_pictures_render_with_a_description():
    picture, metadata = masking.draw(**opened("masking"))._repr_png_()
    assert picture.startswith(b"\x89PNG") and "P2Dist" in metadata["alt"]


def test_what_the_decoder_drops_lies_beyond_beta_and_has_no_weight():
    found = masking.masked("random", 0.95, 26.0, 0.6, seed=3)
    dropped = (found.mask - found.decoded) > 0
    assert dropped.any() and (found.distance[dropped] > 26).all() and (found.weight[dropped] == 0).all()
    assert found.weight.sum() == pytest.approx(1, abs=1e-5)
    nearest = found.decoded.astype(bool) & (found.distance == found.distance[found.decoded > 0].min())
    assert found.weight[nearest].min() == found.weight.max()


def test_without_gamma_every_decoded_patch_weighs_the_same():
    found = masking.masked("grid", 0.75, 120.0, 0.0, seed=0)
    assert np.ptp(found.weight[found.decoded > 0]) < 1e-9 and (found.decoded == found.mask).all()


def finish(root, *runs):
    """Empty weights of runs of `efficient_learners` at their budgets."""
    (root / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    for budget, run in runs:
        weights = root / f"results/{budget}/efficient_learners/{run}/weights/seed0.safetensors"
        weights.parent.mkdir(parents=True)
        weights.touch()


def test_the_best_run_comes_first_and_an_untrained_model_last(tmp_path):
    finish(tmp_path, ("smoke", "light_90"), ("smoke", "full_75"), ("laptop", "light_90"))
    expected = [("light_90", "laptop", True), ("full_75", "smoke", True), ("light_90", "smoke", True)]
    assert runs.finished(tmp_path) == [*expected, ("light_75", "smoke", False)]


def test_a_run_without_pretraining_is_never_offered(tmp_path):
    finish(tmp_path, ("laptop", "scratch"), ("smoke", "light_75"))
    assert [found.run for found in runs.finished(tmp_path) if found.trained] == ["light_75"]


def test_weights_in_the_box_are_found_where_the_recipe_is_the_same(tmp_path):
    finish(tmp_path)
    params = load(tmp_path / "params.yaml")
    run, dataset = params.resolve("full_75", "laptop"), params.dataset("full", "laptop")
    weights, description = box.paths(tmp_path / "weights", "laptop", "full_75")
    weights.parent.mkdir(parents=True)
    weights.touch()
    description.write_text(json.dumps(box.recipe(run, dataset)))
    assert runs.finished(tmp_path)[0] == ("full_75", "laptop", True)
    assert runs.trained_weights(params, "full_75", "laptop", root=tmp_path) == weights
    assert runs.trained_weights(params, "full_75", "laptop", seed=1, root=tmp_path) is None
    assert runs.trained_weights(params, "light_75", "laptop", root=tmp_path) is None


def test_two_runs_share_a_mask_and_others_are_refused():
    values = opened("side_by_side")
    hog = runs.Choice("fastmim_vit_hog_128", "smoke", False)
    (_, left), (_, right) = side_by_side.pair(**values)
    assert (left.mask == right.mask).all()
    with pytest.raises(UserError, match="share no mask: choose two runs of one budget"):
        side_by_side.draw(**values | {"right": hog})


def test_without_checkpoints_the_panel_says_how_to_keep_some(monkeypatch):
    monkeypatch.setattr(emergence, "finished", lambda root: [])
    assert "keep_checkpoints: 20" in panel(emergence).value


@pytest.mark.slow
def test_the_slider_goes_from_an_untrained_model_through_its_checkpoints(tmp_path, monkeypatch):
    machine = {"keep_checkpoints": 3, "checkpoint_every": 1, "seed_processes": 1}
    project.write_params(tmp_path, machine=machine, runs={"light_75": {"epochs": 500}})
    for command in (("data", "write"), ("pretrain", "light_75")):
        project.run(tmp_path, *command)
    monkeypatch.chdir(tmp_path)
    runs.parameters.cache_clear()
    view = panel(emergence)
    number, losses = view.named["number"], []
    assert number.value == number.max == 4
    for place in range(5):
        number.value = place
        losses.append(float(re.search(r"loss ([\d.]+)", view.shown.value)[1]))
    assert "before training" in emergence.caption(**view.values | {"number": 0})
    assert losses[0] > losses[1] and losses[3] == losses[4]
    runs.parameters.cache_clear()


def test_a_run_that_predicts_hog_is_drawn_as_glyphs():
    chosen = runs.Choice("fastmim_vit_hog_128", "smoke", False)
    figure = reconstruction.draw(chosen, 0.6, 1, 0)
    assert "HOG prediction" in figure.description


def test_a_palindrome_returns_to_where_it_began_and_costs_less_than_its_largest_size():
    sizes = [stage.image_size for stage in schedules.stages("palindrome", 128, 224, 0.75, 0.75)]
    assert sizes == sizes[::-1] and sizes[0] == 224 and min(sizes) == 128
    staged = schedules.epoch_costs(schedules.run_of("palindrome", 128, 224, 0.75, 0.75)).mean()
    fixed = schedules.epoch_costs(schedules.run_of("fixed", 128, 224, 0.75, 0.75)).mean()
    assert 0.5 * fixed < staged < 0.9 * fixed


def test_stages_are_costed_without_an_online_probe():
    """The sliders' own run has no probe, so runs of the list are counted without theirs."""
    known = runs.parameters(schedules.repository()).pretrain_runs
    assert known["daily_s5"].online_probe and not known["full_75"].online_probe
    assert schedules.epoch_costs(known["daily_s5"])[0] == schedules.epoch_costs(known["full_75"])[0]


def test_staged_runs_of_the_papers_can_be_chosen():
    assert "fastmim_progressive" in schedules.schedules()
    assert len(schedules.run_of("fastmim_progressive", 64, 224, 0.5, 0.5).stages) == 3


def test_the_crop_shown_is_the_loaders_and_lies_in_both_images():
    for seed in range(5):
        box, (left, top, right, bottom) = loader.crop_box("chelsea", 256, 0.08, seed)
        height, width = images.photograph("chelsea").shape[:2]
        assert 0 <= left < right <= width and 0 <= top < bottom <= height
        assert (right - left) / (bottom - top) == pytest.approx(box[3] / box[2], rel=0.02)


def test_pictures_are_the_data_sets_own():
    assert images.picture(0, 64).shape == (3, 64, 64) and images.picture(0, 64).dtype == torch.uint8
    assert not torch.equal(images.picture(0, 64), images.picture(1, 64))


def test_a_mix_is_an_entry_of_runs_yaml():
    mixed = recipe.mix(**opened("recipe", schedule="fixed"))
    (run,) = mixed["pretrain"].values()
    assert run["target"] == "hog" and run["weighting"] == "flatten" and run["stages"] == []
    assert next(iter(mixed["evaluate"].values()))["pretrain"] == next(iter(mixed["pretrain"]))


def test_a_mix_that_does_not_fit_together_prints_why():
    with pytest.raises(
        UserError, match="^this mix does not fit together: decoder_beta drops tokens of MAE's decoder"
    ):
        recipe.write(opened("recipe", method="mim", beta=26))


def test_a_mix_writes_a_configuration_that_loads():
    values = opened("recipe")
    assert set(load(recipe.write(values)).runs) == {recipe.name_of(values), f"{recipe.name_of(values)}_ft"}


@pytest.mark.slow
def test_a_mix_trains_at_smoke_and_is_listed():
    values = opened("recipe", epochs=20, finetune_epochs=10, schedule="fixed", low=224)
    table = recipe.train(**values)
    assert table.loc[recipe.name_of(values), "top-1 (%), smoke"] >= 0


def execute(idea, folder):
    """The executed notebook, in a new process: here a kernel's answer can stay unread for minutes."""
    path, name = ROOT / "notebooks" / f"explore_{idea}.ipynb", "executed.ipynb"
    command = [
        sys.executable,
        "-m",
        "jupyter",
        "nbconvert",
        "--to",
        "notebook",
        "--execute",
        "--ExecutePreprocessor.timeout=180",
    ]
    command += [
        "--ExecutePreprocessor.kernel_name=python3",
        "--output-dir",
        str(folder),
        "--output",
        name,
        str(path),
    ]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return read(folder / name)


@pytest.mark.parametrize(
    "idea", [pytest.param(idea, marks=[] if idea == "masking" else pytest.mark.slow) for idea in IDEAS]
)
def test_notebooks_execute_headless_and_show_a_widget(idea, tmp_path):
    notebook = execute(idea, tmp_path)
    shown = {
        kind
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        for kind in output.get("data", {})
    }
    assert "application/vnd.jupyter.widget-view+json" in shown
    states = notebook.metadata.widgets["application/vnd.jupyter.widget-state+json"]["state"].values()
    shown = [state["state"].get("value", "") for state in states if state["model_name"] == "HTMLModel"]
    assert any("data:image/png" in text for text in shown), "no picture in the panel"

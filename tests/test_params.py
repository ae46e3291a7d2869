"""The configuration files are read strictly: every mistake is one line that names file, key and value."""

import re
from pathlib import Path

import pytest
import yaml
from project import read, write_params

from replicate.config import load, switch_budget
from replicate.config.rooms import Room, entries
from replicate.errors import UserError
from replicate.names import closest

ROOT = Path(__file__).resolve().parents[1]


def refused(tmp_path, **changes) -> str:
    """The message of a `params.yaml` with these changes."""
    path = write_params(tmp_path, **changes)
    with pytest.raises(UserError) as caught:
        load(path)
    message = str(caught.value)
    assert "\n" not in message
    return message


def room(tmp_path, paper: str = "own", **sections) -> Path:
    """A `params.yaml` with one paper of its own beside it."""
    folder = tmp_path / "papers" / paper
    folder.mkdir(parents=True)
    light = load(ROOT / "params.yaml").run("light_75").model_dump(mode="json", exclude_unset=True)
    recipes = {"light": {key: value for key, value in light.items() if key != "paper"}}
    (folder / "runs.yaml").write_text(yaml.safe_dump({"title": "Own", "recipes": recipes} | sections))
    return write_params(tmp_path, findings={})


def test_unknown_key_is_named_with_the_closest_one(tmp_path):
    message = refused(tmp_path, runs={"light_90": {"mask_ration": 0.9}})
    assert "unknown key `mask_ration` of run light_90; did you mean `mask_ratio`?" in message


@pytest.mark.parametrize(
    ("run", "key", "value", "words"),
    [
        ("light_90", "mask_ratio", 1.2, "less than 1"),
        ("light_90", "mask_ratio", "most", "number"),
        ("light_90", "epochs", -1, "greater than or equal to 0"),
        ("light_90", "epochs", 2.5, "integer"),
        ("light_90", "method", "beit", "'mae'"),
        ("light_90", "batch_size", 0, "greater than or equal to 1"),
        ("light_90_llrd_65", "layer_decay", 1.5, "less than or equal to 1"),
        ("light_90_llrd_65", "betas", [0.9], "missing"),
        ("light_90_llrd_65", "protocol", "explain", "'finetune'"),
        (
            "light_90_llrd_65",
            "auto_augment",
            "three_augmnt",
            "choose null, rand-m9-mstd0.5-inc1, three_augment",
        ),
        ("light_90_llrd_65", "crop_scale", [0.9, 0.2], "the smaller share of the image comes first"),
    ],
)
def test_impossible_values_name_key_value_and_range(tmp_path, run, key, value, words):
    message = refused(tmp_path, runs={run: {key: value}})
    assert f"params.yaml: runs.{run}.{key}" in message and words in message.lower()


def test_a_mistake_in_a_room_names_the_room(tmp_path):
    path = room(tmp_path, pretrain={"mine": {"base": "light", "mask_ratio": 2}})
    with pytest.raises(UserError, match=r"papers/own/runs.yaml: pretrain.mine.mask_ratio = 2: .*less than 1"):
        load(path)


@pytest.mark.parametrize(
    ("run", "keys", "words"),
    [
        ("fastmim_vit_hog_128", {"mask_tokens_in_encoder": True}, "belongs to method mae"),
        ("fastmim_vit_hog_128", {"decoder_beta": 26.0}, "method mim decodes all of them"),
        (
            "light_90",
            {"objective": "distillation"},
            "objective distillation alone needs a teacher; objective is distillation",
        ),
        ("light_90", {"tokenizer": "mae_tokens"}, "target token alone needs a tokenizer; target is pixel"),
        ("light_90", {"difficulty": "nearest_patch"}, "difficulty nearest_patch has no effect"),
        ("light_90_llrd_65", {"protocol": "linear"}, "layer_decay, drop_path: a linear probe tunes no block"),
        ("mae_base_lin", {"tuned_blocks": 1.0}, "tuned_blocks: a linear probe tunes no block"),
        ("light_90_llrd_65", {"protocol": "score"}, "classifier is missing"),
        ("fastmim_distillation", {"objective": "reconstruction"}, "objective is reconstruction"),
    ],
)
def test_options_without_effect_are_refused(tmp_path, run, keys, words):
    message = refused(tmp_path, runs={run: keys})
    assert f"runs.{run}." in message and words in message


@pytest.mark.parametrize(
    ("run", "keys", "words"),
    [
        (
            "light_90",
            {"image_size": 230},
            "light_90.image_size = 230: the patch of 16 pixels does not divide it; 224 and 240",
        ),
        ("light_90_llrd_65", {"image_size": 225}, "light_90_llrd_65.image_size = 225"),
        (
            "light_90_llrd_65",
            {"stages": [{"until": 0.5, "image_size": 200}, {"until": 1.0}]},
            "image_size = 200",
        ),
        ("light_90", {"stages": [{"until": 0.5, "image_size": 160}]}, "the last at 1.0"),
        ("light_90", {"warmup_epochs": 101}, "warmup_epochs 101"),
        ("light_90", {"dataset": "half"}, "dataset 'half'"),
        (
            "light_90_llrd_65",
            {"pretrain": "light_95"},
            "'light_95', which is not a pretrain run; did you mean light_9",
        ),
        ("light_90_llrd_65", {"dataset": "daily_500_90"}, "which only the grid writes"),
        ("mae_token", {"tokenizer": "none"}, "tokens of 'none', which is not a tokenizer"),
        ("fastmim_distillation", {"teacher": "light_90_llrd_65"}, "which keeps no weights"),
    ],
)
def test_what_does_not_fit_together_is_refused(tmp_path, run, keys, words):
    assert words in refused(tmp_path, runs={run: keys})


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"sizes": 224}, "sizes 224 must be a list of numbers"),
        ({"sizes": "224"}, "sizes '224' must be a list of numbers"),
        ({"sizes": ["192", 224]}, r"sizes \['192', 224\] must be a list of numbers"),
        ({"sizes": [True, 224]}, r"sizes \[True, 224\] must be a list of numbers"),
        ({"ends": 0.5}, "ends 0.5 must be a list of numbers"),
        ({"ends": None}, "ends None must be a list of numbers"),
        ({"mask_ratios": 0.75}, "mask_ratios 0.75 must be a list of numbers"),
        ({"schedule": ["rising"]}, r"schedule \['rising'\] must be one of palindrome, rising"),
        ({"size": [224], 3: 4}, "unknown key 3"),
    ],
)
def test_a_schedule_of_wrong_types_is_refused(tmp_path, wrong, words):
    stages = {"schedule": "rising", "sizes": [192, 224]} | wrong
    message = refused(tmp_path, runs={"light_90": {"stages": stages}})
    assert "runs.light_90.stages" in message and re.search(words, message)


def test_a_stage_may_keep_the_runs_own_mask_ratio(tmp_path):
    stages = {"schedule": "rising", "sizes": [192, 224], "mask_ratios": [0.5, None]}
    params = load(write_params(tmp_path, runs={"light_90": {"stages": stages}}))
    assert [stage.mask_ratio for stage in params.run("light_90").stages] == [0.5, None]


def test_budgets_and_changed_runs_must_exist(tmp_path):
    path = write_params(tmp_path)
    path.write_text(path.read_text().replace("budget: smoke", "budget: huge"))
    with pytest.raises(UserError, match="budget is 'huge'; budgets.yaml has .*smoke"):
        load(path)
    assert "runs.light_9: there is no such run; did you mean light_90" in refused(
        tmp_path, runs={"light_9": {}}
    )


def test_missing_and_broken_files(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        load(tmp_path / "params.yaml")
    for text, words in (
        (b"budget: [", "not valid YAML"),
        (b"budget: \xe9", "not UTF-8"),
        (b"- 1", "not keys with values"),
    ):
        (tmp_path / "broken.yaml").write_bytes(text)
        with pytest.raises(UserError, match=words):
            load(tmp_path / "broken.yaml")


def test_a_name_given_twice_is_refused(tmp_path):
    path = write_params(tmp_path)
    path.write_text(path.read_text() + "machine: {}\n")
    with pytest.raises(UserError, match="the key machine stands there twice.*line"):
        load(path)


def test_a_run_of_two_papers_is_refused(tmp_path):
    path = room(tmp_path, pretrain={"mine": {"base": "light"}})
    other = tmp_path / "papers" / "other"
    other.mkdir()
    (other / "runs.yaml").write_text("title: Other\npretrain: {mine: {base: light}}\n")
    with pytest.raises(
        UserError,
        match=r"papers/own/runs.yaml: pretrain.mine: papers/other/runs.yaml: pretrain.mine has that name",
    ):
        load(path)


def test_bases_are_laid_under_and_evaluations_listed():
    content = {
        "title": "Own",
        "recipes": {"a": {"epochs": 10, "target": "pixel"}, "b": {"base": "a", "epochs": 20}},
        "pretrain": {"run": {"base": "b", "evaluate": {"ft": "a", "short": {"base": "a", "epochs": 1}}}},
    }
    found = {entry.name: entry for entry in entries({"own": Room.model_validate(content)})}
    assert found["run"].stated == {"epochs": 20, "target": "pixel"}
    assert found["run_ft"].stated == {"epochs": 10, "target": "pixel", "pretrain": "run"}
    assert found["run_short"].stated["epochs"] == 1 and found["run_short"].section == "evaluate"


@pytest.mark.parametrize(
    ("recipes", "words"),
    [
        ({"a": {"base": "b"}, "b": {"base": "a"}}, "a -> b -> a name each other"),
        ({"a": {"base": "aa"}}, "'aa': no such recipe"),
    ],
)
def test_bases_that_lead_nowhere_are_refused(recipes, words):
    content = Room.model_validate({"title": "Own", "recipes": recipes, "pretrain": {"run": {"base": "a"}}})
    with pytest.raises(UserError, match=words):
        list(entries({"own": content}))


def test_unknown_run_is_answered_with_close_names():
    with pytest.raises(UserError, match=r"no run 'light_9'; did you mean light_90, .*\?$"):
        load(ROOT / "params.yaml").run("light_9")


def test_close_names_are_few_and_in_one_order():
    known = {f"run_{number}" for number in range(40)} | {"fine", "fine_tuned"}
    assert closest("grid/mae/fine", known) == "; did you mean fine, fine_tuned?"
    assert closest("rum_7", known).startswith("; did you mean run_7, run_")
    assert closest("zzz", known) == "; there are 42, such as fine, run_0, run_1"
    assert closest("zzz", ["b", "a"]) == "; known are a, b" and closest("zzz", []) == "; there is none"
    assert (
        closest("grid/mae/", known | {"grid/mae/x"})
        == closest("mae", known | {"grid/mae/x"})
        == "; did you mean grid/mae/x?"
    )


@pytest.mark.parametrize(
    ("findings", "words"),
    [
        ({"default": "brief", "mae2": "proxy"}, "papers are"),
        ({"default": "small"}, "defined are .*brief"),
        ({"mae": "brief"}, "findings names no budget for "),
        ({"default": ["brief", "small"]}, "yaml: findings names budget 'small'; defined are .*brief"),
        ({"default": []}, "findings names no budget for "),
        (3, "findings names a budget, a list of budgets, or budgets for each paper"),
    ],
)
def test_findings_name_known_papers_and_budgets(tmp_path, findings, words):
    assert re.search(words, refused(tmp_path, findings=findings))


def test_findings_may_be_one_budget(tmp_path):
    params = load(write_params(tmp_path, findings="brief"))
    assert set(params.findings) == set(params.papers) and set(params.findings.values()) == {("brief",)}


def test_findings_may_be_several_budgets(tmp_path):
    params = load(write_params(tmp_path, findings={"default": ["proxy", "brief"], "mae": "gpu"}))
    assert params.findings["mae"] == ("gpu",) and params.findings["fastmim"] == ("proxy", "brief")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"sorce": "photos"}, "unknown key `sorce`; did you mean `source`?"),
        ({"classes": "many"}, "classes = 'many'"),
        ({"train": {"quality": 200}}, "train.quality = 200"),
    ],
)
def test_a_wrong_setting_of_a_budgets_data_is_named(tmp_path, data, words):
    message = refused(tmp_path, data=data)
    assert "budgets.yaml: smoke.data: " in message and words in message


def test_learning_rates_in_any_yaml_notation_are_numbers(tmp_path):
    path = write_params(tmp_path)
    path.write_text(path.read_text().replace("runs: {}", "runs: {light_90_llrd_65: {base_lr: 1e-3}}"))
    assert load(path).run("light_90_llrd_65").base_lr == 1e-3


@pytest.mark.parametrize("name", ["gpu", "t"])
def test_switching_the_budget_changes_one_line(tmp_path, name):
    text = (ROOT / "params.yaml").read_text().replace("budget: laptop", "budget: t", 1)
    (tmp_path / "budgets.yaml").write_text(yaml.safe_dump(read("budgets.yaml") | {"t": {}}))
    path = tmp_path / "params.yaml"
    path.write_text(text)
    switch_budget(path, name)
    changed = [
        (a, b) for a, b in zip(text.splitlines(), path.read_text().splitlines(), strict=True) if a != b
    ]
    assert [new.split("#")[0].strip() for _, new in changed] == ([f"budget: {name}"] if name != "t" else [])
    with pytest.raises(UserError, match="no budget 'tomorrow'"):
        switch_budget(path, "tomorrow")


def test_params_yaml_fits_on_one_screen():
    assert len((ROOT / "params.yaml").read_text().splitlines()) <= 90


def test_an_unknown_dataset_gets_the_closest_names():
    with pytest.raises(UserError, match="no dataset '500_95'; did you mean daily_500_95"):
        load(ROOT / "params.yaml").dataset("500_95")


def test_a_timm_name_that_begins_with_vit_has_no_stride_before_it_is_built():
    run = load(ROOT / "params.yaml").run("light_90")
    run = run.model_copy(update={"backbone": "vitamin_small_224", "backbone_kwargs": {}})
    assert run.stride is None
    with pytest.raises(UserError, match="'vitamin_small_224': state mask_unit"):
        run.model_copy(update={"mask_unit": None}).patch_size  # noqa: B018

"""params.yaml is read strictly: every mistake is one line that names the key, the value and what would be right."""

import re
from pathlib import Path

import pytest
import yaml

from replicate.errors import UserError
from replicate.names import closest
from replicate.config import load, switch_budget

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def content():
    return yaml.safe_load((ROOT / "params.yaml").read_text())


def refused(tmp_path, content) -> str:
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(UserError) as caught:
        load(path)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_unknown_key_is_named_with_the_one_that_was_meant(tmp_path, content):
    content["pretrain"]["light_90"]["mask_ration"] = 0.9
    message = refused(tmp_path, content)
    assert "pretrain.light_90.mask_ration" in message and "did you mean 'mask_ratio'" in message


@pytest.mark.parametrize(
    ("section", "run", "key", "value", "told"),
    [
        ("pretrain", "light_90", "mask_ratio", 1.2, "less than 1"),
        ("pretrain", "light_90", "mask_ratio", "most", "number"),
        ("pretrain", "light_90", "epochs", -1, "greater than or equal to 0"),
        ("pretrain", "light_90", "epochs", 2.5, "integer"),
        ("pretrain", "light_90", "method", "beit", "'mae' or 'mim'"),
        ("pretrain", "light_90", "batch_size", 0, "greater than or equal to 1"),
        ("evaluate", "light_90_llrd_65", "layer_decay", 1.5, "less than or equal to 1"),
        ("evaluate", "light_90_llrd_65", "betas", [0.9], "missing"),
        ("evaluate", "light_90_llrd_65", "protocol", "detect", "'finetune'"),
        ("evaluate", "light_90_llrd_65", "auto_augment", "three_augmnt", "none of null, rand-m9-mstd0.5-inc1, three_augment"),
        ("evaluate", "light_90_llrd_65", "crop_scale", [0.9, 0.2], "the smaller share of the image comes first"),
    ],
)
def test_impossible_values_name_key_value_and_range(tmp_path, content, section, run, key, value, told):
    content[section][run][key] = value
    message = refused(tmp_path, content)
    assert f"{section}.{run}.{key}" in message and told in message.lower()


@pytest.mark.parametrize(
    ("group", "run", "keys", "told"),
    [
        ("pretrain", "fastmim_vit_hog_128", {"mask_tokens_in_encoder": True}, "belongs to method mae"),
        ("pretrain", "light_90", {"objective": "distillation"}, "and no others, stand under grid.distill"),
        ("evaluate", "light_90_llrd_65", {"protocol": "linear"}, "layer_decay, drop_path: a linear probe tunes no block"),
        ("evaluate", "mae_base_lin", {"tuned_blocks": 1.0, "drop_path": 0.1}, "tuned_blocks, drop_path: a linear probe tunes no block"),
        ("evaluate", "light_90_llrd_65", {"stages": [{"until": 1.0, "auto_augment": "three_augmnt"}]}, "'three_augmnt' is none of null"),
        ("grid.distill", "fastmim_distillation", {"objective": "reconstruction"}, "and no others, stand under grid.distill"),
    ],
)
def test_what_would_be_read_by_nothing_is_refused(tmp_path, content, group, run, keys, told):
    section = content
    for key in group.split("."):
        section = section[key]
    section[run] |= keys
    message = refused(tmp_path, content)
    assert f"{group}.{run}" in message and told in message and "\n" not in message


def test_a_tokenizer_that_nothing_reads_is_refused(tmp_path, content):
    content["pretrain"]["light_90"]["tokenizer"] = "grid/mae/mae_tokens"
    assert "run 'light_90' has tokenizer 'grid/mae/mae_tokens', which is read by nothing: its target is pixel" in refused(tmp_path, content)


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"image_size": 225}, "evaluate.light_90_llrd_65.image_size = 225: the patch of 16 pixels does not divide it; 224 and 240"),
        ({"stages": [{"until": 0.5, "image_size": 200}, {"until": 1.0}]}, "evaluate.light_90_llrd_65.image_size = 200"),
    ],
)
def test_sizes_of_fine_tuning_are_those_of_its_models_patch(tmp_path, content, keys, told):
    content["evaluate"]["light_90_llrd_65"] |= keys
    assert told in refused(tmp_path, content)


def test_image_size_that_the_patch_does_not_divide(tmp_path, content):
    content["pretrain"]["light_90"]["image_size"] = 230
    message = refused(tmp_path, content)
    assert "pretrain.light_90.image_size = 230" in message and "224 and 240" in message


def test_run_that_starts_from_nothing(tmp_path, content):
    content["evaluate"]["light_90_llrd_65"]["pretrain"] = "efficient_learners/light_95"
    assert "light_95" in refused(tmp_path, content)


def test_budget_and_dataset_must_exist(tmp_path, content):
    assert "defined are brief, evening, gpu, laptop, paper, smoke, tiny" in refused(tmp_path, content | {"budget": "huge"})
    content["pretrain"]["light_90"]["dataset"] = "half"
    assert "dataset 'half'" in refused(tmp_path, content)


def test_stages_must_cover_the_run(tmp_path, content):
    content["pretrain"]["light_90"]["stages"] = [{"until": 0.5, "image_size": 160}]
    assert "the last at 1.0" in refused(tmp_path, content)


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
        ({"schedule": ["rising"]}, r"schedule \['rising'\] must be one name of palindrome, rising"),
        ({"size": [224], 3: 4}, "unknown key 3"),
    ],
)
def test_a_schedule_of_wrong_types_is_told_in_one_line(tmp_path, content, wrong, words):
    content["pretrain"]["light_90"]["stages"] = {"schedule": "rising", "sizes": [192, 224]} | wrong
    message = refused(tmp_path, content)
    assert "pretrain.light_90.stages" in message and re.search(words, message)


def test_a_schedule_may_leave_a_stage_the_runs_own_mask_ratio(tmp_path, content):
    content["pretrain"]["light_90"]["stages"] = {"schedule": "rising", "sizes": [192, 224], "mask_ratios": [0.5, None]}
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(content))
    assert [stage.mask_ratio for stage in load(path).run("light_90").stages] == [0.5, None]


def test_warmup_longer_than_the_run(tmp_path, content):
    content["pretrain"]["light_90"]["warmup_epochs"] = 101
    assert "warmup_epochs 101" in refused(tmp_path, content)


def test_missing_and_broken_files(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        load(tmp_path / "params.yaml")
    broken = tmp_path / "broken.yaml"
    broken.write_text("budget: [")
    with pytest.raises(UserError, match="not valid YAML"):
        load(broken)


def test_unknown_run_is_answered_with_close_names():
    with pytest.raises(UserError, match=r"no run 'light_9'; did you mean light_90, .*\?$"):
        load(ROOT / "params.yaml").run("light_9")


def test_close_names_are_few_and_in_one_order():
    known = {f"run_{number}" for number in range(40)} | {"fine", "fine_tuned"}
    assert closest("grid/mae/fine", known) == "; did you mean fine, fine_tuned?"
    assert closest("rum_7", known).startswith("; did you mean run_7, run_")
    assert closest("zzz", known) == "; there are 42, such as fine, run_0, run_1"
    assert closest("zzz", ["b", "a"]) == "; known are a, b" and closest("zzz", []) == "; there is none"
    assert closest("grid/mae/", known | {"grid/mae/x"}) == closest("mae", known | {"grid/mae/x"}) == "; did you mean grid/mae/x?"


@pytest.mark.parametrize(("paper", "budget", "fault"), [("mae2", "tiny", "papers are"), ("mae", "small", "defined are .*brief")])
def test_findings_of_an_unknown_paper_or_budget(tmp_path, content, paper, budget, fault):
    content["findings"] |= {paper: budget}
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(UserError, match=fault):
        load(path)


@pytest.mark.parametrize(
    ("data", "told"),
    [
        ({"sorce": "photos"}, "unknown key sorce; did you mean 'source'?"),
        ({"classes": "many"}, "classes = 'many'"),
        ({"train": {"quality": 200}}, "train.quality = 200"),
    ],
)
def test_a_wrong_setting_of_a_budgets_data_is_told_where_it_stands(tmp_path, content, data, told):
    content["budgets"]["laptop"]["data"] = data
    message = refused(tmp_path, content)
    assert "budgets.laptop.data: " in message and told in message


def test_findings_of_some_papers_only(tmp_path, content):
    del content["findings"]["mae"]
    assert "findings names no budget for mae" in refused(tmp_path, content)


def test_learning_rates_in_any_yaml_notation_are_numbers(tmp_path, content):
    text = (ROOT / "params.yaml").read_text()
    path = tmp_path / "params.yaml"
    path.write_text(text.replace("base_lr: 1.0e-3", "base_lr: 1e-3"))
    assert load(path).run("light_90_llrd_65").base_lr == 1e-3


def test_switching_the_budget_changes_one_line(tmp_path):
    text = (ROOT / "params.yaml").read_text()
    path = tmp_path / "params.yaml"
    path.write_text(text)
    switch_budget(path, "gpu")
    changed = [(a, b) for a, b in zip(text.splitlines(), path.read_text().splitlines(), strict=True) if a != b]
    assert len(changed) == 1 and changed[0][1].startswith("budget: gpu")
    with pytest.raises(UserError, match="no budget 'tomorrow'"):
        switch_budget(path, "tomorrow")


def test_an_unknown_dataset_gets_the_closest_names():
    with pytest.raises(UserError, match="no dataset '500_95'; did you mean daily_500_95"):
        load(ROOT / "params.yaml").dataset("500_95")


def test_a_timm_name_that_begins_with_vit_has_no_stride_before_it_is_built():
    run = load(ROOT / "params.yaml").pretrain["light_90"].model_copy(update={"backbone": "vitamin_small_224", "backbone_kwargs": {}})
    assert run.stride is None
    with pytest.raises(UserError, match="'vitamin_small_224': say mask_unit"):
        run.model_copy(update={"mask_unit": None}).patch_size  # noqa: B018

import json

import pytest
from project import ROOT

from replicate.config import load
from replicate.errors import UserError
from replicate.report import results


def write(root, run="light_90_llrd_65", paper="efficient_learners", budget="laptop", **change):
    content = {
        "results": {
            "seeds": [0, 1],
            "per_seed": [{"top1": 40.0, "note": "x"}, {"top1": 42.0, "curve": [1, 2]}],
        },
        "run": {"layer_decay": 0.65},
        "resolved": {"epochs": 4},
        "provenance": {"wall_seconds": 7200.0},
    }
    content.update(change)
    path = root / budget / paper / run / "metrics.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(content))
    return path


def test_every_finished_run_of_a_budget_is_read(tmp_path):
    write(tmp_path)
    write(tmp_path, run="light_90", results={"seeds": [0], "per_seed": [{"loss": 0.5}]})
    write(tmp_path, run="light_90", budget="smoke")
    write(tmp_path, run="batch_512", budget="laptop/grid")
    found = results.load("laptop", tmp_path)
    assert set(found.runs) == {"light_90", "light_90_llrd_65", "batch_512"} and "light_90" in found
    assert found.runs["batch_512"].paper == "efficient_learners"
    assert found.runs["light_90_llrd_65"].per_seed == ({"top1": 40.0}, {"top1": 42.0}), (
        "texts and lists are no metrics"
    )
    assert found.values("light_90_llrd_65", "top1") == {0: 40.0, 1: 42.0}


def test_measured_numbers_stand_where_the_checkout_has_none_of_its_own(tmp_path):
    write(tmp_path / "results")
    write(tmp_path / "measured", results={"seeds": [0], "per_seed": [{"top1": 99.0}]})
    write(tmp_path / "measured", run="light_90_llrd_80", results={"seeds": [0], "per_seed": [{"top1": 43.0}]})
    found = results.load("laptop", tmp_path / "results")
    assert found.values("light_90_llrd_65", "top1") == {0: 40.0, 1: 42.0} and found.values(
        "light_90_llrd_80", "top1"
    ) == {0: 43.0}


def test_a_measured_run_of_other_settings_is_left_out(tmp_path):
    params = load(ROOT / "params.yaml")
    now = params.resolve("light_90_llrd_65", "laptop").model_dump(mode="json")
    upstream = params.resolve("light_90", "laptop").model_dump(mode="json")
    write(tmp_path / "measured", resolved=now)
    write(tmp_path / "measured", run="light_90", resolved=upstream)
    write(tmp_path / "measured", run="light_90_llrd_80", resolved=now)
    found = results.load("laptop", tmp_path / "results", params=params)
    assert set(found.runs) == {"light_90", "light_90_llrd_65"}, (
        "the other is said to have been trained at layer_decay 0.65"
    )


def test_a_measured_run_whose_pre_training_has_other_settings_is_left_out(tmp_path):
    params = load(ROOT / "params.yaml")
    own, upstream = (
        params.resolve(name, "laptop").model_dump(mode="json") for name in ("light_90_llrd_65", "light_90")
    )
    write(tmp_path / "measured", resolved=own)
    assert results.load("laptop", tmp_path / "results", params=params).runs == {}, (
        "nobody says what it starts from"
    )
    write(tmp_path / "measured", run="light_90", resolved=upstream | {"epochs": upstream["epochs"] + 1})
    assert results.load("laptop", tmp_path / "results", params=params).runs == {}


def test_kept_are_numbers_and_history_but_no_weights(tmp_path):
    path = write(tmp_path / "results", budget="laptop/grid")
    (path.parent / "history.csv").write_text("seed,epoch,loss,seconds\n0,0,1.0,2.0\n1,0,1.0,2.0\n")
    (path.parent / "weights").mkdir()
    kept = results.keep(path.parent)
    assert kept == tmp_path / "measured/laptop/grid/efficient_learners/light_90_llrd_65"
    assert sorted(file.name for file in kept.iterdir()) == ["history.csv", "metrics.json"]
    assert results.load("laptop", tmp_path / "results").history("light_90_llrd_65").loss.tolist() == [
        1.0,
        1.0,
    ]
    results.keep(path.parent, times=False)
    assert (kept / "history.csv").read_text() == "seed,epoch,loss\n0,0,1.0\n1,0,1.0\n"
    provenance = json.loads((kept / "metrics.json").read_text())["provenance"]
    assert provenance == {"wall_seconds": 7200.0, "shared_machine": True}
    with pytest.raises(UserError, match="has not finished"):
        results.keep(tmp_path / "results/laptop/efficient_learners/full_75")


def test_measured_runs_are_what_params_yaml_says_now():
    """A number that git holds must not stand for settings that have changed since."""
    params = load(ROOT / "params.yaml")
    for path in sorted((ROOT / "measured").glob("**/metrics.json")):
        run = results.read(path)
        assert not results.changed(run, params, path.relative_to(ROOT / "measured").parts[0]), (
            f"{path}: train and keep it again"
        )


def test_a_number_of_the_whole_run_stands_at_one_seed(tmp_path):
    write(tmp_path)
    assert results.load("laptop", tmp_path).values("light_90_llrd_65", "wall_seconds") == {0: 7200.0}


def test_a_recipe_does_not_depend_on_when_it_was_written(tmp_path):
    """Older files lack `labels_per_class`; their runs took all labels."""
    resolved = {"protocol": "finetune", "base_lr": 1e-3}
    write(tmp_path, "old", resolved=resolved)
    write(tmp_path, "new", resolved=resolved | {"labels_per_class": None})
    write(tmp_path, "few", resolved=resolved | {"labels_per_class": 10})
    found = results.load("laptop", tmp_path)
    assert found.recipe("old") == found.recipe("new") != found.recipe("few")


def test_no_results_is_no_error(tmp_path):
    assert results.load("laptop", tmp_path / "nowhere").runs == {}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"results": {"seeds": [0], "per_seed": []}}, "one entry a seed"),
        ({"results": {"seeds": [0, 0], "per_seed": [{}, {}]}}, "repeats a seed"),
        ({"results": {"seeds": [0], "per_seed": [3]}}, "table of metrics"),
        ({"results": {"seeds": [0], "per_seed": [{"top1": float("nan")}]}}, "top1 is nan"),
        ({"provenance": None}, "lacks the entry provenance"),
    ],
)
def test_a_broken_file_is_named_with_its_entry(tmp_path, change, words):
    path = write(tmp_path, **change)
    with pytest.raises(UserError, match=words) as error:
        results.load("laptop", tmp_path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_half_a_file_is_no_result(tmp_path):
    path = write(tmp_path)
    path.write_text(path.read_text()[:50])
    with pytest.raises(UserError, match="not valid JSON"):
        results.load("laptop", tmp_path)


def test_an_unknown_metric_lists_the_known_ones(tmp_path):
    write(tmp_path)
    with pytest.raises(UserError, match="no metric 'top5'; the run reports top1"):
        results.load("laptop", tmp_path).values("light_90_llrd_65", "top5")


def test_two_runs_of_one_name_are_refused(tmp_path):
    write(tmp_path)
    write(tmp_path, paper="mae")
    with pytest.raises(UserError, match="a run's name must be its own"):
        results.load("laptop", tmp_path)


def test_history_is_read_where_it_exists(tmp_path):
    path = write(tmp_path)
    assert results.load("laptop", tmp_path).history("light_90_llrd_65").empty
    path.with_name("history.csv").write_text(
        "seed,epoch,loss,seconds\n0,0,0.9,1800\n0,1,0.8,1800\n1,0,0.9,3600\n"
    )
    found = results.load("laptop", tmp_path)
    assert found.history("light_90_llrd_65").loss.tolist() == [0.9, 0.8, 0.9]
    assert found.values("light_90_llrd_65", "train_hours") == {0: 1.0, 1: 1.0}

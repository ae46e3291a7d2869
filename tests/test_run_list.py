"""Runs for a terminal: `list` and `show`."""

import json

import pytest
from project import ROOT, write_params

from replicate.cli import main
from replicate.config import load, published
from replicate.report import results, run_list


@pytest.fixture
def project(tmp_path, monkeypatch):
    """An empty project that has the repository's box and its kept numbers."""
    monkeypatch.chdir(tmp_path)
    for name in ("measured", "weights"):
        (tmp_path / name).symlink_to(ROOT / name)
    write_params(tmp_path)
    return tmp_path


def printed(capsys, *arguments: str) -> list[str]:
    capsys.readouterr()
    assert main(arguments) == 0
    return capsys.readouterr().out.splitlines()


def finish(params, name: str, values: list[float]) -> None:
    folder = params.results_folder(name)
    folder.mkdir(parents=True)
    found = {"seeds": list(range(len(values))), "per_seed": [{"top1": value} for value in values]}
    resolved = params.resolve(name).model_dump(mode="json")
    content = {"results": found, "run": {}, "resolved": resolved, "provenance": {}}
    (folder / "metrics.json").write_text(json.dumps(content))


def test_every_run_has_a_line_of_at_most_100_columns(project, capsys):
    params = load()
    head, *lines, last = printed(capsys, "list")
    assert sorted(line.split()[0] for line in lines) == sorted(params.runs)
    assert [line.split()[1] for line in (lines[0], lines[-1])] == ["mae", "crossmae"], "the oldest first"
    assert max(map(len, [head, *lines])) <= 100
    assert last == f"{len(lines)} of {len(params.runs)} runs, at budget smoke"


def test_a_word_filters_and_a_wrong_one_is_told_with_the_closest(project, capsys):
    lines = printed(capsys, "list", "light_75")[1:-1]
    assert {line.split()[0] for line in lines} == {name for name in load().runs if "light_75" in name}
    for command in ("list", "show"):
        assert main([command, "lihgt_75"]) == 2
        told = capsys.readouterr().err
        assert told.startswith("error: ") and "light_75" in told and told.count("\n") == 1


def test_states_are_what_the_folders_hold(project):
    params = load()
    finish(params, "light_90_llrd_65", [10.0])
    states = {"smoke": {"light_90_llrd_65"}}
    for budget in ("smoke", "laptop", "brief"):
        params = params.model_copy(update={"budget": budget})
        found = results.load(budget, params=params)
        states[budget] = {name: run_list.state(params, name, found) for name in params.runs}
    assert [n for n, one in states["smoke"].items() if one == run_list.HERE] == ["light_90_llrd_65"]
    boxed = {path.stem for path in (ROOT / "weights" / "laptop").glob("*.json")}
    assert {name for name, one in states["laptop"].items() if one == run_list.BOXED} == boxed
    kept = {name for name, one in states["brief"].items() if one == run_list.KEPT}
    folders = {path.parent.name for path in (ROOT / "measured" / "brief").rglob("metrics.json")}
    assert kept and kept <= folders


def test_a_pre_training_is_published_where_its_evaluations_are(project):
    numbers, params = run_list.numbers_of(), load()
    name = next(name for name in params.pretrain_runs if name not in numbers and f"{name}_ft" in numbers)
    line = next(line for line in run_list.listed(params, name).splitlines() if line.startswith(f"{name} "))
    tables = {one.cell["table"] for one in numbers[f"{name}_ft"]}
    assert tables and all(table in line for table in tables)


def test_a_run_is_shown_with_recipe_result_and_published_numbers(project, capsys):
    params = load()
    finish(params, "default_100", [10.0, 12.0, 14.0])
    text = "\n".join(printed(capsys, "show", "default_100"))
    assert max(map(len, text.splitlines())) <= 100
    # Student's t with two degrees of freedom: 4.303 * 2 / sqrt(3) = 4.97
    assert "top1 12.0 [7.0, 17.0] %, 3 seeds" in text and run_list.HERE in text
    assert "starts from light_90_batch_4096: not run" in text
    stated, resolved = params.run("default_100"), params.resolve("default_100")
    assert any(
        line.split() == ["epochs", str(stated.epochs), str(resolved.epochs)] for line in text.splitlines()
    )
    for number in published.cells({"table": "table_1", "column": "top1", "paper": "efficient_learners"}):
        wanted = "finetune_epochs=100" in number["row"]
        assert (f"table_1, top1: {number['printed']} percent; ours 12.0 [7.0, 17.0]" in text) == wanted
    assert "efficient_learners.default_recipe_not_converged" in text


def test_every_run_can_be_shown(project):
    """One of each kind and paper: tokenizers, stages, dense transfer, kept numbers."""
    params = load().model_copy(update={"budget": "brief"})
    kinds = {(type(run), run.paper, bool(run.stages)): name for name, run in params.runs.items()}
    for name in kinds.values():
        text = run_list.described(params, name)
        assert text.startswith(name) and max(map(len, text.splitlines())) <= 100, text

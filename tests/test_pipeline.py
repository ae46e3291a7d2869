"""dvc.yaml against the code that its stages run: every file that a stage imports is among its inputs, and no other option's file is."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import project as small_project
import pytest
import yaml
from dvc.repo import Repo

from replicate.__main__ import main
from replicate.params import load
from replicate.sources import closure, evaluate_entries, notebook_entries, pretrain_entries, tokenizer_entries

ROOT = Path(__file__).resolve().parents[1]
LENS = {Path("replicate/params.py"), Path("replicate/budget.py"), Path("replicate/trainers/launch.py")}
OPTIONS = ("replicate/targets", "replicate/losses", "replicate/models")


HEADLINE, GRID = ".", "grids"
INPUTS = Path("executed/source/inputs")


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """The repository as DVC sees it once `make grid` has put the grid's pipeline in place."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "grids").mkdir()
    shutil.copy(ROOT / "dvc.yaml", folder)
    shutil.copy(ROOT / "params.yaml", folder)
    shutil.copy(ROOT / "grids" / "pipeline.yaml", folder / "grids" / "dvc.yaml")
    for name in ("replicate", "notebooks", "published"):
        (folder / name).symlink_to(ROOT / name)
    assert main(["--params", str(ROOT / "params.yaml"), "inputs", str(folder / INPUTS)]) == 0
    return folder


@pytest.fixture(scope="module")
def stages(project):
    with Repo.init(str(project), no_scm=True) as repo:
        return {(str(Path(stage.path).parent.relative_to(project)), stage.name): stage for stage in repo.index.stages if stage.name}


@pytest.fixture(scope="module")
def params():
    return load(ROOT / "params.yaml")


def all_runs(params):
    """(folder of the pipeline file, stage name, resolved run, entry modules) of every run."""
    for folder, group in ((HEADLINE, params), (GRID, params.grid)):
        for name in group.pretrain:
            yield folder, f"pretrain@{name}", name, pretrain_entries
        for name in group.evaluate:
            yield folder, f"evaluate@{name}", name, evaluate_entries
    for name in params.grid.tokenizers:
        yield GRID, f"tokenizer@{name}", name, tokenizer_entries
    for name in params.grid.pretrain_tokens:
        yield GRID, f"pretrain_tokens@{name}", name, pretrain_entries
    for kind, entries in (("teach", evaluate_entries), ("distill", pretrain_entries), ("score", evaluate_entries), ("analyse", evaluate_entries)):
        for name in getattr(params.grid, kind):
            yield GRID, f"{kind}@{name}", name, entries


def relative(dependency, project) -> Path:
    """Where a dependency lies in the repository."""
    path = Path(str(dependency.fs_path))
    return path.relative_to(project) if path.is_relative_to(project) else path


def own_inputs(stage, project) -> list[Path]:
    """The files among a stage's dependencies that the stage `inputs` writes, relative to its folder; each must exist."""
    found = [path.relative_to(INPUTS) for dep in stage.deps if (path := relative(dep, project)).is_relative_to(INPUTS)]
    assert all((project / INPUTS / path).is_file() for path in found), stage
    return found


def code_dependencies(stage, project) -> set[Path]:
    """The source files that a stage depends on through its inputs, relative to the repository."""
    contents = [json.loads((project / INPUTS / path).read_text()) for path in own_inputs(stage, project) if path.parts[0] != "budgets"]
    return {Path(name) for content in contents for name in content["code"]}


def test_every_run_is_a_stage_that_depends_on_all_it_imports(stages, params, project):
    for folder, stage, name, entries in all_runs(params):
        wanted = set(closure(*entries(params.resolve(name)))) | LENS
        assert wanted - code_dependencies(stages[folder, stage], project) == set(), stage


def test_no_run_depends_on_another_option_of_the_harness(stages, params, project):
    options = {path.relative_to(ROOT) for folder in OPTIONS for path in (ROOT / folder).rglob("*.py")}
    for folder, stage, name, entries in all_runs(params):
        foreign = options - set(closure(*entries(params.resolve(name))))
        assert code_dependencies(stages[folder, stage], project) & foreign == set(), stage


def test_inputs_hold_what_is_stated_and_digests_of_the_code(project, params):
    inputs = json.loads((project / INPUTS / "pretrain" / "light_90.json").read_text())
    assert inputs["stated"][0]["mask_ratio"] == 0.9 and inputs["stated"][0]["epochs"] == 100
    assert inputs["code"]["replicate/masking.py"] == hashlib.sha256((ROOT / "replicate/masking.py").read_bytes()).hexdigest()
    budget = json.loads((project / INPUTS / "budgets" / f"{params.budget}.json").read_text())
    assert budget["seeds"] == params.budgets[params.budget].seeds
    data = json.loads((project / INPUTS / "budgets" / f"{params.budget}.data.json").read_text())
    assert data == {"data": budget["data"], "image_scale": budget["image_scale"]}, "images that state their size are written at the budget's scale"


def test_an_evaluation_depends_on_what_its_weights_are_of(project):
    """From random weights of the same sizes another number of heads is another model."""
    stated = json.loads((project / INPUTS / "evaluate" / "scratch_llrd_80.json").read_text())["stated"]
    scratch = json.loads((project / INPUTS / "pretrain" / "scratch.json").read_text())["stated"]
    assert stated[0]["layer_decay"] == 0.8 and stated[1:] == scratch


def test_a_notebook_depends_on_what_params_state_of_its_paper(project, params):
    """Notebooks print costs of runs that nobody has trained."""
    _, own = json.loads((project / INPUTS / "notebook" / "dailymae.json").read_text())["stated"]
    assert set(own) == {name for name, run in (params.runs | params.searches).items() if run.paper == "dailymae"}


def test_the_crop_decoders_c_sources_are_code(project):
    code = json.loads((project / INPUTS / "pretrain" / "light_90.json").read_text())["code"]
    sources = {path.relative_to(ROOT).as_posix() for path in (ROOT / "crop_decode/csrc").glob("*.[ch]")}
    assert sources and sources | {"crop_decode/build_library.py", "crop_decode/src/crop_decode/_api.py"} <= set(code)


FILES_OF = """
import sys
from pathlib import Path
from replicate.__main__ import main
if main(sys.argv[2:]): raise SystemExit("failed")
root = Path(sys.argv[1])
files = {Path(file) for module in list(sys.modules.values()) if (file := getattr(module, "__file__", None))}
print(*(file.relative_to(root) for file in files if file.is_relative_to(root / "replicate")), sep="\\n")
"""
COMMAND_LINE = {Path(f"replicate/{name}.py") for name in ("__main__", "interruption", "names", "sources", "trainers/parallel")}
COMMAND_LINE |= {Path(f"replicate/models/{name}.py") for name in ("vit", "backbones/__init__", "backbones/names")}
"""They decide which run is trained and in which process, or check the geometry of every run of params.yaml; not what comes out of this one."""
CHAINS = [
    ("mae", ["light_90", "light_90_llrd_80"]),
    ("mae, linear and knn", ["mae_base", "mae_base_lin", "mae_base_knn"]),
    ("mim", ["fastmim_vit_hog_128", "fastmim_vit_hog_128_ft"]),
    ("supmae", ["supmae_50"]),
    ("decoder masking", ["emae_85"]),
    ("tokens", ["mae_tokens", "mae_token"]),
]


@pytest.mark.parametrize("chain", [pytest.param(runs, id=what, marks=[] if what == "mae" else pytest.mark.slow) for what, runs in CHAINS])
def test_what_a_command_imports_is_among_its_inputs(chain, project, params, tmp_path):
    """Against the modules that Python has really loaded when the command ends, not against what reading the sources finds."""
    small_project.write_params(tmp_path)
    small_project.run(tmp_path, "data", "write", "full")
    for name in chain:
        kind = "tokenizer" if name in params.grid.tokenizers else "evaluate" if name in params.evaluate_runs else "pretrain"
        command = [sys.executable, "-c", FILES_OF, str(ROOT), kind, name]
        done = subprocess.run(command, cwd=tmp_path, env=os.environ | small_project.ENVIRONMENT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        loaded = {Path(line) for line in done.stdout.split() if line.startswith("replicate/")}
        assert Path("replicate/trainers/engine.py") in loaded or "knn" in name
        found = next((project / INPUTS).rglob(f"{name}.json"))
        recorded = {Path(file) for file in json.loads(found.read_text())["code"]}
        assert loaded - recorded - COMMAND_LINE == set(), name


def test_evaluations_do_not_depend_on_what_pre_training_alone_imports(project):
    code = json.loads((project / INPUTS / "evaluate" / "light_90_llrd_80.json").read_text())["code"]
    assert not [file for file in code if file.startswith(("replicate/losses", "replicate/targets")) or file.endswith("difficulty.py")]


def test_inputs_are_made_again_when_their_sources_change(stages, params, project):
    deps = {relative(dep, project) for dep in stages[HEADLINE, "inputs"].deps}
    notebooks = {Path(f"executed/source/{name}.ipynb") for name in params.papers}
    assert deps == {Path("params.yaml"), Path("replicate")} | notebooks, "the notebooks as stripped: saving one in Lab must change nothing"


def test_data_stages_depend_on_exactly_what_they_import(stages, params, project):
    for name in params.all_datasets:
        folder = HEADLINE if name in params.datasets else GRID
        assert code_dependencies(stages[folder, f"data@{name}"], project) == set(closure("replicate.loaders.data")) | LENS, name


def test_notebook_stages_depend_on_all_they_import(stages, params, project):
    for name, paper in params.papers.items():
        wanted = set(closure(*notebook_entries(ROOT / paper.notebook)))
        for folder in (HEADLINE, GRID):
            assert wanted - code_dependencies(stages[folder, f"notebook@{name}"], project) == set(), folder


def test_the_report_depends_on_all_that_it_may_show(stages, project):
    files = {path.relative_to(ROOT) for folder in ("report", "cost") for path in (ROOT / "replicate" / folder).rglob("*.py")}
    for name in ("scoreboard", "site"):
        assert files < code_dependencies(stages[HEADLINE, name], project)


def test_a_stage_depends_on_its_own_run_and_budget_only(stages, params, project):
    for folder, stage, name, _ in all_runs(params):
        kind = stage.partition("@")[0]
        section = f"grid/{'tokenizers' if kind == 'tokenizer' else kind}" if folder == GRID else kind
        assert set(own_inputs(stages[folder, stage], project)) == {Path(f"{section}/{name}.json"), Path(f"budgets/{params.budget}.json")}, stage
        others = [relative(dep, project) for dep in stages[folder, stage].deps if not relative(dep, project).is_relative_to(INPUTS)]
        assert all(path.parts[0] in ("data", "results") for path in others), stage


def test_inputs_that_stay_the_same_are_left_alone_and_old_ones_go(tmp_path):
    text = (ROOT / "params.yaml").read_text()
    (tmp_path / "params.yaml").write_text(text)
    write = ["--params", str(tmp_path / "params.yaml"), "inputs", str(tmp_path / "inputs")]
    assert main(write) == 0
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "inputs").rglob("*.json")}
    line = next(line for line in text.splitlines() if line.startswith("  light_90_llrd_80:"))
    (tmp_path / "params.yaml").write_text(text.replace(line, line.replace("light_90_llrd_80", "light_90_llrd_70").replace("0.8}", "0.7}")))
    assert main(write) == 0
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "inputs").rglob("*.json")}
    gone, new = (tmp_path / f"inputs/evaluate/light_90_llrd_{decay}.json" for decay in (80, 70))
    assert set(before) - set(after) == {gone} and set(after) - set(before) == {new}
    touched = {path.relative_to(tmp_path / "inputs").as_posix() for path in set(before) & set(after) if before[path] != after[path]}
    assert touched == {"notebook/efficient_learners.json", "report.json"}
    assert json.loads(new.read_text())["stated"][0]["layer_decay"] == 0.7


def test_a_mistake_in_params_writes_no_inputs(tmp_path, capsys):
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text().replace("mask_ratio: 0.9}", "mask_ratio: 1.9}", 1))
    assert main(["--params", str(tmp_path / "params.yaml"), "inputs", str(tmp_path / "inputs")]) == 2
    assert "1.9" in capsys.readouterr().err and not (tmp_path / "inputs").exists()


def test_runs_on_tokens_depend_on_their_tokenizers_weights(stages, params, project):
    for name, run in params.grid.pretrain_tokens.items():
        deps = {Path(str(dep.fs_path)) for dep in stages[GRID, f"pretrain_tokens@{name}"].deps if dep.fs_path}
        assert project / "results" / params.budget / run.tokenizer / "weights" in deps


def test_scored_classifiers_are_dependencies(stages, params, project):
    for name, run in params.grid.score.items():
        deps = {Path(str(dep.fs_path)) for dep in stages[GRID, f"score@{name}"].deps if dep.fs_path}
        assert project / "results" / params.budget / run.classifier / "weights" in deps


def test_searches_depend_on_what_they_import_and_write_where_the_package_does(stages, params, project):
    for name, search in params.searches.items():
        wanted = set(closure("replicate.trainers.search", *evaluate_entries(search))) | LENS
        for kind, file in (("search", "search.json"), ("apply", "applied.json")):
            stage = stages[GRID, f"{kind}@{name}"]
            assert wanted - code_dependencies(stage, project) == set(), stage
            assert [Path(str(out.fs_path)).relative_to(project) for out in stage.outs] == [params.search_folder(name) / file]


def test_outputs_lie_where_the_package_writes_them(stages, params, project):
    for folder, stage, name, _ in all_runs(params):
        outs = {Path(str(out.fs_path)).relative_to(project) for out in stages[folder, stage].outs}
        assert params.results_folder(name) / "metrics.json" in outs, stage


def test_the_grid_has_the_stages_of_the_headline_pipeline(stages):
    """The same commands, dependencies and kinds of output; only where a run's numbers and results lie differs."""
    headline = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    grid = yaml.safe_load((ROOT / "grids" / "pipeline.yaml").read_text())["stages"]
    for kind in ("pretrain", "evaluate"):
        own = str(grid[kind]["do"]).replace("grid/${item.paper}", "${item.paper}").replace(f"inputs/grid/{kind}/", f"inputs/{kind}/")
        assert own.replace("'wdir': '..', ", "") == str(headline[kind]["do"])

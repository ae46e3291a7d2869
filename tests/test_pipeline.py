"""dvc.yaml against the code: what a run's digests hold, and what each stage depends on and writes."""

import ast
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

from replicate.cli import main
from replicate.config import EvaluateRun, load
from replicate.pipeline import digests, stages

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "replicate"
HEADLINE, GRID = ".", "grids"
INPUTS = Path("executed/inputs")


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """The repository as DVC sees it once `make grid` has put the grid's pipeline in place."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "grids").mkdir()
    for name in ("dvc.yaml", "params.yaml", "budgets.yaml", "stages.yaml"):
        shutil.copy(ROOT / name, folder)
    shutil.copy(ROOT / "grids" / "pipeline.yaml", folder / "grids" / "dvc.yaml")
    for name in ("replicate", "notebooks", "papers", "crop_decode"):
        if (ROOT / name).exists():
            (folder / name).symlink_to(ROOT / name)
    assert main(["--params", str(ROOT / "params.yaml"), "inputs", str(folder / INPUTS)]) == 0
    return folder


@pytest.fixture(scope="module")
def dvc_stages(project):
    """(folder of the pipeline file, name) -> stage."""
    with Repo.init(str(project), no_scm=True) as repo:
        index = {}
        for stage in repo.index.stages:
            if stage.name:
                index[str(Path(stage.path).parent.relative_to(project)), stage.name] = stage
        return index


@pytest.fixture(scope="module")
def params():
    return load(ROOT / "params.yaml")


def stage_of(params, name) -> tuple[str, str]:
    return (GRID if name in params.grid else HEADLINE), f"{stages.group_of(params, name)}@{name}"


def relative(dependency, project) -> Path:
    """Where a dependency lies in the repository."""
    path = Path(str(dependency.fs_path))
    return path.relative_to(project) if path.is_relative_to(project) else path


def paths(dependencies, project) -> set[Path]:
    return {relative(one, project) for one in dependencies if one.fs_path}


def inputs_of(project, name) -> dict:
    return json.loads((project / INPUTS / f"{name}.json").read_text())


def test_stages_yaml_is_that_of_the_rooms(params):
    assert (ROOT / "stages.yaml").read_text() == stages.text_of(params), "run `python -m replicate stages`"


def test_every_run_is_one_stage_and_no_other_run_is(dvc_stages, params):
    found = {key for key in dvc_stages if key[1].partition("@")[0] in stages.GROUPS}
    assert found == {stage_of(params, name) for name in params.runs}


def test_a_stage_depends_on_its_run_its_budget_its_data_and_its_upstream(dvc_stages, params, project):
    for name, run in params.runs.items():
        budget = INPUTS / f"budgets/{params.budget}.json"
        wanted = {INPUTS / f"runs/{name}.json", budget, params.data_folder(run.dataset) / "manifest.json"}
        if upstream := params.upstream_of(name):
            wanted.add(params.results_folder(upstream) / "weights")
        assert paths(dvc_stages[stage_of(params, name)].deps, project) == wanted, name


def test_outputs_lie_where_the_package_writes_them(dvc_stages, params, project):
    for name, run in params.runs.items():
        outs = paths(dvc_stages[stage_of(params, name)].outs, project)
        folder = params.results_folder(name)
        assert folder / "metrics.json" in outs, name
        keeps = not isinstance(run, EvaluateRun) or run.keep_weights or run.protocol in ("detect", "segment")
        assert (folder / "weights" in outs) == keeps, name


def test_inputs_hold_what_is_stated_of_a_run_and_its_upstream(project, params):
    light = inputs_of(project, "runs/light_90")["stated"]
    assert light[0]["mask_ratio"] == 0.9 and light[0]["epochs"] == 100
    stated = inputs_of(project, "runs/scratch_llrd_80")["stated"]
    assert stated[0]["layer_decay"] == 0.8 and stated[1:] == inputs_of(project, "runs/scratch")["stated"]
    budget = inputs_of(project, f"budgets/{params.budget}")
    assert budget["seeds"] == params.budgets[params.budget].seeds
    data = inputs_of(project, f"budgets/{params.budget}.data")
    assert data == {key: budget[key] for key in ("data", "datasets", "image_scale")}


def test_a_notebook_depends_on_what_is_stated_of_its_papers_runs(project, params):
    own = inputs_of(project, "notebook/dailymae")["stated"]
    assert set(own) == {
        name for name, run in (params.runs | params.searches).items() if run.paper == "dailymae"
    }


OPTIONS = {
    "fastmim_vit_hog_128": {"targets/hog.py", "trainers/pretrain.py"},
    "fastmim_cmt_s_hog_128": {"targets/hog.py", "models/backbones/cmt.py", "trainers/pretrain.py"},
    "fastmim_cmt_s_hog_128_ft": {"models/backbones/cmt.py", "trainers/finetune.py"},
    "light_90": {"targets/pixel.py", "trainers/pretrain.py"},
    "light_90_llrd_80": {"trainers/finetune.py"},
    "supmae_50": {"targets/pixel.py", "losses/supmae.py", "trainers/pretrain.py"},
    "emae_85": {"targets/pixel.py", "losses/flatten.py", "trainers/pretrain.py"},
    "mae_base_knn": {"trainers/knn.py"},
    "mae_tokens": {"trainers/tokenizer.py"},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_a_run_depends_on_the_option_files_that_it_names(project, name):
    code = inputs_of(project, f"runs/{name}")["code"]
    assert set(code) - {"core", "losses/uniform.py"} == OPTIONS[name]


def test_touching_an_option_changes_its_runs_and_touching_the_core_changes_all(tmp_path, monkeypatch):
    """On a copy of the package: HOG's file, then the loop's."""
    shutil.copytree(PACKAGE, tmp_path / "replicate", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "papers", tmp_path / "papers")
    for name in ("params.yaml", "budgets.yaml", "stages.yaml"):
        shutil.copy(ROOT / name, tmp_path)

    def codes() -> dict[str, str]:
        command = [sys.executable, "-m", "replicate", "inputs", str(tmp_path / "inputs")]
        subprocess.run(command, cwd=tmp_path, check=True, env=os.environ | {"PYTHONPATH": str(tmp_path)})
        return {path.stem: path.read_text() for path in (tmp_path / "inputs" / "runs").glob("*.json")}

    before = codes()
    for file, changed in (("targets/hog.py", "hog"), ("trainers/session.py", "all")):
        with (tmp_path / "replicate" / file).open("a") as opened:
            opened.write("# a line\n")
        after = codes()
        touched = {name for name in before if before[name] != after[name]}
        wanted = {name for name in before if changed == "all" or "targets/hog.py" in before[name]}
        assert touched == wanted and touched, file
        before = after


OF_INVARIANCE = ("trainers/invariance.py", "targets/similarity.py")
"""Their protocol's digest names HOG."""


def test_no_option_file_is_imported_but_by_its_registry():
    """Whatever an option file shares lies in the core, or its digest would miss a change."""
    options = {
        f"replicate.{name.removesuffix('.py').replace('/', '.')}": name for name in digests.option_files()
    }
    protocols = {f"replicate.trainers.{name}" for name in digests.PROTOCOLS}
    for path in PACKAGE.rglob("*.py"):
        name = path.relative_to(PACKAGE).as_posix()
        if name.split("/")[0] in digests.SHOWN or name in OF_INVARIANCE:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module:
                named = {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
                found = {options[module] for module in named & set(options) - protocols}
                own = {name, name.replace("__init__.py", Path(next(iter(found), "")).name)}
                assert found <= own, f"{name} imports an option file: {ast.unparse(node)}"


def test_inputs_are_made_again_when_their_sources_change(dvc_stages, project):
    deps = paths(dvc_stages[HEADLINE, "inputs"].deps, project)
    wanted = {"params.yaml", "budgets.yaml", "stages.yaml", "papers", "replicate"}
    decoder = {f"crop_decode/{name}" for name in ("csrc", "src/crop_decode", "build_library.py")}
    assert {str(path) for path in deps} == wanted | decoder


def test_inputs_that_stay_the_same_are_left_alone_and_old_ones_go(tmp_path):
    """One value of a sweep changes: its run and its paper's notebook, and nothing else."""
    path = small_project.write_params(tmp_path)
    stages.write(path)
    write = ["--params", str(path), "inputs", str(tmp_path / "inputs")]
    assert main(write) == 0
    stale = tmp_path / "inputs" / "runs" / "gone.json"
    stale.write_text("{}")
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "inputs").rglob("*.json")}
    path = small_project.write_params(tmp_path, runs={"light_90_llrd_80": {"layer_decay": 0.7}})
    assert main(write) == 0
    after = {file: file.stat().st_mtime_ns for file in (tmp_path / "inputs").rglob("*.json")}
    assert set(before) - set(after) == {stale}
    touched = {
        file.relative_to(tmp_path / "inputs").as_posix() for file in after if before[file] != after[file]
    }
    assert touched == {"notebook/efficient_learners.json", "report.json", "runs/light_90_llrd_80.json"}


def test_a_mistake_writes_no_inputs(tmp_path, capsys):
    path = small_project.write_params(tmp_path, runs={"light_90": {"mask_ratio": 1.9}})
    assert main(["--params", str(path), "inputs", str(tmp_path / "inputs")]) == 2
    assert "1.9" in capsys.readouterr().err and not (tmp_path / "inputs").exists()


def test_a_stale_list_of_stages_is_refused(tmp_path, capsys):
    path = small_project.write_params(tmp_path)
    assert main(["--params", str(path), "inputs", str(tmp_path / "inputs")]) == 2
    assert "run `python -m replicate stages`" in capsys.readouterr().err
    assert main(["--params", str(path), "stages"]) == 0
    assert main(["--params", str(path), "inputs", str(tmp_path / "inputs")]) == 0


def test_searches_write_where_the_package_does(dvc_stages, params, project):
    for name in params.searches:
        for kind, file in (("search", "search.json"), ("apply", "applied.json")):
            outs = paths(dvc_stages[GRID, f"{kind}@{name}"].outs, project)
            assert outs == {params.search_folder(name) / file}


def test_no_pipeline_file_lists_the_papers(params):
    for name in (
        "dvc.yaml",
        "grids/pipeline.yaml",
        "params.yaml",
        "budgets.yaml",
        "Makefile",
        "pyproject.toml",
    ):
        text = (ROOT / name).read_text()
        listed = [paper for paper in params.papers if f"{paper}:" in text or f"/{paper}." in text]
        assert len(listed) <= 1, f"{name} lists {listed}"


def test_the_grid_has_the_stages_of_the_headline_pipeline():
    """The same commands, dependencies and kinds of output; only where results lie differs."""
    headline = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    grid = yaml.safe_load((ROOT / "grids" / "pipeline.yaml").read_text())["stages"]
    for kind in ("pretrain", "evaluate"):
        own = str(grid[kind]["do"]).replace("grid/${item.paper}", "${item.paper}")
        assert own.replace("'wdir': '..', ", "") == str(headline[kind]["do"])

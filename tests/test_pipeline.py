"""dvc.yaml against the code that its stages run: every imported file is a dependency, and no unrelated file is."""

from pathlib import Path

import pytest
from dvc.repo import Repo

from replicate.params import load
from replicate.sources import closure, evaluate_entries, pretrain_entries

ROOT = Path(__file__).resolve().parents[1]
LENS = {Path("replicate/params.py"), Path("replicate/budget.py")}


@pytest.fixture(scope="module")
def stages():
    with Repo(str(ROOT)) as repo:
        return {stage.name: stage for stage in repo.index.stages if stage.name}


@pytest.fixture(scope="module")
def params():
    return load(ROOT / "params.yaml")


def code_dependencies(stage) -> set[Path]:
    """The Python files that a stage depends on, folders expanded, relative to the repository."""
    paths = [Path(str(dep.fs_path)).resolve() for dep in stage.deps if dep.fs_path]
    files = [file for path in paths for file in ([path] if path.is_file() else sorted(path.rglob("*.py")))]
    return {file.relative_to(ROOT) for file in files if file.suffix == ".py"}


def test_pretrain_stages_depend_on_exactly_what_they_import(stages, params):
    for name in params.pretrain:
        wanted = set(closure(*pretrain_entries(params.resolve(name)))) | LENS
        assert code_dependencies(stages[f"pretrain@{name}"]) == wanted, name


def test_evaluate_stages_depend_on_exactly_what_they_import(stages, params):
    for name in params.evaluate:
        wanted = set(closure(*evaluate_entries(params.resolve(name)))) | LENS
        assert code_dependencies(stages[f"evaluate@{name}"]) == wanted, name


def test_data_stages_depend_on_exactly_what_they_import(stages, params):
    for name in params.datasets:
        assert code_dependencies(stages[f"data@{name}"]) == set(closure("replicate.loaders.data")) | LENS, name


def test_every_stage_has_a_parameter_dependency_of_its_own_run_only(stages, params):
    budget = params.budget
    for kind, runs in (("pretrain", params.pretrain), ("evaluate", params.evaluate)):
        for name in runs:
            keys = {key for dep in stages[f"{kind}@{name}"].deps for key in getattr(dep, "params", [])}
            assert keys == {f"{kind}.{name}", f"budgets.{budget}"}

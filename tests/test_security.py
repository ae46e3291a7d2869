"""No file and no name that comes from elsewhere runs code: checkpoints, notebook parameters, run names; no
shell, no unpickling; pinned packages.
"""

import ast
import pickle
import re
from pathlib import Path

import nbformat
import pytest
import torch
import yaml
from project import ROOT, write_params

from replicate.config import load
from replicate.errors import UserError
from replicate.models.weights import load_weights
from replicate.pipeline.store import RunStore

CODE = [
    path for folder in ("replicate", "tools", "benchmarks") for path in sorted((ROOT / folder).rglob("*.py"))
]


class Malicious:
    """Writes a file when unpickled."""

    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self):
        return (Path.write_text, (self.victim, "code ran"))


@pytest.mark.parametrize(
    "write", [torch.save, lambda state, path: path.write_bytes(pickle.dumps(state))], ids=["torch", "pickle"]
)
@pytest.mark.parametrize("name", ["model.pth", "model.bin", "model.safetensors"])
def test_a_malicious_checkpoint_is_refused_without_running(tmp_path, write, name):
    victim, path = tmp_path / "owned", tmp_path / name
    write({"model": Malicious(victim)}, path)
    with pytest.raises(UserError, match=name):
        load_weights(path)
    assert not victim.exists()


def test_a_malicious_checkpoint_of_a_run_is_refused_without_running(tmp_path):
    """One that somebody put into the store of resumable runs."""
    victim, store = tmp_path / "owned", RunStore("run", tmp_path)
    store.folder.mkdir()
    torch.save({"history": [], "task": Malicious(victim)}, store.checkpoint_path)
    with pytest.raises(UserError, match=r"checkpoint\.pt: cannot read this checkpoint"):
        store.load_checkpoint(torch.device("cpu"))
    assert not victim.exists()


@pytest.mark.parametrize(
    "value", ['x"; open("owned", "w")  # ', "x'\nimport os", "__import__('os').system('true')", "\\"]
)
def test_notebook_parameters_arrive_as_text_and_nothing_else(value):
    """What papermill writes into the notebook is one literal for each name."""
    from papermill.parameterize import parameterize_notebook

    notebook = nbformat.v4.new_notebook(
        metadata={
            "kernelspec": {"name": "python3", "language": "python", "display_name": "python3"},
            "papermill": {},
        }
    )
    notebook.cells = [nbformat.v4.new_code_cell('paper = "mae"', metadata={"tags": ["parameters"]})]
    written = parameterize_notebook(notebook, {"paper": value}, kernel_name="python3", language="python")
    (cell,) = [cell for cell in written.cells if "injected-parameters" in cell.metadata.get("tags", [])]
    (assignment,) = ast.parse(cell.source).body
    assert isinstance(assignment, ast.Assign) and ast.literal_eval(assignment.value) == value


def test_only_papers_of_params_yaml_become_notebook_parameters(capsys):
    from replicate.cli import main

    assert main(["--params", str(ROOT / "params.yaml"), "notebook", 'mae"; import os']) == 2
    assert "there is no paper" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["light; touch owned", "$(touch owned)", "../elsewhere", "two words", "-rf"])
def test_names_that_a_shell_or_a_path_would_read_otherwise_are_refused(tmp_path, name):
    """DVC puts a run's name into its stage's command."""
    path = write_params(tmp_path, findings={})
    room = tmp_path / "papers" / "own"
    room.mkdir(parents=True)
    run = load(ROOT / "params.yaml").run("light_75").model_dump(mode="json", exclude_unset=True)
    (room / "runs.yaml").write_text(
        yaml.safe_dump({"title": "Own", "pretrain": {name: run | {"paper": "own"}}})
    )
    with pytest.raises(UserError, match="letters, digits"):
        load(path)


def calls(tree: ast.AST):
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            named = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            yield (
                ast.unparse(node.func),
                named | {number: ast.unparse(value) for number, value in enumerate(node.args)},
            )


@pytest.mark.parametrize("path", CODE, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_shell_no_evaluation_no_unpickling(path):
    for name, keywords in calls(ast.parse(path.read_text())):
        assert keywords.get("shell") != "True", f"{name} uses a shell"
        assert name not in (
            "os.system",
            "os.popen",
            "eval",
            "exec",
            "pickle.load",
            "pickle.loads",
            "joblib.load",
            "yaml.unsafe_load",
        ), name
        assert name != "torch.load" or keywords.get("weights_only") == "True", (
            "torch.load without weights_only"
        )
        assert name not in ("np.load", "numpy.load") or keywords.get("allow_pickle", "False") == "False", (
            "numpy's pickles"
        )
        assert name != "yaml.load" or "Loader" in keywords.get("Loader", keywords.get(1, "")), (
            "yaml.load without a safe loader"
        )


def test_every_package_of_the_lock_is_pinned():
    lines = [line.split("#")[0].strip() for line in (ROOT / "requirements.lock").read_text().splitlines()]
    pins = [line for line in lines if line and not line.startswith("-")]
    assert len(pins) > 50 and all(re.fullmatch(r"[\w.\[\]-]+==[\w.+!-]+( ?;.*)?", pin) for pin in pins), [
        p for p in pins if "==" not in p
    ]


def test_seeds_of_a_run_inherit_no_more_than_they_need():
    """Child processes are started from argument lists with this interpreter."""
    tree = ast.parse((ROOT / "replicate" / "pipeline" / "parallel.py").read_text())
    started = [
        ast.unparse(node)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and "Popen" in ast.unparse(node.func)
    ]
    built = [
        ast.unparse(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and "sys.executable" in ast.unparse(node)
    ]
    assert started and built and all(one.startswith("[sys.executable, '-m', 'replicate'") for one in built)

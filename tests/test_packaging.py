"""Licence, citation, workflow and container say what is so; a wheel works alone in an empty folder."""

import ast
import functools
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from importlib import metadata
from pathlib import Path

import nbformat
import pytest
import yaml
from packaging.requirements import Requirement
from test_setup import load_tool, normalise, project

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "replicate"
readme_lines = load_tool("readme_lines")
START = ROOT / "notebooks" / "explore_start.ipynb"
STAND_INS = {
    "mlflow-skinny": {"mlflow"},
    "opencv-python-headless": {"cv2"},
    "pillow": {"PIL"},
    "pyyaml": {"yaml"},
    "scikit-image": {"skimage"},
    "tensorboard": {"tensorboard"},
}
"""Import names of distributions, for those that are not installed or are called otherwise."""
INDIRECT = {"dvc", "ipykernel", "pooch", "tabulate", "torchvision"}
"""Distributions that the pipeline, the kernel's command, pandas or timm needs, and no import names."""


@functools.cache
def installed() -> dict[str, list[str]]:
    return metadata.packages_distributions()


def import_names(distribution: str) -> set[str]:
    found = {name for name, owners in installed().items() if distribution in map(normalise, owners)}
    return found | STAND_INS.get(distribution, {distribution.replace("-", "_")})


@functools.cache
def imports(at_import: bool) -> set[str]:
    """Third-party names that the package imports anywhere, or only when its modules are imported."""
    found = set()
    for path in PACKAGE.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in tree.body if at_import else ast.walk(tree):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(node.module.split(".")[0])
    return found


def core() -> set[str]:
    return {normalise(Requirement(text).name) for text in project()["dependencies"]}


def test_the_package_imports_every_core_dependency():
    """What only an extra needs must not come with `pip install .`."""
    used = imports(at_import=False)
    unused = {each for each in core() - INDIRECT if not import_names(each) & used}
    assert not unused


def test_an_extra_is_imported_where_it_is_used():
    """A module that imports an extra's package on its own import would fail without the extra."""
    early = imports(at_import=True)
    extras = project()["optional-dependencies"]
    for extra in ("tensorboard", "dvclive", "wandb", "mlflow", "hub"):
        names = {normalise(Requirement(text).name) for text in extras[extra]} - core()
        assert not {name for each in names for name in import_names(each) & early}, extra


def test_licence_and_citation():
    table = project()
    assert table["license"] == "Apache-2.0" and table["license-files"] == ["LICENSE", "NOTICE"]
    assert "Version 2.0, January 2004" in (ROOT / "LICENSE").read_text()
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert cited["license"] == "Apache-2.0" and cited["version"] == table["version"]
    titles = " ".join(reference["title"] for reference in cited["references"]).lower()
    for path in sorted((ROOT / "papers").glob("*/README.md")):
        title = path.read_text().splitlines()[0].removeprefix("# ").lower()
        assert re.split("[:(]", title)[0].strip() in titles, f"{path}: CITATION.cff does not cite it"


def test_workflow_tests_each_supported_python():
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    versions = workflow["jobs"]["test"]["strategy"]["matrix"]["python-version"]
    named = [text.rpartition(" ")[2] for text in project()["classifiers"] if re.search(r"\d\.\d+$", text)]
    assert versions == named
    assert Requirement(f"python{project()['requires-python']}").specifier.contains(f"{versions[0]}.0")
    steps = [step.get("run", "") for job in workflow["jobs"].values() for step in job["steps"]]
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for command in steps:
        assert set(re.findall(r"\bmake ([a-z-]+)", command)) <= targets
        for path in re.findall(r"\b(?:tests|tools)/\w+\.py", command):
            assert (ROOT / path).exists(), path
        for extra in re.findall(r"\.\[([\w,]+)\]", command):
            assert set(extra.split(",")) <= set(project()["optional-dependencies"])


def test_the_container_is_built_from_files_that_exist():
    container = json.loads((ROOT / ".devcontainer/devcontainer.json").read_text())
    dockerfile = (ROOT / ".devcontainer" / container["build"]["dockerfile"]).read_text()
    assert set(container["build"]["args"]) == set(re.findall(r"^ARG (\w+)", dockerfile, re.MULTILINE))
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert {hook["id"] for repo in hooks for hook in repo["hooks"]} == {"ruff-check", "nbstripout"}


def test_readme_lines_are_found():
    assert readme_lines.lines(ROOT / "README.md").startswith("from replicate import")


def test_a_readme_without_the_lines_is_named(tmp_path):
    (tmp_path / "README.md").write_text("# Other\n")
    with pytest.raises(ValueError, match="README.md: has no section"):
        readme_lines.lines(tmp_path / "README.md")


def first_cell() -> str:
    return next(cell.source for cell in nbformat.read(START, 4).cells if cell.cell_type == "code")


def test_the_badges_first_cell_installs_nothing_where_the_package_is(tmp_path):
    script = tmp_path / "cell.py"
    script.write_text(first_cell() + "\nprint(importlib.util.find_spec('replicate').origin)\n")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "REPLICATE_SOURCE": str(tmp_path / "none.whl")}
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()) == PACKAGE / "__init__.py"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy: an earlier build leaves modules behind that a later one would take in."""
    folder = tmp_path_factory.mktemp("wheels")
    tree = folder / "tree"
    for name in ("replicate", "papers", "weights"):
        if not (ROOT / name).is_dir():
            continue
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    for pattern in ("*.toml", "*.yaml", "*.md", "LICENSE", "NOTICE", "setup.py"):
        for path in ROOT.glob(pattern):
            shutil.copy(path, tree)
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder)]
    subprocess.run([*build, str(tree)], check=True)
    (found,) = folder.glob("replicate-*.whl")
    return found


@pytest.fixture
def empty(tmp_path) -> tuple[Path, Path]:
    """(the interpreter of an environment that has the dependencies and no `replicate`, an empty folder)."""
    venv.create(tmp_path / "environment", with_pip=True)
    python = tmp_path / "environment" / "bin" / "python"
    (site,) = (tmp_path / "environment").glob("lib/python*/site-packages")
    # The path file lends this environment's packages, but not its editable installs, which have path files.
    (site / "lent.pth").write_text(sysconfig.get_path("purelib") + "\n")
    (tmp_path / "an empty folder").mkdir()
    return python, tmp_path / "an empty folder"


def run(command, folder: Path, **environment: str) -> subprocess.CompletedProcess:
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(command, cwd=folder, env=clean | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.mark.slow
def test_a_wheel_runs_the_readmes_lines_in_an_empty_folder(wheel, empty):
    python, folder = empty
    run([python, "-m", "pip", "install", "--quiet", "--no-deps", wheel], folder)
    done = run([python, "-c", readme_lines.lines(ROOT / "README.md")], folder, MPLBACKEND="Agg")
    assert re.match(r"loss \d\.\d{3}\n", done.stdout)
    shown = run([python, "-m", "replicate", "--help"], folder)
    assert "pretrain" in shown.stdout and not list(folder.iterdir())
    where = run([python, "-c", "import replicate; print(replicate.__file__)"], folder).stdout
    assert "environment" in where and str(ROOT) not in where


@pytest.mark.slow
def test_the_badges_first_cell_installs_the_package_where_it_is_missing(wheel, empty):
    python, folder = empty
    (folder / "cell.py").write_text(first_cell() + "\nimport replicate\nprint(replicate.__version__)\n")
    options = {"REPLICATE_SOURCE": str(wheel), "PIP_NO_DEPS": "1"}
    assert run([python, "cell.py"], folder, **options).stdout.strip() == project()["version"]

"""The environment's files agree with each other and with the code, and set-up does what it says."""

import ast
import importlib.util
import json
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).resolve().parent.parent
# Imported only where it could be built; every other import must be declared.
OPTIONAL = {"ffcv", "crop_decode"}
# Extras that a user picks; the tested set leaves them out.
UNLOCKED = {"tensorboard", "dvclive", "wandb", "mlflow", "hub"}
needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


def load_tool(name: str):
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


setup_env = load_tool("setup_env")
write_lock = load_tool("write_lock")
normalise = write_lock.normalise


def pins(lines) -> dict[str, str]:
    return dict(re.fullmatch(r"([a-z0-9-]+)==([0-9][0-9A-Za-z.]*)", line).groups() for line in lines)


@pytest.fixture(scope="module")
def lock() -> dict[str, str]:
    """Name -> version; fails on a line that is no plain pin (an address, a path, a hash, a build of one
    machine).
    """
    return pins(
        line for line in (ROOT / "requirements.lock").read_text().splitlines() if not line.startswith("#")
    )


@pytest.fixture(scope="module")
def conda() -> dict:
    return yaml.safe_load((ROOT / "environment.yml").read_text())


@pytest.fixture(scope="module")
def conda_pip(conda) -> list[str]:
    return next(each["pip"] for each in conda["dependencies"] if isinstance(each, dict))


def project() -> dict:
    """pyproject.toml's [project] table."""
    try:
        import tomllib
    except ModuleNotFoundError:
        tomllib = pytest.importorskip("tomli")
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def declared(unlocked: bool = False) -> dict[str, Requirement]:
    """What pip must bring; the crop decoder comes from this repository. `unlocked`: the user's extras too."""
    table = project()
    extras = table["optional-dependencies"].items()
    chosen = (each for name, extra in extras for each in extra if unlocked or name not in UNLOCKED)
    texts = [*table["dependencies"], *chosen]
    return {normalise(each.name): each for each in map(Requirement, texts) if each.name != "crop-decode"}


def test_locked_versions_satisfy_the_declared_ranges(lock):
    outside = {
        name: lock.get(name)
        for name, each in declared().items()
        if name not in lock or lock[name] not in each.specifier
    }
    assert not outside


def test_conda_pins_are_the_locked_ones_and_cover_what_is_declared(lock, conda_pip):
    assert conda_pip[0] == "-c requirements.lock"
    listed = pins(conda_pip[1:])
    assert listed == {name: lock[name] for name in listed}
    assert set(declared()) <= set(listed)


def test_conda_python_can_use_the_lock(conda):
    (python,) = [
        each for each in conda["dependencies"] if isinstance(each, str) and each.startswith("python=")
    ]
    version = python.removeprefix("python=")
    assert tuple(map(int, version.split("."))) >= setup_env.OLDEST_LOCKED
    assert version in Requirement(f"python{project()['requires-python']}").specifier


def test_lock_holds_every_transitive_dependency(lock):
    missing = set()
    for name in lock:
        try:
            needs = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        # A CUDA build of torch names its libraries; they follow from the build that was chosen, not from the
        # lock.
        for each in map(Requirement, needs):
            if each.marker is None or each.marker.evaluate({"extra": ""}):
                missing |= {normalise(each.name)} - set(lock)
    assert not {name for name in missing if not name.startswith(("nvidia-", "cuda-", "triton"))}


def test_locked_versions_run_on_the_first_release_of_the_oldest_python(lock):
    """Distributions keep shipping early patch releases of Python: Debian 12 has 3.11.2."""
    oldest = ".".join(map(str, (*setup_env.OLDEST_LOCKED, 0)))
    refused = {}
    for name in lock:
        try:
            wanted = metadata.metadata(name)["Requires-Python"]
        except metadata.PackageNotFoundError:
            continue
        if wanted and oldest not in SpecifierSet(wanted):
            refused[name] = wanted
    assert not refused


def test_ffcv_stays_outside_pip_resolution(lock):
    assert "ffcv" not in lock and "opencv-python" not in lock
    assert "ffcv" not in declared()


def imported(code: str) -> set[str]:
    """Top-level names of a module's absolute imports."""
    names = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            names.add(node.module.split(".")[0])
    return names


def notebook_code(path: Path) -> str:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    lines = [
        line for cell in cells if cell["cell_type"] == "code" for line in "".join(cell["source"]).splitlines()
    ]
    return "\n".join("pass" if line.lstrip().startswith(("%", "!")) else line for line in lines)


def test_every_third_party_import_is_declared():
    used: dict[str, str] = {}
    for folder in ("replicate", "tests", "tools", "benchmarks", "crop_decode/src", "crop_decode/tests"):
        for path in (ROOT / folder).rglob("*.py"):
            used |= {name: path.name for name in imported(path.read_text(encoding="utf-8"))}
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        used |= {name: path.name for name in imported(notebook_code(path))}
    beside = {
        path.stem for folder in ("tests", "benchmarks", "tools") for path in (ROOT / folder).glob("*.py")
    }
    own = {"replicate", "tests", "benchmarks", "build_library"} | beside | OPTIONAL
    distributions = metadata.packages_distributions()
    known = set(declared(unlocked=True)) | {"packaging", "mlflow"}  # pytest brings it; mlflow-skinny's name
    undeclared = {
        name: where
        for name, where in used.items()
        if name not in sys.stdlib_module_names
        and name not in own
        and not known & {normalise(each) for each in distributions.get(name, [name])}
    }
    assert not undeclared


def environment(tmp_path: Path):
    path = tmp_path / "env"
    path.mkdir(exist_ok=True)
    return setup_env.Environment(path)


def test_a_step_runs_once_per_key(tmp_path, capsys):
    made, ran = environment(tmp_path), []
    assert made.step("pins", lambda: "a", lambda: ran.append(1))
    assert not made.step("pins", lambda: "a", lambda: ran.append(2))
    assert made.step("pins", lambda: "b", lambda: ran.append(3))
    assert ran == [1, 3]


def test_a_step_that_changes_its_own_key_is_done(tmp_path, capsys):
    made, missing = environment(tmp_path), ["g++"]
    assert made.step("FFCV", lambda: str(missing), missing.clear)
    assert not made.step("FFCV", lambda: str(missing), missing.clear)


def test_a_step_that_fails_is_not_done(tmp_path, capsys):
    made = environment(tmp_path)

    def fail():
        raise setup_env.SetupError("no network")

    with pytest.raises(setup_env.SetupError):
        made.step("pins", lambda: "a", fail)
    assert made.done() == {}


def test_a_damaged_record_counts_as_nothing_done(tmp_path):
    made = environment(tmp_path)
    made.record.write_text("{")
    assert made.done() == {}


def test_digest_follows_contents(tmp_path):
    path = tmp_path / "a.lock"
    absent = setup_env.digest(path)
    path.write_text("numpy==1")
    present = setup_env.digest(path)
    path.write_text("numpy==2")
    assert len({absent, present, setup_env.digest(path)}) == 3


def test_a_failing_command_is_one_line_and_a_log(tmp_path, monkeypatch):
    monkeypatch.setattr(setup_env, "BUILD", tmp_path)
    monkeypatch.setattr(setup_env, "LOG", tmp_path / "setup.log")
    code = "print('Collecting numpy'); print('ERROR: No matching distribution'); "
    code += "print('hint: try later'); raise SystemExit(1)"
    with pytest.raises(setup_env.SetupError) as error:
        setup_env.call(sys.executable, "-c", code)
    assert str(error.value).startswith("ERROR: No matching distribution (all of it: ")
    assert "hint: try later" in (tmp_path / "setup.log").read_text()
    with pytest.raises(setup_env.SetupError, match="cannot run no-such-program"):
        setup_env.call("no-such-program")


def test_a_crop_decoder_that_cannot_be_built_is_reported_with_its_reason(tmp_path, monkeypatch, capsys):
    pip = "running build_ext\nerror: crop_decode: no C compiler found (cc)\n"
    pip += "ERROR: Failed building wheel for crop-decode"
    monkeypatch.setattr(setup_env, "BUILD", tmp_path)
    monkeypatch.setattr(setup_env, "LOG", tmp_path / "setup.log")
    made = environment(tmp_path)
    made.python.parent.mkdir()
    made.python.write_text(f"#!/bin/sh\ncat <<'END'\n{pip}\nEND\nexit 1\n")
    made.python.chmod(0o755)
    setup_env.try_crop_decode(made)
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith(
        "setup: the C crop decoder was not built: crop_decode: no C compiler found (cc) (all of it: "
    )
    assert "PIL and OpenCV decode" in second


@pytest.fixture
def bare_machine(tmp_path, monkeypatch):
    """No program on the path, no OpenCV headers."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(setup_env, "OPENCV_INCLUDE", tmp_path)


def test_a_bare_machine_misses_every_system_package(bare_machine):
    assert set(setup_env.SYSTEM_PACKAGES) <= set(setup_env.missing_packages())


def test_without_apt_one_message_names_the_packages_and_the_conda_way(bare_machine, tmp_path, capsys):
    setup_env.try_ffcv(environment(tmp_path))
    printed = capsys.readouterr().out
    assert all(name in printed for name in (*setup_env.SYSTEM_PACKAGES, "environment.yml", "plain loaders"))
    assert len(printed.splitlines()) == 2


def test_a_user_without_sudo_cannot_use_apt(monkeypatch):
    monkeypatch.setattr(setup_env.os, "geteuid", lambda: 1000)
    monkeypatch.setattr(setup_env.shutil, "which", lambda name: None if name == "sudo" else f"/bin/{name}")
    assert setup_env.apt_prefix() is None


def test_installed_system_packages_are_left_alone(monkeypatch):
    monkeypatch.setattr(setup_env, "missing_packages", lambda: [])
    monkeypatch.setattr(setup_env, "apt_install", lambda packages: pytest.fail("apt-get was called"))
    setup_env.install_system_packages()


def test_only_missing_system_packages_are_installed(monkeypatch):
    asked = []
    monkeypatch.setattr(setup_env, "missing_packages", lambda: ["libjpeg-dev"])
    monkeypatch.setattr(setup_env, "apt_prefix", lambda: ["sudo", "-n"])
    monkeypatch.setattr(setup_env, "call", lambda *command, env=None: asked.append(command))
    setup_env.install_system_packages()
    assert [command[2:4] for command in asked] == [("apt-get", "update"), ("apt-get", "install")]
    assert asked[1][-1] == "libjpeg-dev" and "--no-install-recommends" in asked[1]


@pytest.mark.skipif(shutil.which("pkg-config") is None, reason="pkg-config is not installed")
def test_opencv_description_is_read_by_pkg_config(tmp_path):
    folder = setup_env.opencv_description(tmp_path / "opencv")
    command = ["pkg-config", "--cflags", "--libs", "opencv4"]
    flags = subprocess.run(
        command, env={"PATH": "/usr/bin:/bin", "PKG_CONFIG_PATH": str(folder)}, capture_output=True, text=True
    )
    assert f"-I{folder}/include" in flags.stdout and "-lopencv_imgproc" in flags.stdout


def test_an_environment_of_ones_own_is_never_replaced(tmp_path, monkeypatch):
    made = environment(tmp_path)
    (made.path / "bin").mkdir()
    made.python.touch()
    made.record.write_text('{"virtual environment": "of another project"}')
    monkeypatch.setattr(setup_env, "call", lambda *command, env=None: pytest.fail(f"ran {command}"))
    setup_env.create(made)


@pytest.mark.parametrize(
    ("record", "replaced"), [("{}", False), ('{"virtual environment": "elsewhere"}', True)]
)
def test_the_projects_environment_is_replaced_when_moved(tmp_path, monkeypatch, record, replaced):
    monkeypatch.setattr(setup_env, "ROOT", tmp_path)
    made = environment(tmp_path)
    (made.path / "bin").mkdir()
    made.python.touch()
    made.record.write_text(record)
    ran = []
    monkeypatch.setattr(setup_env, "call", lambda *command, env=None: ran.append(command))
    setup_env.create(made)
    assert any("venv" in command for command in ran) == replaced


def test_an_index_for_torch_is_asked_first_and_kept(tmp_path, monkeypatch):
    made, ran = environment(tmp_path), []
    monkeypatch.setattr(
        setup_env, "call", lambda *command, env=None: ran.append([str(each) for each in command])
    )
    setup_env.install_pins(made, "https://example.org/simple")
    assert setup_env.pinned("torch") in ran[0] and "https://example.org/simple" in ran[0]
    assert "--no-deps" in ran[1] and setup_env.pinned("torchvision") in ran[1]
    assert made.done()[setup_env.TORCH_INDEX] == "https://example.org/simple"


def test_an_ffcv_that_cannot_be_imported_is_taken_out(tmp_path, monkeypatch, capsys):
    ran = []

    def call(*command, env=None):
        ran.append(command)
        if "import ffcv" in command:
            raise setup_env.SetupError("ImportError: undefined symbol")

    monkeypatch.setattr(setup_env, "call", call)
    monkeypatch.setattr(setup_env, "missing_packages", lambda: [])
    monkeypatch.setattr(setup_env, "BUILD", tmp_path)
    setup_env.try_ffcv(environment(tmp_path))
    assert "uninstall" in ran[-1]
    assert "undefined symbol" in capsys.readouterr().out


def test_writing_the_lock_repins_the_conda_file():
    text = "  - pip:\n      - -c requirements.lock\n      - torch==2.4.0\n      - unknown==1\n"
    assert write_lock.repin(text, {"torch": "2.13.0"}) == text.replace("2.4.0", "2.13.0")


@needs_make
def test_make_lists_its_targets():
    printed = subprocess.run(["make", "-s"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert all(
        f"make {target} " in printed
        for target in ("setup", "test", "test-all", "repro", "lab", "lint", "clean")
    )


@needs_make
def test_an_old_python_gets_one_clear_line(tmp_path):
    old = tmp_path / "python-old"
    old.write_text('#!/bin/sh\n[ "$1" = -V ] && echo "Python 3.8.1" && exit 0\nexit 1\n')
    old.chmod(0o755)
    done = subprocess.run(["make", "-s", "setup", f"PYTHON={old}"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode != 0
    assert f"Python 3.10 or newer is needed and {old} is Python 3.8.1" in done.stderr

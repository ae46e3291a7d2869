"""Make the project's environment: a virtual environment, pinned packages, FFCV from source, the packages, a
kernel.

Needs the standard library alone. Skips each step while its inputs are unchanged. FFCV and the C crop decoder
are optional: without a compiler, the plain loaders take over.
"""

import argparse
import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build"
LOG = BUILD / "setup.log"
LOCK = ROOT / "requirements.lock"
PROJECT = ROOT / "pyproject.toml"
CROP_DECODE = ROOT / "crop_decode"
OLDEST_LOCKED = (3, 11)
TORCH_INDEX = "torch index"
FFCV = "ffcv==1.0.2"
OPENCV_INCLUDE = Path("/usr/include/opencv4")
# libjpeg-dev rather than libjpeg62-turbo-dev: Debian and Ubuntu both have it.
SYSTEM_PACKAGES = (
    "g++",
    "pkg-config",
    "libopencv-core-dev",
    "libopencv-imgproc-dev",
    "libturbojpeg0-dev",
    "libjpeg-dev",
)


class SetupError(Exception):
    """What stopped a step, in one line."""


def say(text: str) -> None:
    print(f"setup: {text}", flush=True)


def digest(*parts: object) -> str:
    """Hash of texts and of the contents of files (a Path that does not exist counts as empty)."""
    whole = hashlib.sha256()
    for part in parts:
        content = (
            (part.read_bytes() if part.is_file() else b"") if isinstance(part, Path) else str(part).encode()
        )
        whole.update(hashlib.sha256(content).digest())
    return whole.hexdigest()


def last_error(output: str) -> str:
    """The line of a tool's output that says what went wrong: its last error line, else its last line.

    pip reports a failed build in lines of its own, after the reason that the crop decoder's build gives.
    """
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    reasons = [line.removeprefix("error: ") for line in lines if line.startswith("error: crop_decode: ")]
    errors = [line for line in lines if re.search(r"\berror\b|^E:", line, re.IGNORECASE)]
    return (reasons or errors or lines or ["no output"])[-1]


def call(*command: str | Path, env: dict[str, str] | None = None) -> None:
    """Run a command; what it prints goes to the log.

    Raises:
        SetupError: the command cannot be started or fails.
    """
    try:
        done = subprocess.run(
            [str(each) for each in command],
            cwd=ROOT,
            env={**os.environ, **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
    except OSError as error:
        raise SetupError(f"cannot run {command[0]}: {error.strerror}") from error
    BUILD.mkdir(exist_ok=True)
    with LOG.open("a", encoding="utf-8") as log:
        log.write(f"$ {' '.join(map(str, command))}\n{done.stdout}\n")
    if done.returncode:
        raise SetupError(f"{last_error(done.stdout)} (all of it: {LOG})")


class Environment:
    """The virtual environment at `path` and the record of the steps that are done in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.python = path / "bin" / "python"
        self.record = path / "setup.json"

    def pip_install(self, *arguments: str | Path, env: dict[str, str] | None = None) -> None:
        quiet = ("--quiet", "--progress-bar=off", "--disable-pip-version-check", "--no-input")
        call(self.python, "-m", "pip", "install", *quiet, *arguments, env=env)

    def done(self) -> dict[str, str]:
        try:
            return dict(json.loads(self.record.read_text(encoding="utf-8")))
        except (OSError, ValueError):
            return {}

    def remember(self, name: str, value: str) -> None:
        self.record.write_text(json.dumps({**self.done(), name: value}, indent=1) + "\n", encoding="utf-8")

    def step(self, name: str, key: Callable[[], str], action: Callable[[], None]) -> bool:
        """Run `action` unless the step is recorded as done with this key; True when it ran.

        The key is asked again afterwards: a step may change what it depends on, as the installing of a
        missing compiler does.
        """
        if self.done().get(name) == key():
            return False
        say(f"{name} ...")
        start = time.monotonic()
        action()
        self.remember(name, key())
        say(f"{name}: {time.monotonic() - start:.0f} s")
        return True


def apt_prefix() -> list[str] | None:
    """What to put before apt-get to be allowed to install (nothing for root), or None where apt-get cannot be
    used.
    """
    if shutil.which("apt-get") is None:
        return None
    if os.geteuid() == 0:
        return []
    sudo = shutil.which("sudo")
    if (
        sudo
        and subprocess.run([sudo, "-n", "true"], stdin=subprocess.DEVNULL, capture_output=True).returncode
        == 0
    ):
        return [sudo, "-n"]
    return None


def apt_install(packages: list[str]) -> None:
    """Install Debian packages, without recommends.

    Raises:
        SetupError: apt-get is missing, not allowed, or fails.
    """
    prefix = apt_prefix()
    if prefix is None:
        raise SetupError("apt-get is missing or needs a password")
    say(f"installing system packages: {' '.join(packages)}")
    quiet = {"DEBIAN_FRONTEND": "noninteractive"}
    call(*prefix, "apt-get", "update", "-q", env=quiet)
    call(*prefix, "apt-get", "install", "-q", "-y", "--no-install-recommends", *packages, env=quiet)


def usable(environment: Environment) -> bool:
    """Whether to go on with what is there: one that its user named, or our own unless unfinished, moved or
    outdated.
    """
    if not environment.python.exists():
        return False
    if not environment.path.is_relative_to(ROOT):
        return True
    try:
        call(
            environment.python,
            "-c",
            f"import pip, sys; sys.exit(sys.version_info[:2] != {sys.version_info[:2]})",
        )
    except SetupError:
        return False
    return not environment.done()


def create(environment: Environment) -> None:
    if usable(environment):
        return
    if importlib.util.find_spec("ensurepip") is None:
        try:
            apt_install(["python3-venv"])
        except SetupError as error:
            raise SetupError(
                f"this Python cannot make virtual environments: install python3-venv ({error})"
            ) from error
    call(sys.executable, "-m", "venv", "--clear", environment.path)


def pinned(name: str) -> str:
    match = re.search(rf"^{re.escape(name)}==\S+$", LOCK.read_text(encoding="utf-8"), re.MULTILINE)
    if match is None:
        raise SetupError(f"{LOCK.name} holds no pin of {name}")
    return match.group()


def install_pins(environment: Environment, torch_index: str) -> None:
    """torch first and alone: where pip finds a CPU build, it is in place before torchvision or timm could
    draw a CUDA build.
    """
    # Upgrade: another build of the same version replaces the one that is installed.
    index = ("--extra-index-url", torch_index, "--upgrade") if torch_index else ()
    if sys.version_info >= OLDEST_LOCKED:
        environment.pip_install(
            *index, "--constraint", LOCK, pinned("setuptools"), pinned("wheel"), pinned("torch")
        )
        environment.pip_install(*index, "--no-deps", pinned("torchvision"))
        environment.pip_install("--no-build-isolation", "--requirement", LOCK)
    else:
        say("the pins need Python 3.11 or newer; taking the newest that pyproject.toml allows instead")
        environment.pip_install(*index, "torch>=2.4", "torchvision", "setuptools")
        environment.pip_install(".[notebooks,site,dense,test,ffcv]")
    environment.remember(TORCH_INDEX, torch_index)


def described(library: str) -> bool:
    """Whether pkg-config is there and knows the library."""
    tool = shutil.which("pkg-config")
    return bool(tool) and subprocess.run([tool, "--exists", library], capture_output=True).returncode == 0


def missing_packages() -> list[str]:
    """The system packages whose files FFCV's build would not find; looks for files, so that any origin of a
    library is good.
    """
    full_opencv = described("opencv4")
    there = {
        "g++": bool(shutil.which("g++") or shutil.which("c++")),
        "pkg-config": bool(shutil.which("pkg-config")),
        "libopencv-core-dev": full_opencv or (OPENCV_INCLUDE / "opencv2" / "core.hpp").is_file(),
        "libopencv-imgproc-dev": full_opencv or (OPENCV_INCLUDE / "opencv2" / "imgproc.hpp").is_file(),
        "libturbojpeg0-dev": described("libturbojpeg"),
        "libjpeg-dev": described("libjpeg"),
    }
    missing = [name for name in SYSTEM_PACKAGES if not there[name]]
    if not Path(sysconfig.get_path("include"), "Python.h").is_file():
        missing.append("python3-dev")
    return missing


def install_system_packages() -> None:
    """See to it that FFCV can be built.

    Raises:
        SetupError: something is missing and cannot be installed; the message names the packages and the conda
        way.
    """
    missing = missing_packages()
    if not missing:
        return
    try:
        apt_install(missing)
    except SetupError as error:
        raise SetupError(
            f"needs the system packages {' '.join(missing)} ({error}): install them, or use conda"
            " (conda env create -f environment.yml; conda activate replicate), then run make setup again"
        ) from error


def opencv_description(folder: Path) -> Path:
    """A pkg-config description of OpenCV's core and imgproc alone, and the one header that FFCV includes.

    FFCV asks for all of OpenCV, whose development package brings hundreds of others, and uses these two
    modules.
    """
    header = folder / "include" / "opencv2" / "opencv.hpp"
    header.parent.mkdir(parents=True, exist_ok=True)
    header.write_text("#include <opencv2/core.hpp>\n#include <opencv2/imgproc.hpp>\n", encoding="utf-8")
    (folder / "opencv4.pc").write_text(
        "Name: OpenCV\nDescription: OpenCV's core and imgproc modules\nVersion: 4\n"
        "Libs: -lopencv_imgproc -lopencv_core\n"
        f"Cflags: -I${{pcfiledir}}/include -I{OPENCV_INCLUDE}\n",
        encoding="utf-8",
    )
    return folder


def install_ffcv(environment: Environment) -> None:
    """Build FFCV as released. Without its dependencies: they name opencv-python, which would overwrite the
    headless build.

    Raises:
        SetupError: a system package is missing, the build fails, or what was built cannot be imported.
    """
    install_system_packages()
    env = {}
    if not described("opencv4"):
        folder = opencv_description(BUILD / "opencv")
        env["PKG_CONFIG_PATH"] = os.pathsep.join(
            filter(None, [str(folder), os.environ.get("PKG_CONFIG_PATH", "")])
        )
    # No cache: a wheel built against another OpenCV would be taken as it is.
    environment.pip_install(
        "--no-deps", "--no-build-isolation", "--no-cache-dir", "--force-reinstall", FFCV, env=env
    )
    try:
        call(environment.python, "-c", "import ffcv")
    except SetupError:
        call(environment.python, "-m", "pip", "uninstall", "--yes", "ffcv")
        raise


def try_ffcv(environment: Environment) -> None:
    try:
        install_ffcv(environment)
    except SetupError as error:
        say(f"FFCV was not built: {error}")
        say("going on without it: the plain loaders read the same files")


def try_crop_decode(environment: Environment) -> None:
    """Install the crop decoder from its folder, editable: an edited C source is compiled by the next `make
    setup`.
    """
    try:
        environment.pip_install("--no-deps", "--no-build-isolation", "--editable", CROP_DECODE)
    except SetupError as error:
        say(f"the C crop decoder was not built: {error}")
        say("going on without it: PIL and OpenCV decode, more slowly, the same pixels")


def crop_decode_state() -> str:
    """The crop decoder's sources, whether its library exists, and whether it can be built."""
    patterns = ("csrc/*.[ch]", "build_library.py", "setup.py", "pyproject.toml")
    sources = sorted(path for pattern in patterns for path in CROP_DECODE.glob(pattern))
    return digest(*sources, any(CROP_DECODE.glob("src/crop_decode/*.so")), build_means())


def install_package(environment: Environment) -> None:
    environment.pip_install("--no-deps", "--no-build-isolation", "--editable", ".")
    kernel = ("--sys-prefix", "--name", "replicate", "--display-name", "replicate")
    call(environment.python, "-m", "ipykernel", "install", *kernel)


def build_means() -> str:
    """What decides whether native code can be built here; a compiler, or the right to install one, that came
    later changes it.
    """
    missing = missing_packages()
    return f"{missing} {missing and apt_prefix()}"


def set_up(environment: Environment, torch_index: str) -> bool:
    """All steps in order; True when there was anything to do. An index for torch is kept once named."""
    base = digest(ROOT, sys.version, sys.base_prefix)
    torch_index = torch_index or environment.done().get(TORCH_INDEX, "")
    pins = digest(base, LOCK, torch_index)
    steps: list[tuple[str, Callable[[], str], Callable[[], None]]] = [
        ("virtual environment", lambda: base, lambda: create(environment)),
        ("pinned packages", lambda: pins, lambda: install_pins(environment, torch_index)),
        ("FFCV", lambda: digest(pins, FFCV, build_means()), lambda: try_ffcv(environment)),
        ("package and kernel", lambda: digest(base, PROJECT), lambda: install_package(environment)),
        ("crop decoder", lambda: digest(base, crop_decode_state()), lambda: try_crop_decode(environment)),
    ]
    return any([environment.step(*step) for step in steps])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--venv", type=Path, default=ROOT / ".venv", help="where the environment is, or is to be made"
    )
    parser.add_argument(
        "--torch-index", default="", help="address of one more index to take torch from (a CUDA build, say)"
    )
    arguments = parser.parse_args()
    environment = Environment(arguments.venv.absolute())
    start = time.monotonic()
    try:
        if set_up(environment, arguments.torch_index):
            say(f"ready in {time.monotonic() - start:.0f} s: {environment.path}")
    except SetupError as error:
        print(f"setup: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("setup: interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Compile the C sources: `setup.py` builds the library with it, sanitizers build a test program.

Needs a C compiler and libjpeg-turbo with its header (Debian: `apt-get install gcc libjpeg-dev`). Takes the
compiler from CC, else the first of cc, gcc and clang, and adds CFLAGS and LDFLAGS. pkg-config, where it
exists, says where libjpeg is.
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

SOURCES = Path(__file__).resolve().parent / "csrc"
# -ffp-contract=off: a fused multiply-add rounds once where OpenCV's area filter rounds twice.
FLAGS = (
    "-std=gnu11",
    "-O3",
    "-fPIC",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fvisibility=hidden",
    "-Wall",
    "-Wextra",
    "-pthread",
)
AVX2 = ("-mavx2", "-mbmi", "-mbmi2", "-mlzcnt", "-mpopcnt", "-mmovbe", "-mtune=haswell")


class BuildError(Exception):
    """Why the library cannot be built, in one line."""


def _compiler() -> list[str]:
    command = shlex.split(os.environ.get("CC", "")) or [
        next(filter(shutil.which, ("cc", "gcc", "clang")), "")
    ]
    if not shutil.which(command[0]):
        raise BuildError("crop_decode: no C compiler found (cc, gcc, clang)")
    return command


def _libjpeg(option: str, default: str = "") -> list[str]:
    """What pkg-config prints for libjpeg, or `default` where it does not know it."""
    command = ["pkg-config", option, "libjpeg"]
    if shutil.which(command[0]):
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode == 0:
            return shlex.split(done.stdout)
    return shlex.split(default)


def _environment(name: str) -> list[str]:
    return shlex.split(os.environ.get(name, ""))


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode == 0:
        return
    if "jpeglib.h" in done.stderr or "-ljpeg" in done.stderr:
        raise BuildError(
            "crop_decode: libjpeg-turbo or its header is missing (Debian: apt-get install libjpeg-dev)"
        )
    reasons = [
        line for line in done.stderr.splitlines() if "error" in line.lower()
    ] or done.stderr.splitlines()
    raise BuildError(f"crop_decode: the C compiler failed: {(reasons or ['no message'])[0].strip()}")


def _objects(compiler: list[str], folder: str) -> list[str]:
    """Compile the decoder once for each instruction set, and the code that chooses at run time."""
    cores = {"generic": ()}
    if platform.machine().lower() in ("x86_64", "amd64"):
        cores["avx2"] = AVX2
    objects = []
    for name, flags in cores.items():
        objects.append(f"{folder}/{name}.o")
        define = (f"-DCORE=cd_core_{name}", f"-DCORE_NAME={name}")
        _run([*compiler, *flags, *define, "-c", str(SOURCES / "core.c"), "-o", objects[-1]])
    have = ("-DCD_HAVE_AVX2",) if "avx2" in cores else ()
    objects.append(f"{folder}/dispatch.o")
    _run([*compiler, *have, "-c", str(SOURCES / "dispatch.c"), "-o", objects[-1]])
    return objects


def _build(output: Path, arguments: tuple[str, ...], extra: tuple[str, ...]) -> None:
    compiler = [*_compiler(), *_environment("CFLAGS"), *_libjpeg("--cflags"), *FLAGS, *extra]
    libraries = [*_environment("LDFLAGS"), *_libjpeg("--libs", "-ljpeg"), "-lm"]
    with tempfile.TemporaryDirectory() as folder:
        linked = f"{folder}/{output.name}"
        _run([*compiler, *arguments, *_objects(compiler, folder), "-o", linked, *libraries])
        # A process that has the old file open keeps it: the new one takes its name by a rename.
        shutil.move(linked, f"{output}.new")
        os.replace(f"{output}.new", output)


def build_library(library: Path, extra: tuple[str, ...] = ()) -> None:
    """Compile and link the shared library. `extra` flags go to every step. Raises BuildError."""
    _build(library, ("-shared",), extra)


def build_program(source: Path, program: Path, extra: tuple[str, ...] = ()) -> None:
    """Compile the C program `source` with the decoder in it, for sanitizers. Raises BuildError."""
    _build(program, (f"-I{SOURCES}", str(source)), extra)

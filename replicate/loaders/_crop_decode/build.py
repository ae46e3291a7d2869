"""Compiles the crop decoder's C sources into the package folder: `python -m replicate.loaders._crop_decode.build`.

Needs a C compiler and libjpeg-turbo's header (Debian: `apt-get install gcc libjpeg62-turbo-dev`). Nothing requires the result: without it, crops
are decoded by PIL and OpenCV."""

import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from replicate.errors import UserError

FOLDER = Path(__file__).resolve().parent
LIBRARY = FOLDER / "libcrop_decode.so"
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


def _compiler() -> list[str]:
    command = shlex.split(os.environ.get("CC", "")) or [next((c for c in ("cc", "gcc", "clang") if shutil.which(c)), "")]
    if not shutil.which(command[0]):
        raise UserError("crop decode: no C compiler found (cc, gcc, clang); install one, or go on without: PIL and OpenCV decode instead")
    return command


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode == 0:
        return
    if "jpeglib.h" in done.stderr and "No such file" in done.stderr:
        raise UserError(
            "crop decode: libjpeg-turbo's header jpeglib.h not found (Debian: apt-get install libjpeg62-turbo-dev); PIL and OpenCV decode instead"
        )
    reasons = [line for line in done.stderr.splitlines() if "error" in line.lower()] or done.stderr.splitlines() or ["no message"]
    raise UserError(f"crop decode: the C compiler failed: {reasons[0].strip()}")


def _compile(compiler: list[str], folder: str) -> list[str]:
    """The object files of all that the decoder consists of."""
    cores = {"generic": ()}
    if platform.machine().lower() in ("x86_64", "amd64"):
        cores["avx2"] = AVX2
    objects = []
    for name, flags in cores.items():
        objects.append(f"{folder}/{name}.o")
        define = (f"-DCORE=cd_core_{name}", f"-DCORE_NAME={name}")
        _run([*compiler, *flags, *define, "-c", str(FOLDER / "core.c"), "-o", objects[-1]])
    have = ("-DCD_HAVE_AVX2",) if "avx2" in cores else ()
    objects.append(f"{folder}/dispatch.o")
    _run([*compiler, *have, "-c", str(FOLDER / "dispatch.c"), "-o", objects[-1]])
    return objects


def build_program(source: Path, program: Path, extra: tuple[str, ...] = ()) -> None:
    """A program of its own, the C file `source` with the decoder in it: for sanitizers and valgrind, whose flags are `extra`. Raises as `build`."""
    compiler = [*_compiler(), *FLAGS, *extra]
    with tempfile.TemporaryDirectory() as folder:
        _run([*compiler, f"-I{FOLDER}", str(source), *_compile(compiler, folder), "-o", str(program), "-ljpeg", "-lm"])


def build(library: Path = LIBRARY, extra: tuple[str, ...] = ()) -> Path:
    """Compiles and links `library`; `extra` flags go to every step. Raises UserError with the reason in one line."""
    compiler = [*_compiler(), *FLAGS, *extra]
    with tempfile.TemporaryDirectory() as folder:
        objects = _compile(compiler, folder)
        # Linked aside and moved, so that a process that has the old library open keeps it.
        linked = f"{folder}/{library.name}"
        _run([*compiler, "-shared", *objects, "-o", linked, "-ljpeg"])
        shutil.move(linked, f"{library}.new")
        os.replace(f"{library}.new", library)
    return library


def main() -> int:
    """Builds and says in one line what came of it; exit status 2 when it cannot be built."""
    try:
        library = build()
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"built {library}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

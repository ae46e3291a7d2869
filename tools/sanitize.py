"""Run the C decoder under AddressSanitizer and UBSan: `python tools/sanitize.py [COUNT] [SEED]`.

Writes COUNT mutated JPEGs and seek indices with crop_decode/tests/fuzz/mutate_jpegs.py, and decodes each in
every mode with decode_files.c, by the AVX2 and the portable code. The last line counts files and failures. A
failing file is kept and named, and the exit status is then 1.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

CROP_DECODE = Path(__file__).resolve().parent.parent / "crop_decode"
FUZZ = CROP_DECODE / "tests" / "fuzz"
sys.path.insert(0, str(CROP_DECODE))

from build_library import BuildError, build_program  # noqa: E402

# CD_FUZZING: the decoder follows an index that does not match its JPEG, so that hostile ones reach the code
# behind the check.
FLAGS = (
    *("-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"),
    "-DCD_FUZZING",
)
CHUNK = 100
SECONDS = 600


def decode(program: Path, files: list[Path], generic: bool) -> tuple[int, str]:
    """Exit status and error output of the decoder over `files`."""
    environment = {**os.environ, **({"CROP_DECODE_GENERIC": "1"} if generic else {})}
    done = subprocess.run(
        [str(program), *map(str, files)],
        capture_output=True,
        text=True,
        errors="replace",
        env=environment,
        timeout=SECONDS,
    )
    return done.returncode, done.stderr


def failures_of(program: Path, files: list[Path], generic: bool) -> dict[Path, str]:
    """The files on which the decoder fails, with its reports. A chunk that fails runs again file by file."""
    failed = {}
    for start in range(0, len(files), CHUNK):
        chunk = files[start : start + CHUNK]
        status, report = decode(program, chunk, generic)
        if not status:
            continue
        alone = {file: result[1] for file in chunk if (result := decode(program, [file], generic))[0]}
        failed |= alone or {chunk[0]: f"only together with the {len(chunk) - 1} files after it\n{report}"}
    return failed


def main(count: int, seed: int) -> int:
    with tempfile.TemporaryDirectory() as folder:
        program, corpus = Path(folder) / "decode_files", Path(folder) / "corpus"
        try:
            build_program(FUZZ / "decode_files.c", program, FLAGS)
        except BuildError as error:
            print(error, file=sys.stderr)
            return 2
        mutate = [
            sys.executable,
            str(FUZZ / "mutate_jpegs.py"),
            str(count),
            str(seed),
            "--write",
            str(corpus),
        ]
        subprocess.run(mutate, check=True)
        files, failed = sorted(corpus.glob("*.jpg")), {}
        for generic in (False, True):
            failed |= failures_of(program, files, generic)
        for file, report in failed.items():
            kept = Path(f"sanitize-{file.name}")
            shutil.copy(file, kept)
            shutil.copy(file.with_suffix(".seek"), kept.with_suffix(".seek"))
            print(f"{kept}:\n{report[:3000]}")
    print(f"sanitize: {len(files)} files, {len(failed)} failures")
    return 1 if failed else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("count", type=int, nargs="?", default=2000)
    parser.add_argument("seed", type=int, nargs="?", default=0)
    options = parser.parse_args()
    sys.exit(main(options.count, options.seed))

"""Run two commands at once: show the first, then what the second printed. Fails if either fails.

    python tools/side_by_side.py python -m pytest -n 2 -- python tools/smoke_pipeline.py

The pipeline runs one process after another and leaves a core free, so both together take little longer than
it alone.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile


def run(shown: list[str], beside: list[str]) -> int:
    """Exit status of the first command, or of the second where the first succeeds. Stops both when
    interrupted.
    """
    with tempfile.TemporaryFile() as log:
        background = subprocess.Popen(beside, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
        try:
            first = subprocess.run(shown).returncode
            print(f"waiting for: {' '.join(beside)}", flush=True)
            second = background.wait()
        except BaseException:
            background.terminate()
            background.wait()
            raise
        log.seek(0)
        sys.stdout.buffer.write(log.read())
        sys.stdout.flush()
    return first or second


def main(arguments: list[str] | None = None) -> int:
    words = sys.argv[1:] if arguments is None else arguments
    if "--" not in words[1:-1]:
        print("usage: side_by_side.py COMMAND ... -- COMMAND ...", file=sys.stderr)
        return 2
    middle = words.index("--")
    return run(words[:middle], words[middle + 1 :])


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)

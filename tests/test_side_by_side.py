"""Two commands at the same time, as `make test` runs the tests and the pipeline."""

import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).resolve().parents[1] / "tools" / "side_by_side.py"


def together(first: str, second: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(TOOL), sys.executable, "-c", first, "--", sys.executable, "-c", second]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(("codes", "status"), [((0, 0), 0), ((3, 0), 3), ((0, 4), 4), ((3, 4), 3)])
def test_it_fails_if_either_does(codes, status):
    done = together(*(f"import sys; print('code {code}'); sys.exit({code})" for code in codes))
    assert done.returncode == status
    assert [line for line in done.stdout.splitlines() if line.startswith("code")] == [
        f"code {code}" for code in codes
    ]


def test_both_run_at_once(tmp_path):
    """Each waits for a file that the other makes."""
    wait = "import time, pathlib; pathlib.Path({mine!r}).touch(); end = time.monotonic() + 20\n"
    wait += "while not pathlib.Path({other!r}).exists():\n    assert time.monotonic() < end; time.sleep(.05)"
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    assert together(wait.format(mine=a, other=b), wait.format(mine=b, other=a)).returncode == 0


def test_one_command_is_not_enough():
    assert subprocess.run([sys.executable, str(TOOL), "true"], capture_output=True).returncode == 2

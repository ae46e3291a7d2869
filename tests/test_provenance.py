import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from replicate.errors import UserError
from replicate.provenance import PAGE_SOURCES, git_state, provenance

GIVEN = {
    "device": "cpu",
    "seeds": [0, 1],
    "manifest_sha256": "ab" * 32,
    "wall_seconds": 12.5,
    "images_per_second": None,
    "peak_memory_bytes": 3 * 2**30,
}


def test_provenance_holds_what_a_reader_needs_to_repeat_the_run():
    found = json.loads(json.dumps(provenance(**GIVEN)))
    assert set(found) == {"git", "machine", "versions"} | set(GIVEN)
    assert found["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert {"torch", "timm", "ffcv"} <= set(found["versions"])
    assert found["peak_memory_bytes"] == 3221225472 and found["images_per_second"] is None


def committed(folder: Path) -> None:
    """Make `folder` a repository with all its files in one commit."""
    for command in (
        ["init"],
        ["add", "."],
        ["-c", "user.name=n", "-c", "user.email=e", "commit", "-m", "first"],
    ):
        subprocess.run(["git", "-C", str(folder), *command], check=True, capture_output=True)


def test_the_revision_is_that_of_this_checkout():
    done = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip("no git checkout")
    assert git_state.__wrapped__()["revision"] == done.stdout.strip()


def test_git_state_sees_a_tracked_change_and_ignores_an_untracked_result(tmp_path):
    (tmp_path / "replicate").mkdir()
    code = tmp_path / "replicate" / "code.py"
    code.write_text("a = 1\n")
    committed(tmp_path)
    (tmp_path / "results.json").write_text("{}")
    clean = git_state.__wrapped__(tmp_path)
    assert len(clean["revision"]) == 40 and clean["dirty"] is False
    code.write_text("a = 2\n")
    assert git_state.__wrapped__(tmp_path) == {"revision": clean["revision"], "dirty": True}


def test_a_changed_claim_makes_a_page_dirty_and_a_changed_budget_nothing(tmp_path):
    (tmp_path / "papers").mkdir()
    claims = tmp_path / "papers" / "claims.yaml"
    claims.write_text("claims: []\n")
    (tmp_path / "params.yaml").write_text("budget: laptop\n")
    committed(tmp_path)
    (tmp_path / "params.yaml").write_text("budget: smoke\n")
    assert (
        git_state.__wrapped__(tmp_path)["dirty"] is False
        and git_state.__wrapped__(tmp_path, PAGE_SOURCES)["dirty"] is False
    )
    claims.write_text("claims: [another]\n")
    assert (
        git_state.__wrapped__(tmp_path)["dirty"] is False
        and git_state.__wrapped__(tmp_path, PAGE_SOURCES)["dirty"] is True
    )


def test_outside_a_checkout_the_revision_is_unknown(tmp_path):
    assert git_state.__wrapped__(tmp_path) == {"revision": "unknown", "dirty": None}


def test_without_git_the_revision_is_unknown(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_state.__wrapped__(tmp_path)["revision"] == "unknown"


@pytest.mark.parametrize(
    "change",
    [{"wall_seconds": -1.0}, {"images_per_second": math.nan}, {"peak_memory_bytes": -1}, {"seeds": []}],
)
def test_an_impossible_value_is_refused_by_name(change):
    with pytest.raises(UserError, match=next(iter(change))):
        provenance(**{**GIVEN, **change})


def test_reading_provenance_loads_no_heavy_package():
    code = "import sys, replicate.provenance as p; p.versions(); "
    code += "print(*{'torch', 'numpy', 'timm'} & set(sys.modules))"
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.strip()
        == ""
    )

"""What git holds of our own runs: each is from a clean tree, and its time is whole or not kept."""

import json
from typing import Any

import pytest
from project import ROOT

OLD = {
    f"measured/brief/{folder}efficient_mae/{run}{ending}/metrics.json"
    for folder, runs in (
        ("", ("emae_85", "emae_plain_85")),
        ("grid/", ("emae_95", "emae_plain_75", "emae_plain_90", "emae_plain_95")),
    )
    for run in runs
    for ending in ("", "_ft")
}
"""Older runs that were made with uncommitted changes: to be measured again, and none may join them."""

LEAST_SECONDS = 5.0
"""A run that trains takes longer. A process that finds its run finished writes its own time, far shorter."""


def faults(content: dict[str, Any]) -> list[str]:
    """What is wrong with a run's `metrics.json`. Times that were left out (`keep --no-times`) are none."""
    made, run = content["provenance"], content["resolved"]
    found = []
    if made.get("git", {}).get("dirty", True):
        found.append("made with uncommitted changes")
    seconds = made.get("wall_seconds", LEAST_SECONDS)
    trains = bool(run.get("iterations") or run.get("epochs")) and run.get("protocol") != "score"
    if trains and seconds < LEAST_SECONDS:
        found.append(f"took {seconds:.2g} s, which is no whole training")
    return found


def test_every_measured_run_is_from_a_clean_tree_with_a_whole_time():
    paths = sorted((ROOT / "measured").rglob("metrics.json"))
    named = {str(path.relative_to(ROOT)): faults(json.loads(path.read_text())) for path in paths}
    assert paths
    wrong = [f"{path}: {' and '.join(found)}" for path, found in named.items() if found and path not in OLD]
    assert not wrong, "\n".join(wrong)
    whole = [path for path in OLD if not named.get(path)]
    assert not whole, f"measured again or removed, take out of OLD: {', '.join(whole)}"


@pytest.mark.parametrize(
    ("changes", "count"),
    [
        ({}, 0),
        ({"git": {"dirty": True}}, 1),
        ({"git": {}}, 1),
        ({"wall_seconds": 0.03}, 1),
        ({"git": {"dirty": True}, "wall_seconds": 0.03}, 2),
        ({"wall_seconds": 0.03, "run": {"epochs": 0}}, 0),
        ({"wall_seconds": 0.03, "run": {"epochs": 6, "protocol": "score"}}, 0),
        ({"wall_seconds": 0.03, "run": {"epochs": 0, "iterations": 40}}, 1),
    ],
)
def test_faults_are_found(changes, count):
    made = {"git": {"dirty": False}, "wall_seconds": 60.0} | {k: v for k, v in changes.items() if k != "run"}
    assert len(faults({"provenance": made, "resolved": changes.get("run", {"epochs": 6})})) == count


def test_a_run_without_times_is_whole():
    assert faults({"provenance": {"git": {"dirty": False}}, "resolved": {"epochs": 6}}) == []

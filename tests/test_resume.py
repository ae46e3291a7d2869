"""SIGKILL in the middle of training: the same command continues and ends with the results of an unbroken run, bit for bit."""

import json
import signal
import time

import pytest
from project import run, start, write_params

RUNS = (("pretrain", "light_90"), ("evaluate", "light_90_llrd_65"))
LONG = {"pretrain_epochs": 0.12, "evaluate_epochs": 0.12}


def outcome(folder, name: str) -> dict:
    """What a run found, without how long it took."""
    results = json.loads((folder / "results/smoke/efficient_learners" / name / "metrics.json").read_text())["results"]
    return {key: value for key, value in results["per_seed"][0].items() if key != "seconds_per_epoch"}


def kill_in_the_middle(folder, *arguments: str) -> None:
    """Start a command, wait until it has written a checkpoint that no earlier run left, and kill it."""
    process = start(folder, *arguments)
    deadline = time.monotonic() + 120
    while not list(folder.glob(".replicate/runs/*/checkpoint.pt")):
        assert process.poll() is None and time.monotonic() < deadline, process.stderr.read()
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken")
    write_params(folder, budget=LONG)
    run(folder, "data", "write")
    for arguments in RUNS:
        run(folder, *arguments)
    return folder


def test_killed_runs_continue_to_equal_results(unbroken, tmp_path):
    write_params(tmp_path, budget=LONG)
    run(tmp_path, "data", "write")
    for command, name in RUNS:
        kill_in_the_middle(tmp_path, command, name)
        assert not (tmp_path / "results/smoke/efficient_learners" / name / "metrics.json").exists()
        run(tmp_path, command, name)
        assert outcome(tmp_path, name) == outcome(unbroken, name)
    weights = "results/smoke/efficient_learners/light_90/weights/seed0.safetensors"
    assert (tmp_path / weights).read_bytes() == (unbroken / weights).read_bytes()


def test_the_same_run_again_finds_itself_finished(unbroken):
    before = outcome(unbroken, "light_90_llrd_65")
    errors = run(unbroken, "evaluate", "light_90_llrd_65")
    assert "step/s" not in errors and outcome(unbroken, "light_90_llrd_65") == before


def test_nothing_but_finished_runs_is_left_in_the_store(unbroken):
    assert not list(unbroken.glob(".replicate/runs/*/checkpoint.pt"))
    assert len(list(unbroken.glob(".replicate/runs/*/finished.json"))) == 2

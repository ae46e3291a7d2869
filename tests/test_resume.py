"""SIGKILL in the middle of training: the same command continues and ends with equal results, bit for bit."""

import json
import random
import shutil
import signal
import subprocess
import time

import pandas as pd
import pytest
from project import run, start, write_params

RUNS = (("pretrain", "light_90"), ("evaluate", "light_90_llrd_65"))
LONG = {"pretrain_epochs": 0.12, "evaluate_epochs": 0.12}


def outcome(folder, name: str) -> dict:
    """A run's results, without their times."""
    results = json.loads((folder / "results/smoke/efficient_learners" / name / "metrics.json").read_text())[
        "results"
    ]
    return {key: value for key, value in results["per_seed"][0].items() if key != "seconds_per_epoch"}


def seconds(folder, name: str) -> float:
    """The whole time of a run by its provenance, however often it was interrupted."""
    return json.loads((folder / "results/smoke/efficient_learners" / name / "metrics.json").read_text())[
        "provenance"
    ]["wall_seconds"]


def kill_in_the_middle(folder, *arguments: str, how: int = signal.SIGKILL) -> tuple[int, str]:
    """Start a command and kill it once it has written a checkpoint: its exit status and stderr."""
    process = start(folder, *arguments)
    deadline = time.monotonic() + 120
    while not list(folder.glob(".replicate/runs/*/checkpoint.pt")):
        assert process.poll() is None and time.monotonic() < deadline, process.stderr.read()
        time.sleep(0.02)
    process.send_signal(how)
    said = process.communicate()[1]
    return process.returncode, said


@pytest.mark.slow
@pytest.mark.parametrize(("command", "name"), RUNS)
def test_terminated_runs_say_so_and_continue(unbroken, tmp_path, command, name):
    """SIGTERM, as schedulers send it: one line, exit status 130, and the same command continues."""
    write_params(tmp_path, budget=LONG)
    run(tmp_path, "data", "write")
    if command == "evaluate":
        run(tmp_path, *RUNS[0])
    status, said = kill_in_the_middle(tmp_path, command, name, how=signal.SIGTERM)
    assert status == 130 and "the same command continues" in said and "Traceback" not in said
    run(tmp_path, command, name)
    assert outcome(tmp_path, name) == outcome(unbroken, name)


@pytest.mark.slow
def test_killed_at_twenty_random_moments_every_run_ends_bit_equal(unbroken, tmp_path):
    """SIGKILL at 20 random moments of one pre-training and its fine-tuning, restarted after each."""
    moments = random.Random(0)
    write_params(tmp_path, budget=LONG)
    run(tmp_path, "data", "write")
    kills = 0
    for command, name in RUNS:
        started = time.monotonic()
        done = tmp_path / "results/smoke/efficient_learners" / name / "metrics.json"
        span = 12.0
        for _ in range(10):
            process = start(tmp_path, command, name)
            try:
                process.wait(timeout=moments.uniform(0.5, span))
                span = max(
                    2.0, span * 0.7
                )  # it ended before it could be killed: aim earlier, and start the run over
                shutil.rmtree(tmp_path / ".replicate")
                shutil.rmtree(done.parent)
                if command == "evaluate":
                    run(tmp_path, *RUNS[0])
            except subprocess.TimeoutExpired:
                process.kill()
                kills += 1
            process.communicate()
        run(tmp_path, command, name)
        assert outcome(tmp_path, name) == outcome(unbroken, name)
        print(f"{command}: {kills} kills so far, {time.monotonic() - started:.0f} s")
    weights = "results/smoke/efficient_learners/light_90/weights/seed0.safetensors"
    assert (tmp_path / weights).read_bytes() == (unbroken / weights).read_bytes()
    assert kills >= 15


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
        assert (
            seconds(tmp_path, name)
            >= pd.read_csv(tmp_path / f"results/smoke/efficient_learners/{name}/history.csv")["seconds"].sum()
        )
    weights = "results/smoke/efficient_learners/light_90/weights/seed0.safetensors"
    assert (tmp_path / weights).read_bytes() == (unbroken / weights).read_bytes()


def test_the_same_run_again_finds_itself_finished(unbroken):
    before, lasted = outcome(unbroken, "light_90_llrd_65"), seconds(unbroken, "light_90_llrd_65")
    errors = run(unbroken, "evaluate", "light_90_llrd_65")
    assert "step/s" not in errors and outcome(unbroken, "light_90_llrd_65") == before
    assert seconds(unbroken, "light_90_llrd_65") == lasted


def test_nothing_but_finished_runs_is_left_in_the_store(unbroken):
    assert not list(unbroken.glob(".replicate/runs/*/checkpoint.pt"))
    assert len(list(unbroken.glob(".replicate/runs/*/finished.json"))) == 2

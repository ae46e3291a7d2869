"""The same command under torchrun: the same global batch gives the same losses, and evaluation counts every image once."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from project import ENVIRONMENT, run, write_params

RESULTS = "results/smoke/efficient_learners"
WORKER = Path(__file__).with_name("distributed_worker.py")


def torchrun(folder, processes: int, *arguments: str) -> None:
    """`torchrun ARGUMENTS` in `folder`; the test fails unless every process ends well."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), *arguments]
    finished = subprocess.run(command, cwd=folder, env=os.environ | ENVIRONMENT, stderr=subprocess.PIPE, text=True, timeout=500)
    assert finished.returncode == 0, finished.stderr[-3000:]


def alone(folder, *arguments: str) -> None:
    subprocess.run([sys.executable, *arguments], cwd=folder, env=os.environ | ENVIRONMENT, check=True, timeout=500)


def losses(folder) -> list[float]:
    return pd.read_csv(folder / RESULTS / "light_90" / "history.csv").loss.tolist()


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """One process: 100 steps of pre-training at the smoke budget, 25 epochs of 4 steps."""
    return pretrained(tmp_path_factory.mktemp("alone"))


def pretrained(folder, processes: int = 1, **machine):
    write_params(folder, budget={"pretrain_epochs": 0.25, "evaluate_epochs": 0.02}, data={"val_images": 47}, machine=machine)
    run(folder, "data", "write")
    if processes == 1:
        run(folder, "pretrain", "light_90")
    else:
        torchrun(folder, processes, "-m", "replicate", "pretrain", "light_90")
    return folder


@pytest.mark.slow
def test_two_processes_follow_the_curve_of_one(reference, tmp_path):
    """100 steps in float32, with gradient accumulation on the two; val_images is odd, so the ranks cannot have equal shares of it."""
    together = pretrained(tmp_path, 2, micro_batch=4)
    assert len(losses(reference)) == 25
    assert losses(together) == pytest.approx(losses(reference), rel=1e-3)
    torchrun(together, 2, "-m", "replicate", "evaluate", "light_90_llrd_65")
    results = json.loads((together / RESULTS / "light_90_llrd_65" / "metrics.json").read_text())["results"]
    assert round(results["top1"]["mean"] * 47 / 100, 6) == round(results["top1"]["mean"] * 47 / 100)


@pytest.mark.slow
def test_two_processes_in_float64_follow_the_curve_of_one_to_the_last_digits(tmp_path):
    alone(tmp_path, str(WORKER), "curve", str(tmp_path / "one.json"))
    torchrun(tmp_path, 2, str(WORKER), "curve", str(tmp_path / "two.json"))
    one, two = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("one", "two"))
    assert len(one) == 25 and two == pytest.approx(one, rel=1e-5)
    print("largest relative difference", max(abs(b / a - 1) for a, b in zip(one, two, strict=True)))


@pytest.mark.slow
def test_four_ranks_score_1003_images_exactly_as_one(tmp_path):
    alone(tmp_path, str(WORKER), "accuracy", str(tmp_path / "one.json"))
    torchrun(tmp_path, 4, str(WORKER), "accuracy", str(tmp_path / "four.json"))
    one, four = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("one", "four"))
    assert one == four and 0 < one["top1"] < 100


@pytest.mark.slow
def test_sharded_training_follows_the_curve_of_one_process(reference, tmp_path):
    """FSDP2: every parameter, gradient and moment lies on one rank only, and the checkpoint and the weights are whole all the same."""
    from replicate.models.weights import load_weights

    together = pretrained(tmp_path, 2, shard=True, checkpoint_every=5, keep_checkpoints=1)
    assert losses(together) == pytest.approx(losses(reference), rel=1e-3)
    ours, theirs = (load_weights(folder / RESULTS / "light_90/weights/seed0.safetensors") for folder in (together, reference))
    assert {name: tensor.shape for name, tensor in ours.items()} == {name: tensor.shape for name, tensor in theirs.items()}
    run(together, "evaluate", "light_90_llrd_65")
    torchrun(together, 2, "-m", "replicate", "evaluate", "light_90_llrd_75")


@pytest.mark.slow
def test_a_sharded_run_continues_from_its_checkpoint(tmp_path):
    """From the checkpoint of its fourth epoch of six, as after a kill."""
    write_params(tmp_path, budget={"pretrain_epochs": 0.06}, machine={"shard": True, "checkpoint_every": 2, "keep_checkpoints": 9})
    run(tmp_path, "data", "write")
    torchrun(tmp_path, 2, "-m", "replicate", "pretrain", "light_90")
    (folder,) = tmp_path.glob(".replicate/runs/*")
    first = losses(tmp_path)
    (folder / "finished.json").unlink()
    os.replace(folder / "epoch00004.pt", folder / "checkpoint.pt")
    torchrun(tmp_path, 2, "-m", "replicate", "pretrain", "light_90")
    assert losses(tmp_path) == pytest.approx(first, rel=1e-6)

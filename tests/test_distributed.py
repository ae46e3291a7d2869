"""The same command under torchrun: the same losses, and every validation image counted once."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from project import ENVIRONMENT, read, run, write_params

RESULTS = "results/smoke/efficient_learners"
WORKER = Path(__file__).with_name("distributed_worker.py")


def torchrun(folder, processes: int, *arguments: str) -> None:
    """`torchrun ARGUMENTS` in `folder`; the test fails unless every process ends well."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(processes), *arguments]
    finished = subprocess.run(
        command, cwd=folder, env=os.environ | ENVIRONMENT, stderr=subprocess.PIPE, text=True, timeout=500
    )
    assert finished.returncode == 0, finished.stderr[-3000:]


def alone(folder, *arguments: str) -> None:
    subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=os.environ | ENVIRONMENT, check=True, timeout=500
    )


def losses(folder) -> list[float]:
    return pd.read_csv(folder / RESULTS / "light_90" / "history.csv").loss.tolist()


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """One process: 100 steps of pre-training at the smoke budget, 25 epochs of 4 steps."""
    return pretrained(tmp_path_factory.mktemp("alone"))


def pretrained(folder, processes: int = 1, **machine):
    budget = {"pretrain_epochs": 0.25, "evaluate_epochs": 0.02}
    write_params(folder, budget=budget, data={"val_images": 47}, machine=machine)
    run(folder, "data", "write")
    if processes == 1:
        run(folder, "pretrain", "light_90")
    else:
        torchrun(folder, processes, "-m", "replicate", "pretrain", "light_90")
    return folder


@pytest.mark.slow
def test_two_processes_follow_the_curve_of_one(reference, tmp_path):
    """100 steps in float32, in micro-batches on the two; 47 validation images cannot be shared evenly."""
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
def test_batch_statistics_and_dropped_paths_are_those_of_the_whole_batch(tmp_path):
    """Losses, running means and variances in float64: two processes equal one."""
    alone(tmp_path, str(WORKER), "normalised", str(tmp_path / "one.json"))
    torchrun(tmp_path, 2, str(WORKER), "normalised", str(tmp_path / "two.json"))
    one, two = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("one", "two"))
    assert len(one) == 5 + 2 * (4 + 5) and two == pytest.approx(one, rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fastmim_cmt_s_hog_128", "supmae_50", "daily_s5"])
def test_models_that_normalise_over_the_batch_follow_the_curve_of_one_process(tmp_path, name):
    """CMT, SupMAE's head, and an online probe, whose training accuracy is logged."""
    histories = []
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        folder.mkdir()
        write_params(folder, budget={"pretrain_epochs": 0.02})
        run(folder, "data", "write")
        run(folder, "data", "write", "daily_500_95") if name == "daily_s5" else None
        command = ["-m", "replicate", "pretrain", name]
        alone(folder, *command) if processes == 1 else torchrun(folder, processes, *command)
        histories.append(pd.read_csv(next(folder.rglob(f"{name}/history.csv"))))
    one, two = histories
    for column in {"loss", "supervised", "probe_loss", "probe_train_top1"} & set(one.columns):
        assert two[column].tolist() == pytest.approx(one[column].tolist(), rel=1e-4), column


@pytest.mark.slow
def test_four_ranks_score_1003_images_exactly_as_one(tmp_path):
    alone(tmp_path, str(WORKER), "accuracy", str(tmp_path / "one.json"))
    torchrun(tmp_path, 4, str(WORKER), "accuracy", str(tmp_path / "four.json"))
    one, four = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("one", "four"))
    assert one == four and 0 < one["top1"] < 100


@pytest.mark.slow
def test_sharded_training_follows_the_curve_of_one_process(reference, tmp_path):
    """FSDP2: each rank holds its part of parameters and moments; checkpoint and weights are whole."""
    from replicate.models.weights import load_weights

    together = pretrained(tmp_path, 2, shard=True, checkpoint_every=5, keep_checkpoints=1)
    assert losses(together) == pytest.approx(losses(reference), rel=1e-3)
    weights = f"{RESULTS}/light_90/weights/seed0.safetensors"
    ours, theirs = (
        {name: tensor.shape for name, tensor in load_weights(folder / weights).items()}
        for folder in (together, reference)
    )
    assert ours == theirs
    run(together, "evaluate", "light_90_llrd_65")
    torchrun(together, 2, "-m", "replicate", "evaluate", "light_90_llrd_75")


@pytest.mark.slow
def test_a_sharded_run_continues_from_its_checkpoint(tmp_path):
    """From the checkpoint of its fourth epoch of six, as after a kill."""
    machine = {"shard": True, "checkpoint_every": 2, "keep_checkpoints": 9}
    write_params(tmp_path, budget={"pretrain_epochs": 0.06}, machine=machine)
    run(tmp_path, "data", "write")
    torchrun(tmp_path, 2, "-m", "replicate", "pretrain", "light_90")
    (folder,) = tmp_path.glob(".replicate/runs/*")
    first = losses(tmp_path)
    (folder / "finished.json").unlink()
    os.replace(folder / "epoch00004.pt", folder / "checkpoint.pt")
    torchrun(tmp_path, 2, "-m", "replicate", "pretrain", "light_90")
    assert losses(tmp_path) == pytest.approx(first, rel=1e-6)


DENSE = {
    "ade20k": ("mae_vit_b_ade20k", {"segment_length": 0.0002}, "miou"),
    "coco": ("mae_vit_b_coco", {"detect_epochs": 0.03}, "ap_box"),
}


def dense(folder, dataset, processes):
    """A run of segmentation or detection: its losses, its score, and its folder of results."""
    name, longer, metric = DENSE[dataset]
    folder.mkdir(exist_ok=True)
    if not (folder / "params.yaml").exists():
        budget = {"dense": read("budgets.yaml")["smoke"]["dense"] | longer}
        write_params(folder, budget=budget, machine={"checkpoint_every": 1, "keep_checkpoints": 9})
        run(folder, "data", "write", "full")
        run(folder, "data", "write", dataset)
        run(folder, "pretrain", "full_75")
    command = ("-m", "replicate", "evaluate", name)
    alone(folder, *command) if processes == 1 else torchrun(folder, processes, *command)
    results = folder / "results/smoke/grid/mae" / name
    scores = json.loads((results / "metrics.json").read_text())["results"]
    return pd.read_csv(results / "history.csv").loss.tolist(), scores[metric]["mean"], results


@pytest.mark.slow
@pytest.mark.parametrize("dataset", DENSE)
def test_two_processes_segment_and_detect_as_one(tmp_path, dataset):
    """UperNet's batch norms and dropped channels, Mask R-CNN's samples and means: all of the whole batch."""
    one, two = (dense(tmp_path / str(processes), dataset, processes) for processes in (1, 2))
    assert len(one[0]) > 2 and two[0] == pytest.approx(one[0], rel=1e-3)
    assert two[1] == pytest.approx(one[1], abs=1.0)


@pytest.mark.slow
@pytest.mark.parametrize("dataset", DENSE)
def test_a_dense_run_continues_from_its_checkpoint_bit_for_bit(tmp_path, dataset):
    """From a checkpoint of its middle, as after a kill."""
    losses_of_one, score, results = dense(tmp_path, dataset, 1)
    halves = tmp_path.glob(".replicate/runs/*/epoch00002.pt")
    folder = max(halves, key=lambda path: path.stat().st_mtime).parent  # the pre-training ended before
    weights = (folder / "weights.safetensors").read_bytes()
    (folder / "finished.json").unlink()
    shutil.rmtree(results)
    os.replace(folder / "epoch00002.pt", folder / "checkpoint.pt")
    assert dense(tmp_path, dataset, 1)[:2] == (losses_of_one, score)
    assert (folder / "weights.safetensors").read_bytes() == weights

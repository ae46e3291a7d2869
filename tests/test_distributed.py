"""The same command under torchrun: the same global batch gives the same losses, and evaluation counts every image once."""

import json
import os
import subprocess
import sys

import pandas as pd
import pytest
from project import ROOT, run, write_params

RESULTS = "results/smoke/efficient_learners"


def torchrun(folder, processes: int, *arguments: str) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "-m", "replicate", *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    finished = subprocess.run(command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True, timeout=300)
    assert finished.returncode == 0, finished.stderr[-2000:]


@pytest.mark.slow
def test_two_processes_follow_the_curve_of_one(tmp_path_factory):
    """val_images is odd, so the two ranks cannot have equal shares of it."""
    alone, together = tmp_path_factory.mktemp("alone"), tmp_path_factory.mktemp("together")
    for folder in (alone, together):
        write_params(folder, budget={"pretrain_epochs": 0.04, "evaluate_epochs": 0.04}, data={"val_images": 47})
        run(folder, "data", "write")
    run(alone, "pretrain", "light_90")
    torchrun(together, 2, "pretrain", "light_90")
    one, two = (pd.read_csv(folder / RESULTS / "light_90" / "history.csv") for folder in (alone, together))
    assert two.loss.tolist() == pytest.approx(one.loss.tolist(), rel=1e-3)
    assert one.images.tolist() == two.images.tolist()
    run(alone, "evaluate", "light_90_llrd_65")
    torchrun(together, 2, "evaluate", "light_90_llrd_65")
    counted = [json.loads((f / RESULTS / "light_90_llrd_65" / "metrics.json").read_text())["results"] for f in (alone, together)]
    for results in counted:
        assert round(results["top1"]["mean"] * 47 / 100, 6) == round(results["top1"]["mean"] * 47 / 100)

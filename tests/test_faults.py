"""Faults, injected: what the user is told, what is kept, and that the same command continues. The table is
docs/faults.md.
"""

import ast
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from project import ENVIRONMENT, ROOT, run, start, write_params
from test_engine import MemoryLoader, run_of, same, session_of, train

from replicate.errors import UserError
from replicate.loaders import Augmentation, data, open_loader
from replicate.pipeline import seeds, store
from replicate.pipeline.store import RunStore

TABLE = ROOT / "docs" / "faults.md"


@contextlib.contextmanager
def mounted(folder: Path, options: str):
    """A small file system of its own. Skips the test where this user may not mount one."""
    folder.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True)
    if done.returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_disk_that_fills_while_a_checkpoint_is_written(tmp_path):
    with mounted(tmp_path / "disk", "size=1m") as disk:
        kept = RunStore("run", disk)
        kept.save_checkpoint({"history": [1]})
        with pytest.raises(
            UserError, match=r"checkpoint.pt: cannot be written: .*; what was there before is unchanged"
        ):
            kept.save_checkpoint({"history": [1, 2], "weights": torch.zeros(1 << 20)})
        assert kept.load_checkpoint(torch.device("cpu")) == {"history": [1]}
        assert [path.name for path in kept.folder.iterdir()] == ["checkpoint.pt"]


def test_a_run_stopped_by_a_full_disk_continues_to_equal_weights(tmp_path, monkeypatch):
    whole, _ = train(tmp_path / "whole")
    write, calls = torch.save, []

    def full(state, path):
        calls.append(path)
        if len(calls) == 3:
            Path(path).write_bytes(b"half of it")
            raise OSError(28, "No space left on device")
        write(state, path)

    monkeypatch.setattr(torch, "save", full)
    every = session_of(checkpoint_every=1)
    with pytest.raises(UserError, match="No space left on device"):
        train(tmp_path / "broken", session=every)
    monkeypatch.undo()
    continued, history = train(tmp_path / "broken", session=every)
    assert same(whole, continued) and len(history) == 6


def test_a_results_folder_that_cannot_be_written_is_told_before_training(tmp_path):
    with (
        mounted(tmp_path / "results", "ro,size=1m") as folder,
        pytest.raises(UserError, match=r"results/.*cannot be written: .*Read-only"),
    ):
        seeds._refuse_read_only(folder / "smoke" / "run")


def test_a_results_folder_that_is_a_file_is_told_before_training(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("results").write_text("not a folder")
    trained = []
    context = type(
        "Context", (), {"session": session_of(), "results_folder": Path("results/smoke/x"), "seeds": 1}
    )()
    with pytest.raises(UserError, match="results/smoke/x/.writable: cannot be written"):
        seeds.train_seeds(context, lambda *_: trained.append(1))
    assert not trained


def test_a_clock_that_jumps_changes_nothing(tmp_path, monkeypatch):
    whole, rows = train(tmp_path / "whole")
    jumps = iter(range(10**6))
    monkeypatch.setattr(time, "time", lambda: 1.7e9 - 86400 * next(jumps))
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "jumped", loader=MemoryLoader(16, stop_at=3))
    for path in (tmp_path / "jumped").rglob("*"):
        os.utime(path, (4e9, 4e9))  # checkpoints from the future
    jumped, history = train(tmp_path / "jumped")
    assert same(whole, jumped) and [row["loss"] for row in rows] == [row["loss"] for row in history]
    assert all(row["seconds"] >= 0 for row in history)


@pytest.fixture(scope="module")
def thousands(tmp_path_factory):
    """2,000 small JPEGs, one of them cut short."""
    root, generator = tmp_path_factory.mktemp("thousands"), np.random.default_rng(0)
    for split, count in (("train", 990), ("val", 10)):
        for label in ("cat", "dog"):
            folder = root / split / label
            folder.mkdir(parents=True)
            for number in range(count):
                Image.fromarray(generator.integers(0, 256, (16, 16, 3), np.uint8)).save(
                    folder / f"{number:04d}.jpg"
                )
    victim = root / "train" / "dog" / "0123.jpg"
    victim.write_bytes(victim.read_bytes()[:200])
    return root


def test_one_corrupt_image_amid_thousands_is_named(thousands, tmp_path):
    with pytest.raises(UserError, match=r"train/dog/0123.jpg"):
        data.write(data.DataSettings(str(thousands)), tmp_path / "out", progress=False)
    assert not (tmp_path / "out" / "manifest.json").exists() and not list((tmp_path / "out").glob("*.part"))


def test_one_corrupt_image_amid_thousands_is_left_out_and_counted_where_the_user_chose_so(
    thousands, tmp_path, capsys
):
    out = tmp_path / "out"
    manifest = data.write(data.DataSettings(str(thousands), on_error="skip"), out, progress=False)
    assert manifest.splits["train"]["images"] == 1979 and len(manifest.splits["train"]["skipped"]) == 1
    assert "train/dog/0123.jpg" in manifest.splits["train"]["skipped"][0]
    assert "1 of 1980 images left out" in capsys.readouterr().err
    assert len(data.check(out)) == 2
    options = {
        "batch_size": 64,
        "image_size": 16,
        "augmentation": Augmentation(crop="none", flip=False),
        "seed": 0,
        "train": False,
    }
    with open_loader("beton", out / "train.beton", **options) as loader:
        labels = torch.cat([batch.labels for batch in loader.epoch(0)])
    assert torch.bincount(labels).tolist() == [990, 989]


def test_an_image_that_cannot_be_read_while_training_is_counted_in_the_history(tmp_path):
    class Skipping(MemoryLoader):
        num_skipped = 0

        def epoch(self, epoch):
            for batch in super().epoch(epoch):
                self.num_skipped += 1
                yield type(batch)(*(part[1:] for part in batch))

    _, history = train(tmp_path, loader=Skipping(16))
    assert [row["skipped"] for row in history] == [4] * 6


INTERRUPTED = "interrupted; what had finished is kept, and the same command continues\n"
LEAVING = """
import atexit, signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
from replicate import cli
from replicate.pipeline import interruption
seconds, interruption.PATIENCE = map(float, sys.argv[1:])
def work(options):
    try:
        print("at work", flush=True)
        # Ctrl-C in executed text, as in an import that makes a class: Python wants to die of it.
        exec("time.sleep(60)")
    finally:
        print("leaving", flush=True)
        time.sleep(seconds)
atexit.register(time.sleep, seconds)
cli._grid = work
sys.exit(cli.main(["grid"]))
"""


def leaving(folder: Path, seconds: float, patience: float) -> subprocess.Popen:
    """A command that was told to leave, and takes its time twice: before it has said anything, and as Python
    ends.
    """
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    (folder / "leaving.py").write_text(LEAVING)
    command = [sys.executable, "-m", "leaving", str(seconds), str(patience)]
    process = subprocess.Popen(command, cwd=folder, env=os.environ | ENVIRONMENT, **pipes)
    assert process.stdout.readline() == "at work\n"
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "leaving\n"
    return process


@pytest.mark.parametrize("times", ["once", "often"])
def test_one_ctrl_c_that_arrives_several_times_is_one_line(tmp_path, times):
    process = leaving(tmp_path, 0.4, 60)
    while times == "often" and process.poll() is None:
        process.send_signal(signal.SIGINT)
        time.sleep(0.05)
    assert (process.communicate()[1], process.returncode) == (INTERRUPTED, 130)


def test_leaving_that_hangs_is_left_by_another_ctrl_c(tmp_path):
    process = leaving(tmp_path, 60, 0)
    process.send_signal(signal.SIGINT)
    assert (process.communicate(timeout=30)[1], process.returncode) == (INTERRUPTED, 130)


SEEDS = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from replicate import cli
from replicate.pipeline.parallel import train_seeds_in_processes
cli._grid = lambda options: train_seeds_in_processes(("--params", sys.argv[1], "pretrain", "light_90"), 2, 2)
sys.exit(cli.main(["grid"]))
"""


@pytest.mark.parametrize("whom", ["all", "a seed"])
def test_a_terminals_ctrl_c_over_several_seeds_is_one_line(tmp_path, whom):
    """It reaches parent and seeds; these wait for their params.yaml, a pipe that nobody fills. A scheduler's
    SIGTERM to one seed ends all of them.
    """
    os.mkfifo(tmp_path / "params.yaml")
    command = [sys.executable, "-c", SEEDS, str(tmp_path / "params.yaml")]
    process = subprocess.Popen(
        command, env=os.environ | ENVIRONMENT, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    deadline, pipe = time.monotonic() + 60, None
    while pipe is None:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
        with contextlib.suppress(OSError):  # while nobody reads it
            pipe = os.open(tmp_path / "params.yaml", os.O_WRONLY | os.O_NONBLOCK)
    time.sleep(0.5)  # the other seed may still be starting, which is to be just as quiet
    if whom == "all":
        os.killpg(process.pid, signal.SIGINT)
        os.killpg(process.pid, signal.SIGINT)
    else:
        os.kill(children(process.pid)[0], signal.SIGTERM)
    said = process.communicate(timeout=60)[1]
    os.close(pipe)
    assert (said, process.returncode) == (INTERRUPTED, 130)


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM], ids=["SIGKILL", "SIGTERM"])
def test_a_data_stage_that_is_killed_leaves_nothing_that_a_run_takes(tmp_path, how):
    write_params(tmp_path, data={"train_images": 4000, "image_size": 96})
    process = start(tmp_path, "data", "write")
    deadline = time.monotonic() + 120
    while not list(tmp_path.rglob("train.beton.part")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(how)
    said = process.communicate()[1]
    assert process.returncode == (130 if how == signal.SIGTERM else -9) and "Traceback" not in said
    assert not (tmp_path / "data/smoke/full/manifest.json").exists()
    refused = start(tmp_path, "pretrain", "light_90")
    assert "python -m replicate data write" in refused.communicate()[1] and refused.returncode == 2
    write_params(tmp_path)
    run(tmp_path, "data", "write")
    run(tmp_path, "data", "check")


@pytest.mark.slow
def test_one_of_four_ranks_dies_and_the_same_command_continues(tmp_path):
    write_params(tmp_path, budget={"pretrain_epochs": 0.6}, machine={"checkpoint_every": 1})
    run(tmp_path, "data", "write")
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "4",
        "-m",
        "replicate",
    ]
    environment = os.environ | ENVIRONMENT
    process = subprocess.Popen(
        [*torchrun, "pretrain", "light_90"], cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 240
    while not list(tmp_path.glob(".replicate/runs/*/checkpoint.pt")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(children(process.pid)[-1], signal.SIGKILL)
    said = process.communicate(timeout=240)[1]
    metrics = tmp_path / "results/smoke/efficient_learners/light_90/metrics.json"
    assert process.returncode != 0 and "exitcode" in said and not metrics.exists()
    subprocess.run(
        [*torchrun, "pretrain", "light_90"],
        cwd=tmp_path,
        env=environment,
        check=True,
        capture_output=True,
        timeout=300,
    )
    assert json.loads(metrics.read_text())["results"]["per_seed"][0]["loss"] > 0


def children(pid: int) -> list[int]:
    """Processes that `pid` started."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.slow
def test_two_dvc_repro_at_once(tmp_path):
    """The second is refused in a sentence that names what is busy, and repeats cleanly once the first is
    done.
    """
    stages = {"slow": {"cmd": "sleep 6 && echo done > out", "outs": ["out"]}}
    (tmp_path / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}))
    dvc = [sys.executable, "-m", "dvc"]
    options = {"cwd": tmp_path, "capture_output": True, "text": True, "env": os.environ | ENVIRONMENT}
    subprocess.run([*dvc, "init", "--no-scm", "-q"], check=True, **options)
    first = subprocess.Popen(
        [*dvc, "repro"],
        cwd=tmp_path,
        env=options["env"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    for line in first.stdout:
        if "sleep 6" in line:
            break
    second = subprocess.run([*dvc, "repro"], **options)
    assert second.returncode != 0 and re.search(
        r"busy|[Uu]nable to acquire lock", second.stderr + second.stdout
    )
    first.communicate()
    assert first.returncode == 0 and (tmp_path / "out").read_text() == "done\n"
    again = subprocess.run([*dvc, "repro"], **options)
    assert again.returncode == 0 and "didn't change" in again.stdout


def test_a_half_written_file_is_never_the_real_one(tmp_path):
    def dies(path):
        path.write_text("half")
        raise KeyboardInterrupt

    (tmp_path / "metrics.json").write_text("whole")
    with pytest.raises(KeyboardInterrupt):
        store.atomic_write(tmp_path / "metrics.json", dies)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["whole"]


def test_the_last_checkpoints_and_the_best_one_stay_when_asked_for(tmp_path):
    session = session_of(checkpoint_every=1, keep_checkpoints=2, keep_best=True)
    _, history = train(tmp_path, session=session, run=run_of(base_lr=1.6))
    folder = tmp_path / "run"
    assert sorted(path.name for path in folder.glob("epoch*.pt")) == ["epoch00005.pt", "epoch00006.pt"]
    losses = [row["loss"] for row in history]
    best = torch.load(folder / "best.pt", weights_only=True)["history"]
    assert len(best) == 1 + losses.index(min(losses))
    logged = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [row["loss"] for row in logged] == losses and all(row["images_per_second"] > 0 for row in logged)


def test_the_table_names_tests_that_exist():
    rows = [line for line in TABLE.read_text().splitlines() if line.startswith("| ") and "::" in line]
    named = [re.findall(r"`((?:crop_decode/)?tests/\w+\.py)::(\w+)`", row) for row in rows]
    assert len(rows) >= 12 and all(named)
    for path, name in {pair for row in named for pair in row}:
        functions = {
            node.name
            for node in ast.walk(ast.parse((ROOT / path).read_text()))
            if isinstance(node, ast.FunctionDef)
        }
        assert name in functions, f"{path} has no {name}"

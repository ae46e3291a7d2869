"""Sweeps beyond one machine: the commands for DVC's queue and the SLURM submission are valid, ordered, and
run.
"""

import csv
import io
import os
import re
import shlex
import subprocess
import sys

import pytest
import yaml
from project import ENVIRONMENT, ROOT, read, write_params

from replicate.config import load
from replicate.pipeline import seeds
from replicate.pipeline.stages import group_of

sys.path.insert(0, str(ROOT / "tools"))

import queue_sweep  # noqa: E402
import slurm  # noqa: E402

PARAMS = ["--params", str(ROOT / "params.yaml")]
KEY = "light_90_llrd_80.layer_decay"


def queued(capsys, *arguments: str) -> list[list[str]]:
    assert queue_sweep.main([*arguments, *PARAMS]) == 0
    return [shlex.split(line) for line in capsys.readouterr().out.splitlines()]


def test_a_sweep_is_a_queued_experiment_a_value(capsys):
    from dvc.cli import parse_args

    commands = queued(capsys, KEY, "0.7", "0.75", "--jobs", "2")
    assert len(commands) == 3
    for command, value in zip(commands, ("0.7", "0.75"), strict=False):
        parsed = parse_args(command[1:])
        assert (
            parsed.queue
            and parsed.set_param == [f"++runs.{KEY}={value}"]
            and parsed.targets == ["evaluate@light_90_llrd_80"]
        )
    assert parse_args(commands[2][1:]).jobs == 2


@pytest.mark.parametrize(
    ("key", "told"),
    [
        ("layer_decay", "write RUN.KEY"),
        ("nothing.layer_decay", "'nothing' is not a headline run"),
        ("light_90_llrd_80.llrd", "has no key 'llrd'"),
        ("light_90; rm -rf /.x", "write RUN.KEY"),
    ],
)
def test_a_mistaken_sweep_is_told(capsys, key, told):
    assert queue_sweep.main([key, "0.7", *PARAMS]) == 2
    assert told in capsys.readouterr().err


def test_images_outside_git_are_refused_before_queueing(tmp_path, monkeypatch, capsys):
    write_params(tmp_path, datasets={"full": {"source": "data/mine"}})
    (tmp_path / "data/mine").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    subprocess.run(["git", "init", "-q"], check=True)
    assert queue_sweep.main([KEY, "0.7", "--params", "params.yaml"]) == 2
    assert "source data/mine: not in git; " in capsys.readouterr().err
    write_params(tmp_path, datasets={"full": {"source": str(tmp_path / "data/mine")}})
    assert queue_sweep.main([KEY, "0.7", "--params", "params.yaml"]) == 0


@pytest.mark.slow
def test_the_queue_takes_the_commands_and_runs_them(tmp_path):
    """In a small repository with a run of the same name whose training is an `echo`, and inputs and scores as
    the pipeline has them.
    """
    environment = (
        os.environ
        | ENVIRONMENT
        | {"PATH": f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}", "DVC_NO_ANALYTICS": "1"}
    )
    split = "import json, pathlib, yaml; p = yaml.safe_load(open('params.yaml')); "
    split += "runs = {n: {'layer_decay': 0.8} | p['runs'].get(n, {}) for n in p['evaluate']}; "
    split += "[pathlib.Path(f'inputs/{name}.json').write_text(json.dumps(run)) for name, run in runs.items()]"
    inputs = {"cmd": f'mkdir -p inputs; python -c "{split}"', "deps": ["params.yaml"], "outs": ["inputs"]}
    read = "import json; decay = json.load(open('inputs/${key}.json'))['layer_decay']; "
    read += "print(json.dumps({'top1': 40 + decay}))"
    score = f'python -c "{read}" > ${{key}}.json'
    train = {"cmd": score, "deps": ["inputs/${key}.json"], "metrics": ["${key}.json"]}
    (tmp_path / "dvc.yaml").write_text(
        yaml.safe_dump({"stages": {"inputs": inputs, "evaluate": {"foreach": "${evaluate}", "do": train}}})
    )
    (tmp_path / "params.yaml").write_text(yaml.safe_dump({"runs": {}, "evaluate": {"light_90_llrd_80": {}}}))

    def call(*command: str) -> str:
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    call("git", "init", "-q")
    call("dvc", "init", "-q")
    call("git", "add", "-A")
    call("git", "-c", "user.name=t", "-c", "user.email=t@localhost", "commit", "-qm", "start")
    commands = queue_sweep.commands(load(ROOT / "params.yaml"), KEY, ["0.7", "0.75"], 1)
    assert len(commands) == 3
    for command in commands[:-1]:
        call(*command)
    assert call("dvc", "queue", "status").count("Queued") == 2
    call("dvc", "exp", "run", "--run-all")
    shown = call("dvc", "exp", "show", "--csv")
    scores = {
        line["runs.light_90_llrd_80.layer_decay"]: line["top1"] for line in csv.DictReader(io.StringIO(shown))
    }
    assert scores["0.7"] == "40.7" and scores["0.75"] == "40.75" and "Failed" not in shown


def test_every_stage_that_trains_gives_dvc_its_scores():
    """`dvc exp show` after an experiment of one stage shows what came out: the small file of means, not all
    that a run reports.
    """
    for path in ("dvc.yaml", "grids/pipeline.yaml"):
        for name, stage in yaml.safe_load((ROOT / path).read_text())["stages"].items():
            outs = [
                out for out in map(str, stage.get("do", {}).get("outs", [])) if out.endswith("metrics.json")
            ]
            assert stage.get("do", {}).get("metrics", []) == [
                out.replace("metrics.json", "scores.json") for out in outs
            ], (path, name)


def test_scores_are_the_means_that_a_run_is_judged_by():
    found = {
        "seeds": [0, 1],
        "per_seed": [],
        "top1": {"mean": 40.0, "low": 38.0, "high": 42.0},
        "parameters": {"mean": 9.0, "low": 9.0, "high": 9.0},
    }
    assert seeds.scores(found) == {"top1": 40.0}
    assert seeds.scores(
        {"seeds": [0], "per_seed": [], "psnr_hog": {"mean": 20.0, "low": None, "high": None}}
    ) == {"psnr_hog": 20.0}


@pytest.fixture(scope="module")
def submission():
    done = subprocess.run(
        [
            sys.executable,
            "tools/slurm.py",
            "light_90_llrd_80",
            "--gpus",
            "4",
            "--nodes",
            "2",
            "--partition",
            "a100",
            "--folder",
            "/shared/project",
        ],
        cwd=ROOT,
        env=os.environ | ENVIRONMENT,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def test_the_submission_is_a_job_a_stage_in_order(submission, tmp_path):
    """Run with an sbatch that records what it is given."""
    fake = tmp_path / "sbatch"
    fake.write_text(
        '#!/bin/bash\nn=$(ls "$RECORD" | wc -l)\n{ echo "ARGS $*"; cat; } > "$RECORD/$n"\necho $((100 + n))\n'
    )
    fake.chmod(0o755)
    (tmp_path / "record").mkdir()
    script = submission.replace("cd /shared/project", f"cd {tmp_path}", 1)
    environment = os.environ | {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "RECORD": str(tmp_path / "record"),
    }
    subprocess.run(["bash", "-c", script], env=environment, check=True, capture_output=True)
    jobs = [
        path.read_text() for path in sorted((tmp_path / "record").iterdir(), key=lambda path: int(path.name))
    ]
    names = [re.search(r"--job-name=(\S+)", job)[1] for job in jobs]
    assert names == ["inputs", "data@full", "pretrain@light_90", "evaluate@light_90_llrd_80", "tables"]
    assert "--dependency" not in jobs[0].splitlines()[0]
    assert "--dependency=afterok:100\n" in jobs[1] and "--dependency=afterok:100:101\n" in jobs[2]
    assert (
        "--dependency=afterok:100:101:102" in jobs[3] and "--dependency=afterany:100:101:102:103" in jobs[4]
    )


def test_a_job_trains_under_torchrun_and_then_records_its_stage(submission, tmp_path):
    jobs = re.findall(r"<<'BATCH'\n(.*?)\nBATCH\n", submission, re.S)
    for job in jobs:
        subprocess.run(["bash", "-n"], input=job, text=True, check=True)
    train = jobs[2]
    assert "torchrun --nnodes 2 --nproc-per-node 4" in train and "-m replicate pretrain light_90" in train
    assert "#SBATCH --gpus-per-node=4" in train and "#SBATCH --partition=a100" in train
    assert train.rstrip().endswith("flock .replicate/dvc.flock dvc repro --single-item pretrain@light_90")
    assert "torchrun" not in jobs[0] and jobs[-1].rstrip().endswith("dvc repro")


def test_every_stage_of_the_submission_is_one_of_dvc_yaml():
    from replicate.config import load

    params = load(ROOT / "params.yaml")
    found = {stage.target for stage in slurm.stages(params, [])}
    wanted = {f"{group_of(params, name)}@{name}" for name in params.headline}
    assert {target for target in found if not target.startswith("data@")} == wanted | {"inputs"}


def test_an_unknown_run_is_told(capsys):
    assert slurm.main(["light_9", *PARAMS]) == 2
    assert "light_9 is not a headline run" in capsys.readouterr().err


def test_a_sweep_edits_one_run_of_params_yaml_and_keeps_its_comments(tmp_path):
    """`dvc exp run -S` rewrites the file that it changes, and only that file."""
    from dvc.utils.hydra import apply_overrides

    text = (ROOT / "params.yaml").read_text()
    (tmp_path / "params.yaml").write_text(text)
    apply_overrides(tmp_path / "params.yaml", ["++runs.light_90_llrd_80.layer_decay=0.7"])
    written = (tmp_path / "params.yaml").read_text()
    items = len(read("params.yaml")["machine"]["loggers"]) + len(read("params.yaml")["findings"])
    assert len(written.splitlines()) <= len(text.splitlines()) + 2 + items, "DVC writes a list an item a line"
    assert [line for line in text.splitlines() if line.startswith("#")] == [
        line for line in written.splitlines() if line.startswith("#")
    ]
    changed, before = load(tmp_path / "params.yaml"), load(ROOT / "params.yaml")
    differing = {name for name in before.runs if before.runs[name] != changed.runs[name]}
    assert differing == {"light_90_llrd_80"} and changed.run("light_90_llrd_80").layer_decay == 0.7

"""`make repro` says how far it is, what a run reached, and how long the rest takes."""

import itertools
import json

import pytest
from project import ROOT

from replicate.config import load
from replicate.pipeline.progress import Progress, default_stages, duration


@pytest.fixture(scope="module")
def params():
    return load(ROOT / "params.yaml")


def lines(progress, *said, seconds=20.0):
    return list(progress.read(said, clock=itertools.count(0, seconds).__next__))


def test_the_stages_are_those_of_dvc_yaml(params):
    names = default_stages(params)
    assert len(set(names)) == len(names)
    assert {"inputs", "data@full", "pretrain@full_75", "source@mae", "notebook@mae", "site"} <= set(names)
    assert sum(name.startswith(("pretrain@", "evaluate@")) for name in names) == len(params.headline)


def test_a_line_counts_stages_and_estimates_the_rest(params):
    progress = Progress(params, ["inputs", "evaluate@a", "evaluate@b", "evaluate@c"], whole=True)
    said = lines(
        progress,
        "Stage 'inputs' didn't change, skipping\n",
        "Running stage 'evaluate@a':\n",
        "> python -m replicate evaluate a\n",
        "Running stage 'evaluate@b':\n",
        "Use `dvc push` to send your updates to remote storage.\n",
    )
    assert said == ["[2/4] a · 20 s · about 40 s left", "[3/4] b · 20 s · about 20 s left"]


def test_a_run_shows_its_accuracy_and_each_seeds(params, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = params.results_folder("light_75_llrd_80")
    folder.mkdir(parents=True)
    results = {"top1": {"mean": 28.91}, "per_seed": [{"top1": 28.2}, {"top1": 29.62}]}
    (folder / "metrics.json").write_text(json.dumps({"results": results}))
    progress = Progress(params, [], whole=False)
    [line] = lines(progress, "Running stage 'evaluate@light_75_llrd_80':\n")
    assert line == "light_75_llrd_80 · top-1 28.9 % (28.2, 29.6) · 20 s"


def test_a_cached_stage_counts_and_a_failed_one_does_not(params):
    progress = Progress(params, ["evaluate@a", "evaluate@b"], whole=True)
    said = [
        "Stage 'evaluate@a' is cached - skipping run, checking out outputs\n",
        "Running stage 'evaluate@b':\n",
    ]
    assert list(progress.read(said, clock=lambda: 0.0, ended=lambda: False)) == []
    assert progress.left == {"evaluate@b"}


def test_other_lines_of_dvc_pass(params):
    said = lines(Progress(params, [], whole=False), "ERROR: failed to reproduce 'x'\n", "\n")
    assert said == ["ERROR: failed to reproduce 'x'"]


@pytest.mark.parametrize(("seconds", "text"), [(47.2, "47 s"), (720, "12 min"), (9000, "2.5 h")])
def test_durations_are_rounded(seconds, text):
    assert duration(seconds) == text

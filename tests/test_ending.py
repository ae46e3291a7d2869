"""The last lines of `make repro`: the gain over random weights, and the clearest claims."""

import pandas as pd
import pytest
from project import ROOT

from replicate.config import load
from replicate.report.ending import clearest, pretraining_gain
from replicate.report.quantities import Reader
from replicate.report.results import Results, Run


@pytest.fixture(scope="module")
def params():
    return load(ROOT / "params.yaml")


def finished(params, name, *top1):
    run = params.resolve(name, "laptop")
    seeds = tuple(range(len(top1)))
    resolved = run.model_dump(mode="json")
    per_seed = tuple({"top1": value} for value in top1)
    return Run(run.paper, name, ROOT / name, seeds, per_seed, {}, resolved, {})


def test_the_gain_is_that_of_the_best_fine_tuning(params):
    runs = {
        "full_75_llrd_80": (40.0, 42.0, 41.0),
        "light_75_llrd_80": (36.0, 38.0, 37.0),
        "scratch_llrd_80": (22.0, 24.0, 23.0),
    }
    made = {name: finished(params, name, *values) for name, values in runs.items()}
    line = pretraining_gain(params, Reader(Results("laptop", made)))
    assert line.startswith("Best pre-training over random weights: +18.0 [")
    assert line.endswith("points, 41.0 % (full_75_llrd_80) against 23.0 % (scratch_llrd_80)")


def test_without_a_baseline_nothing_is_said(params):
    made = {"full_75_llrd_80": finished(params, "full_75_llrd_80", 40.0, 42.0)}
    assert pretraining_gain(params, Reader(Results("laptop", made))) == ""


def test_claims_are_those_far_beyond_their_interval():
    columns = ["paper", "verdict", "statement", "effect", "low", "high", "unit", "against"]
    columns += ["regime"]
    scale = "ViT 64 wide; 40 steps"
    rows = [
        ("a", "shown on synthetic images", "Wide.", 2.0, 0.1, 3.9, "points", "", scale),
        ("a", "shown on synthetic images", "Clear.", 9.0, 8.0, 10.0, "points", "", scale),
        ("b", "inconclusive", "Open.", 9.0, 8.9, 9.1, "points", "", scale),
        ("c", "opposite on synthetic images", "Other way.", -3.0, -4.0, -2.0, "points", "", scale),
    ]
    said = list(clearest(pd.DataFrame(rows, columns=columns)))
    assert said == [
        "Shown on synthetic images: Clear. Effect: +9.0 [8.0, 10.0] points",
        f"Opposite on synthetic images ({scale}): Other way. Effect: -3.0 [-4.0, -2.0] points",
    ]

"""The pilot's table by hand arithmetic, and candidates and proposals that the budget's schema accepts."""

import importlib.util
import math
from pathlib import Path

import pandas as pd
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def pilot():
    spec = importlib.util.spec_from_file_location("pilot", ROOT / "benchmarks" / "pilot.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_contrast_by_hand(pilot):
    rows = [
        ("data", 0, None, 5),
        ("scratch", 0, None, 1),
        ("scratch", 1, None, 1),
        ("mae_75", 0, None, 200),
        ("mae_75", 1, None, 220),
    ]
    rows += [
        ("scratch_1x", 0, 26.0, 10),
        ("scratch_1x", 1, 24.0, 10),
        ("mae_75_llrd_80", 0, 40.0, 10),
        ("mae_75_llrd_80", 1, 44.0, 12),
    ]
    runs = pd.DataFrame(
        [("a",) + row for row in rows], columns=["lens", "run", "seed", "top1", "cpu_seconds"]
    )
    [row] = pilot.contrasts(runs).to_dict("records")
    noise = math.sqrt((2.0 + 8.0) / 2)  # variances of two runs with one degree of freedom each
    assert row["effect"] == 17.0 and row["freedom"] == 2 and row["noise"] == pytest.approx(noise, abs=0.01)
    assert row["half_width"] == pytest.approx(
        4.303 * noise, abs=0.01
    )  # t at 97.5 % with two degrees of freedom; sqrt(1/2 + 1/2) = 1
    assert row["cpu_seconds"] == 1 + 210 + 10 + 11
    assert row["power_per_1000_s"] == pytest.approx(1000 * 17**2 / 5 / 232, abs=0.01)


def test_a_shared_pretraining_is_counted_once(pilot):
    rows = [
        ("mae_75", 0, None, 100),
        ("mae_75_llrd_80", 0, 1.0, 10),
        ("mae_75_llrd_80", 1, 2.0, 10),
        ("mae_75_llrd_65", 0, 0.0, 10),
    ]
    runs = pd.DataFrame(
        [("a",) + row for row in rows], columns=["lens", "run", "seed", "top1", "cpu_seconds"]
    )
    [row] = pilot.contrasts(runs).to_dict("records")
    assert row["contrast"] == "llrd 0.80 over 0.65" and row["cpu_seconds"] == 120


def test_every_candidate_is_a_budget(pilot):
    candidates = yaml.safe_load((ROOT / "benchmarks" / "pilot.yaml").read_text())
    for lens in candidates["lenses"]:
        params = pilot.params_of(lens, candidates, "images")
        for name in params.runs:
            assert params.resolve(name, "paper").image_size == 224
            assert params.resolve(name).image_size < 224
        assert params.resolve("scratch_1x").layer_decay == 1.0

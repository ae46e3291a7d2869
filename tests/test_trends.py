"""Trends over budgets, against differences that are written down here."""

import math

import pandas as pd
import pytest
from project import ROOT

from replicate.config import load, published
from replicate.report import trends, wording
from replicate.report.results import Results, Run

PRE = {"objective": "reconstruction", "batch_size": 16, "backbone": "vit_base_patch16", "dataset": "full"}


def run(name, values, folder, images=0, pretrain=None):
    """A finished run; a pre-training leaves a history of `images` images a seed."""
    path = folder / name / "metrics.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    history = pd.DataFrame({"seed": [0, 1, 2], "epoch": 0, "images": images})
    history.to_csv(path.with_name("history.csv"), index=False)
    resolved = {"protocol": "finetune", "pretrain": f"mae/{pretrain}"} if pretrain else PRE
    per_seed = tuple({"top1" if pretrain else "loss": value} for value in values)
    return Run("mae", name, path, tuple(range(len(values))), per_seed, resolved=resolved)


def at(budget, folder, images, left, right):
    """MAE's decoders of eight blocks and of one, fine-tuned."""
    made = [run(name, [0.5, 0.5, 0.5], folder, images) for name in ("mae_base", "mae_depth_1")]
    made += [run("mae_base_ft", left, folder, pretrain="mae_base")]
    made += [run("mae_depth_1_ft", right, folder, pretrain="mae_depth_1")]
    return Results(budget, {one.name: one for one in made})


@pytest.fixture
def found(tmp_path):
    results = {
        "brief": at("brief", tmp_path / "a", 48_000, [40.0, 40.2, 40.4], [43.0, 43.2, 43.4]),
        "proxy": at("proxy", tmp_path / "b", 96_000, [15.0, 15.2, 15.4], [15.0, 15.2, 15.3]),
    }
    return trends.contrasts("mae", results, load(ROOT / "params.yaml"))


def test_the_papers_own_numbers_stand_under_the_runs_beside_them():
    printed = trends.printed()
    assert printed.values("mae_base_ft", "top1") == {0: 84.9}
    assert printed.values("mae_depth_1_ft", "top1") == {0: 84.8}
    assert printed.values("mae_depth_1_lin", "top1") == {0: 65.5}


def test_a_contrast_at_two_budgets_stands_beside_the_printed_one(found):
    lines = found[found["contrast"] == "mae_base_ft - mae_depth_1_ft"].set_index("budget")
    assert lines.loc["brief", "value"] == pytest.approx(-3.0)
    assert lines.loc["proxy", "value"] == pytest.approx(1 / 30)
    assert lines["printed"].tolist() == pytest.approx([0.1, 0.1])
    assert lines["images"].tolist() == [48_000, 96_000] and lines["steps"].tolist() == [3_000, 6_000]
    assert (lines["printed_images"] == 800 * 1_281_167).all()
    assert (lines["low"] < lines["value"]).all() and (lines["value"] < lines["high"]).all()
    assert trends.trend(lines) == trends.TOWARDS
    assert len(list(trends.panels(found))) == 1 and trends.draw(found) is not None


@pytest.mark.parametrize(
    ("values", "printed", "says"),
    [
        ((-3.0, 0.0), 0.1, trends.TOWARDS),
        ((0.0, -3.0), 0.1, trends.AWAY),
        ((-3.0, -2.6), 0.1, trends.NONE),
        ((-3.0, 0.0), math.nan, ""),
    ],
)
def test_a_trend_needs_a_change_beyond_its_interval(values, printed, says):
    lines = pd.DataFrame({"images": [10, 20], "value": values, "printed": printed})
    assert trends.trend(lines.assign(low=lines["value"] - 0.4, high=lines["value"] + 0.4)) == says
    assert trends.trend(lines.assign(low=lines["value"], high=lines["value"]).iloc[:1]) == ""


def test_a_contrast_of_two_ratios_is_a_ratio():
    """FastMIM's loss gap: the printed losses grow by 21.1 % with pixels and by 10.7 % with HOG (Table 2)."""
    [gap, *_] = published.claims()["fastmim.hog_loss_gap"]["checks"]
    assert ") / (" in wording.contrast(gap) and wording.unit(gap) == "x"
    assert trends.value_of(gap, trends.printed()).value == pytest.approx(1.211 / 1.107, rel=2e-3)

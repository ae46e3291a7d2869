"""Efficient MAE's notebook on synthetic results: P2Dist over masks, errors by it, Table 4, figures."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from replicate.papers import efficient_mae
from replicate.papers import efficient_mae_figures as draw
from replicate.report import benchmarks
from replicate.report.book import Book
from replicate.report.patch_maps import faded
from replicate.trainers.diagnostics import ErrorByP2Dist

ROOT = Path(__file__).resolve().parents[1]
PAPER = "efficient_mae"


def finish(root, run, per_seed, mask_ratio=0.85):
    folder = root / "results" / "laptop" / PAPER / run
    folder.mkdir(parents=True)
    results = {"seeds": list(range(len(per_seed))), "per_seed": per_seed}
    (folder / "metrics.json").write_text(
        json.dumps({"results": results, "run": {"mask_ratio": mask_ratio}, "resolved": {}, "provenance": {}})
    )


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    root = tmp_path_factory.mktemp("repository")
    shutil.copy(ROOT / "params.yaml", root)
    rising = [{f"loss_p2dist_{x:g}": 0.1 * x + 0.01 * seed for x in (6, 10, 14, 22)} for seed in range(3)]
    finish(
        root,
        "emae_plain_85",
        [one | {"activation_gb": 2.0, "seconds_per_epoch": 4.0 + s} for s, one in enumerate(rising)],
    )
    finish(
        root,
        "emae_85",
        [{"loss_p2dist_6": 0.5, "activation_gb": 1.5, "seconds_per_epoch": 3.0 + s} for s in range(3)],
    )
    finish(root, "emae_85_ft", [{"top1": v} for v in (40.0, 41.0, 40.5)])
    return Book(PAPER, "laptop", root=root)


def test_patches_by_distance_sum_to_all_that_are_masked():
    counts = efficient_mae.patch_counts([0.75, 0.9])
    assert counts.sum().tolist() == pytest.approx([147, 177])
    means = (counts.mul(counts.index, axis=0).sum() / counts.sum()).tolist()
    assert means[1] > means[0]


def test_errors_are_those_of_the_run_and_weighed_as_its_loss_would(book):
    plain, weighed = ("emae_plain_85", 0.0), ("emae_plain_85", 0.6)
    curves = efficient_mae.error_by_p2dist(
        book.reader, {"plain": plain, "weighed": weighed, "never": ("emae_90", 0.0)}
    )
    assert list(curves) == ["plain", "weighed"]
    assert curves["plain"]["value"].tolist() == pytest.approx([0.61, 1.01, 1.41, 2.21])
    assert (curves["plain"]["low"] < curves["plain"]["value"]).all()
    steeper = curves["plain"]["value"] / curves["weighed"]["value"]
    assert (steeper / steeper.iloc[0]).tolist() == pytest.approx([(x / 6) ** 0.6 for x in (6, 10, 14, 22)])
    table = efficient_mae.flatness(curves)
    assert float(table.iloc[1, 0]) < float(table.iloc[0, 0]) and table.iloc[0, 1] == "1.00"


def test_the_marks_of_table_4_are_exchanged():
    table = efficient_mae.swapped_marks()
    assert (table["GFLOPs printed"] == table["exchanged"]).all() and (
        table["GFLOPs printed"] != table["as marked"]
    ).all()
    assert (table["accuracy printed"] == table["exchanged (Table 8)"]).all()
    assert (table["accuracy printed"] != table["as marked (Table 8)"]).all()


def test_what_the_approximation_keeps_is_printed_and_what_is_exact_is_less():
    table = efficient_mae.exact_and_approximate()
    assert table["printed"].tolist() == ["82", "114", "150", "167"]
    exact, approximate = (table[column].astype(float) for column in ("exact (Eq. 1)", "Algorithm 1"))
    assert approximate["beta 26"] == pytest.approx(150.3, abs=0.5) and exact["beta 26"] == pytest.approx(
        145.2, abs=0.5
    )
    shares = efficient_mae.visible_neighbours()
    assert shares["expected"].astype(float).tolist() == pytest.approx([86.6, 68.2, 52.1], abs=0.11)


def test_ratio_sweep_puts_ours_beside_the_paper(book):
    table = efficient_mae.ratio_sweep(
        book.reader, {"MAE": "emae_plain_{}_ft", "EfficientMAE": "emae_{}_ft"}, [0.75, 0.85, 0.95]
    )
    method = table.set_index(["method", "mask_ratio"])
    assert method.loc[("MAE", 0.95), "top1"] == 81.6 and method.loc[("EfficientMAE", 0.95), "top1"] == 82.9
    assert method.loc[("EfficientMAE", 0.85), "ours"] == pytest.approx(40.5) and math.isnan(
        method.loc[("MAE", 0.85), "ours"]
    )
    assert method.loc[("EfficientMAE", 0.85), "multiply_adds"] == pytest.approx(14.16, abs=0.02)
    assert len(draw.ratio_sweep(table).axes) == 3


def test_savings(book):
    pairs = {"here": ("emae_85", "emae_plain_85"), "never": ("emae_vit_b_85", "emae_vit_b_plain_75")}
    table = efficient_mae.savings(book.params, book.reader, pairs)
    assert table.loc["never"].tolist() == ["24", "", ""]
    assert table.loc["here", "memory here, %"].startswith("25") and "[" in table.loc["here", "time here, %"]


def test_error_by_p2dist_counts_what_is_masked_scored_and_somewhere_near():
    mask = torch.ones(2, 16)
    mask[0, 0] = 0
    scored = mask.clone()
    scored[0, 15] = 0
    error = torch.arange(32.0).view(2, 16)
    found = ErrorByP2Dist()
    found.add(error, mask, scored, (4, 4))
    found.add(error[:0], mask[:0], scored[:0], (4, 4))
    results = found.results(lambda *values: list(values))
    assert found.units.sum() == 14 and results["loss_p2dist_10"] == pytest.approx((1 + 4) / 2)
    assert sum(results.values()) > 0 and all(name.startswith("loss_p2dist_") for name in results)
    assert ErrorByP2Dist().results(lambda *values: list(values)) == {}


def test_figures_are_drawn_with_and_without_results(book, tmp_path):
    counts = efficient_mae.patch_counts([0.85])
    curves = efficient_mae.error_by_p2dist(book.reader, {"plain": ("emae_plain_85", 0.0)})
    for errors in (curves, {}):
        assert len(draw.difficulty(counts, errors).axes) == 2
    assert draw.loss_map_panels(draw.loss_maps(book, ["emae_90"], 0.9)) is None
    assert draw.p2dist_examples(draw.examples(book)) is None
    raw, mask = torch.full((3, 32, 32), 255, dtype=torch.uint8), torch.tensor([1.0, 0, 0, 0])
    picture = faded(raw, mask, (2, 2))
    assert picture[20, 20].tolist() == [1, 1, 1] and picture[0, 0, 2] > picture[0, 0, 0]
    value = np.array([[np.nan, 1.0], [2.0, 3.0]])
    maps = [{"image": picture, "error": value, "p2dist": value, "correlation": 1.0}]
    assert len(draw.loss_map_panels(maps).axes) == 3
    assert len(draw.p2dist_examples([{"image": picture, "row": 0, "column": 1, "p2dist": 9.8}]).axes) == 1


def test_speeds_are_read_from_the_benchmarks(tmp_path):
    assert benchmarks.speeds(tmp_path, "p2dist").empty
    table = benchmarks.speeds(ROOT, "p2dist")
    assert "p2dist exact vs scipy loop" in table.index and "times faster" in table.columns

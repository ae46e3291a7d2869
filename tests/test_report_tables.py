"""Published numbers joined with results: nothing dropped, nothing typed, statuses that mean what they say."""

import math

import numpy as np
import pandas as pd
import pytest

from replicate.config import load, published
from replicate.intervals import Estimate
from replicate.report import tables
from replicate.report.results import Results, Run

PAPER = "efficient_learners"


def made(budget="laptop", **runs):
    """Results with given top-1 accuracies by seed."""
    found = {
        name: Run(
            PAPER,
            name,
            None,
            tuple(range(len(values))),
            tuple({"top1": v, "train_hours": 0.1} for v in values),
        )
        for name, values in runs.items()
    }
    return Results(budget, found)


@pytest.fixture(scope="module")
def cells():
    return tables.cells(PAPER, made(default_100=[40.0, 41.0, 40.5], default_200=[44.0, 45.2, 44.4]))


def test_every_printed_number_is_in_its_table_with_a_status(cells):
    assert cells["id"].tolist() == published.values().query("paper == @PAPER")["id"].tolist()
    assert set(cells["status"]) <= set(tables.STATUSES)


def test_a_measured_number_stands_beside_the_printed_one(cells):
    table = cells[cells.table == "table_1"].set_index("published")
    assert table.loc["80.4", "ours"] == pytest.approx(40.5) and table.loc["80.4", "seeds"] == 3
    assert table.loc["81.8", "run"] == "default_200" and table.loc["81.8", "status"] == "trained: reproduced"
    assert table.loc["81.8", "ours_low"] < table.loc["81.8", "ours"] < table.loc["81.8", "ours_high"]


def test_what_was_not_run_has_a_status(cells):
    row = cells[(cells.table == "table_7") & (cells.published == "82.7")].iloc[0]
    assert row.status == tables.NOT_RUN and "decoder_8_llrd_80" in row.why and math.isnan(row.ours)


def test_a_number_of_an_opposite_claim_has_its_regime():
    results = made(default_100=[44.0, 45.2, 44.4], default_200=[40.0, 41.0, 40.5])
    table = tables.cells(PAPER, results).query("table == 'table_1'")
    assert set(table.status) == {"trained: opposite"} and set(table.regime) == {"3 seeds; budget laptop"}
    assert list(tables.display(table)["regime"]) == ["3 seeds; budget laptop"] * 2


def test_smoke_is_never_a_finding():
    table = tables.cells(PAPER, made("smoke", default_100=[44.0, 45.2], default_200=[40.0, 41.0])).query(
        "table == 'table_1'"
    )
    assert set(table.status) == {tables.NO_VERDICT}


@pytest.mark.parametrize(
    ("value", "low", "high", "status"),
    [
        (83.62, 83.5, 83.8, "reproduced"),
        (83.9, 83.5, 84.2, "reproduced"),
        (84.9, 84.5, 85.2, "differs"),
        (84.9, math.nan, math.nan, "inconclusive"),
    ],
)
def test_at_the_papers_own_scale_the_number_itself_is_compared(value, low, high, status):
    cell = {"value": 83.6, "unit_last_digit": 0.1}
    assert (
        tables._status(cell, Estimate(value, low, high, 3), "paper", "reproduced", "trained")
        == f"trained: {status}"
    )


def test_files_are_csv_markdown_and_booktabs(tmp_path):
    results = made(default_100=[40.0, 41.0, 40.5])
    written = tables.write(PAPER, tables.cells(PAPER, results), tmp_path / results.budget)
    folder = tmp_path / "laptop" / PAPER
    assert {path.stem for path in written} == set(published.values().query("paper == @PAPER")["table"])
    table = pd.read_csv(folder / "table_1.csv")
    assert {"row", "column", "published", "ours", "ours_low", "ours_high", "seeds", "status"} <= set(
        table.columns
    )
    assert table.published.tolist() == [80.4, 81.8] and table.ours.iloc[0] == pytest.approx(40.5)
    text = (folder / "table_4.tex").read_text()
    assert r"\toprule" in text and text.count(r"\\") == 34 and "_" not in text.replace(r"\_", "")
    lines = (folder / "table_4.md").read_text().splitlines()
    assert len(lines) == 35 and len({line.count("|") for line in lines}) == 1


def test_writing_twice_gives_the_same_bytes(tmp_path):
    made_cells = tables.cells(PAPER, made(default_100=[40.0, 41.0, 40.5]))
    first = {path: path.read_bytes() for path in tables.write(PAPER, made_cells, tmp_path)}
    assert {path: path.read_bytes() for path in tables.write(PAPER, made_cells, tmp_path)} == first


def test_labels_show_what_varies():
    cells = tables.cells(PAPER, made())
    table = tables.display(cells[cells["table"] == "table_2"])
    assert table["row"].tolist() == ["pretrain_batch=512", "pretrain_batch=1024", "pretrain_batch=4096"]


def test_runs_are_named_with_the_digits_of_the_setting():
    setting = {"llrd": "0.65", "mask_ratio": "0.90", "pretrain_epochs": "100", "step": "0.825"}
    assert (
        tables.fill("a_{mask_ratio}_{llrd}_{pretrain_epochs}_{step}/loss", setting) == "a_90_65_100_825/loss"
    )
    assert tables.fill({"best": ["x_{llrd}", "y"]}, setting) == {"best": ["x_65", "y"]}


@pytest.mark.parametrize("paper", published.papers())
def test_mappings_are_well_formed(paper):
    for rule in published.mapping(paper):
        assert set(rule) <= {"match", "ours", "claim", "status", "why"} and ("ours" in rule) != (
            "status" in rule
        )
        assert rule.get("status", tables.QUOTED) in (tables.QUOTED, tables.NOT_BUILT, tables.NOT_RUN)
        assert rule.get("claim") is None or rule["claim"] in published.claims()
        assert not published.select({"paper": paper, **rule["match"]}).empty, rule["match"]
        if "ours" in rule:
            assert "claim" in rule


def test_every_run_that_is_mapped_is_in_params():
    known = set(load(published.ROOMS.parent / "params.yaml").runs)
    for paper in published.papers():
        trained = {
            run for run in tables.runs_named(paper) if not run.startswith("loader_")
        }  # loaders are measured, not trained
        assert trained <= known, paper


TABLES = {
    "efficient_learners": range(1, 8),
    "efficient_mae": range(1, 11),
    "mae": range(1, 12),
    "fastmim": (*range(1, 11), 15, 16),
}
NO_DATA = {"fastmim": {"pretrain_data": "IN-22K"}}


@pytest.mark.parametrize("paper", TABLES)
def test_every_cell_of_a_table_has_its_run_and_its_place(paper):
    """Each is computed, quoted from elsewhere or a run's number; only missing data needs a larger scale."""
    table = tables.cells(paper, Results("laptop", {})).set_index("id", drop=False)
    table = table[table["table"].isin([f"table_{number}" for number in TABLES[paper]])]
    without_run = table[(table["status"] == tables.NOT_RUN) & (table["run"] == "")]
    assert (table["status"] != tables.NOT_BUILT).all()
    condition = NO_DATA.get(paper)
    excused = published.select({"paper": paper, **condition})["id"] if condition else []
    assert set(without_run["id"]) <= set(excused) and (without_run["why"] != "").all()
    settled = {tables.DERIVED, tables.ARITHMETIC, tables.QUOTED, tables.NOT_RUN}
    assert set(table["status"]) <= settled
    waiting = table[(table["status"] == tables.NOT_RUN) & (table["run"] != "")]
    assert len(waiting) > 30 and (waiting["run"] != "").all() and (waiting["claim"] != "").all()


def test_every_accuracy_and_loss_of_fastmims_own_runs_has_a_run():
    table = tables.cells("fastmim", Results("laptop", {}))
    own = table[
        table["column"].isin(["top1", "pretrain_loss"])
        & (table["status"] != tables.QUOTED)
        & ~table["row"].str.contains(NO_DATA["fastmim"]["pretrain_data"])
    ]
    assert len(own) > 200 and (own["run"] != "").all() and (own["claim"] != "").all()


def test_a_run_keeps_its_place_where_the_paper_prints_two_numbers():
    known = made(fastmim_vit_pixel_128_ft=[40.0, 41.0, 40.5])
    cell = tables.cells("fastmim", known).set_index("id").loc["fastmim.table_1_a.015"]
    assert cell["agreement"] == "differs" and cell["ours"] == pytest.approx(40.5) and cell["seeds"] == 3
    assert cell["run"] == "fastmim_vit_pixel_128_ft" and cell["claim"] == "fastmim.resolution_plateau"
    assert "83.6" in cell["why"]
    waiting = tables.cells("fastmim", made()).set_index("id").loc["fastmim.table_1_a.015"]
    assert (
        (waiting["status"], waiting["agreement"], waiting["erratum"]) == ("not run", "differs", "rounding")
        and math.isnan(waiting["ours"])
        and "not run: fastmim_vit_pixel_128_ft" in waiting["why"]
    )


def test_parameters_are_those_of_what_is_fine_tuned():
    cell = tables.cells("fastmim", made()).set_index("id").loc["fastmim.table_4.136"]
    assert cell["ours"] == pytest.approx(26.256, abs=0.001) and cell["agreement"] == "counted otherwise"
    assert "without its last linear layer 24.98 M" in cell["why"]


@pytest.mark.parametrize("paper", TABLES)
def test_every_run_that_a_claim_speaks_of_is_in_params(paper):
    params = load(published.ROOMS.parent / "params.yaml")
    known = set(params.pretrain_runs) | set(params.evaluate_runs)
    for name, claim in published.claims().items():
        if name.startswith(f"{paper}."):
            for check in claim["checks"]:
                parts = [
                    check[key] for key in ("left", "right", "sweep", "than", "runs", "run") if key in check
                ]
                assert set().union(*map(tables.runs_in, parts)) <= known, name


def test_numbers_are_shown_to_the_papers_precision():
    line = {"published": "83.6", "ours": 41.234, "ours_low": 40.0, "ours_high": 42.5}
    assert tables._number(line) == "41.2 [40.0, 42.5]"
    assert tables._number(line | {"ours": 0.00272, "ours_low": np.nan}) == "0.0027"
    assert tables._number(line | {"ours": np.nan}) == ""

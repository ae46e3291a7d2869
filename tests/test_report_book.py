"""What a notebook works with, on made-up results in a folder of its own."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
import scipy.stats

from replicate.config import published
from replicate.papers import mae as mae_paper
from replicate.papers.efficient_learners import pretraining_costs, recipes
from replicate.papers.mae import model_costs, speedups
from replicate.report import figures
from replicate.report.book import NOTHING_DRAWN, Book
from replicate.report.figures import sweep_curves
from replicate.report.summary import contrasts, recomputed

ROOT = Path(__file__).resolve().parents[1]
PAPER = "efficient_learners"
pytestmark = pytest.mark.skipif(not (ROOT / "params.yaml").exists(), reason="needs params.yaml")


def finish(root, run, per_seed, seconds=2.0, place="", paper=PAPER):
    folder = root / "results" / "laptop" / f"{place}{paper}" / run
    folder.mkdir(parents=True)
    results = {"seeds": list(range(len(per_seed))), "per_seed": per_seed}
    content = {
        "results": results,
        "run": {},
        "resolved": {},
        "provenance": {"device": "cpu", "wall_seconds": 9.0},
    }
    (folder / "metrics.json").write_text(json.dumps(content))
    rows = [
        {"seed": s, "epoch": e, "loss": 1.0 / (e + 1), "seconds": seconds}
        for s in range(len(per_seed))
        for e in range(3)
    ]
    pd.DataFrame(rows).to_csv(folder / "history.csv", index=False)


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    root = tmp_path_factory.mktemp("repository")
    shutil.copy(ROOT / "params.yaml", root)
    finish(root, "default_100", [{"top1": v} for v in (40.0, 41.0, 40.5)])
    finish(root, "default_200", [{"top1": v} for v in (44.0, 45.2, 44.4)])
    finish(root, "light_90", [{"loss": 0.9, "seconds_per_epoch": 2.0}] * 2, seconds=2.0)
    finish(root, "full_75", [{"loss": 0.6, "seconds_per_epoch": 5.0}] * 2, seconds=120.0)
    return Book(PAPER, "laptop", root=root)


def test_a_book_shows_software_and_runs(book):
    text = " ".join(book._repr_markdown_().split())
    assert (
        "| budget | laptop |" in text
        and "4, on cpu" in text
        and "python 3" in text
        and "git revision" in text
    )


def test_the_active_budget_is_the_default(book):
    assert Book(PAPER, root=book.root).results.budget == book.params.budget


def test_lens_shows_what_the_budget_changes_and_nothing_else(book):
    lens = book.lens(["light_90", "full_75"])
    assert lens.loc["epochs", "light_90"].startswith("100 → ") and lens.loc["epochs", "full_75"].startswith(
        "1600 → "
    )
    assert "mask_ratio" not in lens.index and "layer_decay" not in book.lens(["light_90_llrd_80"]).index
    assert lens.loc["embed_dim", "light_90"].startswith("768 → ")
    assert Book(PAPER, "paper", root=book.root).lens(["light_90", "light_90_llrd_80"]).empty


def test_lens_shows_stages_setting_by_setting(book):
    lens = book.lens(["fastmim_progressive"])["fastmim_progressive"]
    sizes = [stage.image_size for stage in book.params.resolve("fastmim_progressive").stages]
    assert lens["stages.image_size"] == f"128, 160, 192 → {', '.join(map(str, sizes))}"
    assert "stages" not in lens.index and "stages.until" not in lens.index


def test_tables_and_verdicts_agree(book):
    assert set(book.table("table_1")["status"]) == {"trained: reproduced"}
    line = (
        book.verdicts().set_index(book.claims["claim"]).loc["efficient_learners.default_recipe_not_converged"]
    )
    assert len(book.errata()) == 6 and len(book.notes()) == 8
    assert line.verdict == "reproduced" and line.check == "default_200 > default_100" and "[" in line.effect


def test_files_go_where_the_pipeline_expects_them(book):
    written = book.save_tables()
    assert written[0].parent == book.root / "tables/laptop" / PAPER
    book.save(figures.loss_curves(book.histories(["light_90", "absent"])), "loss")
    assert (book.root / "figures/laptop" / PAPER / "loss.svg").exists()


def test_the_grid_is_read_and_written_apart(book):
    finish(book.root, "batch_512", [{"top1": 40.0}] * 2, place="grid/")
    full = Book(PAPER, "laptop", "full", book.root)
    assert "batch_512" in full.results and "batch_512" not in Book(PAPER, "laptop", root=book.root).results
    assert full.folder("tables") == book.root / "tables/laptop/full"


def test_costs_are_relative_to_the_last_recipe(book):
    rows = {"paper": PAPER, "table": "table_4", "column": "pretrain_hours"}
    recipes = {
        "full": ("full_75", rows | {"method": "MAE-B", "mask_ratio": 0.75}),
        "unfinished": ("light_75", rows | {"method": "ours", "mask_ratio": 0.75, "pretrain_epochs": 100}),
        "light": ("light_90", rows | {"method": "ours", "mask_ratio": 0.9}),
    }
    costs = pretraining_costs(book.params, book.reader, recipes)
    assert costs.loc["light"].tolist() == [1.0] * 4
    assert costs.loc["full"].iloc[0] == pytest.approx(202.2 / 3.4) and costs.loc["full"].iloc[
        3
    ] == pytest.approx(60.0)
    assert 55 < costs.loc["full"].iloc[1] < 70 and pd.isna(costs.loc["unfinished"].iloc[3])


def test_contrasts(book):
    table = contrasts(
        book.reader, {"longer": ("default_200", "default_100"), "never": ("scratch_llrd_80", "default_100")}
    )
    assert table.loc["longer", "difference"] == "+4.0" and float(table.loc["longer", "low"]) > 0
    assert table.loc["never", "left"].startswith("not run")


def test_recipes_are_the_papers_own_numbers(book):
    table = recipes(book.params, ["light_90", "default_100"])
    assert table.loc["mask_ratio"].tolist() == ["0.9", ""] and table.loc["epochs"].tolist() == ["100", "100"]
    assert table.loc["layer_decay", "default_100"] == "0.65" and table.loc["betas", "light_90"] == "0.9, 0.95"


def test_differing_numbers_are_computed(book):
    table = recomputed(book.cells)
    assert (
        len(table) >= 4
        and (table["printed"] != table["computed"]).all()
        and table["how"].str.startswith("computed").all()
    )
    assert not table["row"].str.contains(r"\S{60}", regex=True).any(), (
        "a row without spaces pushes the explanation off the page"
    )


def test_sweeps_that_have_not_finished_are_named(book):
    for run, value in (("supmae_llrd_65", 40.0), ("supmae_llrd_80", 42.0), ("supmae_llrd_90", 38.0)):
        finish(book.root, run, [{"top1": value}, {"top1": value + 1}])
    reader = Book(PAPER, "laptop", root=book.root).reader
    figure = sweep_curves(reader, {"SupMAE": "supmae_llrd", "MAE": "light_llrd"}, "LLRD", logarithmic=True)
    assert sweep_curves(reader, {"MAE": "light_llrd"}, "LLRD") is None
    assert book.save(None, "nothing").data == NOTHING_DRAWN
    assert "(not run: MAE)" in figure.axes[0].get_title(loc="left") and figure.axes[0].get_xscale() == "log"


def test_light_and_full_of_figure_3_are_printed_in_this_order():
    assert published.select({"paper": PAPER, "table": "figure_3"})["value"].tolist() == [1.2, 0.1]


def test_runs_and_contrasts_stand_beside_the_tables(book):
    book.save_tables()
    folder = book.folder("tables") / PAPER
    runs = pd.read_csv(folder / "runs.csv").set_index("run")
    low, high = scipy.stats.t.interval(0.95, 2, loc=40.5, scale=0.5 / 3**0.5)
    assert runs.loc["default_100", ["metric", "ours", "seeds"]].tolist() == ["top1", 40.5, 3]
    assert runs.loc["default_100", ["ours_low", "ours_high"]].astype(float).tolist() == pytest.approx(
        [low, high], abs=0.01
    )
    assert runs.loc["full_75", "metric"] == "loss" and "| default_200 | top1 |" in " ".join(
        (folder / "runs.md").read_text().split()
    )
    shown = book.contrasts({"longer": ("default_200", "default_100")})
    assert (
        shown.loc[0, "difference"] == "+4.0"
        and pd.read_csv(folder / "contrasts.csv").loc[0, "contrast"] == "longer"
    )


# Masked Autoencoders


@pytest.fixture(scope="module")
def mae(tmp_path_factory):
    root = tmp_path_factory.mktemp("mae")
    shutil.copy(ROOT / "params.yaml", root)
    for run, seconds in (("mae_base", 2.0), ("mae_mask_token", 6.0)):
        finish(
            root,
            run,
            [{"loss": 0.5, "seconds_per_epoch": seconds * (1 + s / 100)} for s in range(3)],
            paper="mae",
        )
    for run, scores in (
        ("mae_base_lin", (30.0, 31.0, 32.0)),
        ("mae_partial_1", (36.0, 37.0, 38.0)),
        ("mae_base_ft", (40.0, 41.0, 42.0)),
    ):
        finish(root, run, [{"top1": score} for score in scores], paper="mae")
    return Book("mae", "laptop", root=root)


def test_every_point_of_a_curve_has_a_place_in_a_table(mae):
    shown = mae.points("figure_9", {"ours": "mae_partial"}, "blocks tuned")
    assert shown.index.tolist() == ["0", "0.5", "1", "2", "4", "6", "12", "18", "24"]
    assert shown.loc["1", "ours"].startswith("37.0 [") and shown.loc["1", "ours, printed"] == "81.0"
    assert shown.loc["2", "ours"] == "not run" and shown.loc["24", "ours"].startswith("41.0")
    written = pd.read_csv(mae.root / "tables/laptop/mae/figure_9_points.csv")
    assert written.run.tolist() == list(published.sweeps()["mae_partial"].points.values())
    assert written.set_index("place").status[[1.0, 2.0]].tolist() == ["run", "not run"]
    assert (mae.root / "tables/laptop/mae/figure_9_points.md").exists() and (
        mae.root / "tables/laptop/mae/figure_9_points.tex"
    ).exists()


def test_costs_of_a_step_are_counted_and_measured(mae):
    costs = model_costs(
        mae.params, mae.reader, {"without": "mae_base", "with": "mae_mask_token", "one block": "mae_depth_1"}
    )
    assert costs.loc["without", "multiply-adds (G)"] == pytest.approx(20.78, abs=0.005)
    assert costs["multiply-adds, factor"].tolist() == pytest.approx([1.0, 3.23, 0.78], abs=0.01)
    assert costs.loc["without", "parameters (M)"] == pytest.approx(329.54, abs=0.01)
    assert costs.loc["with", "activations, factor"] > 2.5 and costs.loc[
        "with", "seconds an epoch here, factor"
    ] == pytest.approx(3.0)
    assert pd.isna(costs.loc["one block", "seconds an epoch here"]) and "GPU peak here (GB)" not in costs


def test_speedups_stand_beside_the_papers(mae):
    row = {"paper": "mae", "table": "table_2", "column": "speedup", "backbone": "ViT-L"}
    pairs = {
        f"{d} blocks": ("mae_mask_token", run, row | {"decoder_depth": d})
        for d, run in ((8, "mae_base"), (1, "mae_depth_1"))
    }
    table = speedups(mae.params, mae.reader, pairs)
    assert table["paper"].tolist() == ["2.8", "3.7"] and table["multiply-adds"].tolist() == ["3.23", "4.15"]
    assert (
        table.loc["8 blocks", "measured here"].startswith("3.00")
        and table.loc["1 blocks", "measured here"] == "not run: mae_depth_1"
    )


def test_an_ablation_and_curves_are_drawn_with_what_there_is(mae):
    panel = mae.compared("table_1", None, "mask_sampling, mask_ratio", panel="f")
    assert panel["label"].tolist()[:3] == ["random 0.75", "random 0.75", "block 0.5"]
    sides = ["fine-tuning, paper", "fine-tuning, ours", "linear probing, paper", "linear probing, ours"]
    assert [
        axis.get_title(loc="left")
        for axis in mae_paper.ablation(panel.assign(ours=40.0, ours_low=39.0, ours_high=41.0)).axes
    ] == sides
    assert [
        axis.get_title(loc="left") for axis in mae_paper.ablation(panel.assign(ours=float("nan"))).axes
    ] == sides[::2]
    drawn = mae_paper.sweep_panels(
        mae.reader,
        {"partial": "mae_partial", "epochs": "mae_epochs_lin"},
        "x",
        {"partial": {"full": "mae_base_ft"}},
    )
    assert [axis.get_title(loc="left") for axis in drawn.axes] == ["partial", "epochs: not run"]
    assert (
        len(mae.table("table_1", "f")) == 8
        and mae.reconstructions("mae_base") is None
        and mae_paper.side_by_side(mae, {"a": "mae_base"}) is None
    )

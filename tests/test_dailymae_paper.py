"""DailyMAE: every cell of its tables has a run that is what the cell says, or is measured or computed, and a place where it is shown."""

import json
import math
from pathlib import Path

import pytest

from replicate.params import PretrainRun, ScoreRun, load
from replicate.report import computed, dailymae, dailymae_figures, loader_runs, published, tables
from replicate.report.quantities import Reader
from replicate.report.results import Results
from replicate.schedules.stages import view_at

ROOT = Path(__file__).resolve().parents[1]
OWN = ("table_2", "table_4", "table_5", "table_6", "table_7", "table_9", "table_11", "table_12", "table_13")
DATA = {"500_95": "daily_500_95", "Train(500_95)": "daily_500_95"}


@pytest.fixture(scope="module")
def params():
    return load(ROOT / "params.yaml")


@pytest.fixture(scope="module")
def cells():
    return tables.cells("dailymae", Results("smoke", {}), {})


@pytest.fixture
def measured(tmp_path):
    """Rounds of two loaders, as the benchmark writes them."""
    row = {"case": "a case", "machine": "a machine", "revision": "abc", "images": [10, 10], "runs": ["loader_500_95", "loader_folder"]}
    row |= {"images_per_second": [[900.0, 1000.0, 1100.0], [200.0, 210.0, 190.0]], "file_bytes": [4_000, 5_000]}
    path = tmp_path / loader_runs.FILE
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps([row]))
    return tmp_path


@pytest.mark.parametrize("table", OWN)
def test_every_own_cell_has_a_run_a_measurement_or_is_computed(params, cells, table):
    from replicate.cost.loader_bench import COMPARISONS

    speeds = {name for _, *sides in COMPARISONS for name in sides}
    found = cells[cells["table"] == table]
    assert len(found)
    for line in found.to_dict("records"):
        names = {name for name in line["run"].split(", ") if name}
        assert names or line["id"] in computed.numbers("dailymae").index, line["id"]
        assert line["status"] not in (tables.NEEDS_SCALE, tables.NOT_BUILT, tables.CITED), line["id"]
        assert names <= set(params.runs) | speeds, line["id"]


def test_a_cells_run_has_the_cells_setting(params, cells):
    checked = 0
    for line in cells.to_dict("records"):
        if not line["run"] or line["run"].startswith("loader_"):
            continue
        run, setting = params.run(line["run"]), published.setting(line["row"])
        if isinstance(run, ScoreRun):
            continue
        source = run if isinstance(run, PretrainRun) or line["table"] in ("table_9", "table_6") else params.run(run.pretrain_name)
        if line["table"] in ("table_2", "table_12", "table_11") and "pretrain" not in line["row"] and setting.get("stage") == "finetune":
            source = run
        if "data" in setting:
            assert (source.loader == "folder") == (setting["data"] == "IF"), line["id"]
            assert source.dataset == "daily_500_95", line["id"]
            checked += 1
        scheme = setting.get("scheme", setting.get("config", ""))
        if scheme.isdigit():
            assert source.image_size == int(scheme) and not source.stages, line["id"]
            checked += 1
        elif scheme.startswith("s"):
            assert len(source.stages) == 3, line["id"]
            checked += 1
    assert checked > 80


def test_schemes_are_tables_8_and_10(params):
    for table, prefix in (("table_10", "daily_s{}"), ("table_8", "daily_ft_s{}")):
        for line in published.select({"paper": "dailymae", "table": table}).to_dict("records"):
            setting = published.setting(line["row"])
            name = prefix.format(setting["scheme"].replace("-", "_minus").replace("+", "_plus"))
            run = params.run(name)
            stage = int(setting["stage"]) - 1
            epoch = [0, *(round(s.until * run.epochs) for s in run.stages)][stage]
            view = view_at(run, epoch)
            if table == "table_8":
                assert view.image_size == int(setting["res"])
                assert view.crop_scale[1] == pytest.approx(float(setting["sigma_plus"]) ** 2)
                assert view.auto_augment == ("three_augment_plus" if setting["augmentation"].endswith("+") else "three_augment")
                assert round(run.stages[stage].until * run.epochs) - epoch == int(setting["epochs"])
            else:
                assert {"resolution": view.image_size, "mask_ratio": view.mask_ratio}[line["column"]] == line["value"], (name, stage)


def test_recompressed_sets_are_table_5s(params, cells):
    table = cells[(cells["table"] == "table_5") & (cells["panel"] != "")]
    assert len(table) == 18
    for line in table.to_dict("records"):
        run, setting = params.run(line["run"]), published.setting(line["row"])
        assert (run.encoding.resolution, run.encoding.quality) == (int(setting["res"]), int(setting["quality"]))
        assert run.codec == ("turbo" if "FFCV" in setting["implementation"] else "pillow")


def test_data_sets_are_compressed_as_table_4_says(params):
    for name in ("daily_500_95", "daily_500_100", "daily_500_90", "daily_1000_95", "daily_256_95"):
        _, cap, quality = name.split("_")
        dataset = params.dataset(name, "paper")
        assert (dataset.train.resolution, dataset.train.quality) == (int(cap), int(quality))
        assert (dataset.val.resolution, dataset.val.quality) == (500, 100)
    scaled = params.dataset("daily_256_95", "evening")
    assert scaled.image_size == 125 and scaled.train.resolution == 64 and scaled.train.quality == 95
    assert params.dataset("full", "evening").train.resolution == 500  # the others keep their caps, and so their files


def test_every_setting_of_the_writer_can_be_stated():
    from dataclasses import fields

    from replicate.loaders.writer import WriteSettings
    from replicate.params import Encoding

    defaults = {field.name: field.default for field in fields(WriteSettings) if field.name != "seed"}
    stated = Encoding(quality=95).model_dump()
    assert set(stated) == set(defaults) and all(stated[key] == defaults[key] for key in defaults if key != "quality")


def test_colours_and_crops_outlast_a_light_budget(params):
    run = params.resolve("daily_ft_s3", "laptop")
    assert run.auto_augment == "three_augment" and run.crop_scale == (0.08, 1.0) and run.mixup == 0
    assert params.resolve("mae_base_ft", "laptop").auto_augment is None


def test_every_claim_names_runs_that_exist(params):
    from replicate.cost.loader_bench import COMPARISONS

    known = set(params.runs) | {name for _, *sides in COMPARISONS for name in sides}
    for name, claim in published.claims().items():
        if name.startswith("dailymae."):
            assert names(claim["checks"]) <= known, (name, names(claim["checks"]) - known)


def names(quantity) -> set[str]:
    if isinstance(quantity, str):
        sweep = published.sweeps().get(quantity)
        found = set(sweep.points.values()) if sweep else {quantity.partition("/")[0]}
        return {name for name in found if name.startswith(("daily", "loader"))}
    parts = quantity.values() if isinstance(quantity, dict) else quantity if isinstance(quantity, list) else []
    return set().union(*(names(part) for part in parts))


def test_measured_loaders_are_runs_that_tables_and_claims_read(measured):
    results = loader_runs.load("laptop", measured)
    reader = Reader(results)
    found = reader.estimate({"over": ["loader_500_95/images_per_second", "loader_folder/images_per_second"]})
    assert found.value == pytest.approx(5.0, abs=0.1) and found.low > 2 and found.seeds == 3
    table = dailymae.compression(reader)
    assert table.loc["image folder", "size"].startswith("1.25") and table.loc["image folder", "size, printed"] == "1.37"
    minutes = dailymae.epoch_minutes(reader, {"folder": "loader_folder", "never": "loader_ffcv_500_95"})
    assert minutes.loc["folder", "minutes"] == pytest.approx(1281167 / 200 / 60, rel=0.01) and len(minutes) == 1
    assert minutes.loc["folder", "minutes, printed"] == pytest.approx(1281167 / 4428 / 60)
    assert dailymae_figures.epoch_minutes(minutes).axes


def test_table_8_is_two_thirds_of_its_formulas():
    table = dailymae.crops()
    default = table[table.index.str.endswith("0.28 to 1")]
    assert default["Eq. 2"].tolist() == ["0.7075"] * 3
    assert default["Eq. 1"].astype(float).tolist() == pytest.approx([226.15, 271.4, 316.6], abs=0.06)
    assert default["true E[h/sigma]"].astype(float).tolist() == [250, 300, 350]
    for printed, ours in (("E[h/sigma] printed", "2/3 of it "),):
        assert table[printed].astype(float).tolist() == pytest.approx(table[ours].astype(float).tolist(), abs=0.6)


def test_costs_of_schedules(params):
    """Tokens by hand: 14 x 14, 12 x 12, 10 x 10 patches over the authors' stages."""
    step = {"ratio": 1.25, "spread": [1.0, 2.0]}
    costs = dailymae.schedule_costs(params, Reader(Results("laptop", {})), {"daily_s5": step})
    assert costs.loc["s5", "steps of ViT-B"] == "80 % (50 to 100)" and costs.loc["s4", "steps of ViT-B"] == ""
    s5 = dailymae.relative_cost(params.run("daily_s5"), params.run("daily_224"))["tokens"]
    assert s5 == pytest.approx((0.75 * 196 + 0.25 * 144) / 196)
    assert dailymae.relative_cost(params.run("daily_s2_thirds"), params.run("daily_224"))["tokens"] == pytest.approx((196 + 144 + 100) / 3 / 196)
    assert (
        costs.loc["s5", "printed time"] == "89 %" and costs.loc["s2", "multiply-adds, equal stages"] == costs.loc["s3", "multiply-adds, equal stages"]
    )
    assert dailymae_figures.run_times(costs).axes


def test_a_palindrome_spends_its_first_and_last_stage_at_one_view(params):
    assert dailymae.stage_shares(params.run("daily_s5")) == {(224, 0.75): 0.75, (192, 0.75): 0.25}
    assert dailymae.stage_shares(params.run("daily_224")) == {(224, 0.75): 1.0}
    assert all(sum(dailymae.stage_shares(params.run(f"daily_{name}")).values()) == pytest.approx(1) for name in dailymae.SCHEMES)


def test_stage_lengths_from_printed_times():
    """s2 and s3 differ by (last - first share) of the gap between fixed 224 and 160."""
    table = dailymae.inferred_stages()
    first, middle, last = (float(part) / 100 for part in table.iloc[0, 0].split(" / "))
    assert first == middle and (last - first) * (19.9333 - 8.1167) == pytest.approx(16.7667 - 14.65, abs=0.2)


def test_what_codecs_change_is_small_and_adds_up():
    table = dailymae.codec_differences(dailymae.photographs()[:1])["mean difference"].astype(float)
    assert 0 < table["decoder's fast DCT"] < 0.01 and table["all three"] < 0.05
    assert table["all three"] >= table["decoder's fast DCT"]


def test_the_notebook_shows_every_table_and_figure():
    notebook = json.loads((ROOT / "notebooks" / "dailymae.ipynb").read_text())
    code = "\n".join("".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code")
    shown = [f"table_{n}" for n in (2, 3, 4, 6, 7, 9, 10, 11, 12, 13)] + ["figure_5"]
    assert all(f'book.table("{name}")' in code for name in shown)
    for call in (
        "recipes",
        "crops",
        "schedule_costs",
        "inferred_stages",
        "split_speedup",
        "probes",
        "compression",
        "decomposition",
        "codec_differences",
    ):
        assert f"dailymae.{call}(" in code
    for figure in ("loading", "probe", "crop_decode", "crops", "run_times"):
        assert f'"{figure}")' in code
    assert "book.verdicts()" in code and "book.save_tables()" in code


def test_a_whole_benchmark_on_own_images(tmp_path, monkeypatch):
    """Four small photographs, one round, without stock FFCV's compilation: every comparison that needs no ffcv has a row."""
    import numpy as np
    from PIL import Image

    from replicate.cost import loader_bench

    rng = np.random.default_rng(0)
    (tmp_path / "deep" / "er").mkdir(parents=True)
    for k in range(4):
        smooth = np.cumsum(rng.normal(size=(60, 80, 3)), axis=1)
        pixels = (255 * (smooth - smooth.min()) / np.ptp(smooth)).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / "deep" / "er" / f"{k}.jpg", quality=97)
    images = loader_bench.Photographs(tmp_path, repeat=2)
    monkeypatch.setattr(loader_bench, "LONG", 16)
    made = loader_bench.cases(tmp_path / "out", images, 32, 1, stock=False)
    rows = loader_bench.measure(made, 1, 1, 32)
    expected = {what for what, *sides in loader_bench.COMPARISONS if not any("ffcv" in side for side in sides)}
    assert {row["case"].rpartition(", 32 px")[0] for row in rows} == expected
    assert all(math.isfinite(row["ratio"]) and row["ratio"] > 0 for row in rows)
    sizes = {name: case.file_bytes for name, case in made.items()}
    assert sizes["loader_500_90"] < sizes["loader_500_95"] < sizes["loader_500_100"]
    assert set(rows[0]) >= {"name", "case", "ours", "theirs", "ratio", "unit", "spread", "machine", "revision"}

"""DailyMAE: every cell of its tables has a matching run, a measurement or a computation, and is shown."""

import importlib.util
import json
import math
import re
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

from replicate.config import EvaluateRun, PretrainRun, ScoreRun, load, published
from replicate.papers import dailymae, dailymae_codecs
from replicate.papers import dailymae_figures as draw
from replicate.report import computed, loader_runs, tables
from replicate.report.book import Book
from replicate.report.quantities import Reader
from replicate.report.results import Results, Run
from replicate.schedules.stages import view_at

ROOT = Path(__file__).resolve().parents[1]
OWN = ("table_2", "table_4", "table_5", "table_6", "table_7", "table_9", "table_11", "table_12", "table_13")


@pytest.fixture(scope="module")
def params():
    return load(ROOT / "params.yaml")


@pytest.fixture(scope="module")
def cells():
    return tables.cells("dailymae", Results("smoke", {}))


@pytest.fixture
def measured(tmp_path):
    """Rounds of two loaders, as the benchmark writes them."""
    row = {
        "case": "a case",
        "machine": "a machine",
        "revision": "abc",
        "images": [10, 10],
        "runs": ["loader_500_95", "loader_folder"],
    }
    row |= {
        "images_per_second": [[900.0, 1000.0, 1100.0], [200.0, 210.0, 190.0]],
        "file_bytes": [4_000, 5_000],
    }
    row |= {
        "name": "loader",
        "ours": 1.0,
        "theirs": 5.0,
        "unit": "ms an image",
        "ratio": 5.0,
        "spread": [4.5, 5.5],
    }
    path = tmp_path / loader_runs.FOLDER / "loader_1_thread.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps([row]))
    return tmp_path


@pytest.mark.parametrize("table", OWN)
def test_every_own_cell_has_a_run_a_measurement_or_is_computed(params, cells, table):
    from replicate.cost.loader_cases import COMPARISONS

    speeds = {name for _, *sides in COMPARISONS for name in sides}
    found = cells[cells["table"] == table]
    assert len(found)
    for line in found.to_dict("records"):
        names = {name for name in line["run"].split(", ") if name}
        assert names or line["id"] in computed.numbers("dailymae"), line["id"]
        assert line["status"] not in (tables.NOT_BUILT, tables.QUOTED), line["id"]
        assert names <= set(params.runs) | speeds, line["id"]


def test_every_own_cell_leads_to_what_it_says(params):
    """The run by what it trains or scores, and the metric, both derived from the printed setting alone."""
    seen = []
    for cell in own_cells():
        rule = next(
            (rule for rule in published.mapping("dailymae") if published.matches(cell, rule["match"])), {}
        )
        if "ours" not in rule:
            assert cell["id"] in computed.numbers("dailymae"), cell["id"]
            continue
        quantity = tables.fill(rule["ours"], published.setting(cell["row"]))
        name, _, metric = (quantity["times"][1] if isinstance(quantity, dict) else quantity).partition("/")
        assert (metric or "top1") == metric_of(cell), cell["id"]
        assert (name if name.startswith("loader_") else does(params, name)) == expected(cell), cell["id"]
        seen.append(cell["table"])
    assert set(seen) == set(OWN) and len(seen) > 130


def test_what_runs_do_tells_them_apart(params):
    """Otherwise the test above could confuse two runs. Tables 5 and 6 share two runs."""
    named = [name for name in tables.runs_named("dailymae") if not name.startswith("loader_")]
    kinds = [does(params, name) for name in named]
    same = {frozenset(name for name, kind in zip(named, kinds, strict=True) if kind == one) for one in kinds}
    assert {names for names in same if len(names) > 1} == {
        frozenset({"daily_val_original", "daily_randaug_val_folder"}),
        frozenset({"daily_val_500_100", "daily_randaug_val_500"}),
    }


def test_fine_tuning_runs_differ_in_nothing_but_what_their_cells_say(params):
    free = {"keep_weights", "pretrain", "loader", "dataset", "image_size", "stages", "auto_augment"}
    recipe = params.run("daily_ft_224").model_dump(exclude=free)
    found = [params.run(name) for name in tables.runs_named("dailymae") if not name.startswith("loader_")]
    for run in (run for run in found if type(run) is EvaluateRun):
        assert run.model_dump(exclude=free) == recipe


METRICS = {
    "runtime_hours": "train_hours",
    "online_probe_top1": "probe_train_top1",
    "file_size_gb": "file_bytes",
}
METRICS |= {"throughput_img_s": "images_per_second", "top5": "top5", "ft_top5": "top5"}
COLOURS = {"RandAug": "rand-m9-mstd0.5-inc1", "3Aug": "three_augment", "3Aug+": "three_augment_plus"}
STEPS = {
    "decode": "decode",
    "crop_decode": "decode",
    "crop_resize": "resize",
    "resize": "resize",
    "simple": "simple",
}
OFFICIAL = "full_75"  # MAE's own 1600 epochs stand for the released weights


def own_cells() -> list[dict]:
    frame = published.values()
    return frame[(frame["paper"] == "dailymae") & frame["table"].isin(OWN)].to_dict("records")


def metric_of(cell) -> str:
    epoch = published.setting(cell["row"]).get("epoch", "100")
    return METRICS.get(cell["column"], "top1" if epoch == "100" else f"top1_at_{epoch}")


def does(params, name):
    """A run without its name: images, epochs and stages, its upstream run, what it scores and how."""
    run = params.run(name)
    if isinstance(run, ScoreRun):
        stored = run.encoding and f"{run.encoding.resolution}_{run.encoding.quality}"
        return "scored", stored, run.codec, run.dct, does(params, run.classifier)
    encoding = params.dataset(run.dataset, "paper").train
    images = "IF" if run.loader == "folder" else f"{encoding.resolution}_{encoding.quality}"
    assert run.loader != "folder" or run.dataset == "daily_500_95"
    if isinstance(run, PretrainRun):
        whole = [(1.0, run.image_size, run.mask_ratio)]
        stages = [
            (stage.until, stage.image_size, run.mask_ratio if stage.mask_ratio is None else stage.mask_ratio)
            for stage in run.stages
        ]
        return "pretrained", images, run.epochs, stages or whole
    whole = [(1.0, run.image_size, run.auto_augment, run.crop_scale[1])]
    stages = [
        (stage.until, stage.image_size, stage.auto_augment, (stage.crop_scale or run.crop_scale)[1])
        for stage in run.stages
    ]
    start = OFFICIAL if run.pretrain == OFFICIAL else does(params, run.pretrain)
    return "fine-tuned", start, images, run.epochs, stages or whole


def expected(cell):
    """The same from a printed cell; the name of the benchmark's case for what is measured of a loader."""
    setting, column = published.setting(cell["row"]), cell["column"]
    kind = {
        "table_4": loader_case,
        "table_7": loader_case,
        "table_13": loader_case,
        "table_5": scored_table_5,
        "table_6": scored_table_6,
    }
    if column in ("file_size_gb", "throughput_img_s", "top1") and cell["table"] in kind:
        return kind[cell["table"]](setting)
    scheme = setting.get("scheme", setting.get("config", "224")).replace("fixed", "224")
    stored = (
        f"{setting['res']}_{setting['quality']}"
        if cell["table"] == "table_4"
        else setting.get("data", "").removeprefix("Train(").rstrip(")")
    )
    images = "IF" if stored.startswith("IF") else stored
    if cell["table"] == "table_9" or setting.get("stage") == "finetune" or column == "finetune_top1":
        return finetuned(OFFICIAL, images, scheme)
    pretrained = "pretrained", images, int(setting.get("epochs", 800)), pretraining_stages(scheme)
    return (
        pretrained
        if column in ("runtime_hours", "online_probe_top1")
        else finetuned(pretrained, "500_95", "224")
    )


def pretraining_stages(scheme: str) -> list:
    """Table 10, with the authors' stage ends."""
    if scheme.isdigit():
        return [(1.0, int(scheme), 0.75)]
    stages = []
    for number, until in enumerate((0.25, 0.5, 1.0), start=1):
        where = {"paper": "dailymae", "table": "table_10", "scheme": scheme[1:], "stage": number}
        stages.append(
            (
                until,
                *(
                    published.one(where | {"column": column})["value"]
                    for column in ("resolution", "mask_ratio")
                ),
            )
        )
    return stages


def finetuned(start, images: str, scheme: str, colours: str = "3Aug"):
    """Table 8's stages."""
    if scheme.isdigit():
        return "fine-tuned", start, images, 100, [(1.0, int(scheme), COLOURS[colours], 1.0)]
    stages = []
    for number, until in enumerate((0.3, 0.6, 1.0), start=1):
        where = {
            "paper": "dailymae",
            "table": "table_8",
            "scheme": scheme[1:],
            "stage": number,
            "column": "e_sigma",
        }
        stage = published.setting(published.one(where)["row"])
        stages.append(
            (
                until,
                int(stage["res"]),
                COLOURS[stage["augmentation"]],
                pytest.approx(float(stage["sigma_plus"]) ** 2),
            )
        )
    return "fine-tuned", start, images, 100, stages


def loader_case(setting) -> str:
    if "step" in setting:
        first, *_, last = setting["step"].split("+") * 2
        side = "crop" if first.startswith("crop") else "full"
        return "loader_step_read" if first == "read_only" else f"loader_step_{side}_{STEPS[last]}"
    if "augmentation" in setting:
        return {"RandAug": "loader_randaug", "3Aug": "loader_three_augment"}[setting["augmentation"]]
    return "loader_folder" if setting["res"] == "IF" else f"loader_{setting['res']}_{setting['quality']}"


def scored_table_5(setting):
    """The classifier with RandAugment stands for the official fine-tuned weights."""
    stored = f"{setting['res']}_{setting['quality']}" if "res" in setting else None
    codec = "turbo" if "FFCV" in setting["implementation"] else "pillow"
    return "scored", stored, codec, None, finetuned(OFFICIAL, "IF", "224", "RandAug")


def scored_table_6(setting):
    stored, codec = ("500_100", "turbo") if setting["test"] == "Val(500_100)" else (None, "pillow")
    images = setting["train"].removeprefix("Train(").rstrip(")")
    return "scored", stored, codec, None, finetuned(OFFICIAL, images, "224", setting["augmentation"])


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
                assert view.auto_augment == (
                    "three_augment_plus" if setting["augmentation"].endswith("+") else "three_augment"
                )
                assert round(run.stages[stage].until * run.epochs) - epoch == int(setting["epochs"])
            else:
                assert {"resolution": view.image_size, "mask_ratio": view.mask_ratio}[line["column"]] == line[
                    "value"
                ], (name, stage)


def test_data_sets_are_compressed_as_table_4_says(params):
    for name in ("daily_500_95", "daily_500_100", "daily_500_90", "daily_1000_95", "daily_256_95"):
        _, cap, quality = name.split("_")
        dataset = params.dataset(name, "paper")
        assert (dataset.train.resolution, dataset.train.quality) == (int(cap), int(quality))
        assert (dataset.val.resolution, dataset.val.quality) == (500, 100)
    scaled = params.dataset("daily_256_95", "brief")
    assert scaled.image_size == 125 and scaled.train.resolution == 64 and scaled.train.quality == 95
    assert (
        params.dataset("full", "brief").train.resolution == 500
    )  # the others keep their caps, and so their files


def test_every_setting_of_the_writer_can_be_stated():
    from dataclasses import fields

    from replicate.config import Encoding
    from replicate.loaders.writer import WriteSettings

    defaults = {field.name: field.default for field in fields(WriteSettings) if field.name != "seed"}
    stated = Encoding(quality=95).model_dump()
    assert set(stated) == set(defaults) and all(
        stated[key] == defaults[key] for key in defaults if key != "quality"
    )


def test_colours_and_crops_outlast_a_light_budget(params):
    run = params.resolve("daily_ft_s3", "laptop")
    assert run.auto_augment == "three_augment" and run.crop_scale == (0.08, 1.0) and run.mixup == 0
    assert params.resolve("mae_base_ft", "laptop").auto_augment is None


def test_every_claim_names_runs_that_exist(params):
    from replicate.cost.loader_cases import COMPARISONS

    known = set(params.runs) | {name for _, *sides in COMPARISONS for name in sides}
    for name, claim in published.claims().items():
        if name.startswith("dailymae."):
            assert names(claim["checks"]) <= known, (name, names(claim["checks"]) - known)


def names(quantity) -> set[str]:
    if isinstance(quantity, str):
        sweep = published.sweeps().get(quantity)
        found = set(sweep.points.values()) if sweep else {quantity.partition("/")[0]}
        return {name for name in found if name.startswith(("daily", "loader"))}
    parts = (
        quantity.values() if isinstance(quantity, dict) else quantity if isinstance(quantity, list) else []
    )
    return set().union(*(names(part) for part in parts))


def test_measured_loaders_are_runs_that_tables_and_claims_read(measured):
    results = loader_runs.load("laptop", measured)
    reader = Reader(results)
    found = reader.estimate({"over": ["loader_500_95/images_per_second", "loader_folder/images_per_second"]})
    assert found.value == pytest.approx(5.0, abs=0.1) and found.low > 2 and found.seeds == 3
    table = dailymae.compression(reader)
    assert (
        table.loc["image folder", "size"].startswith("1.25")
        and table.loc["image folder", "size, printed"] == "1.37"
    )
    minutes = dailymae.epoch_minutes(reader, {"folder": "loader_folder", "never": "loader_ffcv_500_95"})
    assert (
        minutes.loc["folder", "minutes"] == pytest.approx(1281167 / 200 / 60, rel=0.01) and len(minutes) == 1
    )
    assert minutes.loc["folder", "minutes, printed"] == pytest.approx(1281167 / 4428 / 60)
    assert draw.epoch_minutes(minutes).axes


def test_other_measurements_stand_beside_the_papers(tmp_path):
    """From the benchmarks' files: Figure 6's difference, a value a photograph, and crop decode's memory."""
    made = {"machine": "a machine", "revision": "abc", "case": "a case"}
    memory = [{"unit": "s"}, made | {"unit": "bytes", "ours": 20, "theirs": 100}]
    contents = {
        loader_runs.MEMORY: memory,
        loader_runs.SAMPLES: [made | {"images": 3, "mean_abs_error": [0.01, 0.02, 0.03]}],
    }
    for path, rows in contents.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(json.dumps(rows))
    found = tables.cells("dailymae", loader_runs.load("laptop", tmp_path)).set_index("id")
    assert found.loc["dailymae.text.004", ["ours", "seeds", "run"]].tolist() == [80.0, 1, "loader_memory"]
    difference = found.loc["dailymae.figure_6.001"]
    assert (
        difference["ours"] == pytest.approx(0.02)
        and difference["ours_low"] < 0.01
        and difference["seeds"] == 3
    )


def test_the_committed_difference_is_what_the_photographs_give():
    (row,) = json.loads((ROOT / loader_runs.SAMPLES).read_text())
    photographs = dailymae_codecs.photographs()
    found = dailymae_codecs.sample_differences(photographs[:1])[dailymae_codecs.ALL_STEPS]
    assert row["images"] == len(photographs) == len(row["mean_abs_error"]) and found == pytest.approx(
        row["mean_abs_error"][:1], abs=2e-4
    )


def test_table_8_is_two_thirds_of_its_formulas():
    table = dailymae.crops()
    default = table[table.index.str.endswith("0.28 to 1")]
    assert default["Eq. 2"].tolist() == ["0.7075"] * 3
    assert default["Eq. 1"].astype(float).tolist() == pytest.approx([226.15, 271.4, 316.6], abs=0.06)
    assert default["true E[h/sigma]"].astype(float).tolist() == [250, 300, 350]
    for printed, ours in (("E[h/sigma] printed", "2/3 of it "),):
        assert table[printed].astype(float).tolist() == pytest.approx(
            table[ours].astype(float).tolist(), abs=0.6
        )


def test_costs_of_schedules(params):
    """Tokens by hand: 14 x 14, 12 x 12, 10 x 10 patches over the authors' stages."""
    step = {"ratio": 1.25, "spread": [1.0, 2.0]}
    costs = dailymae.schedule_costs(params, Reader(Results("laptop", {})), {"daily_s5": step})
    assert costs.loc["s5", "steps of ViT-B"] == "80 % (50 to 100)" and costs.loc["s4", "steps of ViT-B"] == ""
    s5 = dailymae.relative_cost(params.run("daily_s5"), params.run("daily_224"))["tokens"]
    assert s5 == pytest.approx((0.75 * 196 + 0.25 * 144) / 196)
    assert dailymae.relative_cost(params.run("daily_s2_thirds"), params.run("daily_224"))[
        "tokens"
    ] == pytest.approx((196 + 144 + 100) / 3 / 196)
    assert (
        costs.loc["s5", "printed time"] == "89 %"
        and costs.loc["s2", "multiply-adds, equal stages"] == costs.loc["s3", "multiply-adds, equal stages"]
    )
    assert draw.run_times(costs).axes


def test_a_palindrome_spends_its_first_and_last_stage_at_one_view(params):
    assert dailymae.stage_shares(params.run("daily_s5")) == {(224, 0.75): 0.75, (192, 0.75): 0.25}
    assert dailymae.stage_shares(params.run("daily_224")) == {(224, 0.75): 1.0}
    assert all(
        sum(dailymae.stage_shares(params.run(f"daily_{name}")).values()) == pytest.approx(1)
        for name in dailymae.SCHEMES
    )


def test_contrasts_name_runs_that_differ_in_one_thing(params):
    for left, right in (dailymae.codec_contrasts() | dailymae.stage_contrasts()).values():
        one, other = (params.run(name).model_dump() for name in (left, right))
        differ = {key for key in one if one[key] != other[key]}
        assert differ == (
            {"pretrain"} if left.endswith("_ft") else {"dct"} if right.endswith("accurate") else {"codec"}
        )


def test_equal_stages_have_their_lines(params):
    """By two runs made up at a budget: their hours and accuracies stand beside the authors' stages."""
    hours = {"daily_224": 2.0, "daily_s5": 1.8, "daily_s5_thirds": 1.7}
    accuracies = {"daily_s5_ft": 50.0, "daily_s5_thirds_ft": 49.0}
    made = {
        name: Run("dailymae", name, None, (0,), ({"train_hours": value},)) for name, value in hours.items()
    }
    made |= {
        name: Run("dailymae", name, None, (0,), ({"top1": value},)) for name, value in accuracies.items()
    }
    reader = Reader(Results("laptop", made))
    costs, probes = dailymae.schedule_costs(params, reader, {}), dailymae.probes(reader)
    assert costs.loc["s5", ["runs here", "runs here, equal stages"]].tolist() == ["90.0", "85.0"]
    assert probes.loc[["s5", "s5, equal stages"], "fine-tuned"].tolist() == ["50.0", "49.0"]
    assert (
        probes.loc["s5", "fine-tuned, printed"] == "82.62"
        and probes.loc["s5, equal stages", "fine-tuned, printed"] == ""
    )


def test_stage_lengths_from_printed_times():
    """s2 and s3 differ by (last - first share) of the gap between fixed 224 and 160."""
    table = dailymae.inferred_stages()
    first, middle, last = (float(part) / 100 for part in table.iloc[0, 0].split(" / "))
    assert first == middle and (last - first) * (19.9333 - 8.1167) == pytest.approx(16.7667 - 14.65, abs=0.2)


@pytest.mark.parametrize(
    ("columns", "axis", "last"), [({"seconds": [60.0, 120.0]}, "minutes of training", 3.0), ({}, "epochs", 2)]
)
def test_probes_are_drawn_by_epochs_where_times_were_not_kept(columns, axis, last):
    history = pd.DataFrame(
        {"seed": 0, "epoch": [0, 1], "probe_top1": [20.0, 30.0], "probe_train_top1": [10.0, 15.0]} | columns
    )
    book = SimpleNamespace(
        results=type(
            "Found",
            (),
            {"history": lambda _, run: history, "__contains__": lambda _, run: run == "daily_224"},
        )()
    )
    curves = dailymae.probe_curves(book, {"fixed 224": "daily_224", "s4": "daily_s4"})
    assert all(
        list(found) == ["fixed 224"] and found["fixed 224"].index[-1] == last for found in curves.values()
    )
    figure = draw.probe_curves(curves)
    assert [panel.get_xlabel() for panel in figure.axes] == [axis] * len(curves)


def test_what_codecs_change_is_small_and_adds_up():
    table = dailymae_codecs.codec_differences(dailymae_codecs.photographs()[:1])["mean difference"].astype(
        float
    )
    assert 0 < table["decoder's fast DCT"] < 0.01 and table["all three"] < 0.05
    assert table["all three"] >= table["decoder's fast DCT"]


@pytest.fixture(scope="module")
def notebook_code():
    notebook = json.loads((ROOT / "notebooks" / "dailymae.ipynb").read_text())
    return "\n".join("".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code")


def test_the_notebook_shows_every_table_and_figure(notebook_code):
    shown = [f"table_{n}" for n in (2, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13)] + ["figure_5", "figure_6"]
    assert all(f'book.table("{name}")' in notebook_code for name in shown)
    for call in (
        "recipes",
        "crops",
        "schedule_costs",
        "inferred_stages",
        "split_speedup",
        "probes",
        "compression",
        "codec_contrasts",
        "stage_contrasts",
    ):
        assert f"dailymae.{call}(" in notebook_code
    assert "dailymae.decomposition" in notebook_code
    assert "dailymae_codecs.codec_differences(" in notebook_code
    for figure in ("loading", "probe", "crop_decode", "crops", "run_times"):
        assert f'"{figure}")' in notebook_code
    assert "book.verdicts()" in notebook_code and "book.save_tables()" in notebook_code


def test_every_own_cell_has_its_place_in_the_notebook(notebook_code, tmp_path):
    """A panel that the notebook does not show, or a cell in no panel, would lose cells."""
    book = Book("dailymae", "smoke", root=tmp_path)
    calls = re.findall(r'book\.table\("(\w+)"(?:, "(\w*)")?\)', notebook_code)
    shown = [
        name for table, panel in calls for name in book.compared(table, None, "scheme", panel or None)["id"]
    ]
    assert {cell["id"] for cell in own_cells()} <= set(shown) and len(shown) == len(set(shown))
    assert sum(len(book.table(table, panel or None)) for table, panel in calls) == len(shown)


@pytest.fixture
def own_images(tmp_path):
    """Four small photographs in a folder within a folder."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    (tmp_path / "mine" / "deep" / "er").mkdir(parents=True)
    for k in range(4):
        smooth = np.cumsum(rng.normal(size=(60, 80, 3)), axis=1)
        pixels = (255 * (smooth - smooth.min()) / np.ptp(smooth)).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / "mine" / "deep" / "er" / f"{k}.jpg", quality=97)
    return tmp_path / "mine"


def measured_on(images: Path, monkeypatch, *options: str) -> Path:
    """The file that the command writes for one round of small crops, in the folder beside the images."""
    from replicate.cli import main

    monkeypatch.chdir(images.parent)
    assert (
        main(
            [
                "bench",
                "loader",
                "--images",
                str(images),
                "--rounds",
                "1",
                "--repeat",
                "2",
                "--size",
                "32",
                *options,
            ]
        )
        == 0
    )
    threads = int(options[options.index("--threads") + 1]) if options else 1
    return images.parent / "results" / "bench" / f"loader_{threads}_thread{'s' * (threads > 1)}.json"


@pytest.mark.parametrize("threads", [1, 2])
def test_a_whole_benchmark_on_own_images(own_images, monkeypatch, capsys, threads):
    """Every comparison without ffcv has a row, and pages show it before the numbers in git."""
    from replicate.cost import loader_bench, loader_cases

    monkeypatch.setattr(loader_bench, "has_ffcv", lambda: False)
    monkeypatch.setattr(loader_cases, "has_ffcv", lambda: False)
    monkeypatch.setattr(loader_cases, "LONG", 16)
    path = measured_on(own_images, monkeypatch, "--threads", str(threads))
    told, bar = capsys.readouterr()
    loaders = re.search(r"(\d+) loaders in turn, 1 rounds", told).group(1)
    assert "bench loader: " in bar and f"{loaders}/{loaders}" in bar
    assert (
        f"written to {path.relative_to(own_images.parent)}" in told
        and "ms an image" in told
        and "4 photographs of mine" in told
    )
    rows = json.loads(path.read_text())
    expected = {
        what for what, *sides in loader_cases.COMPARISONS if not any("ffcv" in side for side in sides)
    }
    assert {row["case"].rpartition(", 32 px")[0] for row in rows} == expected
    assert all(math.isfinite(row["ratio"]) and row["ratio"] > 0 for row in rows)
    assert set(rows[0]) >= {
        "name",
        "case",
        "ours",
        "theirs",
        "ratio",
        "unit",
        "spread",
        "machine",
        "revision",
        "threads",
    }
    runs = loader_runs.loader_runs(own_images.parent)
    sizes = {name: run.per_seed[0]["file_bytes"] for name, run in runs.items()}
    assert sizes["loader_500_90"] < sizes["loader_500_95"] < sizes["loader_500_100"]
    assert sizes["loader_folder"] == sum(image.stat().st_size for image in own_images.rglob("*.jpg")), (
        "each image counts once"
    )
    said = loader_runs.conditions(own_images.parent)
    assert (
        "One thread, processor time" if threads == 1 else "2 threads, wall time"
    ) in said and "4 photographs of mine" in said


def test_a_benchmark_that_is_interrupted_has_written_nothing_and_says_so(own_images, monkeypatch, capfd):
    from replicate.cli import main
    from replicate.cost import loader_bench

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.chdir(own_images.parent)
    monkeypatch.setattr(loader_bench, "measure", interrupted)
    monkeypatch.setattr(loader_bench, "Cases", lambda *_: {})
    assert main(["bench", "loader", "--images", str(own_images)]) == 130
    assert capfd.readouterr().err == "interrupted; nothing was written\n"
    assert not (own_images.parent / "results").exists()


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ffcv") is None, reason="ffcv is not installed")
@pytest.mark.filterwarnings("ignore")
def test_a_benchmark_beside_stock_ffcv(own_images, monkeypatch):
    rows = json.loads(measured_on(own_images, monkeypatch).read_text())
    stock = [row for row in rows if any("ffcv" in run for run in row["runs"])]
    assert len(stock) == 7 and all(row["ratio"] > 0 for row in stock)
    assert [
        row["images"] for row in stock if row["runs"] == ["loader_long_500_95", "loader_ffcv_500_95"]
    ] == [[1000, 1000]]


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ffcv") is None, reason="ffcv is not installed")
@pytest.mark.filterwarnings("ignore")
def test_stock_ffcv_gets_our_crops_in_our_order(own_images, tmp_path):
    """Up to its own flips and its fast DCT."""
    import torch

    from replicate.cost.loader_cases import Cases
    from replicate.cost.photographs import Photographs

    made = Cases(tmp_path / "files", Photographs(own_images, 2), 32, 1)
    ours = [batch.images.permute(0, 2, 3, 1).float() for batch in made["loader_long_500_95"].begin()]
    stock = [torch.tensor(batch[0]).float() for batch in made["loader_ffcv_500_95"].begin()]
    assert len(ours) == len(stock) == 26
    for left, right in zip(ours, stock, strict=True):
        apart, mirrored = ((one - right).abs().mean((1, 2, 3)) for one in (left, left.flip(2)))
        assert torch.minimum(apart, mirrored).max() < 4 < apart.max()


def test_each_number_of_threads_has_its_file(measured):
    """Tables and claims take the fewest threads; a folder of this machine's own goes before git's."""
    kept = loader_runs.files(measured)[1]
    row = json.loads(kept.read_text())[0]
    two = row | {"threads": 2, "images_per_second": [[2000.0, 2100.0, 1900.0], [400.0, 410.0, 390.0]]}
    kept.with_name("loader_2_threads.json").write_text(json.dumps([two]))
    assert list(loader_runs.files(measured)) == [1, 2]
    assert loader_runs.loader_runs(measured)["loader_folder"].per_seed[0]["images_per_second"] == 200.0
    assert loader_runs.loader_runs(measured, 2)["loader_folder"].per_seed[0]["images_per_second"] == 400.0
    assert (
        loader_runs.conditions(measured).startswith("One thread")
        and len(loader_runs.comparisons(measured)) == 2
    )
    below = loader_runs.by_threads(measured, dailymae.compression)
    assert below.loc[("2 threads", "500_95"), "images/s"].startswith("2000")
    own = measured / loader_runs.OWN / "loader_2_threads.json"
    own.parent.mkdir(parents=True)
    own.write_text(json.dumps([two]))
    assert list(loader_runs.files(measured)) == [2] and loader_runs.conditions(measured).startswith(
        "2 threads"
    )

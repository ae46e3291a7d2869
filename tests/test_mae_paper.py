"""Masked Autoencoders: every cell of its tables and figures has a matching run and is shown."""

import json
import re
from pathlib import Path

import pytest

from replicate.config import PretrainRun, load, published
from replicate.report import computed, tables
from replicate.report.results import Results

ROOT = Path(__file__).resolve().parents[1]
OWN = (
    {"table": ["table_1", "figure_5"]},
    {"table": "table_2"},
    {"table": "table_3", "method": ["MAE", "scratch_our_impl"]},
    {"table": "table_6", "dataset": "IN1K"},
    {"table": "table_11", "method": "MAE"},
    {"table": "figure_9", "method": "MAE"},
)
BACKBONES = {"ViT-B": "vit_base_patch16", "ViT-L": "vit_large_patch16", "ViT-H": "vit_huge_patch14"}
TARGETS = {
    "pixel_unnorm": ("pixel", False),
    "pixel_norm": ("pixel", True),
    "pca": ("pca", None),
    "dvae_token": ("token", None),
}
AUGMENTATIONS = {
    "none": ("center", 0.0),
    "crop_fixed_size": ("fixed", 0.0),
    "crop_random_size": ("random_resized", 0.0),
    "crop_color_jitter": ("random_resized", 0.4),
}


@pytest.fixture(scope="module")
def params():
    return load(ROOT / "params.yaml")


@pytest.fixture(scope="module")
def cells():
    return tables.cells("mae", Results("smoke", {}))


def own(condition) -> list[dict]:
    return published.select({"paper": "mae", **condition}).to_dict("records")


@pytest.mark.parametrize("condition", OWN, ids=lambda condition: str(condition["table"]))
def test_every_own_cell_has_a_run_or_is_computed(params, cells, condition):
    placed = cells.set_index("id")
    assert own(condition)
    for cell in own(condition):
        line = placed.loc[cell["id"]]
        names = [name for name in line["run"].split(", ") if name]
        assert names or cell["id"] in computed.numbers("mae"), cell["id"]
        assert line["status"] not in (tables.NOT_BUILT, tables.QUOTED), cell["id"]
        assert set(names) <= set(params.runs), cell["id"]


def stated(params, run: PretrainRun) -> dict[str, object]:
    """A pre-training in the words of the paper's tables."""
    target = (run.target, run.target_options.get("norm_pix"))
    return {
        "backbone": run.backbone,
        "pretrain_epochs": run.epochs,
        "mask_ratio": run.mask_ratio,
        "decoder_depth": run.decoder_depth,
        "decoder_width": run.decoder_width,
        "encoder_mask_token": run.mask_tokens_in_encoder,
        "mask_sampling": run.mask,
        "target": target,
        "augmentation": (run.crop, run.color_jitter),
    }


def printed(key: str, value: str) -> object:
    name = value.partition("/")[0].partition("_448")[0]
    readings = {
        "backbone": lambda: BACKBONES[name],
        "encoder_mask_token": lambda: value == "with",
        "target": lambda: TARGETS[value],
        "augmentation": lambda: AUGMENTATIONS[value],
        "mask_sampling": lambda: value,
    }
    return readings[key]() if key in readings else float(value)


def test_a_cells_run_has_the_cells_setting(params, cells):
    """Decoder, mask, target, augmentation, backbone and epochs of every run are those of its line."""
    checked = 0
    for line in cells.to_dict("records"):
        if "," in line["run"] or not line["run"] or line["table"] == "text":
            continue
        run = params.run(line["run"])
        source = run if isinstance(run, PretrainRun) else params.run(run.pretrain)
        found = stated(params, source)
        setting = published.setting(line["row"])
        if source.epochs == 0:
            setting = {"backbone": setting["backbone"]}
        for key in set(setting) & set(found) - (
            {"mask_ratio"} if setting.get("mask_ratio") == "lowest_plotted" else set()
        ):
            assert found[key] == printed(key, setting[key]), (line["id"], line["run"], key)
            checked += 1
        if line["column"] in ("ft_top1", "lin_top1"):
            assert run.protocol == ("finetune" if line["column"] == "ft_top1" else "linear"), line["id"]
    assert checked > 250


def test_curves_have_a_run_at_every_place(params):
    sweeps = published.sweeps()
    for name, key in (
        ("mae_ratio_ft_all", "mask_ratio"),
        ("mae_ratio_lin", "mask_ratio"),
        ("mae_epochs_ft", "epochs"),
        ("mae_epochs_lin", "epochs"),
    ):
        for place, run in sweeps[name].points.items():
            assert getattr(params.run(params.run(run).pretrain), key) == place, run
    assert len(sweeps["mae_ratio_lin"].points) == 10 and len(sweeps["mae_epochs_lin"].points) == 5
    for place, run in sweeps["mae_partial"].points.items():
        found = params.run(run)
        assert found.pretrain == "mae_base"
        tuned = 0 if found.protocol == "linear" else 24 if found.tuned_blocks is None else found.tuned_blocks
        assert tuned == place, run


def test_the_448_pixel_model_is_tuned_at_448_pixels(params):
    assert params.run("mae_vit_h_448_ft").image_size == 448 and params.run("mae_vit_h_norm").image_size == 224


def test_the_notebook_shows_every_table_and_figure():
    notebook = json.loads((ROOT / "notebooks" / "mae.ipynb").read_text())
    code = "\n".join("".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code")
    for panel in "abcdef":
        assert f'book.table("table_1", "{panel}")' in code
    for table in ("table_2", "table_3", "table_4", "table_5", "table_6", "table_11"):
        assert f'book.table("{table}")' in code
    for figure in ("figure_5", "figure_7", "figure_9"):
        assert f'book.points("{figure}"' in code
    for picture in ("figure_2", "figure_4", "figure_6", "figure_10"):
        assert re.search(rf'"{picture}"\s*\)', code)
    assert "book.verdicts()" in code and "book.save_tables()" in code


def test_every_claim_of_the_paper_names_runs_that_exist(params):
    without = set()
    for name, claim in published.claims().items():
        if name.startswith("mae."):
            missing = names(claim["checks"]) - set(params.runs)
            without |= {name} if missing else set()
    assert without == set()


def names(quantity) -> set[str]:
    if isinstance(quantity, str):
        sweep = published.sweeps().get(quantity)
        return set(sweep.points.values()) if sweep else {quantity.partition("/")[0]}
    if isinstance(quantity, dict):
        return set().union(
            *(
                names(value)
                for key, value in quantity.items()
                if key not in ("kind", "function", "metric", "axis")
            )
        )
    return set().union(*map(names, quantity)) if isinstance(quantity, list) else set()

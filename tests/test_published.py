"""What the papers' rooms hold, counted and checked for consistency."""

import collections
import fnmatch

import pytest
import yaml
from project import ROOT

from replicate.config import load, published
from replicate.errors import UserError
from replicate.report import checks, computed

COUNTS = {"efficient_learners": 82, "efficient_mae": 182, "mae": 173, "fastmim": 599, "dailymae": 250}
"""Printed numbers of the papers whose text was counted; a further paper need not be here."""
CLAIMS = 15
RECIPES = {"efficient_learners": 9, "efficient_mae": 8, "mae": 7, "fastmim": 16, "dailymae": 15}


@pytest.fixture(scope="module")
def values():
    return published.values()


def test_every_printed_number_is_there_once(values):
    counts = values.groupby("paper").size().to_dict()
    assert values["id"].is_unique
    assert {paper: counts[paper] for paper in COUNTS} == COUNTS
    assert not values.duplicated(["paper", "table", "panel", "row", "column"]).any()


def test_every_number_says_where_it_stands(values):
    for name in ("paper", "table", "row", "column", "unit", "printed"):
        assert (values[name] != "").all(), name
    assert set(values["paper"]) <= set(published.papers())
    assert values["table"].str.fullmatch(r"(table|figure)_\d+|text").all()
    assert values["row"].map(lambda row: bool(published.setting(row))).all()
    assert set(values["flag"]) == {"", "inconsistent", "ocr_doubt"}
    assert (values.loc[values["flag"] != "", "note"] != "").all()
    assert set(values["relation"]) == {"=", "~", ">", "<"}


def test_values_are_plausible(values):
    percent = values[values["unit"] == "percent"]
    assert percent["value"].between(0, 100).all()
    accuracy = values[values["column"].str.contains("top1$") & (values["unit"] == "percent")]
    assert accuracy["value"].between(50, 90).all()
    signed = values["column"].str.contains("delta")
    assert (values.loc[~signed, "value"] > 0).all()
    assert values[values["column"] == "mask_ratio"]["value"].between(0, 1).all()
    assert values[values["unit"].isin(["hours", "gpu_hours"])]["value"].between(0.1, 5000).all()


def test_a_number_equals_what_is_printed(values):
    for cell in values.to_dict("records"):
        printed = cell["printed"]
        if ":" in printed:
            hours, minutes = printed.split(":")
            assert cell["value"] == pytest.approx(int(hours) + int(minutes) / 60, abs=1e-4)
        elif not printed.endswith("GB/s"):
            assert float(printed) == cell["value"]


@pytest.mark.parametrize(
    ("printed", "worth"),
    [("83.6", 0.1), ("150", 1.0), ("1.20", 0.01), ("102:35", 1 / 60), ("2.2 GB/s", 100.0), ("-0.2", 0.1)],
)
def test_the_last_printed_digit(printed, worth):
    assert published.last_digit(printed) == pytest.approx(worth)


def test_recipes_are_complete_and_say_where_they_come_from():
    recipes = published.recipes()
    assert {paper: len(recipes[paper]) for paper in RECIPES} == RECIPES and set(recipes) == set(
        published.papers()
    )
    assert all("source" in recipe for group in recipes.values() for recipe in group.values())
    assert recipes["mae"]["pretrain"]["lr"] == 1.5e-4


def test_claims_are_complete_and_each_names_its_test():
    claims = published.claims()
    papers = collections.Counter(name.partition(".")[0] for name in claims)
    assert set(papers) <= set(published.papers()) and {papers[paper] for paper in COUNTS} == {CLAIMS}
    for claim in claims.values():
        assert claim["statement"] and claim["source"] and claim["test"] and claim["checks"]
        assert claim["size"] in ("strong", "medium", "weak", "none")
        for check in claim["checks"]:
            assert check["kind"] in checks.KINDS
            if check["kind"] == "computed":
                assert check["function"] in computed.own("ANSWERS")


@pytest.fixture
def room(tmp_path, monkeypatch):
    """The room of one paper, the only one."""
    (tmp_path / "mae").mkdir()
    monkeypatch.setattr(published, "ROOMS", tmp_path)
    monkeypatch.setattr(published, "papers", lambda: {"mae": "Masked Autoencoders"})
    return tmp_path / "mae"


UNKNOWN_KEYS = [
    ("id: mae.one, standin: true", "mae.one: unknown key 'standin'"),
    ("3: x", "number 1: unknown key 3"),
]


@pytest.mark.parametrize(("entry", "words"), UNKNOWN_KEYS)
def test_a_misspelt_key_of_a_claim_is_named(room, entry, words):
    (room / "claims.yaml").write_text(f"claims:\n- {{{entry}}}\n")
    with pytest.raises(UserError, match=rf"mae/claims\.yaml: claim {words}; a claim has id, .*, untested$"):
        published.claims.__wrapped__()


def test_sweeps_named_by_claims_exist():
    def names(part):
        if isinstance(part, dict):
            for key, value in part.items():
                if key in ("sweep", "than", "best", "worst", "peak") and isinstance(value, str):
                    yield value
                yield from names(value)
        if isinstance(part, list):
            for item in part:
                yield from names(item)

    wanted = {name for claim in published.claims().values() for name in names(claim["checks"])}
    assert wanted <= set(published.sweeps())


def test_errata_and_notes_are_complete():
    errata, notes = published.errata(), published.notes()
    grades = [published.GRADES.index(entry["grade"]) for entry in errata]
    assert grades == sorted(grades) and {entry["paper"] for entry in errata} == set(published.papers())
    for entry in errata:
        assert set(entry) == {"paper", "grade", "place", "printed", "found", "note", "numbers"}
    for entry in notes:
        assert set(entry) == {"paper", "kind", "place", "printed", "found", "note"}
        assert entry["kind"] in ("scan", "reconciled", "between"), "what is explained is no erratum"
    assert all(entry["place"] and entry["printed"] and entry["found"] for entry in errata + notes)


def test_released_code_is_compared_for_every_paper():
    found = published.released()
    assert {entry["of"] for entry in found} == set(published.papers())
    assert all(isinstance(entry[key], str) and entry[key] for entry in found for key in entry)
    for paper in published.papers():
        settings = [entry["setting"] for entry in found if entry["of"] == paper]
        assert len(set(settings)) == len(settings), f"papers/{paper}/released.yaml states a setting twice"


def test_what_released_code_settles_is_what_the_runs_take():
    """Entries that say whose number a run takes, against the runs at the papers' own scale."""
    params = load(ROOT / "params.yaml")
    expected = {
        "mae_grid_75_ft": {"drop_path": 0.1, "random_erasing": 0.25},
        "fastmim_vit_hog_128": {"batch_size": 2048, "warmup_epochs": 10},
        "fastmim_vit_hog_128_ft": {"base_lr": 1e-3, "layer_decay": 0.7},
        "default_100": {"base_lr": 5e-4, "layer_decay": 0.65, "drop_path": 0.1, "random_erasing": 0.25},
        "supmae_50": {"batch_size": 1024, "warmup_epochs": 5, "target_options": {"norm_pix": True}},
        "emae_vit_b_85_coco": {"base_lr": 1e-4, "epochs": 100, "batch_size": 64, "layer_decay": 0.7},
        "daily_224": {"interpolation": "area", "target_options": {"norm_pix": True}},
        "daily_s5": {"image_size": 224},
    }
    for name, settings in expected.items():
        run = params.run(name)
        assert {key: getattr(run, key) for key in settings} == settings, name
    assert params.run("daily_s5").stages[0].until == 0.25, "epoch 200 of 800"


def test_a_key_that_released_yaml_lacks_is_named(monkeypatch):
    monkeypatch.setattr(published, "_read", lambda *_: [{"setting": "heads", "paper": "12", "code": "6"}])
    with pytest.raises(UserError, match="released.yaml: heads: 'file' is missing or unknown"):
        published.released.__wrapped__()


def test_every_number_that_differs_has_one_erratum():
    differing = {
        name
        for paper in published.papers()
        for name, found in computed.numbers(paper).items()
        if found.agreement == computed.DIFFERS
    }
    patterns = [pattern for entry in published.errata() for pattern in entry["numbers"]]
    covering = {name: [p for p in patterns if fnmatch.fnmatchcase(name, p)] for name in differing}
    assert len(differing) > 90 and all(len(found) == 1 for found in covering.values()), covering
    assert all(fnmatch.filter(published.values()["id"], pattern) for pattern in patterns)


def test_an_unknown_grade_is_named(monkeypatch):
    monkeypatch.setattr(published, "_read", lambda *_: [{"grade": "grave", "place": "Table 1"}])
    with pytest.raises(UserError, match="Table 1: grade 'grave' is none of material, rounding, wording"):
        published.errata.__wrapped__()


def test_conditions_compare_numbers_as_numbers():
    found = published.select(
        {"paper": "efficient_mae", "table": "table_4", "mask_ratio": 0.9, "column": "top1"}
    )
    assert found["printed"].tolist() == ["83.7", "84.3"]
    assert (
        published.one(
            {"paper": "mae", "table": "table_1", "panel": "b", "decoder_width": 128, "column": "ft_top1"}
        )["value"]
        == 84.9
    )
    assert len(published.select({"paper": "fastmim", "table": "table_10", "mask_token": "*"})) == 6


def test_a_condition_that_fits_several_numbers_is_refused():
    with pytest.raises(UserError, match="2 numbers fit"):
        published.one({"paper": "efficient_learners", "table": "table_1"})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("paper,table\nmae,table_1\n", "lacks the column id"),
        (
            ",".join(published.COLUMNS) + "\n" + "a,mae,table_1,,k=v,top1,1,1,=,percent,,\n" * 2,
            "the id a appears twice",
        ),
        (
            ",".join(published.COLUMNS) + "\na,mae,table_1,,k=v,top1,many,many,=,percent,,\n",
            "the value of a is not a number",
        ),
    ],
)
def test_a_broken_table_is_named_with_its_fault(room, text, words):
    (room / "values.csv").write_text(text)
    with pytest.raises(UserError, match=words):
        published.values.__wrapped__()


def test_a_missing_table_and_broken_yaml_are_named(room):
    with pytest.raises(UserError, match="mae/values.csv: no such file"):
        published.values.__wrapped__()
    (room / "claims.yaml").write_text("claims: [")
    with pytest.raises(UserError, match="not valid YAML"):
        published.claims.__wrapped__()


def test_every_file_of_the_folder_is_valid():
    for path in sorted(published.ROOMS.rglob("*.yaml")):
        assert yaml.safe_load(path.read_text()) is not None, path

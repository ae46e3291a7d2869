"""The search for layer-wise lr decay: trained on a subset through the store, recommended with an interval,
applied to the full set.
"""

import json
from pathlib import Path

import pytest
from project import ROOT, run, write_params

from replicate.config import load
from replicate.errors import UserError
from replicate.papers.efficient_learners import searches
from replicate.pipeline.search import described, recommendation
from replicate.report.book import Book

NAME = "light_90_images"
FOLDER = Path("results/smoke/grid/efficient_learners") / NAME


@pytest.fixture(scope="module")
def params():
    return load(ROOT / "params.yaml")


def test_a_point_is_the_run_that_says_the_same(params):
    point = params.searches[NAME].point(0.8, "tenth_of_images")
    assert point == params.run("proxy_images_llrd_80") and type(point) is type(
        params.run("proxy_images_llrd_80")
    )


def test_the_best_is_recommended_with_what_the_seeds_leave_open():
    clear = {0.65: {0: 70.0, 1: 70.2}, 0.8: {0: 75.0, 1: 75.1}, 0.9: {0: 71.0, 1: 71.2}}
    found = recommendation(clear)
    assert (
        found["recommended"] == {"layer_decay": 0.8, "low": 0.8, "high": 0.8, "seeds": 2}
        and not found["note"]
    )
    assert "recommended layer_decay 0.8 [0.8, 0.8]" in described(found) and "0.65   top-1 70.1" in described(
        found
    )
    noisy = {0.65: {0: 70.0, 1: 78.0}, 0.8: {0: 79.0, 1: 71.0}, 0.9: {0: 71.0, 1: 77.5}}
    assert recommendation(noisy)["recommended"]["low"] < recommendation(noisy)["recommended"]["high"]
    alone = recommendation({0.65: {0: 70.0}, 0.8: {0: 71.0}, 0.9: {0: 72.0}})
    assert alone["recommended"]["low"] is None and "largest of the search" in described(alone)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"layer_decays": [0.8, 0.7, 0.9]}, "three or more rising"),
        ({"layer_decays": [0.8, 1.2, 1.3]}, "less than or equal to 1"),
        ({"dataset": "full"}, "name a smaller one"),
        ({"dataset": "half"}, "dataset 'half'"),
        ({"pretrain": "none"}, "not a pretrain run"),
    ],
)
def test_mistakes_are_told(tmp_path, change, told):
    path = write_params(tmp_path, runs={NAME: change})
    with pytest.raises(UserError, match=told):
        load(path)


def test_unknown_search(params):
    with pytest.raises(UserError, match="no search 'light'; known are light_90_images, light_90_classes"):
        params.search("light")


def test_from_the_command_line(tmp_path):
    """Search, apply; a second search trains nothing, and the run of params.yaml that says the same as a point
    does not either.
    """
    write_params(tmp_path, data={"train_images": 384}, runs={NAME: {"layer_decays": [0.65, 0.8, 0.9]}})
    for command in (
        ["data", "write", "full"],
        ["data", "write", "tenth_of_images"],
        ["pretrain", "light_90"],
    ):
        run(tmp_path, *command)
    run(tmp_path, "search", "llrd", NAME)
    found = json.loads((tmp_path / FOLDER / "search.json").read_text())
    assert [point["layer_decay"] for point in found["points"]] == [0.65, 0.8, 0.9]
    assert found["recommended"]["layer_decay"] in (0.65, 0.8, 0.9) and found["provenance"]["seeds"] == [0]
    (tmp_path / FOLDER / "search.json").unlink()
    run(tmp_path, "search", "llrd", NAME)
    again = json.loads((tmp_path / FOLDER / "search.json").read_text())
    for key in ("wall_seconds", "peak_memory_bytes"):
        assert again["provenance"][key] == found["provenance"][key] > 0, "what the training took"
    finished = {folder.name for folder in (tmp_path / ".replicate/runs").iterdir()}
    run(tmp_path, "search", "llrd", NAME, "--apply")
    applied = json.loads((tmp_path / FOLDER / "applied.json").read_text())
    assert (
        applied["layer_decay"] == found["recommended"]["layer_decay"] and applied["run"]["dataset"] == "full"
    )
    assert len({folder.name for folder in (tmp_path / ".replicate/runs").iterdir()} - finished) == 1
    run(tmp_path, "evaluate", "proxy_images_llrd_80")
    assert len({folder.name for folder in (tmp_path / ".replicate/runs").iterdir()} - finished) == 1

    table = searches(Book("efficient_learners", "smoke", "full", tmp_path), "light_90_llrd_65")
    assert (
        table.loc[NAME, "recommended"] == f"{applied['layer_decay']:g}"
        and " of 384" in table.loc[NAME, "fine-tuning images"]
    )
    assert table.loc["light_90_classes", "recommended"].startswith("not run")

"""FastMIM's own figures: from committed measurements, from sweeps that are partly run, and from images."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import pandas as pd
import pytest
import torch

from replicate.config import published
from replicate.errors import UserError
from replicate.papers import fastmim
from replicate.papers import fastmim_figures as draw
from replicate.report.figures import sweep_curves
from replicate.report.glyphs import hog_glyphs
from replicate.report.quantities import Reader
from replicate.report.results import Results, Run
from replicate.report.root import repository
from replicate.targets.hog import dense_hog


def book(**accuracies: float) -> SimpleNamespace:
    runs = {
        name: Run("fastmim", name, None, (0, 1), ({"top1": value}, {"top1": value + 1}))
        for name, value in accuracies.items()
    }
    results = Results("laptop", runs)
    return SimpleNamespace(root=repository(), results=results, reader=Reader(results))


def test_the_committed_benchmark_stands_beside_the_printed_ratios() -> None:
    table = fastmim.benchmark(book())
    assert set(table["measure"]) >= {"time of a step", "memory for the backward pass"}
    simmim = table[
        (table["against"] == "SimMIM")
        & table["case"].str.startswith("ViT-B")
        & (table["measure"] == "time of a step")
    ]
    assert float(simmim["published"].iloc[0]) == pytest.approx(4.1 / 0.8, abs=0.01)
    assert (
        simmim["FastMIM needs"].str.endswith(" s").all() and float(simmim["it needs"].iloc[0].split()[0]) > 0
    )
    figure = draw.benchmark_bars(table)
    assert [axis.get_title(loc="left") for axis in figure.axes] == list(dict.fromkeys(table["measure"]))


def test_a_gpus_measurements_stand_beside_the_cpus(tmp_path) -> None:
    line = {
        "name": "peak memory: FastMIM vs SimMIM",
        "ours": 2**30,
        "theirs": 3 * 2**30,
        "ratio": 3.0,
        "published": None,
        "machine": "one",
    }
    for device, name in zip(("cpu", "cuda"), fastmim.BENCHMARKS, strict=True):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(
            json.dumps([line | {"unit": "bytes", "case": f"ViT-B at 224 px, batch 16, {device}"}])
        )
    table = fastmim.benchmark(SimpleNamespace(root=tmp_path))
    assert (
        len(table) == 2
        and set(table["FastMIM needs"]) == {"1.00 GiB"}
        and set(table["it needs"]) == {"3.00 GiB"}
    )
    labels = [label.get_text() for label in draw.benchmark_bars(table).axes[0].get_yticklabels()]
    assert labels == ["SimMIM, ViT-B", "SimMIM, ViT-B, GPU"]


def test_a_missing_benchmark_says_how_to_measure_it(tmp_path) -> None:
    with pytest.raises(UserError, match="python benchmarks/fastmim_step.py"):
        fastmim.benchmark(SimpleNamespace(root=tmp_path))


def test_the_pairs_against_scratch_are_those_of_table_4_and_of_the_claim() -> None:
    cells = [
        (entry["match"], entry.get("ours"))
        for entry in published.mapping("fastmim")
        if entry["match"].get("table") == "table_4"
    ]
    runs = {
        (m.get("backbone"), m.get("method"), run)
        for m, run in cells
        if m.get("column") == "top1" and isinstance(run, str)
    }
    for name, (ours, scratch) in fastmim.AGAINST_SCRATCH.items():
        assert (name, "FastMIM", ours) in runs and (name, "supervised", scratch) in runs
    checks = published.claims()["fastmim.beats_scratch_everywhere"]["checks"]
    assert [(check["left"], check["right"]) for check in checks] == list(fastmim.AGAINST_SCRATCH.values())


def test_curves_draw_what_has_run_and_name_the_rest() -> None:
    sweeps = {"HOG": {128: "hog_128", 224: "hog_224"}, "pixels": {128: "pixel_128", 224: "pixel_224"}}
    figure = sweep_curves(book(hog_128=50.0, hog_224=52.0, pixel_128=48.0).reader, sweeps, "pixels", least=2)
    assert "not run: pixels" in figure.axes[0].get_title(loc="left")
    assert figure.axes[0].get_legend_handles_labels()[1] == ["HOG"]


def test_nothing_is_drawn_of_nothing() -> None:
    assert (
        sweep_curves(book(hog_128=50.0).reader, {"HOG": {128: "hog_128", 224: "hog_224"}}, "pixels", least=2)
        is None
    )
    history = pd.DataFrame({"epoch": [0, 1], "seed": [0, 0], "loss": [0.5, 0.4]})
    found = SimpleNamespace(
        histories=lambda runs: {run: history if run == "a" else pd.DataFrame() for run in runs if run != "c"}
    )
    assert draw.losses(found, {"HOG": "b", "pixels": "c"}) is None
    drawn = draw.losses(found, {"HOG": "a", "pixels": "b"})
    assert [text.get_text() for text in drawn.axes[0].get_legend().get_texts()] == ["HOG (2 epochs)"]


def test_the_grid_search_shows_every_cell() -> None:
    figure = draw.grid_search(
        book(swin_lr_05_llrd_65=40.0), {"Swin": "swin"}, {"05": 5e-4, "10": 1e-3}, (0.65, 0.75)
    )
    assert sorted(text.get_text() for text in figure.axes[0].texts) == [
        "40.5",
        "not run",
        "not run",
        "not run",
    ]


def test_glyphs_fill_the_range_and_an_empty_image_stays_dark() -> None:
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    images[1] = 7
    drawn = hog_glyphs(dense_hog(images))
    assert drawn.shape == (2, 1, 64, 64) and drawn[0].max() == 1 and not drawn[1].any()
    assert draw._pictures(drawn, 128).shape == (2, 128, 128, 3)


def test_ranges_of_the_paper_are_written_out() -> None:
    assert [fastmim._range(value) for value in ([2.0, 3.33], 1.625, None, math.nan)] == [
        "2 to 3.33",
        "1.62",
        "",
        "",
    ]


def test_photographs_at_the_papers_size_stand_in_one_table() -> None:
    table = fastmim.invariance_on_photographs(book())
    [row] = json.loads((repository() / fastmim.INVARIANCE).read_text())
    assert table.loc["PSNR, dB", "HOG"].startswith(f"{row['psnr_hog']['mean']:.3g} [") and table.loc[
        "SSIM", "pixels"
    ].startswith("0.8")
    assert "photographs, 224 -> 128 px" in table.index.name

"""Figures are drawn from data, show what they should, and are the same bytes for the same data."""

import numpy as np
import pandas as pd
import pytest

from replicate.config.published import Sweep
from replicate.papers import efficient_learners
from replicate.report import figures, patch_maps, style
from replicate.report.quantities import Reader
from replicate.report.results import Results, Run

SWEEPS = {"light": "light_llrd", "full": "full_llrd"}
PRINTED = {"light": (0.82, 1.2), "full": (0.65, 0.1)}


def reader(*names):
    runs = {}
    for name in names:
        for k, x in enumerate((65, 75, 80, 85, 90)):
            run = f"{name}_{x}"
            runs[run] = Run(
                "p", run, None, (0, 1, 2), tuple({"top1": 40 + k * (4 - k) + 0.3 * s} for s in range(3))
            )
    sweeps = {
        f"{name}_llrd": Sweep({x / 100: f"{name}_{x}" for x in (65, 75, 80, 85, 90)})
        for name in ("light", "full")
    }
    return Reader(Results("laptop", runs), sweeps)


def test_llrd_curve_draws_every_point_with_its_interval():
    figure = efficient_learners.llrd_curve(reader("light", "full"), SWEEPS, PRINTED)
    left, right = figure.axes
    assert len(left.containers) == 2 and all(len(c.lines[0].get_xdata()) == 5 for c in left.containers)
    segments = left.containers[0].lines[2][0].get_segments()
    assert all(abs(high[1] - low[1]) > 0.5 for low, high in segments)
    assert {text.get_text() for text in right.get_legend().get_texts()} == {"paper", "ours"}
    assert left.get_xlabel() and left.get_ylabel() and right.get_ylabel()


def test_a_sweep_that_is_not_finished_is_named_and_nothing_fails_without_any():
    assert "(not run: full)" in efficient_learners.llrd_curve(reader("light"), SWEEPS, PRINTED).axes[
        0
    ].get_title(loc="left")
    assert "(not run: light, full)" in efficient_learners.llrd_curve(reader(), SWEEPS, PRINTED).axes[
        0
    ].get_title(loc="left")


def test_cost_bars_leave_out_what_was_not_measured():
    costs = pd.DataFrame({"paper": {"full": 59.5, "light": 1.0}, "measured": {"full": np.nan, "light": 1.0}})
    axes = efficient_learners.cost_bars(costs).axes[0]
    texts = [text.get_text().strip() for text in axes.texts]
    assert texts == ["59.5", "1.0", "", "1.0"] and axes.get_xscale() == "log"


def test_loss_curves_average_over_seeds_and_skip_what_is_missing():
    history = pd.DataFrame({"seed": [0, 0, 1, 1], "epoch": [0, 1, 0, 1], "loss": [1.0, 0.5, 2.0, 0.7]})
    axes = figures.loss_curves({"run": history, "none": pd.DataFrame()}).axes[0]
    assert axes.lines[0].get_ydata() == pytest.approx([1.5, 0.6]) and axes.lines[0].get_xdata()[-1] == 1.0
    assert len(axes.lines) == 1
    assert figures.loss_curves({}).axes[0].get_legend() is None


def test_comparison_keeps_the_papers_scale_apart_from_ours():
    table = pd.DataFrame(
        {
            "label": ["a", "b"],
            "value": [80.4, 81.8],
            "ours": [40.0, 44.0],
            "ours_low": [39, 43],
            "ours_high": [41, 45],
        }
    )
    paper, ours = efficient_learners.comparison(table, "epochs").axes
    assert paper.get_ylim()[0] > ours.get_ylim()[1]
    assert [text.get_text() for text in ours.get_xticklabels()] == ["a", "b"]
    alone = efficient_learners.comparison(
        table.assign(ours=np.nan, ours_low=np.nan, ours_high=np.nan), "epochs"
    ).axes
    assert [axis.get_title(loc="left") for axis in alone] == ["paper"], (
        "an empty panel would look like a result"
    )


def test_reconstructions_are_one_row_an_image():
    image = np.random.default_rng(0).random((8, 8, 3))
    figure = figures.reconstructions([{"masked": image, "prediction": image * 2, "original": image}] * 2)
    assert len(figure.axes) == 6 and figure.axes[1].images[0].get_array().max() <= 1


def test_p2dist_map_crosses_out_what_decoder_masking_drops():
    distance = np.array([[0.0, 8.0], [20.0, 30.0]])
    figure = patch_maps.p2dist_map(distance, beta=26)
    assert "decoded 2 of 3" in figure.axes[0].get_title(loc="left")
    assert len(figure.axes[0].collections[0].get_offsets()) == 1


def test_saved_in_three_formats_and_twice_the_same(tmp_path):
    figure = efficient_learners.cost_bars(pd.DataFrame({"paper": {"full": 59.5, "light": 1.0}}))
    paths = style.save_figure(figure, tmp_path / "deep" / "cost")
    assert [path.suffix for path in paths] == [".svg", ".pdf", ".png"] and all(
        path.stat().st_size > 1000 for path in paths
    )
    first = [path.read_bytes() for path in paths]
    again = style.save_figure(
        efficient_learners.cost_bars(pd.DataFrame({"paper": {"full": 59.5, "light": 1.0}})), tmp_path / "cost"
    )
    assert [path.read_bytes() for path in again] == first


def test_colours_stay_apart_for_colour_blind_readers():
    """Any two colours differ after simulated deuteranopia (Viénot, Brettel and Mollon 1999)."""
    from matplotlib.colors import to_rgb

    linear = np.array([to_rgb(colour) for colour in style.PALETTE]) ** 2.2
    deuteranopia = np.array([[0.29275, 0.70725, 0.0], [0.29275, 0.70725, 0.0], [-0.02234, 0.02234, 1.0]])
    seen = np.clip(linear @ deuteranopia.T, 0, 1) ** (1 / 2.2)
    gaps = np.linalg.norm(seen[:, None] - seen[None], axis=2) + np.eye(len(seen))
    assert gaps.min() > 0.12


def test_a_figure_shows_itself():
    data, metadata = efficient_learners.llrd_curve(reader("light"), {"light": "light_llrd"})._repr_png_()
    assert data.startswith(b"\x89PNG") and metadata == {
        "alt": "ours: top-1 accuracy (%) against layer-wise learning-rate decay"
    }
    image = np.zeros((4, 4, 3))
    assert figures.reconstructions([{"masked": image, "original": image}]).description == "masked; original"

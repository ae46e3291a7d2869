"""What pre-training costs, counted four ways: the paper's hours, multiply-adds there and here, and the time measured here."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pandas as pd

from replicate.report import published
from replicate.report.quantities import NotRun, Reader

if TYPE_CHECKING:
    from replicate.params import Params

PAPER, MACS, LENS, OURS = "paper (hours)", "multiply-adds, paper's numbers", "multiply-adds, this budget", "measured here"


def pretraining_costs(params: Params, reader: Reader, recipes: Mapping[str, tuple[str, Mapping[str, Any]]]) -> pd.DataFrame:
    """Cost of each recipe relative to the last one: a line a recipe, a column a way to count.

    `recipes` maps a legend to the run and to the condition that finds its hours in `published/values.csv`. NaN where a run has
    not finished.
    """
    runs = {label: run for label, (run, _) in recipes.items()}
    frame = pd.DataFrame(
        {
            PAPER: {label: published.one(condition)["value"] for label, (_, condition) in recipes.items()},
            MACS: {label: _total_macs(params.run(run)) for label, run in runs.items()},
            LENS: {label: _total_macs(params.resolve(run, reader.results.budget)) for label, run in runs.items()},
            OURS: {label: _hours(reader, run) for label, run in runs.items()},
        }
    )
    return frame / frame.iloc[-1]


def _total_macs(run: Any) -> float:
    """Multiply-adds of an image's forward pass times the epochs: proportional to those of the whole pre-training."""
    from replicate.cost.macs import mae_macs
    from replicate.models.vit import vit_backbone

    sizes = vit_backbone(run.backbone, **run.backbone_kwargs).kwargs
    decoder = {"decoder_embed_dim": run.decoder_width, "decoder_depth": run.decoder_depth}
    return run.epochs * mae_macs(image_size=run.image_size, mask_ratio=run.mask_ratio, **sizes, **decoder).total


def _hours(reader: Reader, run: str) -> float:
    try:
        return reader.estimate(f"{run}/train_hours").value
    except NotRun:
        return math.nan

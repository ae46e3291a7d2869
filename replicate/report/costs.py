"""What pre-training costs, counted four ways: the paper's hours, multiply-adds there and here, and the time measured here."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pandas as pd

from replicate.config import published
from replicate.report.quantities import NotRun, Reader

if TYPE_CHECKING:
    from replicate.config import Params

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


def model_costs(params: Params, reader: Reader, runs: Mapping[str, str]) -> pd.DataFrame:
    """What a pre-training step costs: a line a run, `runs` mapping legends to names; factors are relative to the first.

    Multiply-adds of an image's forward pass and activations kept for its backward pass (float32) are computed, at the paper's
    sizes and at this budget's; seconds, and on a GPU the allocator's peak, are measured. NaN where a run has not finished.
    """
    frame = pd.DataFrame({label: _model_cost(params, reader, run) for label, run in runs.items()}).T
    for column in ("multiply-adds (G)", "activations (MB)", "seconds an epoch here"):
        frame.insert(frame.columns.get_loc(column) + 1, f"{column.partition(' (')[0]}, factor", frame[column] / frame[column].iloc[0])
    return frame.dropna(axis="columns", how="all")


def speedups(params: Params, reader: Reader, pairs: Mapping[str, tuple[str, str, Mapping[str, Any]]]) -> pd.DataFrame:
    """How many times faster the second run of each pair is than the first (MAE, Table 2): in the paper's hours, by multiply-adds,
    and measured here, with its interval.

    `pairs` maps a legend to (slow run, fast run, condition that finds the paper's factor).
    """
    lines = {}
    for label, (slow, fast, condition) in pairs.items():
        macs = [_macs(params.run(run)).total for run in (slow, fast)]
        here = [_macs(params.resolve(run, reader.results.budget)).total for run in (slow, fast)]
        lines[label] = {
            "paper": f"{published.one(condition)['value']:g}",
            "multiply-adds": f"{macs[0] / macs[1]:.2f}",
            "multiply-adds here": f"{here[0] / here[1]:.2f}",
            "measured here": _measured_factor(reader, slow, fast),
        }
    return pd.DataFrame(lines).T


def _model_cost(params: Params, reader: Reader, name: str) -> dict[str, float]:
    from replicate.cost.memory import mae_activation_bytes
    from replicate.cost.parameters import mae_parameters

    stated, here = params.run(name), params.resolve(name, reader.results.budget)
    device = str(reader.results.runs[name].provenance.get("device", "")) if name in reader.results else ""
    return {
        "multiply-adds (G)": _macs(stated).total / 1e9,
        "parameters (M)": mae_parameters(**_shape(stated)).total / 1e6,
        "activations (MB)": mae_activation_bytes(**_sizes(stated)) / 2**20,
        "multiply-adds here (M)": _macs(here).total / 1e6,
        "activations here (MB)": mae_activation_bytes(**_sizes(here)) / 2**20,
        "seconds an epoch here": _value(reader, f"{name}/seconds_per_epoch"),
        "GPU peak here (GB)": _value(reader, f"{name}/peak_memory_bytes") / 2**30 if device.startswith("cuda") else math.nan,
    }


def _measured_factor(reader: Reader, slow: str, fast: str) -> str:
    try:
        found = reader.estimate({"over": [f"{slow}/seconds_per_epoch", f"{fast}/seconds_per_epoch"]})
    except NotRun as error:
        return f"not run: {error}"
    return f"{found.value:.2f}" + (f" [{found.low:.2f}, {found.high:.2f}]" if found.has_interval else "")


def _total_macs(run: Any) -> float:
    """Multiply-adds of an image's forward pass times the epochs: proportional to those of the whole pre-training."""
    return run.epochs * _macs(run).total


def _macs(run: Any):
    """Multiply-adds of an image's forward pass through a masked autoencoder, stated or resolved."""
    from replicate.cost.macs import mae_macs

    return mae_macs(mask_ratio=run.mask_ratio, **_shape(run))


def _sizes(run: Any) -> dict[str, Any]:
    """A run's model as `MAE` is built from it."""
    from replicate.config.lens import DECODER_HEAD_WIDTH

    heads = max(1, run.decoder_width // DECODER_HEAD_WIDTH)
    return _shape(run) | {"mask_ratio": run.mask_ratio, "decoder_num_heads": heads}


def _shape(run: Any) -> dict[str, Any]:
    """What multiply-adds and parameters depend on besides the mask ratio."""
    from replicate.config.backbones import vit_backbone

    sizes = dict(vit_backbone(run.backbone, **run.backbone_kwargs).kwargs)
    decoder = {"decoder_embed_dim": run.decoder_width, "decoder_depth": run.decoder_depth}
    return sizes | decoder | {"image_size": run.image_size, "mask_tokens_in_encoder": run.mask_tokens_in_encoder}


def _hours(reader: Reader, run: str) -> float:
    return _value(reader, f"{run}/train_hours")


def _value(reader: Reader, quantity: str) -> float:
    try:
        return reader.estimate(quantity).value
    except NotRun:
        return math.nan

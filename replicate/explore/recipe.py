"""Mix your own recipe: any combination of the papers' options, its cost, and its training at the `smoke`
budget.

A mix is a paper's room of its own, with one pre-training and one fine-tuning. The same code checks and trains
it as every other run.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import statistics
import subprocess
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

import ipywidgets as widgets
import pandas as pd
import yaml
from IPython.display import display

from replicate.config import Params, load
from replicate.cost import plan
from replicate.cost.rates import rates_of
from replicate.errors import UserError
from replicate.explore.panel import choice, panel, real, whole
from replicate.explore.runs import parameters
from replicate.explore.schedules import FIXED, PALINDROME, PATCH, PROGRESSIVE, stages
from replicate.report import results
from replicate.report.root import repository
from replicate.report.style import OURS, PAPER, WIDTH, Figure, new

ROOM = "own"
BUDGET, PRICED_AT = "smoke", "paper"
DEVICE, DEVICES = "a100", 8
BETA_OFF = 0
HIERARCHY = 32
"""Pixels between the last tokens of a hierarchical backbone."""
BACKBONES = ("vit_base_patch16", "vit_large_patch16", "swin_base", "convnext_tiny", "pvt_v2_b2")
TARGETS = {
    "pixels, normalised": ("pixel", {"norm_pix": True}),
    "pixels": ("pixel", {"norm_pix": False}),
    "PCA": ("pca", {}),
    "HOG": ("hog", {}),
}
WEIGHTINGS = {"uniform": {}, "flatten": {"gamma": 0.6}, "thresholding": {}, "curriculum": {}}
KNOWN = {
    "MAE": "full_75",
    "Efficient Learners": "light_90",
    "Efficient MAE": "emae_85",
    "FastMIM": "fastmim_vit_hog_128",
    "DailyMAE": "daily_224",
}
"""One recipe of each paper to compare with."""
TAKEN = (
    "method",
    "backbone",
    "mask",
    "mask_ratio",
    "decoder_depth",
    "objective",
    "epochs",
    "batch_size",
    "weighting",
)
"""Options that a control states as the run does."""


def controls() -> dict[str, widgets.Widget]:
    methods = [("MAE: visible patches only", "mae"), ("MIM: mask in image space", "mim")]
    return {
        "method": choice(methods, "mae", "method"),
        "backbone": choice(list(BACKBONES), BACKBONES[0], "backbone"),
        "mask": choice(["random", "block", "grid"], "random", "sampling"),
        "mask_ratio": real(0.1, 0.95, 0.05, 0.9, "mask ratio", live=False),
        "target": choice(list(TARGETS), "HOG", "target"),
        "weighting": choice(list(WEIGHTINGS), "flatten", "loss weights"),
        "beta": whole(BETA_OFF, 80, BETA_OFF, "beta, 0 is off", live=False),
        "decoder_depth": whole(0, 8, 1, "decoder blocks", live=False),
        "objective": choice(["reconstruction", "supmae"], "reconstruction", "objective"),
        "schedule": choice([FIXED, PROGRESSIVE, PALINDROME], PALINDROME, "stages"),
        "low": whole(64, 224, 128, "lowest pixels", 2 * PATCH, live=False),
        "image_size": whole(64, 224, 224, "highest pixels", 2 * PATCH, live=False),
        "epochs": whole(20, 1600, 100, "epochs", 20, live=False),
        "batch_size": choice([256, 512, 1024, 2048, 4096], 1024, "batch"),
        "layer_decay": real(0.5, 1.0, 0.05, 0.8, "LLRD", live=False),
        "finetune_epochs": whole(10, 200, 100, "fine-tuning epochs", 10, live=False),
    }


def mix(**values: Any) -> dict[str, dict[str, Any]]:
    """The controls' values as a `runs.yaml` has them: {"pretrain": {...}, "evaluate": {...}}, a run each."""
    name, params = name_of(values), parameters(repository())
    light, tuning = (
        params.run(run).model_dump(mode="json", exclude_unset=True, exclude={"paper"})
        for run in ("light_75", "light_75_llrd_80")
    )
    target, options = TARGETS[values["target"]]
    pretrain = light | {key: values[key] for key in TAKEN} | {
        "target": target,
        "target_options": options,
        "weighting_options": WEIGHTINGS[values["weighting"]],
        "decoder_beta": float(values["beta"]) or None,
        "image_size": max(values["low"], values["image_size"]),
        "stages": _stages(values),
        "warmup_epochs": min(5, values["epochs"]),
    }  # fmt: skip
    own = {"layer_decay": values["layer_decay"], "epochs": values["finetune_epochs"], "warmup_epochs": 5}
    return {"pretrain": {name: pretrain}, "evaluate": {f"{name}_ft": tuning | own | {"pretrain": name}}}


def _stages(values: dict[str, Any]) -> list[dict[str, Any]]:
    if values["schedule"] == FIXED:
        return []
    low, high = sorted((values["low"], values["image_size"]))
    stride = PATCH if values["backbone"].startswith("vit") else HIERARCHY
    ratio = values["mask_ratio"]
    found = stages(values["schedule"], low, high, ratio, ratio, stride)
    return [stage.model_dump(exclude_none=True) for stage in found]


def name_of(values: dict[str, Any]) -> str:
    """The name of a mix's pre-training; equal mixes share it."""
    return "mix_" + hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:8]


def write(values: dict[str, Any], root: Path | None = None) -> Path:
    """Write the configuration of a mix under .replicate/explore and check it; returns its params.yaml.

    Raises UserError for options that do not fit together.
    """
    root = root or repository()
    params, folder = parameters(root), root / ".replicate" / "explore"
    contents = {
        "params.yaml": {
            "budget": BUDGET,
            "datasets": {"full": params.datasets["full"].model_dump(exclude_unset=True)},
        },
        "budgets.yaml": {
            name: params.budget_named(name).model_dump(exclude_unset=True) for name in (BUDGET, PRICED_AT)
        },
        f"papers/{ROOM}/runs.yaml": {"title": "A mix of the papers' options", **mix(**values)},
    }
    for file, content in contents.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(yaml.safe_dump(json.loads(json.dumps(content)), sort_keys=False))
    try:
        load(folder / "params.yaml")
    except UserError as error:
        reason = re.sub(r"^.*?\.yaml: (pretrain|evaluate)?\.?\w+[:.] ?", "", str(error))
        raise UserError(f"this mix does not fit together: {reason}") from None
    return folder / "params.yaml"


def costs_of(params: Params, names: list[str]) -> pd.DataFrame:
    """The plan of some runs (default: all) at the papers' own scale on eight A100, a line a run."""
    return plan.plan(params, names, PRICED_AT, rates_of(DEVICE), DEVICES)


@lru_cache(maxsize=1)
def known_costs() -> pd.DataFrame:
    """The plan of `KNOWN`."""
    return costs_of(parameters(repository()), list(KNOWN.values())).assign(label=list(KNOWN))


@lru_cache(maxsize=32)
def _own_costs(frozen: str) -> pd.DataFrame:
    """The plan of a mix, from its values as JSON."""
    return costs_of(load(write(json.loads(frozen))), [])


def caption(**values: Any) -> str:
    """The mix's hours beside the cheapest of `KNOWN`."""
    own, known = _own_costs(json.dumps(values, sort_keys=True)), known_costs()
    hours = own.loc[own["kind"] == "pretrain", "hours"].sum()
    cheapest = known.loc[known["hours"].idxmin()]
    return (
        f"Pre-training your mix is planned to take {hours:.1f} hours on eight A100. The cheapest of the "
        f"papers' recipes here, {cheapest['label']}, takes {cheapest['hours']:.1f}."
    )


def draw(**values: Any) -> Figure:
    """Planned cost of the mix's pre-training beside one recipe a paper; the title adds its fine-tuning."""
    own = _own_costs(json.dumps(values, sort_keys=True))
    trains = own["kind"] == "pretrain"
    lines = pd.concat([known_costs(), own[trains].assign(label="your mix")])
    figure, axes = new(height=0.9 + 0.42 * len(lines), width=WIDTH * 1.2)
    axis = axes[0, 0]
    bars = axis.barh(lines["label"], lines["exa_macs"], color=[PAPER] * (len(lines) - 1) + [OURS])
    axis.bar_label(bars, [f" {hours:.1f} h" for hours in lines["hours"]])
    axis.invert_yaxis()
    axis.margins(x=0.15)
    hours, millions = own.loc[~trains, "hours"].sum(), own.loc[~trains, "params_m"].iloc[0]
    title = f"fine-tuning your mix: {hours:.1f} h; model {millions:.1f} M parameters"
    axis.set(xscale="log", xlabel="pre-training, 10^18 multiply-adds; hours on eight A100", title=title)
    return figure


def train(**values: Any) -> pd.DataFrame:
    """Train a mix at `smoke` and return `trained`. It takes seconds and shows that the mix runs, no more.

    Raises UserError with the last line that a failed run printed.
    """
    path = write(values)
    package = str(Path(__file__).resolve().parents[2])
    paths = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", "replicate", "--params", path.name, "grid"]
    environment = os.environ | {"PYTHONPATH": paths}
    done = subprocess.run(command, cwd=path.parent, env=environment, capture_output=True, text=True)
    if done.returncode:
        printed = done.stderr.strip() or f"{' '.join(command)}: exit status {done.returncode}"
        raise UserError(printed.splitlines()[-1])
    (path.parent / f"{name_of(values)}.json").write_text(json.dumps(values))
    return trained(path.parent)


def trained(folder: Path | None = None) -> pd.DataFrame:
    """The mixes that were trained at `smoke`: what sets each apart, its loss, accuracy and time."""
    folder = folder or repository() / ".replicate" / "explore"
    found = results.load(BUDGET, folder / "results").runs
    mixes = {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("mix_*.json"))}
    mixes = {name: values for name, values in mixes.items() if f"{name}_ft" in found}
    varying = [key for key in controls() if len({str(values[key]) for values in mixes.values()}) > 1]
    lines = []
    for name, values in mixes.items():
        runs = found[name], found[f"{name}_ft"]
        measured = {
            "pre-training loss": statistics.mean(runs[0].values("loss").values()),
            "top-1 (%), smoke": statistics.mean(runs[1].values("top1").values()),
            "seconds": sum(run.provenance["wall_seconds"] for run in runs),
        }
        lines.append({key: values[key] for key in varying} | measured)
    return pd.DataFrame(lines, index=list(mixes)).round(3)


def bench() -> widgets.VBox:
    """The panel, and a button that trains the mix at `smoke` and lists all mixes trained so far."""
    view, output = panel(sys.modules[__name__]), widgets.Output()
    button = widgets.Button(description="train at smoke", button_style="primary")
    whole_bench = widgets.VBox([view, button, output])

    def pressed(_: widgets.Button) -> None:
        button.disabled = True
        output.clear_output()
        with output:
            try:
                display(train(**view.values))
            except UserError as error:
                print(error)
        button.disabled = False

    button.on_click(pressed)
    return whole_bench


def values_of(bench: widgets.VBox) -> dict[str, Any]:
    """The controls' values of a bench."""
    return bench.children[0].values

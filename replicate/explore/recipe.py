"""Mix your own recipe: any combination of the papers' options, what it will cost, and how it does at the `smoke` budget.

A mix is a pre-training and a fine-tuning in a `params.yaml` of its own, checked and trained by the same code as every other run.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

import ipywidgets as widgets
import pandas as pd
import yaml

from replicate.config import Params, load
from replicate.cost import plan
from replicate.cost.rates import rates_of
from replicate.errors import UserError
from replicate.explore.panel import choice, panel, real, shown, whole
from replicate.explore.reconstruction import parameters
from replicate.explore.schedules import FIXED, PALINDROME, PATCH, PROGRESSIVE, stages
from replicate.report import results
from replicate.report.book import repository
from replicate.report.figures import new
from replicate.report.style import OURS, PAPER, WIDTH, Figure

OWN = "own"
BUDGET, PRICED_AT = "smoke", "paper"
DEVICE, DEVICES = "a100", 8
BETA_OFF = 0
HIERARCHY = 32  # pixels between the last tokens of a hierarchical backbone
TARGETS = {
    "pixels, normalised": ("pixel", {"norm_pix": True}),
    "pixels": ("pixel", {"norm_pix": False}),
    "PCA": ("pca", {}),
    "HOG": ("hog", {}),
}
WEIGHTINGS = {"uniform": {}, "flatten": {"gamma": 0.6}, "thresholding": {}, "curriculum": {}}
KNOWN = {"MAE": "full_75", "Efficient Learners": "light_90", "Efficient MAE": "emae_85", "FastMIM": "fastmim_vit_hog_128"}
"""One recipe of each paper to compare with, beside DailyMAE's, which is the first that params.yaml has."""


def controls() -> dict[str, widgets.Widget]:
    return {
        "method": choice([("MAE: visible patches only", "mae"), ("MIM: mask in image space", "mim")], "mae", "method"),
        "backbone": choice(["vit_base_patch16", "vit_large_patch16", "swin_base", "convnext_tiny", "pvt_v2_b2"], "vit_base_patch16", "backbone"),
        "mask": choice(["random", "block", "grid"], "random", "sampling"),
        "mask_ratio": real(0.1, 0.95, 0.05, 0.9, "mask ratio"),
        "target": choice(list(TARGETS), "HOG", "target"),
        "weighting": choice(list(WEIGHTINGS), "flatten", "loss weights"),
        "beta": whole(BETA_OFF, 80, BETA_OFF, "beta, 0 is off"),
        "decoder_depth": whole(0, 8, 1, "decoder blocks"),
        "objective": choice(["reconstruction", "supmae"], "reconstruction", "objective"),
        "schedule": choice([FIXED, PROGRESSIVE, PALINDROME], PALINDROME, "stages"),
        "low": whole(64, 224, 128, "lowest pixels", 2 * PATCH),
        "image_size": whole(64, 224, 224, "highest pixels", 2 * PATCH),
        "epochs": whole(20, 1600, 100, "epochs", 20),
        "batch_size": choice([256, 512, 1024, 2048, 4096], 1024, "batch"),
        "layer_decay": real(0.5, 1.0, 0.05, 0.8, "LLRD"),
        "finetune_epochs": whole(10, 200, 100, "fine-tuning epochs", 10),
    }


def mix(**values: Any) -> dict[str, dict[str, Any]]:
    """What the widgets say as the entries of `params.yaml`: {"pretrain": {...}, "evaluate": {...}}, each one run."""
    name = name_of(values)
    params = parameters(repository())
    light, tuning = (params.run(run).model_dump(mode="json", exclude_unset=True) for run in ("light_75", "light_75_llrd_80"))
    low, high = sorted((values["low"], values["image_size"]))
    target, options = TARGETS[values["target"]]
    grain = PATCH if values["backbone"].startswith("vit") else HIERARCHY
    sizes = low, high, values["mask_ratio"], values["mask_ratio"]
    staged = stages(values["schedule"], *sizes, grain) if values["schedule"] != FIXED else ()
    taken = {key: values[key] for key in ("method", "backbone", "mask", "mask_ratio", "decoder_depth", "objective", "epochs", "batch_size")}
    pretrain = light | taken | {
        "paper": OWN,
        "target": target,
        "target_options": options,
        "weighting": values["weighting"],
        "weighting_options": WEIGHTINGS[values["weighting"]],
        "decoder_beta": float(values["beta"]) or None,
        "image_size": high,
        "stages": [stage.model_dump(exclude_none=True) for stage in staged],
        "warmup_epochs": min(5, values["epochs"]),
    }  # fmt: skip
    tuned = {"paper": OWN, "layer_decay": values["layer_decay"], "epochs": values["finetune_epochs"]}
    evaluate = tuning | tuned | {"pretrain": name, "warmup_epochs": 5}
    return {"pretrain": {name: pretrain}, "evaluate": {f"{name}_ft": evaluate}}


def name_of(values: dict[str, Any]) -> str:
    """The name that a mix's runs have: equal mixes share it."""
    return "mix_" + hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:8]


def write(values: dict[str, Any], root: Path | None = None) -> Path:
    """Write the `params.yaml` of a mix under .replicate/explore and check it; returns the file. Raises UserError for what does not fit."""
    root = root or repository()
    params = parameters(root)
    budgets = {name: params.budget_named(name).model_dump(exclude_unset=True) for name in (BUDGET, PRICED_AT)}
    datasets = {"full": params.datasets["full"].model_dump(exclude_unset=True)}
    room = {"title": "A mix of the papers' options", **mix(**values)}
    path = root / ".replicate" / "explore" / "params.yaml"
    files = {
        "params.yaml": {"budget": BUDGET, "datasets": datasets},
        "budgets.yaml": budgets,
        f"papers/{OWN}/runs.yaml": room,
    }
    for file, content in files.items():
        target = path.parent / file
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(yaml.safe_dump(json.loads(json.dumps(content)), sort_keys=False))
    try:
        load(path)
    except UserError as error:
        raise UserError("this mix does not fit together: " + re.sub(r"^.*?\.yaml: (pretrain|evaluate)?\.?\w+[:.] ?", "", str(error))) from None
    return path


@lru_cache(maxsize=64)
def _costs(text: str) -> pd.DataFrame:
    path = repository() / ".replicate" / "explore" / "params.yaml"
    return costs_of(load(path), [])


def costs_of(params: Params, names: list[str]) -> pd.DataFrame:
    """The plan of some runs at the papers' own scale on eight A100: one line a run."""
    return plan.plan(params, names, PRICED_AT, rates_of(DEVICE), DEVICES)


@lru_cache(maxsize=1)
def known_costs() -> pd.DataFrame:
    """One pre-training of each paper: multiply-adds and hours."""
    params = parameters(repository())
    named = {label: run for label, run in KNOWN.items() if run in params.pretrain_runs}
    daily = next((name for name, run in params.pretrain_runs.items() if run.paper == "dailymae"), None)
    named |= {"DailyMAE": daily} if daily else {}
    return costs_of(params, list(named.values())).assign(label=list(named))


def draw(**values: Any) -> Figure:
    """Predicted pre-training cost of the mix beside one recipe of each paper; the title adds the fine-tuning."""
    own = _costs(write(values).read_text())
    lines = pd.concat([known_costs(), own[own["kind"] == "pretrain"].assign(label="your mix")])
    figure, axes = new(height=0.9 + 0.42 * len(lines), width=WIDTH * 1.2)
    axis = axes[0, 0]
    bars = axis.barh(lines["label"], lines["exa_macs"], color=[PAPER] * (len(lines) - 1) + [OURS])
    axis.bar_label(bars, [f" {hours:.1f} h" for hours in lines["hours"]])
    axis.invert_yaxis()
    axis.margins(x=0.15)
    tuning = own[own["kind"] != "pretrain"]
    axis.set(
        xscale="log",
        xlabel="pre-training, 10^18 multiply-adds; hours on eight A100",
        title=f"fine-tuning your mix: {tuning['hours'].sum():.1f} h; model {tuning['params_m'].iloc[0]:.1f} M parameters",
    )
    return figure


def train(**values: Any) -> pd.DataFrame:
    """Train a mix at `smoke` (seconds; it shows that the mix runs, and finds nothing) and return `trained`.

    Raises UserError with the last line of what a failed run printed.
    """
    path = write(values)
    package = str(Path(__file__).resolve().parents[2])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))}
    command = [sys.executable, "-m", "replicate", "--params", path.name, "grid"]
    done = subprocess.run(command, cwd=path.parent, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise UserError((done.stderr.strip() or f"{' '.join(command)}: exit status {done.returncode}").splitlines()[-1])
    (path.parent / f"{name_of(values)}.json").write_text(json.dumps(values))
    return trained(path.parent)


def trained(folder: Path | None = None) -> pd.DataFrame:
    """The mixes that have been trained at `smoke`, each with what sets it apart from the others, and its accuracy on each seed."""
    folder = folder or repository() / ".replicate" / "explore"
    found = results.load(BUDGET, folder / "results").runs
    mixes = {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("mix_*.json"))}
    mixes = {name: values for name, values in mixes.items() if f"{name}_ft" in found}
    varying = [key for key in controls() if len({str(values[key]) for values in mixes.values()}) > 1]
    lines = [
        {key: mixes[name][key] for key in varying}
        | {
            "pre-training loss": _mean(found[name], "loss"),
            "top-1 (%), smoke": _mean(found[f"{name}_ft"], "top1"),
            "seconds": found[name].provenance["wall_seconds"] + found[f"{name}_ft"].provenance["wall_seconds"],
        }
        for name in mixes
    ]
    return pd.DataFrame(lines, index=list(mixes)).round(3)


def _mean(run: results.Run, metric: str) -> float:
    seeds = list(run.values(metric).values())
    return sum(seeds) / len(seeds)


def bench() -> widgets.VBox:
    """The panel of the mix, a button that trains it at `smoke`, and the mixes that have been trained."""
    view = panel(sys.modules[__name__])
    button = widgets.Button(description="train at smoke", button_style="primary")
    output = widgets.Output()
    whole_bench = widgets.VBox([view, button, output])

    def pressed(_: widgets.Button) -> None:
        button.disabled = True
        output.clear_output()
        with output:
            shown(train)(**values_of(whole_bench))
        button.disabled = False

    button.on_click(pressed)
    return whole_bench


def values_of(bench: widgets.VBox) -> dict[str, Any]:
    """What the controls of a bench say now."""
    return {name: control.value for name, control in zip(controls(), bench.children[0].children[0].children, strict=True)}

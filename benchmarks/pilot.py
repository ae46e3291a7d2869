"""Which lens shows most per CPU-second? Three contrasts at every candidate of `benchmarks/pilot.yaml`.

    python benchmarks/pilot.py photos_25x96x6_34                          # train what is missing at this lens
    python benchmarks/pilot.py --images data/tiny-imagenet tiny_25x96x6_6 # a lens on real images
    python benchmarks/pilot.py                                            # only redraw the table

Contrasts (row a against row b):
  mae over scratch        light pre-training at 75 %, fine-tuned, against random weights at one learning rate
  ... three times as long the same, scratch for three times the epochs (the papers' ratio of 300 to 100)
  ... all its compute     the same, scratch for as many epochs as pre-training and fine-tuning cost together
                          (lenses that ask for it)
  llrd 0.80 over 0.65     two fine-tunings of the light pre-training
  mask 0.75 over 0.95     two pre-trainings, fine-tuned alike

Runs, data and checkpoints lie in `.replicate/pilot/`, so that a stopped pilot continues. Each seed's score
and cost are appended to benchmarks/results/pilot_runs.csv; benchmarks/results/pilot.csv holds the contrasts.
Seconds are user and system time of this process, which computes on one thread.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pandas as pd
import yaml

from replicate.config import Budget, Params
from replicate.config.loading import assemble, read_files
from replicate.config.rooms import Room
from replicate.config.schema import validated
from replicate.config.yaml_file import frozen
from replicate.pipeline import launch
from replicate.pipeline.seeds import train_seeds
from replicate.trainers.session import open_session

ROOT = Path(__file__).resolve().parents[1]
LENSES = ROOT / "benchmarks" / "pilot.yaml"
RUNS, TABLE = (ROOT / "benchmarks" / "results" / name for name in ("pilot_runs.csv", "pilot.csv"))
WORK = ROOT / ".replicate" / "pilot"
PAPER = "efficient_learners"
PRETRAIN = {
    "scratch": {"epochs": 0, "warmup_epochs": 0},
    "mae_75": {"mask_ratio": 0.75},
    "mae_95": {"mask_ratio": 0.95},
}
EVALUATE = {
    "scratch_1x": {"pretrain": "scratch", "layer_decay": 1.0},
    "scratch_3x": {"pretrain": "scratch", "layer_decay": 1.0, "epochs": 300},
    "mae_75_llrd_80": {"pretrain": "mae_75", "layer_decay": 0.8},
    "mae_75_llrd_65": {"pretrain": "mae_75", "layer_decay": 0.65},
    "mae_75_llrd_100": {"pretrain": "mae_75", "layer_decay": 1.0},
    "mae_95_llrd_80": {"pretrain": "mae_95", "layer_decay": 0.8},
}
MAE = "mae_75_llrd_80"
CONTRASTS = {
    "mae over scratch": (MAE, "scratch_1x"),
    "mae over scratch, three times as long": (MAE, "scratch_3x"),
    "mae over scratch, all its compute": (MAE, "scratch_all"),
    "mae at llrd 1 over scratch": ("mae_75_llrd_100", "scratch_1x"),
    "llrd 0.80 over 0.65": (MAE, "mae_75_llrd_65"),
    "mask 0.75 over 0.95": (MAE, "mae_95_llrd_80"),
}


def params_of(
    lens: str, candidates: dict, images: str | None, only: list[str] | None = None, seeds: int | None = None
) -> Params:
    """The pilot's runs in the paper's numbers, with the candidate as their only budget but `paper`."""
    settings, budgets, rooms = read_files(ROOT / "params.yaml")
    candidate = dict(candidates["lenses"][lens])
    more = {name: EVALUATE["scratch_1x"] | run for name, run in candidate.pop("runs", {}).items()}
    budget = candidates["shared"] | candidate | ({"seeds": seeds} if seeds else {})
    if budget["data"]["source"] != "photos":
        budget["data"] = budget["data"] | {"source": str(Path(images).resolve())}
    recipes = [room.recipes for room in rooms.values()]
    room = Room(
        title=rooms[PAPER].title,
        recipes={name: recipe for one in recipes for name, recipe in one.items()},
        pretrain={name: {"base": "light_pretrain"} | run for name, run in PRETRAIN.items()},
        evaluate={
            name: {"base": "tuned_finetune"} | run
            for name, run in (EVALUATE | more).items()
            if name in (only or EVALUATE | more)
        },
    )
    changes = {
        "budget": lens,
        "findings": {},
        "runs": {},
        "machine": settings.machine.model_copy(update={"workers": 1}),
    }
    lenses = {lens: validated(Budget, frozen(budget), f"{LENSES}: {lens}."), "paper": budgets["paper"]}
    return assemble(settings.model_copy(update=changes), lenses, {PAPER: room}, str(LENSES))


def cpu_seconds() -> float:
    return sum(os.times()[:2])


def train(lens: str, params: Params) -> None:
    """Train every seed that is missing, seed by seed, and append its row to RUNS."""
    WORK.mkdir(parents=True, exist_ok=True)
    os.chdir(WORK)
    started = cpu_seconds()
    folder = params.data_folder("full")
    if not (folder / "manifest.json").exists():
        launch.write_dataset(params, "full")
        _append({"lens": lens, "run": "data", "seed": 0, "cpu_seconds": cpu_seconds() - started})
    budget = params.budget_named()
    with open_session(params.machine, budget.precision, budget.loader) as session:
        for name in launch.with_upstream(params, params.evaluate_runs):
            context = launch.context_of(params, name, session)
            trainer = launch.trainer_of(context.run)

            spent: dict[int, float] = {}

            def timed(context, seed, store, trainer=trainer, spent=spent):
                started = cpu_seconds()
                outcome = trainer(context, seed, store)
                spent[seed] = cpu_seconds() - started
                return outcome

            for seed, found in enumerate(train_seeds(context, timed)["results"]["per_seed"]):
                _record(
                    {"lens": lens, "run": name, "seed": seed}
                    | {key: found.get(key) for key in ("top1", "val_loss", "loss")},
                    spent.get(seed),
                )


def _record(row: dict, seconds: float | None) -> None:
    """Append a seed's row if it is new. A seed that another lens trained alike costs what it cost there."""
    runs = pd.read_csv(RUNS) if RUNS.exists() else pd.DataFrame(columns=[*row, "cpu_seconds"])
    same = runs[(runs["run"] == row["run"]) & (runs["seed"] == row["seed"])]
    if (same["lens"] == row["lens"]).any():
        return
    if seconds is None:
        score = "val_loss" if row["top1"] is None else "top1"
        alike = same[(same[score] - row[score]).abs() < 1e-3]
        seconds = alike["cpu_seconds"].iloc[0] if len(alike) else math.nan
    _append(row | {"cpu_seconds": seconds})


def _append(row: dict) -> None:
    columns = ["lens", "run", "seed", "top1", "val_loss", "loss", "cpu_seconds"]
    pd.DataFrame([row], columns=columns).round(4).to_csv(
        RUNS, mode="a", header=not RUNS.exists(), index=False
    )
    print(row, flush=True)


def contrasts(runs: pd.DataFrame) -> pd.DataFrame:
    """One line a lens and contrast: effect in points, its half-width of 95 %, noise, and power a CPU-second.

    Noise is the standard deviation of one fine-tuning over seeds, pooled over all runs of the lenses on the
    same images (the lens's name up to its first underscore). Power is (effect / noise) ** 2. Seconds are
    those of one seed of both rows, with the pre-trainings that they need.
    """
    from scipy.special import stdtrit

    rows = []
    images = runs["lens"].str.partition("_")[0]
    for lens, of_lens in runs.groupby("lens", sort=False):
        scored = of_lens.dropna(subset="top1").groupby("run")["top1"]
        noise, freedom = _pooled(runs[images == lens.partition("_")[0]])
        if not freedom:
            continue
        seconds = of_lens.groupby("run")["cpu_seconds"].mean()
        for contrast, (a, b) in CONTRASTS.items():
            if a not in scored.groups or b not in scored.groups:
                continue
            effect = scored.mean()[a] - scored.mean()[b]
            reach = stdtrit(freedom, 0.975) * noise * math.sqrt(1 / scored.count()[a] + 1 / scored.count()[b])
            needed = {a, b} | {name for name in PRETRAIN for run in (a, b) if run.startswith(name)}
            spent = sum(seconds.get(name, 0.0) for name in needed)
            numbers = {
                "a": scored.mean()[a],
                "b": scored.mean()[b],
                "effect": effect,
                "half_width": reach,
                "noise": noise,
                "freedom": freedom,
            }
            power = {"cpu_seconds": spent, "power_per_1000_s": 1000 * (effect / noise) ** 2 / spent}
            rows.append(
                {"lens": lens, "contrast": contrast, "seeds": f"{scored.count()[a]}, {scored.count()[b]}"}
                | numbers
                | power
            )
    return pd.DataFrame(rows).round(2)


def _pooled(runs: pd.DataFrame) -> tuple[float, int]:
    """Standard deviation over seeds within runs, and its degrees of freedom.

    A run that several lenses share counts once.
    """
    scored = (
        runs.dropna(subset="top1").drop_duplicates(["run", "seed", "top1"]).groupby(["lens", "run"])["top1"]
    )
    freedom = int((scored.count() - 1).sum())
    return (
        math.sqrt((scored.var(ddof=1).fillna(0) * (scored.count() - 1)).sum() / freedom)
        if freedom
        else math.nan
    ), freedom


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("lenses", nargs="*", help="candidates of benchmarks/pilot.yaml to train")
    parser.add_argument(
        "--only", nargs="+", metavar="RUN", help="evaluations to run; all where none is named"
    )
    parser.add_argument("--seeds", type=int, help="how many seeds, where not as many as the lens says")
    parser.add_argument("--images", help="folder of class folders for the lenses on real images")
    arguments = parser.parse_args()
    candidates = yaml.safe_load(LENSES.read_text())
    chosen = {
        lens: params_of(lens, candidates, arguments.images, arguments.only, arguments.seeds)
        for lens in arguments.lenses
    }
    for lens, params in chosen.items():
        train(lens, params)
    if RUNS.exists():
        table = contrasts(pd.read_csv(RUNS).drop_duplicates(["lens", "run", "seed"]))
        table.to_csv(TABLE, index=False)
        print(table.to_string())
    return 0


if __name__ == "__main__":
    sys.exit(main())

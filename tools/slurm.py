"""Writes a SLURM submission: one job a DVC stage (inputs, data, pre-training, evaluation), and one job at the end for tables and pages.

    python tools/slurm.py --gpus 8 --time 24:00:00 > submit.sh
    bash submit.sh                       # sbatch once a stage, with the jobs that it has to wait for

    python tools/slurm.py light_90 light_90_llrd_80 --nodes 2 --gpus 8 --partition a100

A job trains its run under torchrun on all its devices, into the store of resumable runs; `dvc repro` of that one stage then takes the finished
result, which costs seconds. DVC allows one of itself at a time in a checkout, so these seconds take turns (flock). A job that runs out of time is
submitted again as it is: the run continues from its checkpoint.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path

from replicate.config import PretrainRun, load
from replicate.errors import UserError

LOCK = ".replicate/dvc.flock"


@dataclass(frozen=True)
class Stage:
    """A DVC stage as a job: its target, the command that trains it (None: DVC alone runs it), and the stages that come first."""

    target: str
    train: tuple[str, ...] | None = None
    after: tuple[str, ...] = field(default_factory=tuple)


def stages(params, names: list[str]) -> list[Stage]:
    """The chosen headline runs (default: all), what they start from, and the tables. Raises UserError for a run that dvc.yaml does not hold."""
    headline = params.headline
    for name in names:
        if name not in headline:
            raise UserError(f"{name} is not a headline run; they are {', '.join(headline)}")
    chosen = {name: headline[name] for name in names or headline}
    chosen = {run.pretrain: params.run(run.pretrain) for run in chosen.values() if not isinstance(run, PretrainRun)} | chosen
    datasets = dict.fromkeys(run.dataset for run in chosen.values())
    found = [Stage("inputs"), *(Stage(f"data@{dataset}", after=("inputs",)) for dataset in datasets)]
    for name, run in chosen.items():
        kind = "pretrain" if isinstance(run, PretrainRun) else "evaluate"
        after = ("inputs", f"data@{run.dataset}") + (() if kind == "pretrain" else (f"pretrain@{run.pretrain}",))
        found.append(Stage(f"{kind}@{name}", ("-m", "replicate", kind, name), after))
    return sorted(found, key=lambda stage: ("inputs", "data", "pretrain", "evaluate").index(stage.target.partition("@")[0]))


def batch(stage: Stage, options: argparse.Namespace) -> str:
    """The batch script of one stage."""
    lines = ["#!/bin/bash", f"#SBATCH --job-name={stage.target}", f"#SBATCH --output=.replicate/slurm/{stage.target}.%j.log"]
    if stage.train:
        lines += [f"#SBATCH --nodes={options.nodes}", "#SBATCH --ntasks-per-node=1", f"#SBATCH --gpus-per-node={options.gpus}"]
        lines += [f"#SBATCH --time={options.time}", "#SBATCH --requeue", "#SBATCH --signal=TERM@120"]
    if options.partition:
        lines.append(f"#SBATCH --partition={options.partition}")
    lines += ["set -euo pipefail", f"cd {shlex.quote(str(options.folder))}"]
    if stage.train:
        train = " ".join(shlex.quote(word) for word in stage.train)
        lines += [
            'head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)',
            f"srun torchrun --nnodes {options.nodes} --nproc-per-node {options.gpus} --rdzv-id $SLURM_JOB_ID --rdzv-backend c10d "
            f"--rdzv-endpoint $head:29500 {train}",
        ]
    alone = "" if stage.target == "inputs" else "--single-item "  # the inputs come with the stripped notebooks that they are read from
    return "\n".join([*lines, f"flock {LOCK} dvc repro {alone}{shlex.quote(stage.target)}", ""])


def submission(found: list[Stage], options: argparse.Namespace) -> str:
    """A shell script that submits every stage with the jobs it waits for."""
    lines = ["#!/bin/bash", "set -euo pipefail", f"cd {shlex.quote(str(options.folder))}", "mkdir -p .replicate/slurm", "declare -A job"]
    known = {stage.target for stage in found}
    for stage in found:
        waits = "".join(f":${{job[{target}]}}" for target in stage.after if target in known)
        depend = f" --dependency=afterok{waits}" if waits else ""
        lines += [f"job[{stage.target}]=$(sbatch --parsable{depend} <<'BATCH'", batch(stage, options) + "BATCH", ")"]
    everything = "".join(f":${{job[{stage.target}]}}" for stage in found)
    last = batch(Stage("tables"), options).replace("dvc repro --single-item tables", "dvc repro")
    lines += [f"sbatch --parsable --dependency=afterany{everything} <<'BATCH'", last + "BATCH", ""]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", help="headline runs of params.yaml (default: all)")
    parser.add_argument("--params", default="params.yaml")
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--gpus", type=int, default=8, help="a node (default: %(default)s)")
    parser.add_argument("--time", default="24:00:00", help="limit of one job (default: %(default)s)")
    parser.add_argument("--partition", help="SLURM partition")
    parser.add_argument("--folder", type=Path, default=Path.cwd(), help="the checkout, on a file system that all nodes share")
    options = parser.parse_args(arguments)
    try:
        print(submission(stages(load(options.params), options.runs), options), end="")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Write a SLURM submission: one job a DVC stage (inputs, data, pre-training, evaluation), and one for tables
and pages.

    python tools/slurm.py --gpus 8 --time 24:00:00 > submit.sh
    bash submit.sh                       # submits every job with those it waits for

    python tools/slurm.py light_90 light_90_llrd_80 --nodes 2 --gpus 8 --partition a100

A job trains its run under torchrun on all its devices, into the store of resumable runs. Then `dvc repro` of
that one stage takes the finished result, which costs seconds. DVC runs once at a time in a checkout, so jobs
take turns (flock). Submit a job that ran out of time again: the run continues from its checkpoint.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

from replicate.config import Params, load
from replicate.errors import UserError
from replicate.pipeline.stages import group_of

LOCK = ".replicate/dvc.flock"


@dataclass(frozen=True)
class Stage:
    """A DVC stage as a job. train: the arguments of python that train it; None: DVC runs it alone."""

    target: str
    train: tuple[str, ...] | None = None
    after: tuple[str, ...] = ()


def stages(params: Params, names: list[str]) -> list[Stage]:
    """Headline runs (default: all) with what they start from, in order. Raises UserError for another run."""
    for name in names:
        if name not in params.headline:
            raise UserError(f"{name} is not a headline run; they are {', '.join(params.headline)}")
    chosen = dict.fromkeys(one for name in names or params.headline for one in _chain(params, name))
    datasets = dict.fromkeys(f"data@{params.run(name).dataset}" for name in chosen)
    return [
        Stage("inputs"),
        *(Stage(target, after=("inputs",)) for target in datasets),
        *(_training(params, name) for name in chosen),
    ]


def _chain(params: Params, name: str) -> list[str]:
    """A run behind all that it starts from."""
    upstream = params.upstream_of(name)
    return [*_chain(params, upstream), name] if upstream else [name]


def _training(params: Params, name: str) -> Stage:
    group, upstream = group_of(params, name), params.upstream_of(name)
    after = ("inputs", f"data@{params.run(name).dataset}")
    if upstream:
        after += (f"{group_of(params, upstream)}@{upstream}",)
    return Stage(f"{group}@{name}", ("-m", "replicate", group, name), after)


def batch(stage: Stage, repro: str, options: argparse.Namespace) -> str:
    """The batch script of one stage; `repro` is its DVC command."""
    log = f".replicate/slurm/{stage.target}.%j.log"
    lines = ["#!/bin/bash", f"#SBATCH --job-name={stage.target}", f"#SBATCH --output={log}"]
    if stage.train:
        lines += [f"#SBATCH --nodes={options.nodes}", "#SBATCH --ntasks-per-node=1"]
        lines += [f"#SBATCH --gpus-per-node={options.gpus}", f"#SBATCH --time={options.time}"]
        lines += ["#SBATCH --requeue", "#SBATCH --signal=TERM@120"]
    if options.partition:
        lines.append(f"#SBATCH --partition={options.partition}")
    lines += ["set -euo pipefail", f"cd {shlex.quote(str(options.folder))}"]
    if stage.train:
        lines.append('head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)')
        rendezvous = "--rdzv-id $SLURM_JOB_ID --rdzv-backend c10d --rdzv-endpoint $head:29500"
        shape = f"--nnodes {options.nodes} --nproc-per-node {options.gpus}"
        lines.append(f"srun torchrun {shape} {rendezvous} {shlex.join(stage.train)}")
    return "\n".join([*lines, f"flock {LOCK} {repro}", ""])


def submission(found: list[Stage], options: argparse.Namespace) -> str:
    """A shell script that submits every stage with the jobs it waits for."""
    folder = shlex.quote(str(options.folder))
    lines = [
        "#!/bin/bash",
        "set -euo pipefail",
        f"cd {folder}",
        "mkdir -p .replicate/slurm",
        "declare -A job",
    ]
    for stage in found:
        waits = "".join(f":${{job[{target}]}}" for target in stage.after)
        depend = f" --dependency=afterok{waits}" if waits else ""
        script = batch(stage, f"dvc repro --single-item {shlex.quote(stage.target)}", options)
        lines += [f"job[{stage.target}]=$(sbatch --parsable{depend} <<'BATCH'", script + "BATCH", ")"]
    everything = "".join(f":${{job[{stage.target}]}}" for stage in found)
    last = batch(Stage("tables"), "dvc repro", options)
    lines += [f"sbatch --parsable --dependency=afterany{everything} <<'BATCH'", last + "BATCH", ""]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="*", help="headline runs (default: all)")
    parser.add_argument("--params", default="params.yaml")
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--gpus", type=int, default=8, help="a node (default: %(default)s)")
    parser.add_argument("--time", default="24:00:00", help="limit of one job (default: %(default)s)")
    parser.add_argument("--partition", help="SLURM partition")
    where = "the checkout, on a file system that all nodes share"
    parser.add_argument("--folder", type=Path, default=Path.cwd(), help=where)
    options = parser.parse_args(arguments)
    try:
        print(submission(stages(load(options.params), options.runs), options), end="")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

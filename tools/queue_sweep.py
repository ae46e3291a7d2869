"""Write the commands that queue a sweep in DVC: one experiment a value, then `dvc queue start`.

    python tools/queue_sweep.py light_90_llrd_80.layer_decay 0.7 0.75 0.8 --jobs 2 | bash

Each experiment sets the value under `runs:` in params.yaml, in a copy of the repository under .dvc/tmp/exps.
`dvc exp show` lists the results; `dvc exp apply NAME` takes one over.
"""

from __future__ import annotations

import argparse
import re
import shlex
import subprocess
import sys
from pathlib import Path

from replicate.config import Params, load
from replicate.config.datasets import source_path
from replicate.errors import UserError
from replicate.loaders.data import PHOTOS
from replicate.names import closest
from replicate.pipeline.launch import with_upstream
from replicate.pipeline.stages import group_of

KEY = re.compile(r"([\w-]+)\.([\w.]+)")


def commands(params: Params, key: str, values: list[str], jobs: int) -> list[list[str]]:
    """Argument lists of `dvc exp run --queue`, one a value, and of `dvc queue start`.

    Raises UserError for an unknown run or key, or images that an experiment's copy would lack.
    """
    match = KEY.fullmatch(key)
    if match is None:
        raise UserError(f"{key}: write RUN.KEY, such as light_90_llrd_80.layer_decay")
    name, option = match.groups()
    if name not in params.headline:
        raise UserError(f"{key}: '{name}' is not a headline run; they are {', '.join(params.headline)}")
    options = type(params.headline[name]).model_fields
    first = option.partition(".")[0]
    if first not in options:
        raise UserError(f"{key}: the run {name} has no key '{option}'{closest(first, options)}")
    _refuse_untracked(params, name)
    queued = []
    for value in values:
        label = re.sub(r"[^\w-]", "_", f"{name}-{option}-{value}")
        setting = ["-S", f"++runs.{key}={value}"]
        queued.append(
            ["dvc", "exp", "run", "--queue", "--name", label, *setting, f"{group_of(params, name)}@{name}"]
        )
    return [*queued, ["dvc", "queue", "start", "-j", str(jobs)]]


def _refuse_untracked(params: Params, name: str) -> None:
    datasets = {params.runs[one].dataset for one in with_upstream(params, [name])}
    sources = {params.dataset(dataset).source for dataset in datasets} - {PHOTOS}
    for source in map(str, map(source_path, sources)):
        if Path(source).expanduser().is_absolute():
            continue
        if not subprocess.run(["git", "ls-files", "--", source], capture_output=True, text=True).stdout:
            where = "queued experiments run in copies of the repository, which would lack it"
            advice = f"State an absolute path: {Path(source).resolve()}"
            raise UserError(f"source {source}: not in git; {where}. {advice}")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("key", help="what the sweep varies: RUN.KEY")
    parser.add_argument("values", nargs="+")
    parser.add_argument("--jobs", type=int, default=1, help="experiments at once (default: %(default)s)")
    parser.add_argument("--params", default="params.yaml")
    options = parser.parse_args(arguments)
    try:
        for command in commands(load(options.params), options.key, options.values, options.jobs):
            print(shlex.join(command))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

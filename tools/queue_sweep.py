"""Writes the commands that queue a sweep in DVC: one experiment a value, then `dvc queue start`.

    python tools/queue_sweep.py light_90_llrd_80.layer_decay 0.7 0.75 0.8 --jobs 2 | bash

Each experiment runs in a copy of the repository under .dvc/tmp/exps; `dvc exp show` lists what came out, `dvc exp apply NAME` takes one over.
"""

from __future__ import annotations

import argparse
import re
import shlex
import sys

from replicate.config import load
from replicate.errors import UserError
from replicate.pipeline.stages import group_of

KEY = re.compile(r"([\w-]+)\.([\w.]+)")


def commands(params, key: str, values: list[str], jobs: int) -> list[list[str]]:
    """`dvc exp run --queue` once a value and `dvc queue start`, as argument lists.

    A sweep adds to `runs` in params.yaml. Raises UserError for an unknown run or key.
    """
    match = KEY.fullmatch(key)
    if match is None:
        raise UserError(f"{key}: write RUN.KEY, such as light_90_llrd_80.layer_decay")
    name, option = match.groups()
    if name not in params.headline:
        raise UserError(f"{key}: '{name}' is not a headline run; they are {', '.join(params.headline)}")
    kind = group_of(params, name)
    if option.partition(".")[0] not in type(params.headline[name]).model_fields:
        raise UserError(f"{key}: the run {name} has no key '{option}'")
    queued = []
    for value in values:
        label = re.sub(r"[^\w-]", "_", f"{name}-{option}-{value}")
        queued.append(["dvc", "exp", "run", "--queue", "--name", label, "-S", f"++runs.{key}={value}", f"{kind}@{name}"])
    return [*queued, ["dvc", "queue", "start", "-j", str(jobs)]]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
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

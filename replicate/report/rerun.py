"""Which runs a claim rests on, and the commands that run them again."""

from __future__ import annotations

from collections.abc import Container
from typing import TYPE_CHECKING, Any

from replicate.config import published
from replicate.pipeline.stages import group_of

if TYPE_CHECKING:
    from replicate.config import Params

SHOWN = 12
"""Commands beyond these are counted, not listed."""


def runs_of(claim: dict[str, Any], known: Container[str] | None = None) -> list[str]:
    """The runs that a claim's checks read, in their order, those among `known` where it is given; none where it is decided by computation.

    Without `known`, names of functions and metrics may be among them: what a check says in words is a name like any other.
    """
    sweeps = published.sweeps()
    found: dict[str, None] = {}
    for text in published.texts(claim["checks"]):
        names = sweeps[text].points.values() if text in sweeps else [text]
        found |= dict.fromkeys(place.partition("/")[0] for place in names)
    return [name for name in found if known is None or name in known]


def measures_loaders(claim: dict[str, Any]) -> bool:
    """Whether a claim rests on what `python -m replicate bench loader` measures."""
    return any(text.startswith("loader_") for text in published.texts(claim["checks"]))


def benchmarks(claim: dict[str, Any]) -> list[str]:
    """Shell commands that measure again the committed benchmarks that a claim rests on."""
    files = dict.fromkeys(spec["file"] for spec in claim["checks"] if spec["kind"] == "benchmark")
    return [f"python benchmarks/{file}.py" for file in files]


def commands(runs: list[str], params: Params, budget: str, loaders: bool = False) -> list[str]:
    """Shell commands that train these runs, what they start from included, at a budget, and with `loaders` measure the loaders."""
    headline = [f"{group_of(params, name)}@{name}" for name in runs if name not in params.grid]
    grid = [f"make grid TARGET={group_of(params, name)}@{name}" for name in runs if name in params.grid]
    lines = [f"python -m replicate budget {budget}"]
    lines += [f"dvc repro {' '.join(headline)}"] if headline else []
    lines += grid if len(grid) <= SHOWN else [*grid[:SHOWN], f"# and {len(grid) - SHOWN} more in the same way, or all of them: make grid"]
    bench = ["python -m replicate bench loader --images FOLDER"] * loaders
    return [*bench, *lines] if runs else [*bench, "python -m replicate scoreboard"]

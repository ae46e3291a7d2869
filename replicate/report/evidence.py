"""What a claim rests on: its runs, their scale, and the commands that run them again."""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from replicate.config import published
from replicate.pipeline.stages import group_of
from replicate.report import loader_runs
from replicate.report.results import Run

if TYPE_CHECKING:
    from replicate.config import Params

SHOWN = 12
"""Commands beyond these are counted, not listed."""


def runs_of(claim: dict[str, Any], known: Container[str] | None = None) -> list[str]:
    """The runs that a claim's checks read, in their order; only those among `known` where it is given.

    Without `known`, names of functions and metrics may be among them.
    """
    sweeps = published.sweeps()
    found: dict[str, None] = {}
    for text in published.texts(claim["checks"]):
        names = sweeps[text].points.values() if text in sweeps else [text]
        found |= dict.fromkeys(place.partition("/")[0] for place in names)
    return [name for name in found if known is None or name in known]


def commands(claim: dict[str, Any], params: Params, budget: str) -> list[str]:
    """Shell commands that measure a claim again at a budget: its benchmarks and its runs."""
    files = dict.fromkeys(spec["file"] for spec in claim["checks"] if spec["kind"] == "benchmark")
    lines = [f"python benchmarks/{file}.py" for file in files]
    if any(text.startswith("loader_") for text in published.texts(claim["checks"])):
        lines.append("python -m replicate bench loader --images FOLDER")
    runs = runs_of(claim, params.runs)
    if not runs:
        return [*lines, "python -m replicate scoreboard"]
    headline, grid = ([name for name in runs if (name in params.grid) == asked] for asked in (False, True))
    lines.append(f"python -m replicate budget {budget}")
    if headline:
        lines.append(f"dvc repro {' '.join(f'{group_of(params, name)}@{name}' for name in headline)}")
    lines += [f"make grid TARGET={group_of(params, name)}@{name}" for name in grid[:SHOWN]]
    more = len(grid) - SHOWN
    return lines + [f"# and {more} more in the same way, or all of them: make grid"] * (more > 0)


def scale_of(runs: Sequence[Run], params: Params, budget: str) -> str:
    """At what scale runs were tested: data, image, model and schedule, each with all values that occur.

    "data/tiny-imagenet, 10 classes; 56 px; ViT 128 wide, 6 blocks, patch 8; pre-trained 9 or 12 epochs;
    evaluated after 3; 3 seeds; cpu". Nothing for no runs.
    """
    if not runs:
        return ""
    if all(run.paper == loader_runs.PAPER for run in runs):
        return f"{_either(run.run['images'] for run in runs)} images on {_devices(runs)}"
    upstream = dict.fromkeys(str(run.resolved.get("pretrain", "")).rpartition("/")[2] for run in runs)
    resolved = [run.resolved for run in runs if run.resolved]
    resolved += [
        params.resolve(name, budget).model_dump(mode="json") for name in upstream if name in params.runs
    ]
    epochs = {
        words: [one["epochs"] for one in resolved if ("protocol" in one) == evaluated and "epochs" in one]
        for words, evaluated in (("pre-trained {} epochs", False), ("evaluated after {}", True))
    }
    parts = [
        _either(_data(one["dataset"], params, budget) for one in resolved if "dataset" in one),
        f"{_either(one['image_size'] for one in resolved if 'image_size' in one)} px",
        _either(text for one in resolved if (text := _model(one))),
        *(words.format(_either(found)) for words, found in epochs.items() if any(found)),
        f"{_either(len(run.seeds) for run in runs)} seeds",
        _devices(runs),
    ]
    return "; ".join(part for part in parts if part)


def _data(name: str, params: Params, budget: str) -> str:
    dataset = params.dataset(name, budget)
    return dataset.source + (f", {dataset.classes} classes" if dataset.classes else "")


def _model(resolved: dict[str, Any]) -> str:
    """Width and depth of a Vision Transformer, the name of any other backbone; nothing for an evaluation."""
    if "backbone" not in resolved:
        return ""
    from replicate.config.backbones import is_plain_vit, vit_backbone

    kwargs = resolved.get("backbone_kwargs", {})
    if not is_plain_vit(resolved["backbone"], kwargs):
        return resolved["backbone"]
    sizes = vit_backbone(resolved["backbone"], **kwargs).kwargs
    return f"ViT {sizes['embed_dim']} wide, {sizes['depth']} blocks, patch {sizes['patch_size']}"


def _devices(runs: Sequence[Run]) -> str:
    return _either(run.device for run in runs)


def _either(values: Iterable[Any]) -> str:
    """All values that occur, each once, numbers in their order."""
    found = dict.fromkeys(values)
    ordered = sorted(found) if all(isinstance(value, int | float) for value in found) else list(found)
    return " or ".join(f"{one:g}" if isinstance(one, float) else str(one) for one in ordered if one != "")

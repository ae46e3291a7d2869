"""What a claim rests on: its runs, their scale, and the commands that run them again."""

from __future__ import annotations

import functools
from collections.abc import Container, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from replicate.config import published
from replicate.pipeline.stages import group_of
from replicate.report import loader_runs
from replicate.report.results import Results, Run

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


def regime(claim: dict[str, Any], results: Results) -> str:
    """At what scale a claim was tested, with the budget: what a verdict at proxy scale holds for."""
    used = [results.runs[name] for name in runs_of(claim, results.runs)]
    scale = scale_of(used, results) if used else ""
    trained = not used or any(run.paper != loader_runs.PAPER for run in used)
    return "; ".join(part for part in (scale, f"budget {results.budget}" * trained) if part)


def scale_of(runs: Sequence[Run], results: Results) -> str:
    """At what scale runs were tested: data, image, model and schedule, each with all values that occur.

    "tiny-imagenet, 10 classes; 56 px; ViT 128 wide, 6 blocks, patch 8; pre-trained 9 epochs (2,808 steps);
    evaluated after 6 (1,872 steps); 3 seeds; cpu". Nothing for no runs; what `results` lack is left out.
    """
    if not runs:
        return ""
    if all(run.paper == loader_runs.PAPER for run in runs):
        return f"{_either(run.run['images'] for run in runs)} images on {_devices(runs)}"
    if all(run.kind == "invariance" for run in runs):
        counted = _either(f"{run.per_seed[0]['images']:,.0f}" for run in runs)
        sizes = _either(run.resolved["image_size"] for run in runs)
        return (
            f"{_either(_data(run.resolved, results) for run in runs)}; {counted} images; {sizes} px; no model"
        )
    upstream = dict.fromkeys(str(run.resolved.get("pretrain", "")).rpartition("/")[2] for run in runs)
    trained = [run for run in runs if run.resolved]
    trained += [results.runs[name] for name in upstream if name in results.runs]
    resolved = [run.resolved for run in trained] + _elsewhere(upstream, results)
    seen = [run for run in trained if run.kind == "pretrain"] or trained
    parts = [
        _either(_data(one, results) for one in resolved if "dataset" in one),
        _with(" images an epoch", _few(sorted({_images(run.path)[0] for run in seen} - {0}))),
        _with(" labels a class to evaluate", _either(filter(None, map(_labels, resolved)))),
        _with(" px", _either(one["image_size"] for one in resolved if "image_size" in one)),
        _either(text for one in resolved if (text := model_text(one))),
        _schedule("pre-trained {} epochs", resolved, trained, evaluated=False),
        _schedule("evaluated after {}", resolved, trained, evaluated=True),
        f"{_either(len(run.seeds) for run in runs)} seeds",
        _devices(runs),
    ]
    return "; ".join(part for part in parts if part)


def pretrainings(spec: dict[str, Any], results: Results) -> list[Run]:
    """The finished pre-trainings that a check rests on, as its own runs or as the start of one."""
    used = [results.runs[name] for name in runs_of({"checks": [spec]}, results.runs)]
    starts = [str(run.resolved.get("pretrain", "")).rpartition("/")[2] for run in used]
    found = {run.name: run for run in used if run.kind == "pretrain"}
    return list((found | {name: results.runs[name] for name in starts if name in results.runs}).values())


def images_seen(run: Run) -> int:
    """Images in all that one seed saw; 0 where the run left no history."""
    return _images(run.path)[1]


def _with(unit: str, text: str) -> str:
    return text + unit if text else ""


def _elsewhere(names: Iterable[str], results: Results) -> list[dict[str, Any]]:
    """What pre-trainings resolve to whose own results are not here."""
    params = results.params
    if params is None:
        return []
    absent = [name for name in names if name in params.runs and name not in results.runs]
    return [params.resolve(name, results.budget).model_dump(mode="json") for name in absent]


def _schedule(words: str, resolved: list[dict[str, Any]], runs: Sequence[Run], evaluated: bool) -> str:
    """Epochs and steps, "pre-trained 9 or 12 epochs (2,808 or 3,744 steps)"; nothing for no epochs."""
    epochs = [one["epochs"] for one in resolved if ("protocol" in one) == evaluated and "epochs" in one]
    steps = {_steps(run) for run in runs if ("protocol" in run.resolved) == evaluated} - {0}
    counted = f" ({_few(sorted(steps))} steps)" if steps else ""
    return words.format(_either(epochs)) + counted if any(epochs) else ""


def _few(numbers: Sequence[int]) -> str:
    """Two numbers, or from where to where more of them go."""
    texts = [f"{number:,}" for number in numbers]
    return f"{texts[0]} to {texts[-1]}" if len(texts) > 2 else " or ".join(texts)


def _steps(run: Run) -> int:
    """Updates of one seed; 0 where the run left no history."""
    batch = run.resolved.get("batch_size")
    return round(_images(run.path)[1] / batch) if batch else 0


@functools.cache
def _images(metrics: Path | None) -> tuple[int, int]:
    """Images an epoch and images in all that one seed saw, from the history beside a run's numbers."""
    path = metrics.with_name("history.csv") if metrics is not None else None
    history = pd.read_csv(path) if path is not None and path.exists() else pd.DataFrame()
    if "images" not in history:
        return 0, 0
    return int(history.images.max()), int(history.groupby("seed").images.sum().max())


def _data(resolved: dict[str, Any], results: Results) -> str:
    """The images of a run: "tiny-imagenet, 10 classes"."""
    params, name = results.params, resolved["dataset"]
    if params is None or name not in params.datasets:
        return ""
    dataset = params.dataset(name, results.budget)
    return ", ".join(
        [dataset.source.removeprefix("data/"), *[f"{dataset.classes} classes"] * bool(dataset.classes)]
    )


def _labels(resolved: dict[str, Any]) -> int | None:
    return resolved.get("labels_per_class")


def model_text(resolved: dict[str, Any]) -> str:
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

"""What each stage depends on besides data: what the files state of a run, and digests of its code.

DVC does not follow imports, and reads the whole of a file for each stage that names it under `params:`. The
stage `inputs` writes one small JSON file a stage instead.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from replicate.config import ROOMS, EvaluateRun, Params, load
from replicate.config.loading import read_files
from replicate.pipeline.digests import code_of, data_digest, digest, report_digest, search_digest
from replicate.pipeline.stages import refuse_stale


def write_inputs(path: str | Path, folder: Path) -> None:
    """Check the configuration and write every stage's inputs under `folder`:

    runs/<run>.json, searches/<search>.json, data/<dataset>.json, notebook/<paper>.json, published.json,
    report.json, budgets/<budget>.json, and budgets/<budget>.data.json with what the budget says of the data.

    Leaves files alone that would not change, and deletes those of runs that are gone. Raises UserError as
    `replicate.config.load` does, or when `stages.yaml` is stale, and then writes nothing.
    """
    params = load(path)
    refuse_stale(params, path)
    contents = {
        folder / f"{name}.json": json.dumps(content, indent=1) + "\n"
        for name, content in inputs(params, path)
    }
    for file in folder.rglob("*.json"):
        if file not in contents:
            file.unlink()
    for file, text in contents.items():
        if not file.exists() or file.read_text(encoding="utf-8") != text:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")


def inputs(params: Params, path: str | Path) -> Iterator[tuple[str, Any]]:
    """(name, content) of every file."""
    for name, budget in read_files(path)[1].items():
        stated = budget.model_dump(mode="json", exclude_unset=True)
        yield f"budgets/{name}", stated
        yield (
            f"budgets/{name}.data",
            {key: stated.get(key, {}) for key in ("data", "datasets")} | {"image_scale": budget.image_scale},
        )
    for name, dataset in params.datasets.items():
        yield (
            f"data/{name}",
            {
                "stated": dataset.model_dump(mode="json", exclude_unset=True),
                "code": data_digest(dataset.layout),
            },
        )
    stated = {
        name: run.model_dump(mode="json", exclude_unset=True)
        for name, run in (params.runs | params.searches).items()
    }
    for name, run in params.runs.items():
        source = params.pretrain_runs[run.pretrain] if isinstance(run, EvaluateRun) else None
        chain = list(_chain(params, name))
        boxes = {one: found.content["sha256"] for one in chain if (found := params.box(one))}
        parts = {"stated": [stated[one] for one in chain], "code": code_of(run, source)}
        yield f"runs/{name}", parts | ({"boxes": boxes} if boxes else {})
    for name, search in params.searches.items():
        source = params.pretrain_runs[search.pretrain]
        parts = [stated[name], stated[search.pretrain]]
        yield (
            f"searches/{name}",
            {"stated": parts, "code": code_of(search, source) | {"search": search_digest()}},
        )
    published = digest(
        file for file in ROOMS.rglob("*.*") if file.name != "runs.yaml" and file.suffix != ".md"
    )
    yield "published", published
    for paper, title in params.papers.items():
        own = {name: one for name, one in stated.items() if one["paper"] == paper}
        yield (
            f"notebook/{paper}",
            {"title": title, "stated": own, "code": report_digest(), "published": published},
        )
    shown = {"papers": params.papers, "findings": params.findings}
    yield "report", shown | {"stated": stated, "code": report_digest(), "published": published}


def _chain(params: Params, name: str) -> Iterator[str]:
    """The run and all that it starts from: what those are made of is not all in their weights."""
    current: str | None = name
    while current is not None:
        yield current
        current = params.upstream_of(current)

"""What each stage of the pipeline depends on besides data: its part of params.yaml, and a digest of every file that its command imports.

DVC follows no imports, and reads the whole of params.yaml anew for each stage that names a part of it as `params:`. The stage `inputs` does both
once, a small JSON file for each stage to depend on: touching `targets/hog.py` changes the files of the runs that predict HOG, and of no other.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from replicate.params import Params, load, stated
from replicate.sources import LENS, PACKAGE, ROOT, closure, digest_of, evaluate_entries, notebook_entries, pretrain_entries, tokenizer_entries

ENTRIES = {
    "pretrain": pretrain_entries,
    "evaluate": evaluate_entries,
    "tokenizers": tokenizer_entries,
    "pretrain_tokens": pretrain_entries,
    "teach": evaluate_entries,
    "distill": pretrain_entries,
    "score": evaluate_entries,
    "analyse": evaluate_entries,
}
"""Sections of runs in params.yaml, and what gives the modules that such a run's command starts from."""
REPORT = ("report", "cost", "intervals.py", "provenance.py")
"""Notebooks, scoreboard and site take these as a whole: whatever they show may be asked for by name."""


def write_inputs(path: str | Path, folder: Path) -> None:
    """Check `path` (params.yaml) and write the inputs of every stage under `folder`: `pretrain/light_90.json`, `grid/evaluate/mae_token_ft.json`,
    `data/full.json`, `searches/light_90_images.json`, `notebook/mae.json`, `report.json`, and of each budget `budgets/laptop.json` and what it
    says of the data, `budgets/laptop.data.json`. Files that would not change are left alone, those of runs no longer stated are removed.

    Raises UserError as `replicate.params.load` does, and then touches nothing.
    """
    params = load(path)
    texts = {folder / f"{name}.json": json.dumps(content, indent=1) + "\n" for name, content in inputs(params, stated(path))}
    for file in folder.rglob("*.json"):
        if file not in texts:
            file.unlink()
    for file, text in texts.items():
        if not file.exists() or file.read_text(encoding="utf-8") != text:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")


def inputs(params: Params, content: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Name and content of every file; `content` is params.yaml as it states things, `params` as they were checked."""
    grid, searches = content.get("grid", {}), content.get("searches", {})
    runs = {name: run for group in (content, grid) for section in ENTRIES for name, run in group.get(section, {}).items()}
    for name, budget in content["budgets"].items():
        yield f"budgets/{name}", budget
        yield f"budgets/{name}.data", {"data": budget.get("data", {}), "image_scale": budget.get("image_scale", 1.0)}
    for name, search in searches.items():
        modules = ("replicate.trainers.search", *evaluate_entries(params.searches[name]))
        yield f"searches/{name}", _stage([search, runs[params.searches[name].pretrain_name]], *modules)
    for prefix, group in (("", content), ("grid/", grid)):
        for name, dataset in group.get("datasets", {}).items():
            yield f"{prefix}data/{name}", _stage([dataset], "replicate.loaders.data")
        for section, entries in ENTRIES.items():
            for name, run in group.get(section, {}).items():
                yield f"{prefix}{section}/{name}", _stage([run, *_upstream(params, name, runs)], *entries(params.run(name)))
    for name, paper in params.papers.items():
        own = {key: run for key, run in (runs | searches).items() if run["paper"] == name}
        files = [*closure(*notebook_entries(ROOT / paper.notebook)), *_report_files()]
        yield f"notebook/{name}", {"stated": [content["papers"][name], own], "code": _digests(files)}
    yield "report", {"stated": [content["papers"], content.get("findings"), runs, searches], "code": _digests(_report_files())}


def _upstream(params: Params, name: str, runs: dict[str, Any]) -> Iterator[Any]:
    """What the file states of the runs whose weights a run starts from: what they are made of is not all in the weights."""
    while (upstream := params.upstream_of(name)) is not None:
        name = upstream
        yield runs[name]


def _stage(part: list[Any], *modules: str) -> dict[str, Any]:
    lens = [(PACKAGE / name).relative_to(ROOT) for name in LENS]
    return {"stated": part, "code": _digests([*closure(*modules), *lens])}


def _report_files() -> list[Path]:
    parts = [PACKAGE / part for part in REPORT]
    files = (file for part in parts for file in ([part] if part.is_file() else part.rglob("*")))
    return [file.relative_to(ROOT) for file in files if file.is_file() and "__pycache__" not in file.parts]


def _digests(files: Iterable[Path]) -> dict[str, str]:
    return {str(file): digest_of(file) for file in sorted(set(files))}

"""What the searches for layer-wise lr decay found, for a notebook."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

if TYPE_CHECKING:
    from replicate.report.book import Book

COLUMNS = ["searched on", "recommended", "fine-tuning images", "full set at the recommended", "full set at the default 0.65"]


def searches(book: Book, default_run: str) -> pd.DataFrame:
    """A line a search of the book's paper: where it searched and what it recommends, with its interval; the images of one epoch on the
    subset against the full set, and what the recommendation is worth there, beside the run at the default decay. Blank where not run.
    """
    lines = {name: _line(book, name, default_run) for name, search in book.params.searches.items() if search.paper == book.paper}
    return pd.DataFrame.from_dict(lines, orient="index", columns=COLUMNS)


def _line(book: Book, name: str, default_run: str) -> list[str]:
    search = book.params.searches[name]
    folder = book.root / book.params.search_folder(name, book.results.budget)
    if book.scope != "full":
        return [search.dataset, f"in the grid: make grid TARGET=search@{name}", "", "", ""]
    found, applied = (_content(folder / file) for file in ("search.json", "applied.json"))
    if found is None:
        return [search.dataset, f"not run: python -m replicate search llrd {name}", "", "", ""]
    default = book.reader.estimate(default_run)._asdict() if default_run in book.results else None
    images = [_images(book, dataset) for dataset in (search.dataset, search.full)]
    return [
        search.dataset,
        _text(found["recommended"], "layer_decay", "g"),
        f"{images[0]:,} of {images[1]:,}" if all(images) else "",
        _text(applied, "top1", ".1f") if applied else "",
        _text(default, "value", ".1f") if default else "",
    ]


def _text(found: dict[str, Any], key: str, form: str) -> str:
    low, high = found["low"], found["high"]
    bounded = low is not None and low == low
    return format(found[key], form) + (f" [{format(low, form)}, {format(high, form)}]" if bounded else "")


def _images(book: Book, dataset: str) -> int | None:
    manifest = _content(book.root / book.params.data_folder(dataset, book.results.budget) / "manifest.json")
    return manifest and manifest["splits"]["train"]["images"]


def _content(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text()) if path.exists() else None

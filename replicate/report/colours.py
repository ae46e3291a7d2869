"""What a status or a verdict looks like on the site: a kind with its colour and its mark."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

KINDS = {"good": "✓", "bad": "✗", "open": "?", "derived": "=", "differs": "≠", "waiting": "·"}
"""Kind -> mark, so that no reader depends on colour. Styles of these names are in docs/_static/site.css."""

_WORDS = {
    "good": ("reproduced", "confirmed", "shown"),
    "bad": ("opposite", "contradicted", "differs"),
    "open": ("inconclusive",),
    "derived": ("derived", "arithmetic"),
}


def kind_of(line: Mapping[str, Any] | str) -> str:
    """The kind of a verdict, or of a number by its columns `status` and `agreement`."""
    word = line if isinstance(line, str) else line["status"]
    found = next((kind for kind, parts in _WORDS.items() if any(part in word for part in parts)), "waiting")
    if found == "derived" and not isinstance(line, str) and line.get("agreement") == "differs":
        return "differs"
    return found

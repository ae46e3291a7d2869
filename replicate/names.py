"""Close names for an unknown one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def closest(name: str, known: Iterable[str], limit: int = 6) -> str:
    """The end of an error message: all of a few known names, or the closest of many.

    Names that contain the whole of `name` come first. Only the last part of a path counts.
    """
    known = sorted(known, key=lambda one: (len(one), one))
    if len(known) <= limit:
        return f"; known are {', '.join(known)}" if known else "; there is none"
    last = name.strip("/").lower().rpartition("/")[2]
    holding = [one for one in known if last and last in one.lower()]
    by_text = {one.lower().rpartition("/")[2]: one for one in known}
    alike = [by_text[text] for text in difflib.get_close_matches(last, by_text, n=limit, cutoff=0.5)]
    found = list(dict.fromkeys([*holding, *alike]))[:limit]
    if found:
        return f"; did you mean {', '.join(found)}?"
    return f"; there are {len(known)}, such as {', '.join(known[:3])}"

"""The one exception that a person, rather than a programmer, is meant to read."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake in the input, told in one line: the file, key or value at fault, and what would be right.

    The command line prints the message alone and exits with status 2; every other exception keeps its traceback.
    """


def closest(name: str, known: Iterable[str], limit: int = 6) -> str:
    """What may have been meant, to end an error's message: all of a few names, the most alike of many, first those that hold `name` whole."""
    known = sorted(known, key=lambda one: (len(one), one))
    if len(known) <= limit:
        return f"; known are {', '.join(known)}"
    last = name.lower().rpartition("/")[2]
    holding = [one for one in known if last in one.lower()]
    alike = difflib.get_close_matches(name, known, n=limit, cutoff=0.5)
    found = list(dict.fromkeys([*holding, *alike]))[:limit]
    return f"; did you mean {', '.join(found)}?" if found else f"; there are {len(known)}, such as {', '.join(known[:3])}"

"""Print the Python of the README's section "Five lines of Python", to run it as a new user would.

python tools/readme_lines.py [README.md] > lines.py
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

SECTION = re.compile(r"^## Five lines of Python\n+```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def lines(readme: Path) -> str:
    """The section's code. Raises ValueError when the file has no such section."""
    found = SECTION.search(readme.read_text(encoding="utf-8"))
    if found is None:
        raise ValueError(f"{readme}: has no section 'Five lines of Python' that begins with a Python block")
    return found[1]


if __name__ == "__main__":
    print(lines(Path(sys.argv[1] if len(sys.argv) > 1 else "README.md")), end="")

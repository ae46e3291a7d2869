"""Compare two states of the scoreboard: every number, status and verdict that differs.

    git worktree add ../before REVISION
    python tools/compare_tables.py ../before/tables/brief tables/brief

Exit status 1 when anything differs.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pandas as pd

KEYS = {"scoreboard.csv": "id", "claims.csv": "claim"}
SHOWN = 20


def differences(before: Path, after: Path) -> list[str]:
    """A line for every row that is missing or new, and for every cell that differs."""
    found = []
    for name, key in KEYS.items():
        old, new = (pd.read_csv(folder / name, dtype=str, keep_default_na=False).set_index(key) for folder in (before, after))
        found += [f"{name}: {one} is missing" for one in old.index.difference(new.index)]
        found += [f"{name}: {one} is new" for one in new.index.difference(old.index)]
        shared = old.index.intersection(new.index)
        columns = [column for column in old.columns if column in new.columns]
        for column in columns:
            differs = old.loc[shared, column] != new.loc[shared, column]
            for one in shared[differs]:
                found.append(f"{name}: {one}.{column}: {old.at[one, column]!r} -> {new.at[one, column]!r}")
        print(f"{name}: {len(shared)} rows and {len(columns)} columns compared")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    options = parser.parse_args()
    found = differences(options.before, options.after)
    print("\n".join(found[:SHOWN]) if found else "no difference")
    if len(found) > SHOWN:
        print(f"and {len(found) - SHOWN} more")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())

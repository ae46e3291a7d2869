"""Compare two states of the scoreboard: list every number, status and verdict that differs.

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
    """One line for every missing or new row, and for every cell that differs."""
    found = []
    for name, key in KEYS.items():
        old, new = (
            pd.read_csv(folder / name, dtype=str, keep_default_na=False).set_index(key)
            for folder in (before, after)
        )
        found += [f"{name}: {one} is missing" for one in old.index.difference(new.index)]
        found += [f"{name}: {one} is new" for one in new.index.difference(old.index)]
        rows, columns = old.index.intersection(new.index), old.columns.intersection(new.columns, sort=False)
        old, new = old.loc[rows, columns], new.loc[rows, columns]
        for column in columns:
            for one in rows[old[column] != new[column]]:
                found.append(f"{name}: {one}.{column}: {old.at[one, column]!r} -> {new.at[one, column]!r}")
        print(f"{name}: {len(rows)} rows and {len(columns)} columns compared")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    options = parser.parse_args()
    found = differences(options.before, options.after)
    print("\n".join(found[:SHOWN]) or "no difference")
    if len(found) > SHOWN:
        print(f"and {len(found) - SHOWN} more")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())

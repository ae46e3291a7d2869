"""Write requirements.lock from the packages of this environment, and the same versions into environment.yml.

Run it (`make lock`) in an environment whose tests pass. FFCV stays out: tools/setup_env.py builds it from
source.
"""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "requirements.lock"
CONDA = ROOT / "environment.yml"
OUTSIDE = {"crop-decode", "ffcv", "pip", "replicate"}
HEADER = """\
# The exact set that is tested, with all transitive dependencies. Written by `make lock`; do not edit by hand.
# torch is named without its build (+cpu, +cu...), so that either satisfies it.
"""
PIN = re.compile(r"^(?P<lead>\s*- )(?P<name>[A-Za-z0-9._-]+)==(?P<version>\S+)$", re.MULTILINE)


def normalise(name: str) -> str:
    """A distribution's name as PEP 503 spells it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def installed() -> dict[str, str]:
    """Name -> public version (PEP 440, without the local build part) of every distribution for the lock."""
    found = {
        normalise(each.metadata["Name"]): each.version.split("+")[0] for each in metadata.distributions()
    }
    return {name: found[name] for name in sorted(found) if name not in OUTSIDE}


def repin(conda: str, versions: dict[str, str]) -> str:
    """The text of environment.yml with each `- name==version` at the locked version."""

    def replace(match: re.Match[str]) -> str:
        version = versions.get(normalise(match["name"]), match["version"])
        return f"{match['lead']}{match['name']}=={version}"

    return PIN.sub(replace, conda)


def main() -> None:
    versions = installed()
    LOCK.write_text(
        HEADER + "".join(f"{name}=={version}\n" for name, version in versions.items()), encoding="utf-8"
    )
    CONDA.write_text(repin(CONDA.read_text(encoding="utf-8"), versions), encoding="utf-8")
    print(f"{LOCK.name}: {len(versions)} pins")


if __name__ == "__main__":
    main()

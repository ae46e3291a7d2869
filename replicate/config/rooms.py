"""The papers' rooms: `papers/<key>/runs.yaml`, one a paper. The folder listing is the registry of papers.

title: MAE Are Secretly Efficient Learners
recipes:                      # what runs start from; another room's recipes can be named too
  light_pretrain: {base: mae_pretrain, epochs: 100}
pretrain:                     # what `dvc repro` runs; `grid` below holds the rest of the paper's tables
  light_75:
    base: light_pretrain
    mask_ratio: 0.75
    evaluate: {ft: mae_finetune}              # the run light_75_ft
evaluate:
  light_75_llrd_80: {base: tuned_finetune, pretrain: light_75, layer_decay: 0.8}
grid: {datasets: ..., tokenizers: ..., pretrain: ..., evaluate: ..., searches: ...}
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from replicate.config.schema import NAME, Strict, validated
from replicate.config.yaml_file import frozen, read_yaml
from replicate.errors import UserError
from replicate.files import workbook
from replicate.names import closest

ROOMS = workbook() / "papers"
SECTIONS = ("datasets", "tokenizers", "pretrain", "evaluate", "searches")


class Section(Strict):
    """Entries of a room before their bases are filled in."""

    datasets: dict[str, dict[str, Any]] = {}
    tokenizers: dict[str, dict[str, Any]] = {}
    pretrain: dict[str, dict[str, Any]] = {}
    evaluate: dict[str, dict[str, Any]] = {}
    searches: dict[str, dict[str, Any]] = {}


class Room(Section):
    """One paper's `runs.yaml`."""

    title: str
    year: int = 9999
    """Of the version that is replicated; lists for readers begin with the oldest paper."""
    recipes: dict[str, dict[str, Any]] = {}
    grid: Section = Section()


class Entry(NamedTuple):
    """One run, search or data set as its room states it; `where` names the file and the key in messages."""

    section: str
    name: str
    paper: str
    in_grid: bool
    stated: dict[str, Any]
    where: str


def read_rooms(folder: Path = ROOMS) -> dict[str, Room]:
    """Every paper's room by its key, sorted. Raises UserError for an unknown key or section."""
    rooms = {path.parent.name: path for path in sorted(folder.glob("*/runs.yaml"))}
    if not rooms:
        raise UserError(f"{folder}: holds no paper; each paper has a folder there with a runs.yaml")
    for key, path in rooms.items():
        if not NAME.fullmatch(key):
            raise UserError(f"{path}: a paper's key has letters, digits, _, . and - only")
    return {key: validated(Room, frozen(read_yaml(path)), f"{_file(key)}: ") for key, path in rooms.items()}


def entries(rooms: Mapping[str, Room]) -> Iterator[Entry]:
    """Every entry of every room, its base filled in and its evaluations listed."""
    recipes = _recipes(rooms)
    for paper, room in rooms.items():
        for in_grid, part in ((False, room), (True, room.grid)):
            for section in SECTIONS:
                for name, stated in getattr(part, section).items():
                    where = f"{_file(paper)}: {'grid.' if in_grid else ''}{section}.{name}"
                    yield from _expanded(Entry(section, name, paper, in_grid, stated, where), recipes)


def _expanded(entry: Entry, recipes: Mapping[str, dict[str, Any]]) -> Iterator[Entry]:
    stated = dict(entry.stated)
    evaluations = stated.pop("evaluate", {}) if entry.section == "pretrain" else {}
    yield entry._replace(stated=_with_base(stated, recipes, entry.where))
    if not isinstance(evaluations, dict):
        raise UserError(
            f"{entry.where}.evaluate: must map a suffix to a recipe, such as {{ft: mae_finetune}}"
        )
    for suffix, own in evaluations.items():
        own = {"base": own} if isinstance(own, str) else dict(own)
        where, name = f"{entry.where}.evaluate.{suffix}", f"{entry.name}_{suffix}"
        stated = _with_base(own, recipes, where) | {"pretrain": entry.name}
        yield entry._replace(section="evaluate", name=name, stated=stated, where=where)


def _recipes(rooms: Mapping[str, Room]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for paper, room in rooms.items():
        for name, recipe in room.recipes.items():
            if name in found:
                raise UserError(f"{_file(paper)}: recipes.{name}: another paper has a recipe of that name")
            found[name] = recipe
    return found


def _with_base(
    stated: Mapping[str, Any], recipes: Mapping[str, dict[str, Any]], where: str, seen: tuple[str, ...] = ()
) -> dict[str, Any]:
    """The entry laid over its base, key by key."""
    own = {key: value for key, value in stated.items() if key != "base"}
    if "base" not in stated:
        return own
    base = stated["base"]
    if base not in recipes:
        raise UserError(f"{where}.base = {base!r}: no such recipe{closest(str(base), recipes)}")
    if base in seen:
        raise UserError(f"{where}: the recipes {' -> '.join((*seen, base))} name each other as their base")
    return _with_base(recipes[base], recipes, where, (*seen, base)) | own


def _file(paper: str) -> str:
    return f"papers/{paper}/runs.yaml"

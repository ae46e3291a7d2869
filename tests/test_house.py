"""The structure of the package: one direction of imports, no circles, no folder that holds everything."""

from pathlib import Path

import grimp
import networkx as nx

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "replicate"
MAX_LINES = 31_500


def lines(folder: Path) -> int:
    return sum(
        len(path.read_text().splitlines()) for path in folder.rglob("*.py") if "__pycache__" not in path.parts
    )


def test_no_modules_import_one_another_in_a_circle():
    """Lazy and type-only imports count. The order of the layers is held by import-linter (`make lint`)."""
    imports = grimp.build_graph("replicate", cache_dir=None)
    graph = nx.DiGraph(
        (one, other) for one in imports.modules for other in imports.find_modules_directly_imported_by(one)
    )
    assert [found for found in nx.strongly_connected_components(graph) if len(found) > 1] == []


def test_no_folder_holds_more_than_a_quarter_of_the_lines():
    folders = {path.name: lines(path) for path in PACKAGE.iterdir() if path.is_dir()}
    largest = max(folders, key=folders.get)
    assert folders[largest] <= lines(PACKAGE) / 4, (
        f"{largest} has {folders[largest]} of {lines(PACKAGE)} lines"
    )


def test_the_package_stays_small():
    assert lines(PACKAGE) + lines(ROOT / "papers") <= MAX_LINES


def test_every_paper_has_its_rooms():
    """papers/ is the registry: a room, a notebook, and a module for what only that paper draws."""
    for room in sorted(path.parent for path in (ROOT / "papers").glob("*/runs.yaml")):
        for name in ("README.md", "values.csv", "claims.yaml", "recipe.yaml", "mapping.yaml"):
            assert (room / name).exists(), room / name
        assert (ROOT / "notebooks" / f"{room.name}.ipynb").exists()
        assert list((PACKAGE / "papers").glob(f"{room.name}*")), f"replicate/papers/{room.name}.py"

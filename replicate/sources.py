"""Which source files of this package a command is made of.

DVC does not follow imports. This module does, by reading the import statements: what it finds for a run is in the inputs of its stage
(`replicate.inputs`) and in its key in the store of resumable runs, so that no result outlives the code that made it.
Imports by an option's name (`importlib.import_module(f"replicate.targets.{name}")`) are not followed: the option's file is an entry of its own.
"""

from __future__ import annotations

import ast
import hashlib
import json
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).parent
ROOT = PACKAGE.parent
LOADERS = ("loaders.ffcv", "loaders.beton", "loaders.folder")
"""Which of them reads the images is the budget's choice, and `auto` the machine's: every run counts all three as its own."""
LENS = ("params.py", "budget.py", "trainers/launch.py")
"""They decide what a run is and what it starts from, without being what its trainer imports."""
CROP_DECODE, CROP_DECODE_SOURCES = PACKAGE / "loaders" / "crop_decode.py", ROOT / "crop_decode"
"""The module that calls the package `crop_decode`, and the folder with the sources of that package."""


@cache
def closure(*entries: str) -> tuple[Path, ...]:
    """Files, relative to the repository, that importing the modules `entries` ("replicate.trainers.pretrain", ...) can reach. Sorted."""
    found: set[Path] = set()
    waiting = list(entries)
    while waiting:
        path = _file_of(waiting.pop())
        if path is None or path in found:
            continue
        found.add(path)
        waiting += _imported_modules(path)
    if CROP_DECODE in found:
        patterns = ("csrc/*.[ch]", "src/crop_decode/*.py", "build_library.py")
        found |= {path for pattern in patterns for path in CROP_DECODE_SOURCES.glob(pattern)}
    return tuple(sorted(path.relative_to(ROOT) for path in found))


@cache
def fingerprint(*entries: str) -> str:
    """A digest of the contents of `closure(*entries)`, as they were when this process first asked: an edit while it runs changes nothing."""
    digest = hashlib.sha256()
    for path in closure(*entries):
        digest.update(str(path).encode() + b"\0" + (ROOT / path).read_bytes() + b"\0")
    return digest.hexdigest()


@cache
def digest_of(file: Path) -> str:
    """SHA-256 of a file of the repository, as it was when this process first asked."""
    return hashlib.sha256((ROOT / file).read_bytes()).hexdigest()


def pretrain_entries(run) -> tuple[str, ...]:
    """Entry modules of `python -m replicate pretrain` for a run: the trainer and the files that its options name."""
    options = (*LOADERS, f"models.{run.method}", f"targets.{run.target}", f"losses.{run.weighting}", f"losses.{run.objective}", *_built_by(run))
    if run.objective == "distillation":
        options += ("trainers.teacher", "models.classifier")
    return ("replicate.trainers.pretrain", *(f"replicate.{option}" for option in options))


def tokenizer_entries(run) -> tuple[str, ...]:
    """Entry modules of `python -m replicate tokenizer` for a run."""
    return ("replicate.trainers.tokenizer", *(f"replicate.{loader}" for loader in LOADERS))


def evaluate_entries(run) -> tuple[str, ...]:
    """Entry modules of `python -m replicate evaluate` for a run."""
    return (f"replicate.trainers.{run.protocol}", *(f"replicate.{option}" for option in (*LOADERS, *_built_by(run))))


def _built_by(run) -> tuple[str, ...]:
    """A plain ViT's file is a dependency of every run; a run of any other backbone counts the whole folder as its own."""
    if run.built_by != "backbones":
        return ()
    return tuple(f"models.backbones.{path.stem}" for path in sorted((PACKAGE / "models" / "backbones").glob("*.py")) if path.stem != "__init__")


def notebook_entries(notebook: Path) -> tuple[str, ...]:
    """Entry modules of `python -m replicate notebook` for a notebook: the command's own, and what the notebook's cells import."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    return ("replicate.report.notebook", *_modules_in(ast.parse(code)))


def _file_of(module: str) -> Path | None:
    path = ROOT.joinpath(*module.split("."))
    for candidate in (path.with_suffix(".py"), path / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None


@cache
def _imported_modules(path: Path) -> tuple[str, ...]:
    parts = path.relative_to(ROOT).parts
    modules = (".".join(parts[:depth]) for depth in range(1, len(parts)))
    return (*modules, *_modules_in(ast.parse(path.read_text())))


def _modules_in(tree: ast.Module) -> list[str]:
    modules = []
    ignored = {id(node) for block in ast.walk(tree) if _is_type_checking(block) for node in ast.walk(block)}
    for node in ast.walk(tree):
        if id(node) in ignored:
            continue
        if isinstance(node, ast.Import):
            modules += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return [module for module in modules if module.split(".")[0] == PACKAGE.name]


def _is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"

"""Digests of the code that decides a run's result, coarse on purpose.

Every run depends on the package's core as one digest. Beyond it a run depends on the option files that it
names: its target, its weighting and objective, its family of backbones, its protocol. So editing
`targets/hog.py` retrains the runs that predict HOG; editing the training loop retrains everything.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from replicate.config.backbones import is_plain_vit
from replicate.config.dense import DenseRun
from replicate.config.hierarchies import hierarchy, is_hierarchy
from replicate.config.runs import EvaluateRun, PretrainRun, Run

PACKAGE = Path(__file__).resolve().parents[1]
ROOT = PACKAGE.parent
SHOWN = ("report", "papers", "explore", "cost")
"""Folders that show results and do not change any."""
READ_OR_SHOWN = ("cli.py", "__main__.py", "noise.py", "intervals.py", "provenance.py")
PUBLISHED = PACKAGE / "config" / "published.py"
"""Files of the core's folders that change no result."""
CORE = ("config", "losses", "loaders", "models", "schedules", "targets", "trainers")
WIRING = ("pipeline/launch.py", "pipeline/seeds.py", "pipeline/box.py")
"""They decide what a run starts from."""
OPTIONS = ("targets/*.py", "losses/*.py", "models/backbones/*.py", "trainers/*.py")
SHARED = ("losses/weights.py", "losses/reconstruction.py", "targets/similarity.py")
"""Files in the folders of options that belong to the core. Trainers are options by the names of PROTOCOLS
alone.
"""
DENSE_DATA = ("data.py", "scenes.py")
PROTOCOLS = ("pretrain", "tokenizer", "finetune", "linear", "knn", "score", "invariance")
CROP_DECODE = ROOT / "crop_decode"
"""The decoder of crops, whose C sources decide pixels."""


def code_of(run: Run, source: PretrainRun | None = None) -> dict[str, str]:
    """Digests by file, and of the core, of what decides a run; `source` is the pre-training that it starts
    from.
    """
    options = {name: _digest_of(name) for name in sorted(options_of(run, source))}
    dense = {"transfer": transfer_digest()} if isinstance(run, DenseRun) else {}
    return {"core": core_digest()} | dense | options


def options_of(run: Run, source: PretrainRun | None = None) -> set[str]:
    """The option files that a run names, relative to the package."""
    if not isinstance(run, PretrainRun | EvaluateRun):
        return {"trainers/tokenizer.py"}
    pretrained = run if isinstance(run, PretrainRun) else source
    named = {f"trainers/{run.protocol if isinstance(run, EvaluateRun) else 'pretrain'}.py"}
    if pretrained.method == "mim":
        named.add(f"models/backbones/{family_of(pretrained)}.py")
    if isinstance(run, PretrainRun):
        named |= {f"targets/{run.target}.py", f"losses/{run.weighting}.py", f"losses/{run.objective}.py"}
    elif run.protocol == "invariance":
        named.add("targets/hog.py")
    return named & option_files()


def family_of(run: PretrainRun) -> str:
    """The module of `replicate.models.backbones` that builds a run's backbone."""
    if is_plain_vit(run.backbone, run.backbone_kwargs):
        return "vit"
    known = is_hierarchy(run.backbone)
    return hierarchy(run.backbone, **run.backbone_kwargs).family if known else "pyramid"


@functools.cache
def option_files() -> frozenset[str]:
    """Every option file, relative to the package."""
    found = {path.relative_to(PACKAGE).as_posix() for pattern in OPTIONS for path in PACKAGE.glob(pattern)}
    trainers = {name for name in found if name.startswith("trainers/")}
    protocols = {f"trainers/{name}.py" for name in PROTOCOLS}
    return frozenset(n for n in found - (trainers - protocols) - set(SHARED) if not n.endswith("__init__.py"))


@functools.cache
def core_digest() -> str:
    """One digest of every file of the core, as it was when this process first asked."""
    return digest(_core_files())


@functools.cache
def transfer_digest() -> str:
    """One digest of detection and segmentation, on which no other run depends."""
    return digest([*(PACKAGE / "transfer").rglob("*.py"), PACKAGE / "compat.py"])


@functools.cache
def data_digest(layout: str = "classes") -> str:
    """One digest of what decides the bytes of a data set."""
    dense = [PACKAGE / "transfer" / name for name in DENSE_DATA] if layout != "classes" else []
    settings = PACKAGE / "config" / "datasets.py"
    return digest([*(PACKAGE / "loaders").rglob("*.py"), settings, *_decoder_files(), *dense])


@functools.cache
def search_digest() -> str:
    """One digest of what a search does with its fine-tunings."""
    return digest([PACKAGE / "pipeline" / "search.py", PACKAGE / "intervals.py"])


@functools.cache
def report_digest() -> str:
    """One digest of what draws tables, figures and pages; it takes all of the package."""
    return digest([*PACKAGE.rglob("*.py"), *(PACKAGE / "report").rglob("*.*")])


def digest(files: Iterable[Path]) -> str:
    """SHA-256 over the names and contents of files below the repository; byte code does not count."""
    found = hashlib.sha256()
    for path in sorted({path for path in files if path.is_file() and "__pycache__" not in path.parts}):
        found.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return found.hexdigest()


def _core_files() -> Iterator[Path]:
    options = {PACKAGE / name for name in option_files()}
    yield from (path for path in PACKAGE.glob("*.py") if path.name not in READ_OR_SHOWN)
    yield from (PACKAGE / name for name in WIRING)
    for folder in CORE:
        yield from (path for path in (PACKAGE / folder).rglob("*.py") if path not in options | {PUBLISHED})
    yield from _decoder_files()


def _decoder_files() -> Iterator[Path]:
    """The sources of the crop decoder; a build leaves copies beside them."""
    yield from (CROP_DECODE / "csrc").glob("*.[ch]")
    yield from (CROP_DECODE / "src" / "crop_decode").glob("*.py")
    yield CROP_DECODE / "build_library.py"


@functools.cache
def _digest_of(name: str) -> str:
    return digest([PACKAGE / name])

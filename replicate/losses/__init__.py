"""Training objectives: the reconstruction loss, the weights of its units, and what a run adds to it.

A weighting is a file of this folder with a class `Weighting`; its name is the file's. Adding a file adds an
option. An objective is a file with a function `build`.
"""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any

from replicate.errors import UserError

if TYPE_CHECKING:
    from replicate.losses.uniform import Weighting

_SOURCES = {path.stem: path.read_text("utf-8") for path in Path(__file__).parent.glob("*.py")}
WEIGHTINGS = tuple(sorted(name for name, source in _SOURCES.items() if "\nclass Weighting" in source))


def build_weighting(name: str, patch_size: int = 16, difficulty: str = "p2dist", **options: Any) -> Weighting:
    """The weighting called `name`: DFLoss of Efficient MAE (`flatten`), a rival of its Table 6, or `uniform`.

    A weighting has `needs_difficulty` and is called as `weighting(difficulty (N, L), scored (N, L), progress
    in 0..1) -> weights (N, L)`. `patch_size` and `difficulty`, the metric's name, go to the weightings that
    take them. Options in pixels (`beta`, `start`, `end`, `interval`) are for this patch size. Raises
    UserError for an unknown name or option.
    """
    if name not in WEIGHTINGS:
        raise UserError(f"weighting: {name!r} does not exist; choose one of {', '.join(WEIGHTINGS)}")
    weighting = importlib.import_module(f"replicate.losses.{name}").Weighting
    signature = inspect.signature(weighting)
    known = {"patch_size": patch_size, "difficulty": difficulty}
    options = {key: value for key, value in known.items() if key in signature.parameters} | options
    try:
        signature.bind(**options)
    except TypeError as error:
        raise UserError(f"weighting {name}: {error}; it takes {signature}") from None
    return weighting(**options)

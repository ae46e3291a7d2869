"""Training objectives: the reconstruction loss, how its units are weighted, and what is added to it.

A weighting's name is the name of its file, so that a process loads, and a pipeline stage depends on, only the one that it uses.
"""

from __future__ import annotations

import importlib
import inspect
from typing import TYPE_CHECKING, Any

from replicate.errors import UserError

if TYPE_CHECKING:
    from replicate.losses.uniform import Weighting

WEIGHTINGS = ("uniform", "flatten", "thresholding", "curriculum", "normalisation")


def build_weighting(name: str, patch_size: int = 16, difficulty: str = "p2dist", **options: Any) -> Weighting:
    """The weighting called `name`: Efficient MAE's loss (`flatten`), its rivals of Table 6, or the plain mean (`uniform`).

    Every weighting has `needs_p2dist` (whether P2Dist must be computed) and is called as
    `weighting(p2dist (N, L), scored (N, L), progress in 0..1) -> weights (N, L)`. `patch_size` and
    `difficulty`, the metric that is called p2dist here, go to those that need them.
    Options in pixels (`beta`, `start`, `end`, `interval`) are meant for that patch size.
    Raises UserError when the name or an option does not exist.
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

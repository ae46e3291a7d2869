"""How many values a run predicts for a unit."""

from __future__ import annotations

import functools
import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from replicate.config import PretrainRun

VOCABULARY = 8192
"""Tokens of the released discrete VAE (MAE, Table 6)."""


def target_dim(run: PretrainRun, unit: int) -> int:
    """Values for a unit of `unit` pixels a side. A token target takes the released tokenizer's vocabulary."""
    return VOCABULARY if run.target == "token" else _dim(run.target, json.dumps(run.target_options), unit)


@functools.cache
def _dim(target: str, options: str, unit: int) -> int:
    import torch

    from replicate import targets

    with torch.device("meta"):
        return targets.build(target, unit, **json.loads(options)).dim

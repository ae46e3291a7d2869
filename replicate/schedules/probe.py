"""When a pre-training scores its online probe on the validation images."""

from __future__ import annotations

PROBE_SCORES = 10
"""How many times a run scores its probe, about."""


def scores_probe(epoch: int, epochs: int) -> bool:
    """Whether a run of `epochs` epochs scores its probe after this one (counted from 0)."""
    period = max(1, epochs // PROBE_SCORES)
    return (epoch + 1) % period == 0 or epoch + 1 == epochs

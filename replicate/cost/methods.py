"""Pre-training methods by name, with the functions that cost them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from replicate.cost import counted, crossmae, vit
from replicate.cost.image_cost import EncoderCost, ImageCost
from replicate.errors import UserError

if TYPE_CHECKING:
    from replicate.config import PretrainRun


class Method(NamedTuple):
    """How one method is costed.

    step      (run, bytes per value) -> a training step on one image, without what runs beside the model
    encoder   (run, image_size) -> the run's encoder on a whole image
    """

    step: Callable[[PretrainRun, int], ImageCost]
    encoder: Callable[[PretrainRun, int], EncoderCost]


METHODS = {
    "mae": Method(vit.mae_cost, vit.mae_encoder_cost),
    "crossmae": Method(crossmae.crossmae_cost, vit.mae_encoder_cost),
    "mim": Method(counted.mim_cost, counted.mim_encoder_cost),
}
"""A new method is one entry. `counted.count` measures any model that runs on the meta device."""


def method_of(run: PretrainRun) -> Method:
    """The costs of a run's method. Raises UserError for a method without an entry."""
    if run.method not in METHODS:
        known = ", ".join(METHODS)
        raise UserError(
            f"method {run.method}: its cost is unknown; add it to METHODS of {__name__}, which has {known}"
        )
    return METHODS[run.method]

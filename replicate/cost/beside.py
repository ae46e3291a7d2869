"""What a pre-training runs beside the model that it trains, for one image: an online probe, a teacher, a tokenizer, a head for labels.

Frozen parts cost a forward pass and keep nothing for a backward one; the small layers on top of them train.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from replicate.cost.activations import FLOAT32
from replicate.cost.kinds import FROZEN, TRAINED

if TYPE_CHECKING:
    from replicate.cost.kinds import ImageCost

WEIGHT_ONLY = 2
"""Passes of a trained layer whose input has no gradient: its own, and the weight's."""


@dataclass(frozen=True)
class Encoder:
    """A backbone on one whole, unmasked image. macs: multiply-adds of its forward; calls: blocks passed."""

    macs: float
    width: int
    tokens: int
    calls: int


@dataclass(frozen=True)
class Beside:
    """macs: multiply-adds of a training step; activations: bytes kept of it; parameters: all that are held, of which `trainable` train;
    calls: blocks passed; scored: multiply-adds of what is scored on validation images during the run.
    """

    macs: float
    activations: float
    parameters: int
    trainable: int
    calls: int = 0
    scored: float = 0.0


def online_probe(encoder: Encoder, num_classes: int) -> Beside:
    """DailyMAE's probe (sec 5.3): the run's own encoder without gradient, then a normalised linear layer in float32. It holds no second encoder."""
    head, own = encoder.width * num_classes, (encoder.width + 1) * num_classes
    kept = FLOAT32 * (encoder.width + num_classes)
    return Beside(FROZEN * encoder.macs + WEIGHT_ONLY * head, kept, own, own, encoder.calls, encoder.macs + head)


def distillation(student: Encoder, teacher: ImageCost, teacher_width: int, bytes_per_value: int) -> Beside:
    """FastMIM's teacher (sec 5.6): a frozen classifier, and the projection of the student's tokens to its width."""
    projection, own = student.width * teacher_width, (student.width + 1) * teacher_width
    kept = student.tokens * (bytes_per_value * student.width + FLOAT32 * teacher_width)
    macs = FROZEN * teacher.forward + TRAINED * student.tokens * projection
    return Beside(macs, kept, teacher.parameters + own, own, teacher.calls)


def supmae(width: int, num_classes: int) -> Beside:
    """SupMAE's head on the mean visible token: width -> 4 width -> classes, with a BatchNorm between."""
    hidden = 4 * width
    macs = width * hidden + hidden * num_classes
    own = macs + 3 * hidden + num_classes
    return Beside(TRAINED * macs, FLOAT32 * (width + 2 * hidden + num_classes), own, own)

"""Costs of what a pre-training runs beside its model: an online probe, a teacher, a head for labels.

Frozen parts cost a forward pass and keep nothing for a backward one; the small layers on top of them train.
"""

from __future__ import annotations

from replicate.cost.image_cost import FLOAT32, FROZEN, TRAINED, EncoderCost, ImageCost

WEIGHT_ONLY = 2
"""Passes of a trained layer whose input has no gradient: its own, and its weight's."""


def online_probe(encoder: EncoderCost, num_classes: int) -> ImageCost:
    """DailyMAE's probe (section 5.3): the run's encoder without gradient, then BatchNorm and Linear in
    float32.
    """
    head, own = encoder.width * num_classes, (encoder.width + 1) * num_classes + 2 * encoder.width
    return ImageCost(
        macs=FROZEN * encoder.macs + WEIGHT_ONLY * head,
        trainable=own,
        activations=FLOAT32 * (2 * encoder.width + num_classes),
        calls=encoder.calls,
        held=own,
        probe=encoder.macs + head,
    )


def distillation(
    student: EncoderCost, teacher: ImageCost, teacher_width: int, bytes_per_value: int
) -> ImageCost:
    """FastMIM's teacher (section 5.6): a frozen classifier, and a projection of the student's tokens."""
    projection, own = student.width * teacher_width, (student.width + 1) * teacher_width
    return ImageCost(
        macs=FROZEN * teacher.forward + TRAINED * student.tokens * projection,
        trainable=own,
        activations=student.tokens * (bytes_per_value * student.width + FLOAT32 * teacher_width),
        calls=teacher.calls,
        held=teacher.parameters + own,
    )


def supmae(width: int, num_classes: int) -> ImageCost:
    """SupMAE's head on the mean visible token: width -> 4 width -> classes, with a BatchNorm between."""
    hidden = 4 * width
    macs = width * hidden + hidden * num_classes
    own = macs + 3 * hidden + num_classes
    kept = FLOAT32 * (width + 2 * hidden + num_classes)
    return ImageCost(macs=TRAINED * macs, trainable=own, activations=kept, held=own)

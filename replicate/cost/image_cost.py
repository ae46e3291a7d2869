"""The cost of one image in one run."""

from __future__ import annotations

from dataclasses import astuple, dataclass

TRAINED, FROZEN = 3, 1
"""Forward passes that a step costs: a trained layer's matrix product has two gradients, a frozen one's none.
"""
FLOAT32 = 4


@dataclass(frozen=True)
class ImageCost:
    """What one image costs in one run; costs add up.

    macs          multiply-adds of a training step, forward and backward
    forward       multiply-adds of scoring the image with the model alone
    parameters    the model's own
    trainable     parameters that train, those beside the model included
    activations   bytes that autograd keeps for the backward pass
    calls         Transformer blocks passed; they stand for the operators called
    held          parameters held beside the model: a probe, a teacher, a tokenizer
    probe         multiply-adds of scoring the image with the online probe
    """

    macs: float = 0.0
    forward: float = 0.0
    parameters: int = 0
    trainable: int = 0
    activations: float = 0.0
    calls: int = 0
    held: int = 0
    probe: float = 0.0

    def __add__(self, other: ImageCost) -> ImageCost:
        return ImageCost(*(mine + theirs for mine, theirs in zip(astuple(self), astuple(other), strict=True)))

    @property
    def state_bytes(self) -> float:
        """Float32 weights and, for those that train, gradients and AdamW's two moments."""
        return FLOAT32 * (self.parameters + self.held + 3 * self.trainable)


@dataclass(frozen=True)
class EncoderCost:
    """An encoder's forward pass on one whole image. tokens: patch tokens, without a class token."""

    macs: float
    width: int
    tokens: int
    calls: int

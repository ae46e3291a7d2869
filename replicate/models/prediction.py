"""What every pre-training model takes beside its architecture, and what it hands to the loss."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from replicate import difficulty
from replicate.errors import UserError

MASKS = ("random", "block", "grid")
MASK_TOKENS = ("learned", "zero")


class Prediction(NamedTuple):
    """One forward pass over N images of L patches (or mask units), D predicted values a patch, C channels.

    pred        (N, L, D) in raster order; zeros for patches that never entered the decoder
    mask        (N, L) float, 0 = visible, 1 = masked
    scored      (N, L) float, 1 = enters the loss
    latent      encoder output after its last norm. MAE: (N, 1 + visible, C), class token first.
                MIM: (N, tokens, C) without class token
    difficulty  (N, L) P2Dist in pixels, or the rival metric that the run names; None if not measured
    grid        (rows, columns) of patches
    """

    pred: Tensor
    mask: Tensor
    scored: Tensor
    latent: Tensor
    difficulty: Tensor | None
    grid: tuple[int, int]


@dataclass(frozen=True)
class MaskOptions:
    """Options of masking and scoring that all methods share.

    mask             "random" | "block" | "grid" (MAE Table 1f)
    mask_ratio       share of masked patches, in [0, 1)
    mask_token       "learned", or "zero" and fixed (FastMIM Table 10a)
    score_all        compute the loss on visible patches too (MAE, section 3, footnote 1)
    difficulty       metric of `replicate.difficulty.METRICS`: exact P2Dist, its approximation or a rival
    with_difficulty  measure the difficulty of every patch, as a weighting may need

    Raises UserError for an unknown choice.
    """

    mask: str = "random"
    mask_ratio: float = 0.75
    mask_token: str = "learned"
    score_all: bool = False
    difficulty: str = "p2dist"
    with_difficulty: bool = False

    def __post_init__(self) -> None:
        check_choice("mask", self.mask, MASKS)
        check_choice("mask_token", self.mask_token, MASK_TOKENS)

    @classmethod
    def of(cls, run: Any, with_difficulty: bool) -> dict[str, Any]:
        """The keyword arguments that a pre-training run states for these options."""
        stated = {field.name: getattr(run, field.name) for field in fields(cls) if hasattr(run, field.name)}
        return stated | {"with_difficulty": with_difficulty}

    def init_mask_token(self, token: nn.Parameter) -> None:
        """Initialise a mask token from N(0, .02), or fix it at zero."""
        if self.mask_token == "zero":
            nn.init.zeros_(token.requires_grad_(False))
        else:
            nn.init.normal_(token, std=0.02)

    def scored(self, mask: Tensor) -> Tensor:
        """(N, L) patches that enter the loss."""
        return torch.ones_like(mask) if self.score_all else mask

    def measure(self, mask: Tensor, grid: tuple[int, int], patch_size: int) -> Tensor:
        """(N, L) difficulty of every patch by the chosen metric."""
        return difficulty.difficulty(mask, grid, patch_size, self.difficulty)


def check_choice(key: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise UserError unless `value` is one of `choices`."""
    if value not in choices:
        raise UserError(f"{key} {value!r} is unknown: choose {', '.join(choices)}")


def check_image_size(images: Tensor, image_size: tuple[int, int]) -> None:
    """Raise UserError unless images (N, 3, H, W) have the size that the model is set for."""
    if tuple(images.shape[-2:]) != tuple(image_size):
        given, wanted = ("x".join(map(str, size)) for size in (images.shape[-2:], image_size))
        advice = "call set_image_size, or change image_size"
        raise UserError(f"images are {given} but the model is set for {wanted}: {advice}")

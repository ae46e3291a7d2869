"""SupMAE: a supervised term beside the reconstruction (MAE Are Secretly Efficient Learners, Table 6).

Loss = reconstruction + 0.01 * cross_entropy(logits / 10, label). The head takes the mean of the visible
tokens after the encoder's last norm.
"""

from __future__ import annotations

import math

from torch import Tensor, nn
from torch.nn import functional

from replicate.masking import expand_units
from replicate.models.prediction import Prediction

WEIGHT = 0.01
TEMPERATURE = 10.0


class SupMAE(nn.Module):
    """The classification head and its loss term. Pre-training discards the head at its end."""

    def __init__(
        self, width: int, num_classes: int, weight: float = WEIGHT, temperature: float = TEMPERATURE
    ) -> None:
        super().__init__()
        hidden = 4 * width
        first, last = nn.Linear(width, hidden), nn.Linear(hidden, num_classes)
        self.head = nn.Sequential(first, nn.BatchNorm1d(hidden), nn.ReLU(), last)
        self.weight, self.temperature = weight, temperature

    def forward(
        self, prediction: Prediction, labels: Tensor, images: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """labels (N,) -> the term to add to the reconstruction loss, and scalars to log."""
        logits = self.head(visible_mean(prediction.latent, prediction.mask, prediction.grid)).float()
        entropy = functional.cross_entropy(logits / self.temperature, labels)
        accuracy = (logits.argmax(dim=1) == labels).float().mean()
        return self.weight * entropy, {"supervised": entropy.detach(), "supervised_accuracy": accuracy}


def build(width: int, num_classes: int, teacher: object = None) -> SupMAE:
    """The term for an encoder of this width. `teacher` has no effect."""
    return SupMAE(width, num_classes)


def visible_mean(latent: Tensor, mask: Tensor, grid: tuple[int, int]) -> Tensor:
    """The mean of the visible tokens, (N, C), without the class token.

    latent  (N, 1 + V, C) from an encoder of visible patches, class token first; (N, 1 + L, C) if mask tokens
    entered the encoder; or raster tokens (N, L * s**2, C) from a backbone with masked units of s x s tokens
    mask    (N, L), 0 for the visible units of the grid (rows, columns)
    """
    units, tokens = mask.shape[1], latent.shape[1]
    if tokens < units:
        return latent[:, 1:].mean(dim=1)
    if tokens > units + 1:
        side = math.isqrt(tokens // units)
        mask = expand_units(mask, grid, side).flatten(1)
    visible = (1 - mask)[..., None].to(latent.dtype)
    return (latent[:, -mask.shape[1] :] * visible).sum(dim=1) / visible.sum(dim=1).clamp(min=1)

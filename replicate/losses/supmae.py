"""SupMAE: a supervised term beside the reconstruction ("MAE are secretly efficient learners", Table 6; Liang et al. 2022).

Loss = reconstruction + 0.01 * cross_entropy(logits / 10, label). The head sees the mean of the visible tokens after the
encoder's last norm, so the label has to be told from a quarter of the image.
"""

from __future__ import annotations

import math

from torch import Tensor, nn
from torch.nn import functional

from replicate.models.prediction import Prediction

WEIGHT = 0.01
TEMPERATURE = 10.0


class SupMAE(nn.Module):
    """The classification head and its loss term, trained with the encoder and thrown away after pre-training."""

    def __init__(self, width: int, num_classes: int, weight: float = WEIGHT, temperature: float = TEMPERATURE) -> None:
        super().__init__()
        hidden = 4 * width
        self.head = nn.Sequential(nn.Linear(width, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, num_classes))
        self.weight, self.temperature = weight, temperature

    def forward(self, prediction: Prediction, labels: Tensor, images: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """labels (N,) -> the term to add to the reconstruction loss, and scalars to log. The images themselves are not looked at."""
        logits = self.head(visible_mean(prediction.latent, prediction.mask, prediction.grid)).float()
        entropy = functional.cross_entropy(logits / self.temperature, labels)
        accuracy = (logits.argmax(dim=1) == labels).float().mean()
        return self.weight * entropy, {"supervised": entropy.detach(), "supervised_accuracy": accuracy}


def build(width: int, num_classes: int, teacher: object = None) -> SupMAE:
    """The term for an encoder of this width. No teacher takes part."""
    return SupMAE(width, num_classes)


def visible_mean(latent: Tensor, mask: Tensor, grid: tuple[int, int]) -> Tensor:
    """The mean of the visible tokens, (N, C), without the class token.

    latent is (N, 1 + V, C) from an encoder of visible patches, its class token first; (N, 1 + L, C) where mask tokens entered
    the encoder; or raster tokens (N, L * s**2, C) from a backbone that masks units of s x s tokens in image space. mask (N, L)
    tells which of the units on the grid (rows, columns) are visible.
    """
    units, tokens = mask.shape[1], latent.shape[1]
    if tokens < units:
        return latent[:, 1:].mean(dim=1)
    if tokens > units + 1:
        side = math.isqrt(tokens // units)
        mask = mask.unflatten(1, grid).repeat_interleave(side, dim=1).repeat_interleave(side, dim=2).flatten(1)
    visible = (1 - mask)[..., None].to(latent.dtype)
    return (latent[:, -mask.shape[1] :] * visible).sum(dim=1) / visible.sum(dim=1).clamp(min=1)

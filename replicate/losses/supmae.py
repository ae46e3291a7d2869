"""SupMAE: a supervised term beside the reconstruction ("MAE are secretly efficient learners", Table 6; Liang et al. 2022).

Loss = reconstruction + 0.01 * cross_entropy(logits / 10, label). The head sees the mean of the visible tokens after the
encoder's last norm, so the label has to be told from a quarter of the image.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from replicate.models.prediction import Prediction

WEIGHT = 0.01
TEMPERATURE = 10.0


class SupMAE(nn.Module):
    """The classification head and its loss term, trained with the encoder and thrown away after pre-training.

    prefix_tokens: tokens before the patches in the latent, 1 for MAE's class token, 0 for backbones that mask in image space.
    """

    def __init__(self, width: int, num_classes: int, prefix_tokens: int = 1, weight: float = WEIGHT, temperature: float = TEMPERATURE) -> None:
        super().__init__()
        hidden = 4 * width
        self.head = nn.Sequential(nn.Linear(width, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, num_classes))
        self.prefix_tokens, self.weight, self.temperature = prefix_tokens, weight, temperature

    def forward(self, latent: Tensor, mask: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """latent (N, prefix + T, C), mask (N, L), labels (N,) -> the term to add to the loss, and logits (N, classes)."""
        logits = self.head(visible_mean(latent[:, self.prefix_tokens :], mask))
        return self.weight * functional.cross_entropy(logits.float() / self.temperature, labels), logits


def visible_mean(tokens: Tensor, mask: Tensor) -> Tensor:
    """The mean of the visible tokens, (N, C).

    tokens is (N, V, C) where only visible patches were encoded, or (N, L, C), of which the masked ones are left out. A backbone
    whose output grid is not the mask's (a pyramid) mixes visible and masked units, so there the mean runs over all its tokens.
    """
    if tokens.shape[1] != mask.shape[1]:
        return tokens.mean(dim=1)
    visible = (1 - mask)[..., None].to(tokens.dtype)
    return (tokens * visible).sum(dim=1) / visible.sum(dim=1).clamp(min=1)


class SupMAETerm(SupMAE):
    """SupMAE as the trainer calls it: with a model's whole prediction."""

    def forward(self, prediction: Prediction, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """-> the term to add to the loss, and the accuracy (fraction) of the head on the visible tokens of this batch."""
        term, logits = super().forward(prediction.latent, prediction.mask, labels)
        return term, {"supervised_accuracy": (logits.argmax(dim=1) == labels).float().mean()}


def build(width: int, num_classes: int) -> SupMAETerm:
    """The term for an encoder `width` channels wide."""
    return SupMAETerm(width, num_classes)

"""A linear probe on the mean feature of a frozen hierarchy."""

from __future__ import annotations

import importlib

from torch import Tensor, nn

from replicate.models.backbones.features import Encoder
from replicate.models.resized import Resized


class Probe(nn.Module):
    """(N, 3, H, W) -> (N, num_classes); only the linear layer of `head` has trainable parameters, and the encoder stays in evaluation."""

    def __init__(self, encoder: Encoder, num_classes: int) -> None:
        super().__init__()
        self.encoder = encoder.backbone.requires_grad_(False).eval()
        self.num_features = encoder.num_features
        # By name: pre-training counts this folder among its files, and must not count the ViT's classifier.
        self.head = importlib.import_module("replicate.models.classifier").probe_head(self.num_features, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.encoder.feature_map(images).mean(dim=(2, 3)))

    def train(self, mode: bool = True) -> Probe:
        """Statistics of normalisation and dropped paths belong to the frozen encoder, which never trains."""
        super().train(mode)
        self.encoder.eval()
        return self

    def set_input_size(self, img_size: int | tuple[int, int]) -> Resized:
        return self.encoder.set_input_size(img_size)

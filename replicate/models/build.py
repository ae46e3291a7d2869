"""Build every model from a run: pre-training by method, classifiers and probes by backbone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from replicate.config.backbones import Backbone, is_plain_vit
from replicate.errors import UserError
from replicate.models import crossmae, mae, mim
from replicate.models.backbones import build_backbone, build_encoder
from replicate.models.features import Encoder
from replicate.models.loading import load_encoder as load_encoder
from replicate.models.resized import Resized
from replicate.models.vit import ViT

if TYPE_CHECKING:
    from replicate.config import PretrainRun

METHODS = {"mae": mae.from_run, "crossmae": crossmae.from_run, "mim": mim.from_run}
"""A method's name in a run, and what builds its model: (run, target_dim, with_difficulty) -> nn.Module."""


def build_pretraining_model(run: PretrainRun, target_dim: int, with_difficulty: bool = False) -> nn.Module:
    """The pre-training model of a resolved run, called as `model(images, noise, mask_ratio)` -> `Prediction`.

    target_dim       values predicted for a patch
    with_difficulty  measure every patch's difficulty, for a weighting that needs it

    Raises UserError for an unknown method.
    """
    if run.method not in METHODS:
        raise UserError(f"method {run.method!r} is unknown: choose {', '.join(METHODS)}")
    return METHODS[run.method](run, target_dim, with_difficulty)


def build_classifier(
    pretrained: PretrainRun | Backbone,
    num_classes: int,
    image_size: int | tuple[int, int] = 224,
    drop_path: float = 0.0,
    pool: str = "avg",
) -> nn.Module:
    """The fine-tuning model on a run's backbone, untrained: (N, 3, H, W) -> (N, num_classes).

    pretrained  the pre-training run, or a `Backbone`
    pool        of a ViT: "avg" (MAE) or "token"; hierarchies pool as their papers do

    `set_input_size(img_size)` of the result takes another resolution. Raises UserError for sizes that do not
    fit.
    """
    name, kwargs = _backbone_of(pretrained)
    return build_backbone(name, image_size, num_classes, drop_path, pool=pool, **kwargs)


def build_probe(
    pretrained: PretrainRun | Backbone,
    num_classes: int,
    image_size: int | tuple[int, int] = 224,
    pool: str = "token",
) -> nn.Module:
    """A linear probe (MAE, appendix A.1): frozen encoder, BatchNorm without parameters, one linear layer.

    A ViT is probed on its class token after the last norm, or on the mean with pool "avg". A hierarchy has no
    class token: it is probed on its mean feature. Only the linear layer of `head` is trainable.
    """
    name, kwargs = _backbone_of(pretrained)
    if not is_plain_vit(name, kwargs):
        return Probe(build_encoder(name, image_size, **kwargs), num_classes)
    model = build_classifier(pretrained, num_classes, image_size, pool=pool)
    model.head = probe_head(model.num_features, num_classes)
    for name, parameter in model.named_parameters():
        parameter.requires_grad = name.startswith("head.")
    return model


def _backbone_of(pretrained: PretrainRun | Backbone) -> tuple[str, dict[str, Any]]:
    if isinstance(pretrained, Backbone):
        return pretrained.name, pretrained.kwargs
    return pretrained.backbone, pretrained.backbone_kwargs


def probe_head(width: int, num_classes: int) -> nn.Sequential:
    """BatchNorm1d(affine=False, eps=1e-6) -> Linear with N(0, .01) weights and zero bias."""
    linear = nn.Linear(width, num_classes)
    nn.init.trunc_normal_(linear.weight, std=0.01)
    nn.init.zeros_(linear.bias)
    return nn.Sequential(nn.BatchNorm1d(width, affine=False, eps=1e-6), linear)


class Probe(nn.Module):
    """A linear probe on the mean feature of a frozen hierarchy: (N, 3, H, W) -> (N, num_classes)."""

    def __init__(self, encoder: Encoder, num_classes: int) -> None:
        super().__init__()
        self.encoder = encoder.backbone.requires_grad_(False).eval()
        self.num_features = encoder.num_features
        self.head = probe_head(self.num_features, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.encoder.feature_map(images).mean(dim=(2, 3)))

    def train(self, mode: bool = True) -> Probe:
        """Keep the frozen encoder in evaluation mode, with its BatchNorm statistics and drop paths."""
        super().train(mode)
        self.encoder.eval()
        return self

    def set_input_size(self, img_size: int | tuple[int, int]) -> Resized:
        return self.encoder.set_input_size(img_size)


def pooled(classifier: nn.Module, images: Tensor) -> Tensor:
    """The feature (N, C) to classify: what a ViT's head sees, or a hierarchy's mean last token."""
    if isinstance(classifier, ViT):
        return classifier.forward_head(classifier.forward_features(images), pre_logits=True)
    return torch.flatten(classifier.feature_map(images).mean(dim=(2, 3)), 1)


def tokens(classifier: nn.Module, images: Tensor) -> Tensor:
    """A classifier's last tokens (N, T, C) in raster order after its last norm, without class token."""
    last = classifier.tokens(images)[:, classifier.decoded_prefix :]
    return classifier.fc_norm(last) if isinstance(classifier, ViT) else last

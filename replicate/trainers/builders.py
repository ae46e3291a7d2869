"""The only place where trainers build models and load encoders."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from replicate.config.backbones import vit_backbone
from replicate.models import classifier

if TYPE_CHECKING:
    from replicate.config.runs import PretrainRun
    from replicate.trainers.context import RunContext


def build_pretraining(run: PretrainRun, target_dim: int, needs_p2dist: bool) -> nn.Module:
    """The model of a pre-training, untrained."""
    return importlib.import_module(f"replicate.models.{run.method}").build(run, target_dim, needs_p2dist)


def build_classifier(context: RunContext, drop_path: float = 0.0) -> nn.Module:
    """The untrained fine-tuning model of the pre-training's backbone, at the run's image size."""
    source, options = context.upstream_run, {"image_size": context.run.image_size, "drop_path": drop_path}
    if (backbones := _backbones(context)) is not None:
        return backbones.build_classifier(
            source.backbone, context.num_classes, **options, **source.backbone_kwargs
        )
    return classifier.build_classifier(
        vit_backbone(source.backbone, **source.backbone_kwargs), context.num_classes, **options
    )


def build_probe(context: RunContext) -> nn.Module:
    """The linear probe on that backbone."""
    source, size = context.upstream_run, context.run.image_size
    if (backbones := _backbones(context)) is not None:
        return backbones.build_probe(
            source.backbone, context.num_classes, image_size=size, **source.backbone_kwargs
        )
    return classifier.build_probe(
        vit_backbone(source.backbone, **source.backbone_kwargs), context.num_classes, image_size=size
    )


def load_encoder(context: RunContext, model: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """Load pre-trained weights; blocks that pre-training left out keep their new values (FastMIM Table 1c).

    Raises UserError when they do not fit.
    """
    # The probe of a hierarchy holds the encoder as a part of its own.
    (_backbones(context) or classifier).load_encoder(getattr(model, "encoder", model), state, source=source)


def pooled(model: nn.Module, images: Tensor) -> Tensor:
    """The input (N, C) of a classifier's head: for a hierarchy the mean of its last tokens."""
    if hasattr(model, "feature_map"):
        return torch.flatten(model.feature_map(images).mean(dim=(2, 3)), 1)
    return model.forward_head(model.forward_features(images), pre_logits=True)


def _backbones(context: RunContext):
    return (
        importlib.import_module("replicate.models.backbones")
        if context.upstream_run.method != "mae"
        else None
    )

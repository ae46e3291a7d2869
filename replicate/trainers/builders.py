"""What an evaluation starts from, by its context: `replicate.models.build` with the run's settings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from replicate.models import build
from replicate.models.build import pooled

if TYPE_CHECKING:
    from replicate.trainers.context import RunContext

__all__ = ["build_classifier", "build_probe", "load_encoder", "pooled"]


def build_classifier(context: RunContext, drop_path: float = 0.0) -> nn.Module:
    """The fine-tuning model on the backbone of the run's pre-training, untrained, at the run's image size."""
    run, pretrained = context.run, context.upstream_run
    return build.build_classifier(pretrained, context.num_classes, run.image_size, drop_path)


def build_probe(context: RunContext) -> nn.Module:
    """The linear probe on that backbone."""
    return build.build_probe(context.upstream_run, context.num_classes, context.run.image_size)


def load_encoder(context: RunContext, model: nn.Module, state: dict[str, Tensor], path: str) -> None:
    """Load pre-trained weights; blocks that pre-training left out stay new. Raises UserError for a misfit."""
    pretrained, antialias = context.upstream_run, context.run.pos_embed_antialias
    build.load_encoder(model, state, path, drop_blocks=pretrained.drop_blocks, antialias=antialias)

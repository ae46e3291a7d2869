"""A fine-tuned classifier as a teacher: its tokens of whole images, frozen (FastMIM sec 5.6)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from replicate.loaders.pixels import normalise
from replicate.models import build
from replicate.models.cpu import tune_for_cpu
from replicate.models.weights import load_weights
from replicate.trainers.context import RunContext


class Teacher:
    """uint8 images (N, 3, S, S) -> tokens (N, T, num_features) in raster order."""

    def __init__(self, model: nn.Module, image_size: int) -> None:
        self.model = model.eval().requires_grad_(False)
        self.image_size = image_size
        self.num_features: int = model.num_features

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        if images.shape[-1] != self.image_size:
            self.image_size = images.shape[-1]
            self.model.set_input_size(img_size=(self.image_size, self.image_size))
        return build.tokens(self.model, normalise(images))


def load(context: RunContext, seed: int) -> Teacher:
    """The teacher of a distillation, of the same seed; `context.upstream_run` is its pre-training."""
    source, size = context.upstream_run, context.teacher_run.image_size
    model = build.build_classifier(source, context.num_classes, size)
    model.load_state_dict(load_weights(context.upstream_weights(seed)))
    return Teacher(tune_for_cpu(model.to(context.session.device)), size)

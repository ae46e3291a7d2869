"""End-to-end and partial fine-tuning with layer-wise lr decay (MAE Table 8, Figure 9; MAE Are Secretly Efficient Learners Table 3b)."""

from __future__ import annotations

from typing import Any

from torch import nn

from replicate.models.classifier import build_classifier, freeze_for_partial, init_head, load_encoder
from replicate.models.vit import vit_backbone
from replicate.models.weights import load_weights
from replicate.schedules.layer_decay import decayed_groups
from replicate.trainers.classify import train_classifier
from replicate.trainers.engine import adamw
from replicate.trainers.seeds import RunContext
from replicate.trainers.session import seed_everything
from replicate.trainers.store import RunStore


def train_seed(context: RunContext, seed: int, store: RunStore) -> dict[str, Any]:
    """Fine-tune one seed from the same seed's pre-trained encoder; `tuned_blocks` leaves only the last blocks trainable."""
    run = context.run
    seed_everything(seed)
    model = build_model(context, seed).to(context.session.device)
    optimizer = adamw(decayed_groups(model, run.weight_decay, run.layer_decay), run, context.session.device)
    return train_classifier(context, seed, store, model, optimizer)


def build_model(context: RunContext, seed: int) -> nn.Module:
    """The classifier on top of the seed's pre-trained encoder, at the run's image size."""
    run, source = context.run, context.upstream_run
    backbone = vit_backbone(source.backbone, **source.backbone_kwargs)
    model = build_classifier(backbone, context.num_classes, image_size=run.image_size, drop_path=run.drop_path)
    path = context.upstream_weights(seed)
    load_encoder(model, load_weights(path), source=str(path))
    init_head(model, run.head_std)
    if run.tuned_blocks is not None:
        freeze_for_partial(model, run.tuned_blocks)
    return model

"""Linear probing (MAE Table 9 and appendix A.1): frozen encoder, BatchNorm without parameters, LARS."""

from __future__ import annotations

from typing import Any

from timm.optim import Lars
from torch import nn

from replicate.models.weights import load_weights
from replicate.trainers.builders import build_probe, load_encoder
from replicate.trainers.checkpoints import Checkpoints
from replicate.trainers.classify import train_classifier
from replicate.trainers.context import RunContext
from replicate.trainers.session import seed_everything

MOMENTUM = 0.9
TRUST = 0.001


def train_seed(context: RunContext, seed: int, checkpoints: Checkpoints) -> dict[str, Any]:
    """Train one seed's probe on its own pre-trained encoder."""
    run = context.run
    seed_everything(seed)
    model = build_probe(context)
    path = context.upstream_weights(seed)
    load_encoder(context, model, load_weights(path), str(path))
    model = model.to(context.session.device)
    return train_classifier(
        context, seed, checkpoints, model, lars(model.head, run.peak_lr, run.weight_decay)
    )


def lars(head: nn.Module, lr: float, weight_decay: float = 0.0) -> Lars:
    """LARS as in the reference: matrices adapt even without weight decay, 1-D parameters take SGD."""
    matrices = [p for p in head.parameters() if p.ndim > 1]
    vectors = [p for p in head.parameters() if p.ndim <= 1]
    groups = [
        {"params": matrices, "always_adapt": True, "weight_decay": weight_decay},
        {"params": vectors, "always_adapt": False, "weight_decay": 0.0},
    ]
    return Lars(groups, lr=lr, momentum=MOMENTUM, trust_coeff=TRUST)

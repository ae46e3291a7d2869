"""End-to-end and partial fine-tuning with layer-wise lr decay (MAE Table 8, Figure 9; MAE Are Secretly Efficient Learners Table 3b)."""

from __future__ import annotations

from typing import Any

from torch import nn

from replicate.errors import UserError
from replicate.models.vit import freeze_for_partial, init_head
from replicate.models.weights import load_weights, save_weights
from replicate.schedules.layer_decay import decayed_groups
from replicate.trainers.builders import build_classifier, load_encoder
from replicate.trainers.checkpoints import Checkpoints
from replicate.trainers.classify import train_classifier
from replicate.trainers.context import RunContext
from replicate.trainers.engine import adamw
from replicate.trainers.session import seed_everything
from replicate.trainers.sharding import refuse_unsharded, shard


def train_seed(context: RunContext, seed: int, store: Checkpoints) -> dict[str, Any]:
    """Fine-tune one seed from the same seed's pre-trained encoder; `tuned_blocks` leaves only the last blocks trainable.

    Keeps the weights where the run says so (`keep_weights`).
    """
    run = context.run
    seed_everything(seed)
    refuse_unsharded(run, context.session)
    model = shard(build_model(context, seed).to(context.session.device), context.session)
    optimizer = adamw(decayed_groups(model, run.weight_decay, run.layer_decay), run, context.session.device)
    outcome = train_classifier(context, seed, store, model, optimizer)
    if run.keep_weights and context.session.is_main:
        save_weights(model.state_dict(), store.weights_path, {"run": f"{context.name}, seed {seed}"})
    return outcome


def build_model(context: RunContext, seed: int) -> nn.Module:
    """The classifier on top of the seed's pre-trained encoder, at the run's image size."""
    run = context.run
    model = build_classifier(context, drop_path=run.drop_path)
    path = context.upstream_weights(seed)
    load_encoder(context, model, load_weights(path), str(path))
    init_head(model, run.head_std)
    if run.tuned_blocks is not None:
        if not hasattr(model, "blocks") or not hasattr(model, "fc_norm"):
            raise UserError(f"run {context.name}: tuned_blocks counts the blocks of a ViT; {context.upstream_run.backbone} has stages")
        freeze_for_partial(model, run.tuned_blocks)
    return model

"""End-to-end and partial fine-tuning with layer-wise lr decay.

MAE Table 8 and Figure 9; MAE Are Secretly Efficient Learners Table 3b.
"""

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
from replicate.trainers.loop import adamw
from replicate.trainers.session import seed_everything
from replicate.trainers.sharding import refuse_unsharded, shard


def train_seed(context: RunContext, seed: int, checkpoints: Checkpoints) -> dict[str, Any]:
    """Fine-tune one seed from the same seed's encoder; `tuned_blocks` leaves only the last blocks trainable.

    Keeps the weights where the run says so (`keep_weights`).
    """
    run, session = context.run, context.session
    seed_everything(seed)
    refuse_unsharded(run, session)
    model = shard(build_model(context, seed).to(session.device), session)
    optimizer = adamw(decayed_groups(model, run.weight_decay, run.layer_decay), run, session.device)
    outcome = train_classifier(context, seed, checkpoints, model, optimizer)
    if run.keep_weights and session.is_main:
        save_weights(model.state_dict(), checkpoints.weights_path, {"run": f"{context.name}, seed {seed}"})
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
            backbone = context.upstream_run.backbone
            raise UserError(
                f"run {context.name}: tuned_blocks counts the blocks of a ViT; {backbone} has stages"
            )
        freeze_for_partial(model, run.tuned_blocks)
    return model

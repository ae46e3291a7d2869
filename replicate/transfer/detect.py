"""Training and scoring of Mask R-CNN on a pre-trained encoder (MAE Table 4, Efficient MAE Table 10)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from replicate.trainers.session import seed_everything
from replicate.transfer import detection
from replicate.transfer.train import fit, keep_weights, start_weights

if TYPE_CHECKING:
    from replicate.trainers.checkpoints import Checkpoints
    from replicate.trainers.context import RunContext


def train_seed(context: RunContext, seed: int, checkpoints: Checkpoints) -> dict[str, Any]:
    """Fine-tune one seed from the same seed's encoder and score it: AP of boxes and of masks, in percent."""
    seed_everything(seed)
    model = detection.build_model(context.upstream_run, context.run, context.num_classes)
    state, path = start_weights(context, seed)
    detection.load_encoder(context, model, state, path)
    task = detection.build_task(context, model.to(context.session.device))
    history = fit(context, seed, checkpoints, task, detection.train_data(context))
    keep_weights(context, seed, checkpoints, model)
    scores = detection.score(model, context)
    return {"results": scores | {"loss": history[-1]["loss"]}, "history": history}

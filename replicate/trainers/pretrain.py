"""Masked pre-training of any of the five papers: `python -m replicate pretrain RUN`."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from replicate import losses, targets
from replicate.loaders.crops import uniforms
from replicate.loaders.pixels import normalise
from replicate.losses.reconstruction import per_unit_error, reconstruction_loss
from replicate.models.prediction import Prediction
from replicate.models.resized import Resized
from replicate.models.weights import save_weights
from replicate.trainers.context import RunContext
from replicate.trainers.checkpoints import Checkpoints
from replicate.schedules.probe import PROBE_SCORES
from replicate.schedules.layer_decay import plain_groups
from replicate.schedules.stages import View
from replicate.trainers.diagnostics import ErrorByP2Dist, activation_gb
from replicate.trainers.engine import adamw, fit
from replicate.trainers.images import training_loader, validation_loader, whole_loader
from replicate.trainers.online_probe import OnlineProbe
from replicate.trainers.online_probe import accuracy as probe_accuracy
from replicate.trainers.session import seed_everything
from replicate.trainers.sharding import gathered, refuse_unsharded, shard, whole

if TYPE_CHECKING:
    from replicate.config import PretrainRun

MASK_STREAM = 16  # keeps the masks' random numbers apart from those of crops, flips and order
VALIDATION_SEED = 0  # validation losses of all runs and seeds are taken over the same masks


class PretrainTask(nn.Module):
    """Model, target and weighting of one run; forward gives the loss of a batch.

    The mask of an image depends on (seed, epoch, sample number) alone, so it is the same for any batch size, worker count and number of processes.
    """

    def __init__(
        self,
        run: PretrainRun,
        seed: int,
        num_classes: int,
        tokenizer: Path | None = None,
        teacher: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.seed, self.loss_norm = seed, run.loss_norm
        options = run.target_options | ({} if tokenizer is None else {"tokenizer": tokenizer})
        self.weighting = losses.build_weighting(run.weighting, patch_size=run.patch_size, difficulty=run.difficulty, **run.weighting_options)
        self.target = targets.build(run.target, run.patch_size, **options)
        self.model = importlib.import_module(f"replicate.models.{run.method}").build(run, self.target.dim, self.weighting.needs_p2dist)
        self.extra = _extra_term(run, self.model.embed_dim, num_classes, teacher)
        self.probe = OnlineProbe(self.model, num_classes) if run.online_probe else None
        self.mask_ratio = run.mask_ratio

    def set_view(self, view: View) -> Resized | None:
        self.mask_ratio = view.mask_ratio
        return self.model.set_image_size(view.image_size) if self.model.image_size != (view.image_size, view.image_size) else None

    def forward(self, images: Tensor, labels: Tensor, index: Tensor, epoch: int, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        loss, prediction = self.reconstruct(images, index, epoch, progress)
        logs: dict[str, Tensor] = {}
        if self.extra is not None:
            term, own = self.extra(prediction, labels, images)
            loss, logs = loss + term, {"reconstruction": loss, **own}
        if self.probe is not None:
            term, own = self.probe(images, labels)
            # Its gradient without its value: the run's loss stays the pre-training's, and so does the encoder's gradient.
            loss, logs = loss + (term - term.detach()), logs | own
        return loss, logs

    def reconstruct(self, images: Tensor, index: Tensor, epoch: int, progress: float) -> tuple[Tensor, Prediction]:
        """The reconstruction loss of uint8 images (n, 3, S, S), and what the model predicted."""
        prediction, target = self.predict(images, index, epoch)
        return self.loss(prediction, target, progress), prediction

    def loss(self, prediction: Prediction, target: Tensor, progress: float) -> Tensor:
        """The weighted loss of a batch's predictions."""
        weights = self.weighting(prediction.p2dist, prediction.scored, progress)
        return reconstruction_loss(prediction.pred, target, prediction.scored, weights, self.loss_norm)

    def predict(self, images: Tensor, index: Tensor, epoch: int) -> tuple[Prediction, Tensor]:
        """What the model predicts of uint8 images (n, 3, S, S), and what it should."""
        noise = mask_noise(self.seed, epoch, index, self.model.num_patches).to(images.device)
        return self.model(normalise(images), noise, self.mask_ratio), self.target(images)


def _extra_term(run: PretrainRun, width: int, num_classes: int, teacher: Callable[[Tensor], Tensor] | None) -> nn.Module | None:
    """What the objective adds to the reconstruction loss: called with (prediction, labels, images), gives (term, scalars to log)."""
    if run.objective == "reconstruction":
        return None
    return importlib.import_module(f"replicate.losses.{run.objective}").build(width, num_classes, teacher)


def mask_noise(seed: int, epoch: int, index: Tensor, num_patches: int) -> Tensor:
    """Uniform noise (n, L) float32 keyed by (seed, epoch, sample number, patch)."""
    noise = uniforms(seed, epoch, MASK_STREAM, np.asarray(index.cpu())[:, None], np.arange(num_patches))
    return torch.from_numpy(noise.astype(np.float32))


def train_seed(context: RunContext, seed: int, store: Checkpoints) -> dict[str, Any]:
    """Pre-train one seed and write its weights; results are the last epoch's training loss and the validation loss."""
    run, session = context.run, context.session
    seed_everything(seed)
    refuse_unsharded(run, session)
    task = PretrainTask(run, seed, context.num_classes, context.tokenizer, _teacher(context, seed)).to(session.device)
    for part in (task.model, task.extra):
        if part is not None:
            shard(part, session)
    if getattr(task.target, "needs_fit", False):
        fit_target(task.target, context)
    history = _train(task, context, seed, store) if run.epochs else []
    results = validate(task, context) | {"parameters": sum(p.numel() for p in task.model.parameters())}
    with gathered(task.model):
        results |= {"activation_gb": activation_gb(task, run.batch_size, session)}
    if history:
        results |= {"loss": history[-1]["loss"], "seconds_per_epoch": float(np.median([row["seconds"] for row in history]))}
        results |= {key: history[-1][key] for key in ("probe_top1", "probe_train_top1") if key in history[-1]}
    weights = whole(task.model.state_dict())
    if session.is_main:
        # One entry: safetensors writes several in no fixed order, and equal weights must be equal files for whatever is keyed by them.
        save_weights(weights, store.weights_path, {"run": f"{context.name}, seed {seed}"})
    return {"results": results, "history": history}


def _teacher(context: RunContext, seed: int) -> Callable[[Tensor], Tensor] | None:
    """The fine-tuned sibling that a distillation learns from, of the same seed."""
    if context.run.objective != "distillation":
        return None
    return importlib.import_module("replicate.trainers.teacher").load(context, seed)


def fit_target(target: nn.Module, context: RunContext) -> None:
    """Fit a target that is learnt from data (PCA of patches) on centre crops of the training images, in storage order."""
    with whole_loader(context, "train", context.run.image_size) as loader:
        target.fit(batch.images.to(context.session.device) for batch in loader.epoch(0))


def _train(task: PretrainTask, context: RunContext, seed: int, store: Checkpoints) -> list[dict[str, float]]:
    run, session = context.run, context.session
    optimizer = adamw(_groups(task, run.weight_decay), run, session.device)
    period = max(1, run.epochs // PROBE_SCORES)

    def score_probe(epoch: int) -> dict[str, float]:
        if (epoch + 1) % period and epoch + 1 < run.epochs:
            return {}
        with validation_loader(context, task.model.image_size[0]) as images:
            return probe_accuracy(task.probe, images.epoch(0), session)

    after_epoch = score_probe if task.probe is not None else None
    with training_loader(context, seed) as loader:
        return fit(task, optimizer, loader, run, session, store, seed=seed, name=f"{context.name} seed {seed}", after_epoch=after_epoch)


def _groups(task: PretrainTask, weight_decay: float) -> list[dict[str, Any]]:
    groups = plain_groups(task, weight_decay)
    if task.probe is None:
        return groups
    own = task.probe.group()
    apart = {id(parameter) for parameter in own["params"]}
    return [group | {"params": [p for p in group["params"] if id(p) not in apart]} for group in groups] + [own]


@torch.no_grad()
def validate(task: PretrainTask, context: RunContext) -> dict[str, float]:
    """Over the validation images, each under one fixed mask at the run's ratio: the mean reconstruction loss, and the error of masked
    units by their P2Dist.
    """
    task.eval()
    task.seed = VALIDATION_SEED
    total = count = 0.0
    by_p2dist = ErrorByP2Dist()
    with gathered(task.model), validation_loader(context, task.model.image_size[0]) as loader:
        for images, _, index in loader.epoch(0):
            with context.session.autocast():
                prediction, target = task.predict(images.to(context.session.device), index, 0)
                loss = task.loss(prediction, target, 1.0)
            by_p2dist.add(per_unit_error(prediction.pred, target, task.loss_norm), prediction.mask, prediction.scored, prediction.grid)
            total, count = total + float(loss) * len(images), count + len(images)
    total, count = context.session.all_reduce_sum(total, count)
    return {"val_loss": total / count} | by_p2dist.results(context.session.all_reduce_sum)

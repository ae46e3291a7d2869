"""Masked pre-training of every paper: `python -m replicate pretrain RUN`."""

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
from replicate.models.build import build_pretraining_model
from replicate.models.prediction import Prediction
from replicate.models.resized import Resized
from replicate.models.weights import load_released, save_weights
from replicate.schedules.layer_decay import plain_groups
from replicate.schedules.probe import PROBE_SCORES
from replicate.schedules.stages import View
from replicate.trainers.checkpoints import Checkpoints
from replicate.trainers.context import RunContext
from replicate.trainers.diagnostics import MEASURED_IMAGES, ErrorByP2Dist, activation_gb
from replicate.trainers.images import training_loader, validation_loader, whole_loader
from replicate.trainers.loop import Trainer, adamw
from replicate.trainers.online_probe import OnlineProbe
from replicate.trainers.pictures import Pictures
from replicate.trainers.session import Session, seed_everything
from replicate.trainers.sharding import gathered, refuse_unsharded, shard, whole

if TYPE_CHECKING:
    from replicate.config.runs import PretrainRun

MASK_STREAM = 16  # keeps the masks' random numbers apart from those of crops, flips and order
VALIDATION_SEED = 0  # validation losses of all runs and seeds are taken over the same masks

Teacher = Callable[[Tensor], Tensor]


class PretrainTask(nn.Module):
    """Model, target and weighting of one run; forward gives the loss of a batch.

    The mask of an image depends on (seed, epoch, sample number) alone: it is the same for any batch size,
    number of workers and number of processes.
    """

    def __init__(
        self,
        run: PretrainRun,
        seed: int,
        num_classes: int,
        tokenizer: Path | None = None,
        teacher: Teacher | None = None,
        session: Session | None = None,
    ) -> None:
        super().__init__()
        self.seed, self.loss_norm, self.mask_ratio = seed, run.loss_norm, run.mask_ratio
        weighting = {"patch_size": run.patch_size, "difficulty": run.difficulty} | run.weighting_options
        self.weighting = losses.build_weighting(run.weighting, **weighting)
        options = run.target_options | ({} if tokenizer is None else {"tokenizer": tokenizer})
        self.target = targets.build(run.target, run.patch_size, **options)
        self.model = build_pretraining_model(run, self.target.dim, self.weighting.needs_difficulty)
        self.extra = _extra_term(run, self.model.embed_dim, num_classes, teacher)
        self.probe = OnlineProbe(self.model, num_classes, session) if run.online_probe else None

    def set_view(self, view: View) -> Resized | None:
        self.mask_ratio = view.mask_ratio
        if self.model.image_size == (view.image_size, view.image_size):
            return None
        return self.model.set_image_size(view.image_size)

    def forward(
        self, images: Tensor, labels: Tensor, index: Tensor, epoch: int, progress: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        if self.probe is not None and int(index[0]) >= 0:
            self.probe.see(images, labels)
        loss, prediction = self.reconstruct(images, index, epoch, progress)
        if self.extra is None:
            return loss, {}
        term, logs = self.extra(prediction, labels, images)
        return loss + term, {"reconstruction": loss, **logs}

    def reconstruct(
        self, images: Tensor, index: Tensor, epoch: int, progress: float
    ) -> tuple[Tensor, Prediction]:
        """The reconstruction loss of uint8 images (n, 3, S, S), and the model's prediction."""
        prediction, target = self.predict(images, index, epoch)
        return self.loss(prediction, target, progress), prediction

    def loss(self, prediction: Prediction, target: Tensor, progress: float) -> Tensor:
        """The weighted loss of a batch's predictions."""
        weights = self.weighting(prediction.difficulty, prediction.scored, progress)
        return reconstruction_loss(prediction.pred, target, prediction.scored, weights, self.loss_norm)

    def predict(self, images: Tensor, index: Tensor, epoch: int) -> tuple[Prediction, Tensor]:
        """(prediction, target) of uint8 images (n, 3, S, S)."""
        noise = mask_noise(self.seed, epoch, index, self.model.num_patches).to(images.device)
        return self.model(normalise(images), noise, self.mask_ratio), self.target(images)


def _extra_term(run: PretrainRun, width: int, num_classes: int, teacher: Teacher | None) -> nn.Module | None:
    """What the objective adds to the loss: (prediction, labels, images) -> term, scalars to log."""
    if run.objective == "reconstruction":
        return None
    return importlib.import_module(f"replicate.losses.{run.objective}").build(width, num_classes, teacher)


def mask_noise(seed: int, epoch: int, index: Tensor, num_patches: int) -> Tensor:
    """Uniform noise (n, L) float32 keyed by (seed, epoch, sample number, patch)."""
    noise = uniforms(seed, epoch, MASK_STREAM, np.asarray(index.cpu())[:, None], np.arange(num_patches))
    return torch.from_numpy(noise.astype(np.float32))


def train_seed(context: RunContext, seed: int, checkpoints: Checkpoints) -> dict[str, Any]:
    """Pre-train one seed and write its weights; results are the last training and the validation loss."""
    run, session = context.run, context.session
    seed_everything(seed)
    refuse_unsharded(run, session)
    teacher = _teacher(context, seed)
    task = PretrainTask(run, seed, context.num_classes, context.tokenizer, teacher, session).to(
        session.device
    )
    scored = _start(task.model, run)
    for part in (task.model, task.extra):
        if part is not None:
            shard(part, session)
    if getattr(task.target, "needs_fit", False):
        fit_target(task.target, context)
    history = _train(task, context, seed, checkpoints) if run.epochs else []
    results = validate(task, context) if scored else {}
    results["parameters"] = sum(p.numel() for p in task.model.parameters())
    results["activation_gb"] = _activation_gb(task, context)
    if history:
        seconds = float(np.median([row["seconds"] for row in history]))
        results |= {"loss": history[-1]["loss"], "seconds_per_epoch": seconds}
        results |= {key: history[-1][key] for key in ("probe_top1", "probe_train_top1") if key in history[-1]}
    weights = whole(task.model.state_dict())
    if session.is_main:
        # One entry: safetensors writes several in no fixed order, and equal weights must make equal files.
        save_weights(weights, checkpoints.weights_path, {"run": f"{context.name}, seed {seed}"})
    return {"results": results, "history": history}


def _start(model: nn.Module, run: PretrainRun) -> bool:
    """Load the weights that the run names; returns whether the decoder's loss means anything."""
    if run.weights is None:
        return True
    from replicate.fetch.weights import weights_file

    return load_released(model, weights_file(run.weights))


def _teacher(context: RunContext, seed: int) -> Teacher | None:
    """The fine-tuned sibling that a distillation learns from, of the same seed."""
    if context.run.objective != "distillation":
        return None
    return importlib.import_module("replicate.trainers.teacher").load(context, seed)


def fit_target(target: nn.Module, context: RunContext) -> None:
    """Fit a target that is learnt from data (PCA of patches) on centre crops of the training images."""
    with whole_loader(context, "train", context.run.image_size) as loader:
        target.fit(batch.images.to(context.session.device) for batch in loader.epoch(0))


def _train(
    task: PretrainTask, context: RunContext, seed: int, checkpoints: Checkpoints
) -> list[dict[str, float]]:
    run, session, probe = context.run, context.session, task.probe
    period = max(1, run.epochs // PROBE_SCORES)

    def score_probe(epoch: int) -> dict[str, float]:
        if (epoch + 1) % period and epoch + 1 < run.epochs:
            return {}
        with validation_loader(context, task.model.image_size[0]) as images:
            return probe.accuracy(images.epoch(0))

    optimizer = adamw(plain_groups(task, run.weight_decay), run, session.device)
    beside = {}
    if probe is not None:
        beside = {"after_step": probe.step, "after_epoch": score_probe, "extra_state": probe.state()}
    with training_loader(context, seed) as loader:
        name = f"{context.name} seed {seed}"
        beside["pictures"] = Pictures(task, context)
        return Trainer(task, optimizer, loader, run, session, checkpoints, seed, name, **beside).fit()


@torch.no_grad()
def validate(task: PretrainTask, context: RunContext) -> dict[str, float]:
    """The mean reconstruction loss over the validation images, and the error of masked units by their P2Dist.

    Each image has one fixed mask at the run's ratio.
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
            error = per_unit_error(prediction.pred, target, task.loss_norm)
            by_p2dist.add(error, prediction.mask, prediction.scored, prediction.grid)
            total, count = total + float(loss) * len(images), count + len(images)
    total, count = context.session.all_reduce_sum(total, count)
    return {"val_loss": total / count} | by_p2dist.results(context.session.all_reduce_sum)


def _activation_gb(task: PretrainTask, context: RunContext) -> float:
    """Gigabytes that autograd keeps for one step. Under decoder masking a few images stand for all."""
    session = context.session
    images = torch.zeros(MEASURED_IMAGES, 3, *task.model.image_size, dtype=torch.uint8, device=session.device)

    def forward(images: Tensor) -> object:
        with session.autocast():
            return task.reconstruct(images, torch.arange(MEASURED_IMAGES), 0, 1.0)

    with gathered(task.model):
        return activation_gb(forward, task.parameters(), images, context.run.batch_size)

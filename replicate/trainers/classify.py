"""Training a classifier on labelled images: what fine-tuning and linear probing share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from replicate.loaders.pixels import normalise
from replicate.models.resized import Resized
from replicate.schedules.scoring import PARTS, scored_epochs
from replicate.schedules.stages import View
from replicate.trainers.accuracy import accuracy
from replicate.trainers.batches import mixes
from replicate.trainers.checkpoints import Checkpoints
from replicate.trainers.context import RunContext
from replicate.trainers.images import training_loader
from replicate.trainers.loop import Trainer
from replicate.trainers.regularisation import Erasing, Mixing

if TYPE_CHECKING:
    from replicate.config.runs import EvaluateRun


class ClassifyTask(nn.Module):
    """Classifier with the recipe's regularisation of batches; forward gives the loss of a batch.

    image_size   what the model takes now: the stage's, where the model's learned tables belong to a size
    followers    copies of the model, such as its moving average, that follow it to every new size
    """

    def __init__(
        self,
        model: nn.Module,
        run: EvaluateRun,
        num_classes: int,
        device: torch.device,
        followers: Sequence[nn.Module] = (),
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.model, self.image_size = model, run.image_size
        self._followers = tuple(
            followers
        )  # in a tuple: they are neither trained nor part of the task's state
        smoothing = run.label_smoothing
        self.mix = Mixing(run.mixup, run.cutmix, smoothing, num_classes) if mixes(run) else None
        self.erase = Erasing(run.random_erasing, seed, device) if run.random_erasing else None
        self.criterion = SoftTargetCrossEntropy() if self.mix else LabelSmoothingCrossEntropy(smoothing)

    def set_view(self, view: View) -> Resized | None:
        # Our ViT has `dynamic_img_size`: it resamples its positions in each forward pass.
        if view.image_size == self.image_size or getattr(self.model, "dynamic_img_size", False):
            return None
        self.image_size = view.image_size
        for follower in self._followers:
            follower.set_input_size(img_size=(view.image_size, view.image_size))
        return self.model.set_input_size(img_size=(view.image_size, view.image_size))

    def forward(
        self, images: Tensor, labels: Tensor, index: Tensor, epoch: int, progress: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        pixels = normalise(images)
        if self.erase is not None:
            pixels = self.erase(pixels, index, epoch)
        if self.mix is not None:
            pixels, labels = self.mix(pixels, labels)
        return self.criterion(self.model(pixels).float(), labels), {}


def train_classifier(
    context: RunContext,
    seed: int,
    checkpoints: Checkpoints,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
) -> dict[str, Any]:
    """Train `model` by the run's recipe and score it: the last epoch's accuracy and the best one, in percent.

    A run with a moving average of its weights scores the average (MAE, Table 10); `top1_without_ema` is the
    accuracy of the weights themselves (MAE, section A.2). In stages a model whose tables belong to a size is
    scored at the stage's size, any other at the run's.
    """
    run, session = context.run, context.session
    ema = ModelEmaV3(model, decay=run.ema) if run.ema else None
    task = ClassifyTask(model, run, context.num_classes, session.device, [ema.module] if ema else [], seed)

    def score(epoch: int) -> dict[str, float]:
        if epoch + 1 not in scored:
            return {}
        return accuracy(ema.module if ema else model, context, task.image_size)

    averaged = {"after_step": lambda: ema.update(model), "extra_state": {"ema": ema}} if ema else {}
    with training_loader(context, seed) as loader:
        scored = scored_epochs(run, loader.num_images, context.manifest.splits["val"]["images"])
        name = f"{context.name} seed {seed}"
        trainer = Trainer(
            task, optimizer, loader, run, session, checkpoints, seed, name, after_epoch=score, **averaged
        )
        history = trainer.fit()
    last = history[-1]
    best = max(row["top1"] for row in history if "top1" in row)
    scores = {"top1": last["top1"], "top5": last["top5"], "best_top1": best}
    parts = {f"top1_at_{part}": _top1_at(history, part / 100) for part in PARTS}
    scores |= {name: top1 for name, top1 in parts.items() if top1 is not None}
    if ema:
        scores["top1_without_ema"] = accuracy(model, context, run.image_size)["top1"]
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return {"results": scores | {"loss": last["loss"], "trainable": trainable}, "history": history}


def _top1_at(history: list[dict[str, float]], share: float) -> float | None:
    """The accuracy scored nearest to the end of that share of the run; None if a tenth of it lies between."""
    scored = {epoch + 1: row["top1"] for epoch, row in enumerate(history) if "top1" in row}
    nearest = min(scored, key=lambda epoch: abs(epoch - share * len(history)))
    return scored[nearest] if abs(nearest - share * len(history)) <= max(1, len(history) / 10) else None

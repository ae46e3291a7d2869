"""Training a classifier on labelled images: what fine-tuning and linear probing share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from timm.data.mixup import Mixup, mixup_target
from timm.data.random_erasing import RandomErasing
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from replicate.loaders.pixels import normalise
from replicate.models.resized import Resized
from replicate.schedules.stages import View
from replicate.trainers.accuracy import accuracy
from replicate.trainers.checkpoints import Checkpoints
from replicate.trainers.context import RunContext
from replicate.trainers.engine import fit
from replicate.trainers.images import training_loader

if TYPE_CHECKING:
    from replicate.config import EvaluateRun

PARTS = (30, 60)  # percent of the epochs at which DailyMAE's Table 9 reports
EVALUATIONS = 10  # how many times during a run the validation images are scored


class ClassifyTask(nn.Module):
    """Classifier with the recipe's batch-level regularisation; forward gives the loss of a batch.

    `image_size` is what the model takes now: the stage's where its learned tables belong to a size. `followers` are copies of the model,
    such as its moving average, that take every new size with it.
    """

    def __init__(self, model: nn.Module, run: EvaluateRun, num_classes: int, device: torch.device, followers: Sequence[nn.Module] = ()) -> None:
        super().__init__()
        self.model, self.image_size, self.num_classes, self.label_smoothing = model, run.image_size, num_classes, run.label_smoothing
        self._followers = tuple(followers)  # in a tuple: they are neither trained nor part of the task's state
        mixed = run.mixup > 0 or run.cutmix > 0
        self.mixup = Mixup(run.mixup, run.cutmix, label_smoothing=run.label_smoothing, num_classes=num_classes) if mixed else None
        self.erase = RandomErasing(run.random_erasing, mode="pixel", device=device) if run.random_erasing else None
        self.criterion = SoftTargetCrossEntropy() if mixed else LabelSmoothingCrossEntropy(run.label_smoothing)

    def set_view(self, view: View) -> Resized | None:
        if view.image_size == self.image_size or getattr(self.model, "dynamic_img_size", False):  # our ViT resamples its positions as it goes
            return None
        self.image_size = view.image_size
        for follower in self._followers:
            follower.set_input_size(img_size=(view.image_size, view.image_size))
        return self.model.set_input_size(img_size=(view.image_size, view.image_size))

    def forward(self, images: Tensor, labels: Tensor, index: Tensor, epoch: int, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        pixels = normalise(images)
        if self.erase is not None:
            pixels = self.erase(pixels)
        if self.mixup is not None:
            pixels, labels = self._mixed(pixels, labels)
        return self.criterion(self.model(pixels).float(), labels), {}

    def _mixed(self, pixels: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """timm's mixup pairs an image with its mirror position in the batch; the last of an odd number has no partner and stays as it is."""
        even = len(pixels) - len(pixels) % 2
        if even == len(pixels):
            return self.mixup(pixels, labels)
        alone = mixup_target(labels[even:], self.num_classes, smoothing=self.label_smoothing)
        if not even:
            return pixels, alone
        mixed, targets = self.mixup(pixels[:even], labels[:even])
        return torch.cat([mixed, pixels[even:]]), torch.cat([targets, alone])


def train_classifier(context: RunContext, seed: int, store: Checkpoints, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Train `model` by the run's recipe and score it; results are the accuracy of the last epoch and the best one seen, in percent.

    Where the run keeps a moving average of the weights, that is what is scored (MAE, Table 10), and `top1_without_ema` is the
    accuracy of the weights themselves after the last epoch (MAE, section A.2). During a run in stages a model whose tables belong to a
    size is scored at the stage's, any other at the run's.
    """
    run, session = context.run, context.session
    ema = ModelEmaV3(model, decay=run.ema) if run.ema else None
    task = ClassifyTask(model, run, context.num_classes, session.device, [ema.module] if ema else [])
    period = max(1, run.epochs // EVALUATIONS)
    ends = {round(stage.until * run.epochs) for stage in run.stages} | {run.epochs}

    def after_epoch(epoch: int) -> dict[str, float]:
        if (epoch + 1) % period and epoch + 1 not in ends:
            return {}
        return accuracy(ema.module if ema else model, context, task.image_size)

    with training_loader(context, seed) as loader:
        history = fit(
            task,
            optimizer,
            loader,
            run,
            session,
            store,
            seed=seed,
            name=f"{context.name} seed {seed}",
            after_step=(lambda: ema.update(model)) if ema else None,
            after_epoch=after_epoch,
            extra_state={"ema": ema} if ema else None,
        )
    last = history[-1]
    scores = {"top1": last["top1"], "top5": last["top5"], "best_top1": max(row["top1"] for row in history if "top1" in row)}
    scores |= {f"top1_at_{part}": _top1_at(history, part / 100) for part in PARTS}
    if ema:
        scores["top1_without_ema"] = accuracy(model, context, run.image_size)["top1"]
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return {"results": scores | {"loss": last["loss"], "trainable": trainable}, "history": history}


def _top1_at(history: list[dict[str, float]], share: float) -> float:
    """The accuracy that was scored nearest to the end of that share of the run."""
    scored = [(epoch + 1, row["top1"]) for epoch, row in enumerate(history) if "top1" in row]
    return min(scored, key=lambda point: abs(point[0] - share * len(history)))[1]

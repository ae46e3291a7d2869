"""What one image of a run costs: of a pre-training, an evaluation or a tokenizer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from replicate.config.backbones import is_plain_vit
from replicate.cost import beside, counted, vit
from replicate.cost.image_cost import ImageCost
from replicate.cost.methods import method_of

if TYPE_CHECKING:
    from replicate.config import EvaluateRun, PretrainRun, TokenizerRun

CLASSES = 1000
"""Classes of ImageNet-1k."""


def pretrain_cost(
    run: PretrainRun,
    bytes_per_value: int,
    num_classes: int = CLASSES,
    teacher: tuple[EvaluateRun, PretrainRun] | None = None,
    tokenizer: TokenizerRun | None = None,
) -> ImageCost:
    """The cost of a resolved pre-training at its own image size and mask ratio.

    num_classes: of the labels that a probe or SupMAE's head learns. teacher: a distillation's resolved
    fine-tuning and the pre-training below it; ValueError without one. tokenizer: the run that makes the
    target's tokens; a released one (`file`) counts as free. Raises UserError for a method whose cost is
    unknown.
    """
    method = method_of(run)
    cost = method.step(run, bytes_per_value)
    if tokenizer is not None and not tokenizer.file:
        # One token a patch, whatever the tokenizer's own stride.
        cost += counted.token_lookup_cost(tokenizer, run.image_size // run.patch_size * tokenizer.patch_size)
    if run.online_probe:
        cost += beside.online_probe(method.encoder(run, run.image_size), num_classes)
    if run.objective == "supmae":
        cost += beside.supmae(method.encoder(run, run.image_size).width, num_classes)
    if run.objective == "distillation":
        if teacher is None:
            raise ValueError("the cost of a distillation needs its teacher")
        tuning, source = teacher
        # The teacher sees the student's images, whatever size it was tuned at.
        seen = tuning.model_copy(update={"image_size": run.image_size})
        frozen = evaluate_cost(seen, source, num_classes, bytes_per_value)
        width = method_of(source).encoder(source, run.image_size).width
        cost += beside.distillation(method.encoder(run, run.image_size), frozen, width, bytes_per_value)
    return cost


def evaluate_cost(run: EvaluateRun, source: PretrainRun, num_classes: int, bytes_per_value: int) -> ImageCost:
    """The cost of a resolved evaluation of `source`'s backbone; frozen blocks run forward only."""
    if run.protocol in ("detect", "segment"):
        from replicate.cost.dense import dense_cost

        return dense_cost(run, source, num_classes, bytes_per_value)
    cost = vit if is_plain_vit(source.backbone, source.backbone_kwargs) else counted
    return cost.classifier_cost(run, source, num_classes, bytes_per_value)


def tokenizer_cost(run: TokenizerRun, bytes_per_value: int) -> ImageCost:
    """The cost of training a tokenizer."""
    return counted.tokenizer_training_cost(run, bytes_per_value)

"""The `paper` budget for real: every run of every paper builds its model, optimiser, schedule and loader
settings at full size, without memory; and one real step of each kind of run on tiny images.
"""

import json
import math

import pytest
import torch
from project import ROOT

from replicate.config import load
from replicate.config.lens import resolve
from replicate.cost.shapes import shapes_only
from replicate.loaders import Augmentation
from replicate.schedules.layer_decay import decayed_groups, plain_groups
from replicate.schedules.lr import set_learning_rate, warmup_cosine
from replicate.schedules.stages import view_at
from replicate.trainers.batches import accumulation
from replicate.trainers.classify import ClassifyTask
from replicate.trainers.pretrain import PretrainTask
from replicate.trainers.session import Session

CLASSES = 1000
TOKENIZER_CLASSES = 8192
PARAMS = load(ROOT / "params.yaml")


class Vocabulary(torch.nn.Module):
    """Stands for a tokenizer file: tokens of the right number, without one."""

    vocabulary, stride = TOKENIZER_CLASSES, 16

    def ids(self, images):
        return images.new_zeros(
            len(images), (images.shape[2] // self.stride) * (images.shape[3] // self.stride)
        ).long()


class Teacher:
    """Stands for a fine-tuned sibling."""

    def __init__(self, width: int, tokens: int) -> None:
        self.num_features, self.tokens = width, tokens

    def __call__(self, images):
        return torch.zeros(len(images), self.tokens, self.num_features, device=images.device)


def task_of(run):
    tokenizer = Vocabulary() if run.target == "token" else None
    if tokenizer is not None:
        tokenizer.stride = run.patch_size
    teacher = Teacher(64, 49) if run.objective == "distillation" else None
    session = Session(torch.device("meta"), torch.float32)
    return PretrainTask(run, 0, CLASSES, tokenizer, teacher, session)


def classifier_of(run, source):
    from replicate.models.build import build_classifier

    return build_classifier(source, CLASSES, run.image_size, run.drop_path)


SHAPE = (
    *(
        "method",
        "backbone",
        "backbone_kwargs",
        "drop_blocks",
        "image_size",
        "mask_tokens_in_encoder",
        "mask_unit",
        "mask_space",
        "mask_token",
    ),
    *(
        "decoder_depth",
        "decoder_width",
        "target",
        "target_options",
        "objective",
        "drop_path",
        "tuned_blocks",
        "layer_decay",
    ),
)
"""What decides how a model and its optimiser's groups are built."""


def kinds(runs, params, budget):
    """One run of each shape of model."""
    found: dict[str, str] = {}
    for name in runs:
        run = params.resolve(name, budget)
        source = params.resolve(run.pretrain, budget) if hasattr(run, "pretrain") else None
        shape = {key: getattr(run, key, None) for key in SHAPE} | {
            "source": source and (source.backbone, source.backbone_kwargs)
        }
        found.setdefault(json.dumps(shape, sort_keys=True, default=str), name)
    return list(found.values())


@pytest.mark.parametrize("group", ["pretrain_runs", "evaluate_runs"])
def test_every_run_has_a_schedule_and_loader_settings(group):
    for name in getattr(PARAMS, group):
        check_schedule(PARAMS.resolve(name, "paper"))


def check_schedule(run):
    """Stages cover the run, batches divide over 8 devices, and the rate rises to its peak and ends at its
    minimum.
    """
    session = Session(torch.device("cpu"), torch.bfloat16, world_size=8)
    for epoch in {0, run.epochs // 2, max(run.epochs - 1, 0)}:
        view = view_at(run, epoch)
        held, steps = accumulation(view.batch_size, session)
        assert held * steps * 8 == view.batch_size
        Augmentation(
            crop=run.crop,
            scale=view.crop_scale,
            auto=view.auto_augment,
            color_jitter=run.color_jitter,
            interpolation=run.interpolation,
        )
    timing = {
        "peak": run.peak_lr,
        "epochs": run.epochs,
        "warmup_epochs": run.warmup_epochs,
        "min_lr": run.min_lr,
    }
    if run.epochs:
        assert warmup_cosine(run.epochs, **timing) == pytest.approx(run.min_lr, abs=1e-12)
        top = warmup_cosine(run.warmup_epochs, **timing)
        assert math.isclose(top, run.peak_lr, rel_tol=1e-9)


def trained_once(groups, module):
    """Every trainable parameter is in exactly one group."""
    placed = [id(parameter) for group in groups for parameter in group["params"]]
    assert len(placed) == len(set(placed)) == sum(p.requires_grad for p in module.parameters())


def test_every_pretraining_builds_at_full_size():
    for name in kinds(PARAMS.pretrain_runs, PARAMS, "paper"):
        run = PARAMS.resolve(name, "paper")
        with shapes_only():
            task = task_of(run)
        trained_once(plain_groups(task, run.weight_decay), task)


def test_every_evaluation_builds_at_full_size():
    for name in kinds(PARAMS.evaluate_runs, PARAMS, "paper"):
        run = PARAMS.resolve(name, "paper")
        if run.protocol == "knn":
            continue
        with shapes_only():
            model = classifier_of(run, PARAMS.resolve(run.pretrain, "paper"))
        groups = decayed_groups(model, run.weight_decay, run.layer_decay)
        trained_once(groups, model)
        optimizer = torch.optim.AdamW(groups, lr=run.peak_lr, betas=run.betas)
        set_learning_rate(optimizer, run.peak_lr)
        assert max(group["lr"] for group in optimizer.param_groups) == pytest.approx(run.peak_lr)
        scales = {group["lr_scale"] for group in groups}
        assert max(scales) == 1.0 and (run.layer_decay == 1.0) == (len(scales) == 1)


def tiny(params):
    """The smoke lens, with the papers' own regularisation."""
    lens = params.budgets["smoke"].model_copy(update={"regularisation": "paper"})

    def resolved(name):
        run = params.run(name)
        return resolve(run, params.run(run.pretrain) if hasattr(run, "pretrain") else None, lens)

    return resolved


def step(task, run, classes):
    generator = torch.Generator().manual_seed(0)
    view = view_at(run, 0)
    task.set_view(view)
    images = torch.randint(
        0, 256, (4, 3, view.image_size, view.image_size), dtype=torch.uint8, generator=generator
    )
    groups = plain_groups(task, run.weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=1e-3)
    loss, logs = task(images, torch.tensor([0, 1, 2, 3]) % classes, torch.arange(4), 0, 0.5)
    loss.backward()
    assert math.isfinite(float(loss.detach())) and all(
        math.isfinite(float(value.detach())) for value in logs.values()
    )
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in task.parameters())
    optimizer.step()


def numbers_aside(run):
    """What makes a kind of step: options, not their numbers."""
    options = {
        key: value
        for key, value in run.model_dump(mode="json").items()
        if isinstance(value, str | bool) and key not in ("paper", "dataset")
    }
    extra = [
        key
        for key in ("decoder_beta", "mask_unit", "ema", "mixup", "random_erasing", "tuned_blocks")
        if getattr(run, key, None)
    ]
    return json.dumps(
        [{k: v for k, v in options.items() if k not in ("pretrain", "tokenizer", "teacher")}, extra],
        sort_keys=True,
    )


def test_one_real_step_of_each_kind_of_pretraining():
    resolve, seen = tiny(PARAMS), set()
    for name in PARAMS.pretrain_runs:
        run = resolve(name)
        kind = numbers_aside(run)
        if kind in seen or run.objective == "distillation":
            continue
        seen.add(kind)
        task = task_of(run)
        if hasattr(task.target, "fit") and getattr(task.target, "needs_fit", False):
            generator = torch.Generator().manual_seed(1)
            task.target.fit(
                [
                    torch.randint(
                        0, 256, (8, 3, run.image_size, run.image_size), dtype=torch.uint8, generator=generator
                    )
                ]
            )
        step(task.train(), run, CLASSES)


def test_one_real_step_of_each_kind_of_evaluation():
    resolve, seen = tiny(PARAMS), set()
    for name in PARAMS.evaluate_runs:
        run = resolve(name)
        source = resolve(run.pretrain)
        kind = numbers_aside(run) + source.backbone
        if kind in seen or run.protocol != "finetune":
            continue
        seen.add(kind)
        step(
            ClassifyTask(classifier_of(run, source), run, CLASSES, torch.device("cpu")).train(), run, CLASSES
        )

"""The machine's settings change no result: split batches, random numbers, batch statistics."""

import numpy as np
import pandas as pd
import pytest
import torch
from project import ROOT, run, write_params
from test_engine import MemoryLoader, losses, run_of, session_of
from torch import nn

from replicate.config import Machine, load
from replicate.config.backbones import vit_backbone
from replicate.errors import UserError
from replicate.loaders.pixels import normalise
from replicate.losses.supmae import SupMAE
from replicate.models.backbones import build_encoder
from replicate.models.build import build_classifier, build_probe
from replicate.pipeline import launch
from replicate.pipeline.seeds import train_seeds
from replicate.pipeline.store import RunStore
from replicate.trainers import classify
from replicate.trainers.batches import (
    BatchNormOverProcesses,
    Place,
    draw_for_whole_batches,
    least_images,
    micro_batches,
    normalises_batches,
    refuse_unfit,
)
from replicate.trainers.classify import ClassifyTask
from replicate.trainers.loop import Trainer
from replicate.trainers.regularisation import Erasing, Mixing
from replicate.trainers.session import open_session

CLASSES = 3
REGULARISED = {"mixup": 0.8, "cutmix": 1.0, "random_erasing": 0.5, "drop_path": 0.3, "label_smoothing": 0.1}


class Small(MemoryLoader):
    """Random images of 16 x 16 pixels."""

    def __init__(self, batch_size: int) -> None:
        super().__init__(batch_size)
        generator = torch.Generator().manual_seed(2)
        self.images = torch.randint(0, 256, (64, 3, 16, 16), dtype=torch.uint8, generator=generator)


def vit(**options) -> nn.Module:
    torch.manual_seed(0)
    backbone = vit_backbone("vit", embed_dim=16, depth=3, num_heads=2, patch_size=8)
    model = build_classifier(backbone, CLASSES, image_size=16, **options)
    nn.init.normal_(model.head.weight, std=0.1)
    return model


def fine_tuned(folder, task_options=REGULARISED, **machine):
    stated = load(ROOT / "params.yaml").run("light_90_llrd_80")
    recipe = stated.model_copy(update=task_options | {"image_size": 16})
    model = vit(drop_path=recipe.drop_path).double()
    task = ClassifyTask(model, recipe, CLASSES, torch.device("cpu"), seed=3)
    run = run_of(epochs=3, mixup=recipe.mixup, cutmix=recipe.cutmix, image_size=16)
    session, optimizer = session_of(**machine), torch.optim.AdamW(task.parameters(), lr=1.0)
    store = RunStore("run", folder)
    history = Trainer(task, optimizer, Small(run.batch_size), run, session, store, seed=3, name="test").fit()
    return model.state_dict(), losses(history)


@pytest.mark.parametrize("micro_batch", [2, 8])
def test_random_numbers_are_those_of_the_whole_batch(tmp_path, monkeypatch, micro_batch):
    """Mixup, CutMix, erasing and drop path in float64: the same losses and weights for every micro-batch."""
    monkeypatch.setattr(classify, "normalise", lambda images: normalise(images).double())
    weights, whole = fine_tuned(tmp_path / "whole")
    others, split = fine_tuned(tmp_path / "split", micro_batch=micro_batch)
    assert split == pytest.approx(whole, rel=1e-6)
    for name, value in weights.items():
        torch.testing.assert_close(others[name], value, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("option", ["mixup", "cutmix", "random_erasing", "drop_path"])
def test_each_regularisation_is_in_force(tmp_path, monkeypatch, option):
    monkeypatch.setattr(classify, "normalise", lambda images: normalise(images).double())
    off = dict.fromkeys(REGULARISED, 0.0)
    _, without = fine_tuned(tmp_path / "without", off)
    _, with_it = fine_tuned(tmp_path / "with", off | {option: REGULARISED[option]})
    assert with_it != pytest.approx(without, rel=1e-3)


@pytest.mark.parametrize("count", [1, 2, 5, 6])
def test_mixing_pairs_neighbours_and_keeps_every_image(count):
    """Constant images number their pixels: a mixed one lies between its own number and its neighbour's."""
    mixing = Mixing(0.8, 0.0, 0.1, count)
    np.random.seed(0)
    pixels = torch.arange(count).float()[:, None, None, None].expand(count, 3, 8, 8).clone()
    mixed, targets = mixing(pixels, torch.arange(count))
    torch.testing.assert_close(targets.sum(dim=1), torch.ones(count))
    off = 0.1 / count
    strengths = ((targets - off) / 0.9).round(decimals=5)
    assert [image.unique().numel() for image in mixed] == [1] * count
    torch.testing.assert_close(mixed[:, 0, 0, 0], strengths @ torch.arange(count).float(), atol=1e-4, rtol=0)
    for row in strengths:
        pair = row.nonzero().flatten().tolist()
        assert len({image // 2 for image in pair}) == 1, "an image mixes with its neighbour alone"


def test_erasing_depends_on_the_sample_alone():
    erase, pixels = Erasing(0.5, 7, torch.device("cpu")), torch.zeros(40, 3, 12, 12)
    whole = erase(pixels.clone(), torch.arange(40), 2)
    torch.manual_seed(9)
    before = torch.random.get_rng_state()
    part = erase(pixels[:9].clone(), torch.arange(30, 39), 2)
    assert torch.equal(part, whole[30:39]) and torch.equal(torch.random.get_rng_state(), before)
    erased = (whole != 0).flatten(1).any(1)
    assert 10 < erased.sum() < 30
    assert not torch.equal(erase(pixels.clone(), torch.arange(40), 3), whole)


def test_drop_path_takes_its_part_of_what_is_drawn_for_the_whole_batch(tmp_path):
    model = vit(drop_path=0.5)
    task = nn.Module()
    task.model = model
    draw_for_whole_batches(task, session_of())
    task.train()
    images = torch.randn(6, 3, 16, 16)
    torch.manual_seed(1)
    whole = model(images)
    for start, stop in ((0, 2), (2, 6)):
        torch.manual_seed(1)
        with Place(start, stop - start, 6):
            torch.testing.assert_close(model(images[start:stop]), whole[start:stop], rtol=1e-4, atol=1e-5)


def test_the_parts_of_a_share_lie_side_by_side():
    session = session_of(micro_batch=3, rank=1, world_size=2)
    batch = next(MemoryLoader(6).epoch(0))
    parts = micro_batches(batch, run_of(batch_size=12), 12, session)
    assert [(place.start, place.images, place.total) for _, place in parts] == [(6, 3, 12), (9, 3, 12)]
    assert torch.equal(torch.cat([part.index for part, _ in parts]), batch.index)
    damaged = type(batch)(*(item[:2] for item in batch))
    (_, first), (blank, second) = micro_batches(damaged, run_of(batch_size=12), 12, session)
    assert (first.images, second.images, len(blank.images), int(blank.index)) == (2, 0, 1, -1)


class Normalised(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(12), nn.Linear(12, 3))

    def set_view(self, view) -> None:
        pass

    def forward(self, images, labels, index, epoch, progress):
        return nn.functional.cross_entropy(self.model(images.float()), labels), {}


def train_normalised(folder, batch_size=16, **machine):
    task, run, store = Normalised(), run_of(batch_size=batch_size), RunStore("run", folder)
    optimizer = torch.optim.AdamW(task.parameters())
    loader = MemoryLoader(batch_size)
    return Trainer(task, optimizer, loader, run, session_of(**machine), store, seed=0, name="norm").fit()


def test_batch_statistics_are_not_split(tmp_path):
    with pytest.raises(
        UserError, match="run norm: machine.micro_batch 4 splits the 16 images a process, but batch"
    ):
        train_normalised(tmp_path, micro_batch=4)
    with pytest.raises(UserError, match="run norm: batch normalisation needs 2 images a batch or more"):
        train_normalised(tmp_path, batch_size=1)
    assert len(train_normalised(tmp_path, micro_batch=16)) == 6


def test_which_models_train_on_batch_statistics():
    numbers = {"dims": (8, 16, 16, 32), "depths": (1, 1, 1, 1), "heads": (1, 1, 1, 2)}
    cmt = build_encoder("cmt_tiny", 32, **numbers)
    plain = vit_backbone("vit", embed_dim=16, depth=1, num_heads=2, patch_size=8)
    probe = build_probe(plain, CLASSES, image_size=16)
    assert [least_images(model) for model in (cmt, SupMAE(8, 3), probe)] == [2, 2, 2]
    assert least_images(vit()) == 1 and not normalises_batches(vit())


def test_an_online_probe_takes_micro_batches_and_two_images():
    """It normalises over what all micro-batches of a step have collected."""
    task = nn.Module()
    task.model, task.probe = vit(), object()
    refuse_unfit(task, run_of(), session_of(micro_batch=4), "probed")
    with pytest.raises(UserError, match="run probed: batch normalisation needs 2 images a batch or more"):
        refuse_unfit(task, run_of(batch_size=1), session_of(), "probed")


EXACT = {"workers": 3, "deterministic": True, "checkpoint_every": 1, "keep_checkpoints": 2, "keep_best": True}
ROUNDED = {"micro_batch": 3, "channels_last": True}
RUNS = ("light_90", "light_90_llrd_80")


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """240 images at the smoke budget with the papers' own regularisation: seven batches of 32 and a rest."""
    folder = tmp_path_factory.mktemp("machine")
    budget = {"regularisation": "paper", "pretrain_epochs": 0.02, "evaluate_epochs": 0.04}
    write_params(folder, budget=budget, data={"train_images": 240, "val_images": 24})
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        launch.write_dataset(load("params.yaml"), "full")
    return folder


def found_with(project, folder, **machine) -> dict[str, list[float]]:
    """Losses and images of every epoch of a pre-training and its fine-tuning."""
    folder.mkdir()
    (folder / "data").symlink_to(project / "data")
    params, found = load(project / "params.yaml"), {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        with open_session(Machine(**{"workers": 1} | machine), "float32", "beton") as session:
            for name in RUNS:
                context = launch.context_of(params, name, session)
                train_seeds(context, launch.trainer_of(context.run))
                history = pd.read_csv(context.results_folder / "history.csv")
                found[name] = history.loss.tolist() + history.images.tolist()
    return found


@pytest.fixture(scope="module")
def usual(project, tmp_path_factory):
    return found_with(project, tmp_path_factory.mktemp("usual") / "run")


def test_these_settings_of_the_machine_change_no_bit(project, usual, tmp_path):
    assert found_with(project, tmp_path / "run", **EXACT) == usual


def test_these_settings_of_the_machine_change_roundings_alone(project, usual, tmp_path):
    found = found_with(project, tmp_path / "run", **ROUNDED)
    for name in RUNS:
        assert found[name] == pytest.approx(usual[name], rel=1e-4)
    assert usual["light_90"][-1] == 7 * 32, "240 images are seven batches of 32"


def test_every_setting_of_the_machine_is_tried():
    elsewhere = {
        "device": "tests that need a GPU",
        "compile": "tests/test_training_options.py",
        "seed_processes": "the test below",
        "shard": "tests/test_distributed.py",
        "loggers": "tests/test_loggers.py",
        "log_images": "tests/test_loggers.py",
    }
    assert {*EXACT, *ROUNDED, *elsewhere} == set(Machine.model_fields)


@pytest.mark.slow
def test_seeds_side_by_side_equal_seeds_in_turn(project, tmp_path):
    """Two seeds of 100 steps, in one process and in two."""
    found = []
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        folder.mkdir()
        write_params(
            folder, budget={"pretrain_epochs": 0.25, "seeds": 2}, machine={"seed_processes": processes}
        )
        run(folder, "data", "write")
        run(folder, "pretrain", "light_90")
        history = pd.read_csv(folder / "results/smoke/efficient_learners/light_90/history.csv")
        found.append(history[["seed", "epoch", "loss"]].to_numpy().tolist())
    assert found[0] == found[1] and len(found[0]) == 2 * 25


def test_batch_norm_over_processes_takes_a_batch_without_images(tmp_path):
    """No process has a positive region in a detector's first steps, so there is nothing to learn."""
    store = f"file://{tmp_path}/store"
    torch.distributed.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    try:
        norm = BatchNormOverProcesses(3)
        out = norm(torch.zeros(0, 3, 2, 2, requires_grad=True))
        out.sum().backward()
    finally:
        torch.distributed.destroy_process_group()
    assert out.shape == (0, 3, 2, 2) and torch.isfinite(norm.weight.grad).all()
    assert norm.num_batches_tracked == 0 and torch.equal(norm.running_var, torch.ones(3))

"""The training loop: accumulation, resumption, the guard against NaN, and what it does with a batch that does not come out even."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from replicate.errors import UserError
from replicate.loaders import Batch
from replicate.pipeline.store import RunStore
from replicate.trainers.engine import accumulation, fit
from replicate.trainers.session import Session


class Regression(nn.Module):
    """A task small enough to follow by hand, with dropout, so that its random numbers matter."""

    def __init__(self, poison_at: int | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(12, 8, dtype=torch.float64), nn.Dropout(0.2), nn.Linear(8, 3, dtype=torch.float64))
        self.poison_at = poison_at

    def set_view(self, view) -> None:
        pass

    def forward(self, images, labels, index, epoch, progress):
        logits = self.model(images.double().flatten(1) / 255)
        loss = nn.functional.cross_entropy(logits, labels)
        return (loss * float("nan") if epoch == self.poison_at else loss), {}


class MemoryLoader:
    num_classes, class_names = 3, ["a", "b", "c"]

    def __init__(self, batch_size: int, num_images: int = 64, stop_at: int | None = None) -> None:
        generator = torch.Generator().manual_seed(1)
        self.images = torch.randint(0, 256, (num_images, 3, 2, 2), dtype=torch.uint8, generator=generator)
        self.labels = torch.randint(0, 3, (num_images,), generator=generator)
        self.batch_size, self.num_images, self.stop_at = batch_size, num_images, stop_at

    @property
    def num_batches(self) -> int:
        return self.num_images // self.batch_size

    def set_stage(self, image_size=None, scale=None, batch_size=None, auto=None) -> None:
        pass

    def epoch(self, epoch):
        if epoch == self.stop_at:
            raise KeyboardInterrupt
        order = torch.randperm(self.num_images, generator=torch.Generator().manual_seed(epoch))
        for part in order.split(self.batch_size)[: self.num_batches]:
            yield Batch(self.images[part], self.labels[part], part)


def run_of(**changes):
    stated = {"epochs": 6, "warmup_epochs": 1.0, "batch_size": 16, "base_lr": 0.16, "min_lr": 0.0, "clip_grad": None, "stages": ()}
    return SimpleNamespace(image_size=2, crop_scale=(0.2, 1.0), **(stated | changes))


def session_of(**changes) -> Session:
    return Session(torch.device("cpu"), torch.float32, **changes)


def train(folder, *, run=None, session=None, loader=None, task=None):
    task = task or Regression()
    session = session or session_of()
    run = run or run_of()
    loader = loader or MemoryLoader(accumulation(run.batch_size, session)[0])
    optimizer = torch.optim.AdamW(task.parameters(), lr=1.0)
    history = fit(task, optimizer, loader, run, session, RunStore("run", folder), seed=3, name="test")
    return task.state_dict(), history


def same(a: dict, b: dict) -> bool:
    return all(torch.equal(a[key], b[key]) for key in a)


def test_a_run_broken_off_and_continued_equals_an_unbroken_one_bit_for_bit(tmp_path):
    whole, whole_history = train(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "broken", loader=MemoryLoader(16, stop_at=4))
    continued, history = train(tmp_path / "broken")
    assert same(whole, continued)
    assert [row["loss"] for row in history] == [row["loss"] for row in whole_history]


def test_the_same_run_twice_gives_equal_weights(tmp_path):
    assert same(train(tmp_path / "a")[0], train(tmp_path / "b")[0])


def test_accumulated_micro_batches_equal_one_batch(tmp_path):
    task = Regression()
    task.model[1].p = 0.0
    whole, history = train(tmp_path / "a", task=task)
    task = Regression()
    task.model[1].p = 0.0
    parts, parts_history = train(tmp_path / "b", task=task, session=session_of(micro_batch=4))
    for key in whole:
        torch.testing.assert_close(whole[key], parts[key], rtol=1e-9, atol=1e-12)
    assert [row["loss"] for row in history] == pytest.approx([row["loss"] for row in parts_history], rel=1e-9)


def test_a_last_incomplete_group_of_micro_batches_still_takes_its_step(tmp_path):
    """9 micro-batches of 4, four to a step: the third step averages over the one that is left instead of dropping it."""
    task = Regression()
    steps = []
    step = torch.optim.AdamW.step

    class Counting(torch.optim.AdamW):
        def step(self, *arguments, **keywords):
            steps.append(1)
            return step(self, *arguments, **keywords)

    loader = MemoryLoader(4, num_images=36)
    fit(task, Counting(task.parameters(), lr=1.0), loader, run_of(epochs=2), session_of(micro_batch=4), RunStore("r", tmp_path), seed=0, name="t")
    assert len(steps) == 2 * 3


def test_nan_stops_the_run_with_its_place_and_keeps_the_last_checkpoint(tmp_path):
    with pytest.raises(UserError, match=r"run test: the loss became nan in epoch 2, step 0"):
        train(tmp_path, task=Regression(poison_at=2))
    assert RunStore("run", tmp_path).load_checkpoint(torch.device("cpu"))["history"][-1]["epoch"] < 2


def test_more_images_a_batch_than_there_are_is_refused(tmp_path):
    with pytest.raises(UserError, match="an epoch has no batch; 8 images do not fill a batch of 16"):
        train(tmp_path, loader=MemoryLoader(16, num_images=8))


@pytest.mark.parametrize(
    ("batch", "micro", "world", "expected"),
    [(64, None, 1, (64, 1)), (64, 16, 1, (16, 4)), (64, 24, 1, (16, 4)), (4096, 128, 8, (128, 4)), (96, 40, 2, (24, 2))],
)
def test_accumulation_never_exceeds_the_micro_batch_and_keeps_the_global_batch(batch, micro, world, expected):
    held, steps = accumulation(batch, session_of(micro_batch=micro, world_size=world))
    assert (held, steps) == expected and held * steps * world == batch


def test_a_batch_that_the_processes_cannot_share_is_refused():
    with pytest.raises(UserError, match="cannot be shared by 3 processes"):
        accumulation(64, session_of(world_size=3))


def test_an_unreadable_checkpoint_is_named(tmp_path):
    """An unreadable checkpoint is told by its path, not by a traceback."""
    store = RunStore("broken", tmp_path)
    store.folder.mkdir(parents=True)
    store.checkpoint_path.write_bytes(b"not a checkpoint")
    with pytest.raises(UserError, match=r"checkpoint\.pt: this checkpoint cannot be read"):
        store.load_checkpoint(torch.device("cpu"))


def test_a_seed_is_trained_by_one_process_at_a_time(tmp_path):
    first, second = RunStore("locked", tmp_path), RunStore("locked", tmp_path)
    refused = pytest.raises(UserError, match="light_90, seed 0 is being trained by another process")
    with first.locked("light_90, seed 0"), refused, second.locked("light_90, seed 0"):
        pass

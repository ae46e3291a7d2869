"""The training loop: micro-batches, resumption, the guard against NaN, damaged and uneven batches."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from replicate.errors import UserError
from replicate.loaders import Batch
from replicate.pipeline.store import RunStore
from replicate.trainers.batches import accumulation
from replicate.trainers.loop import Trainer
from replicate.trainers.session import Session


class Regression(nn.Module):
    """A task small enough to follow by hand, with dropout, so that its random numbers matter."""

    def __init__(self, poison_at: int | None = None, dropout: float = 0.2) -> None:
        super().__init__()
        torch.manual_seed(0)
        first, last = nn.Linear(12, 8, dtype=torch.float64), nn.Linear(8, 3, dtype=torch.float64)
        self.model = nn.Sequential(first, nn.Dropout(dropout), last)
        self.poison_at = poison_at

    def set_view(self, view) -> None:
        pass

    def forward(self, images, labels, index, epoch, progress):
        logits = self.model(images.double().flatten(1) / 255)
        loss = nn.functional.cross_entropy(logits, labels)
        return (loss * float("nan") if epoch == self.poison_at else loss), {}


class MemoryLoader:
    """Random images of 2 x 2 pixels.

    `holes` are steps whose images are all damaged; the others keep the first `left` images.
    """

    num_classes, class_names, num_skipped = 3, ["a", "b", "c"], 0

    def __init__(self, batch_size, num_images=64, stop_at=None, holes=(), left=None) -> None:
        generator = torch.Generator().manual_seed(1)
        self.images = torch.randint(0, 256, (num_images, 3, 2, 2), dtype=torch.uint8, generator=generator)
        self.labels = torch.randint(0, 3, (num_images,), generator=generator)
        self.batch_size, self.num_images, self.stop_at = batch_size, num_images, stop_at
        self.holes, self.left = holes, left
        self.on_error = "skip" if holes or left is not None else "raise"

    @property
    def num_batches(self) -> int:
        return self.num_images // self.batch_size

    def set_stage(self, image_size=None, scale=None, batch_size=None, auto=None) -> None:
        pass

    def epoch(self, epoch):
        if epoch == self.stop_at:
            raise KeyboardInterrupt
        order = torch.randperm(self.num_images, generator=torch.Generator().manual_seed(epoch))
        for step, part in enumerate(order.split(self.batch_size)[: self.num_batches]):
            kept = part[: 0 if step in self.holes else self.left]
            yield Batch(self.images[kept], self.labels[kept], kept)


def run_of(**changes):
    stated = {"epochs": 6, "warmup_epochs": 1.0, "batch_size": 16, "base_lr": 0.16, "min_lr": 0.0}
    view = {"image_size": 2, "crop_scale": (0.2, 1.0), "clip_grad": None, "stages": ()}
    return SimpleNamespace(**(view | stated | changes))


def session_of(**changes) -> Session:
    return Session(torch.device("cpu"), torch.float32, **changes)


def train(folder, *, run=None, session=None, loader=None, task=None, optimizer=torch.optim.AdamW):
    task, run = task or Regression(), run or run_of()
    loader = loader or MemoryLoader(run.batch_size)
    store = RunStore("run", folder)
    made = optimizer(task.parameters(), lr=1.0)
    history = Trainer(task, made, loader, run, session or session_of(), store, seed=3, name="test").fit()
    return task.state_dict(), history


def losses(history) -> list[float]:
    return [row["loss"] for row in history]


def same(a: dict, b: dict) -> bool:
    return all(torch.equal(a[key], b[key]) for key in a)


def test_an_interrupted_run_continues_bit_for_bit(tmp_path):
    whole, whole_history = train(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "broken", loader=MemoryLoader(16, stop_at=4))
    continued, history = train(tmp_path / "broken")
    assert same(whole, continued) and losses(history) == losses(whole_history)


def test_the_same_run_twice_gives_equal_weights(tmp_path):
    assert same(train(tmp_path / "a")[0], train(tmp_path / "b")[0])


@pytest.mark.parametrize("micro_batch", [1, 4, 5, 8])
def test_micro_batches_equal_one_batch(tmp_path, micro_batch):
    whole, history = train(tmp_path / "a", task=Regression(dropout=0.0))
    split = session_of(micro_batch=micro_batch)
    parts, parts_history = train(tmp_path / "b", task=Regression(dropout=0.0), session=split)
    for key in whole:
        torch.testing.assert_close(whole[key], parts[key], rtol=1e-9, atol=1e-12)
    assert losses(parts_history) == pytest.approx(losses(history), rel=1e-9)


@pytest.mark.parametrize("micro_batch", [None, 4])
def test_an_epoch_drops_what_does_not_fill_a_batch(tmp_path, micro_batch):
    """39 images, 16 a batch: two steps, of the same images for every micro-batch."""
    steps, seen = [], []

    class Counting(torch.optim.AdamW):
        def step(self, *arguments, **keywords):
            steps.append(1)
            return super().step(*arguments, **keywords)

    class Noting(Regression):
        def forward(self, images, labels, index, epoch, progress):
            seen.extend(index.tolist())
            return super().forward(images, labels, index, epoch, progress)

    loader, session = MemoryLoader(16, num_images=39), session_of(micro_batch=micro_batch)
    train(tmp_path, run=run_of(epochs=2), session=session, loader=loader, task=Noting(), optimizer=Counting)
    assert len(steps) == 2 * 2
    assert seen == [int(i) for epoch in range(2) for batch in loader.epoch(epoch) for i in batch.index]


def test_nan_stops_the_run_with_its_place_and_keeps_the_last_checkpoint(tmp_path):
    with pytest.raises(UserError, match=r"run test: the loss became nan in epoch 2, step 0"):
        train(tmp_path, task=Regression(poison_at=2))
    assert RunStore("run", tmp_path).load_checkpoint(torch.device("cpu"))["history"][-1]["epoch"] < 2


@pytest.mark.parametrize("micro_batch", [None, 4])
def test_more_images_a_batch_than_there_are_is_refused(tmp_path, micro_batch):
    session = session_of(micro_batch=micro_batch)
    with pytest.raises(UserError, match="an epoch has no batch; 8 images do not fill a batch of 16"):
        train(tmp_path, loader=MemoryLoader(16, num_images=8), session=session)


@pytest.mark.parametrize(
    ("batch", "micro", "world", "expected"),
    [
        (64, None, 1, (64, 1)),
        (64, 16, 1, (16, 4)),
        (64, 24, 1, (16, 4)),
        (4096, 128, 8, (128, 4)),
        (96, 40, 2, (24, 2)),
    ],
)
def test_micro_batches_divide_the_share_and_are_no_larger_than_asked(batch, micro, world, expected):
    held, steps = accumulation(batch, session_of(micro_batch=micro, world_size=world))
    assert (held, steps) == expected and held * steps * world == batch


def test_a_batch_that_the_processes_cannot_share_is_refused():
    with pytest.raises(UserError, match="cannot be shared by 3 processes"):
        accumulation(64, session_of(world_size=3))


def test_images_that_pair_are_held_in_even_numbers():
    assert accumulation(30, session_of(micro_batch=5), grain=2) == (2, 15)
    with pytest.raises(UserError, match="machine.micro_batch 1: mixup and cutmix pair images"):
        accumulation(30, session_of(micro_batch=1), grain=2)


def test_steps_average_over_the_images_that_are_left(tmp_path):
    """4 of 16 images a batch are damaged: 12 whole, or three micro-batches of 4, are the same steps."""
    made = (
        {"task": Regression(dropout=0.0)},
        {"task": Regression(dropout=0.0), "session": session_of(micro_batch=4)},
    )
    (whole, history), (split, _) = (
        train(tmp_path / str(n), loader=MemoryLoader(16, left=12), **how) for n, how in enumerate(made)
    )
    for key, value in whole.items():
        torch.testing.assert_close(split[key], value, rtol=1e-9, atol=1e-9)
    assert [row["images"] for row in history] == [48] * 6


@pytest.mark.parametrize("holes", [(0,), (2,), (0, 1, 3)])
def test_a_step_without_images_is_left_out(tmp_path, holes):
    _, history = train(tmp_path, loader=MemoryLoader(16, holes=holes))
    assert [row["images"] for row in history] == [64 - 16 * len(holes)] * 6
    assert all(0 < row["loss"] < 3 for row in history)


def test_an_epoch_without_images_is_one_error(tmp_path):
    with pytest.raises(UserError, match="run test: epoch 0 has no batch with 1 readable images"):
        train(tmp_path, loader=MemoryLoader(16, left=0))


def test_an_unreadable_checkpoint_is_named(tmp_path):
    store = RunStore("broken", tmp_path)
    store.folder.mkdir(parents=True)
    store.checkpoint_path.write_bytes(b"not a checkpoint")
    with pytest.raises(UserError, match=r"checkpoint\.pt: cannot read this checkpoint"):
        store.load_checkpoint(torch.device("cpu"))


def test_a_seed_is_trained_by_one_process_at_a_time(tmp_path):
    first, second = RunStore("locked", tmp_path), RunStore("locked", tmp_path)
    refused = pytest.raises(UserError, match="another process is training light_90, seed 0")
    with first.locked("light_90, seed 0"), refused, second.locked("light_90, seed 0"):
        pass

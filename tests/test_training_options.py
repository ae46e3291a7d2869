"""Precision and the machine's settings: each is in force, and none changes what is learnt beyond rounding."""

import random
import shutil

import numpy as np
import pytest
import torch
from test_engine import MemoryLoader, losses, run_of, same
from torch import nn

from replicate.config import Machine, Stage
from replicate.errors import UserError
from replicate.pipeline.store import RunStore
from replicate.trainers.accuracy import TopK
from replicate.trainers.loop import Trainer
from replicate.trainers.session import TORCHRUN, Session, open_session, seed_everything


class Convolution(nn.Module):
    """A task in float32 with a convolution; `blow_up` multiplies the loss, and with it every gradient."""

    def __init__(self, blow_up: float = 1.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Conv2d(3, 8, 2), nn.Flatten(), nn.Dropout(0.2), nn.Linear(8, 3))
        self.blow_up = blow_up

    def set_view(self, view) -> None:
        pass

    def forward(self, images, labels, index, epoch, progress):
        logits = self.model(images.float() / 255)
        return self.blow_up * nn.functional.cross_entropy(logits.float(), labels), {}


def train(
    folder,
    precision=torch.float32,
    *,
    run=None,
    task=None,
    loader=None,
    optimizer=torch.optim.AdamW,
    **machine,
):
    task, run = task or Convolution(), run or run_of()
    session = Session(torch.device("cpu"), precision, **machine)
    made, store = optimizer(task.parameters(), lr=1.0), RunStore("run", folder)
    trainer = Trainer(task, made, loader or MemoryLoader(16), run, session, store, seed=3, name="test")
    return task, trainer.fit()


def checkpoint(folder):
    return RunStore("run", folder).load_checkpoint(torch.device("cpu"))


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_low_precision_follows_the_curve_of_float32(tmp_path, precision):
    whole, low = (losses(train(tmp_path / str(kind), kind)[1]) for kind in (torch.float32, precision))
    assert low != whole and low == pytest.approx(whole, rel=0.02)


def test_a_float16_run_broken_off_continues_bit_for_bit_with_its_scale(tmp_path):
    whole, history = train(tmp_path / "whole", torch.float16)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "broken", torch.float16, loader=MemoryLoader(16, stop_at=4), checkpoint_every=1)
    continued, continued_history = train(tmp_path / "broken", torch.float16)
    assert same(whole.state_dict(), continued.state_dict()) and losses(history) == losses(continued_history)
    assert checkpoint(tmp_path / "whole")["scaler"] == checkpoint(tmp_path / "broken")["scaler"]


def test_gradients_that_overflow_float16_take_no_step_and_halve_the_scale(tmp_path):
    task, _ = train(tmp_path, torch.float16, run=run_of(epochs=1), task=Convolution(blow_up=1e20))
    assert same(task.state_dict(), Convolution().state_dict())
    assert checkpoint(tmp_path)["scaler"]["scale"] == 65536 / 2**4


def test_clipped_gradients_move_weights_no_further_than_the_limit(tmp_path):
    limit, before = 1e-3, Convolution().state_dict()
    task, history = train(
        tmp_path, run=run_of(epochs=1, warmup_epochs=0.0, clip_grad=limit), optimizer=torch.optim.SGD
    )
    moved = torch.cat([(task.state_dict()[key] - before[key]).flatten() for key in before]).norm()
    assert 0 < moved <= 4 * 0.16 * 16 / 256 * limit and history[0]["grad_norm"] > limit


def test_channels_last_is_taken_and_changes_nothing(tmp_path):
    _, plain = train(tmp_path / "plain")
    task, last = train(tmp_path / "last", channels_last=True)
    assert task.model[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert losses(last) == pytest.approx(losses(plain), rel=1e-5)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a compiler on a CPU")
def test_a_compiled_run_follows_the_curve_of_a_plain_one(tmp_path):
    def task():
        made = Convolution()
        made.model[2].p = 0.0  # compiled dropout draws other numbers
        return made

    _, plain = train(tmp_path / "plain", task=task())
    compiled, curve = train(tmp_path / "compiled", task=task(), compile=True)
    assert compiled.model._compiled_call_impl is not None
    assert losses(curve) == pytest.approx(losses(plain), rel=1e-4)


def test_deterministic_mode_lasts_as_long_as_the_session_that_asked_for_it():
    for wanted in (True, False):
        with open_session(Machine(device="cpu", deterministic=wanted), "float32"):
            assert torch.are_deterministic_algorithms_enabled() == wanted


def test_every_epoch_states_its_throughput_and_memory(tmp_path):
    _, history = train(tmp_path)
    assert all(
        row["images_per_second"] > 0 and row["peak_memory_gib"] > 0 and row["images"] == 64 for row in history
    )


def test_a_step_draws_the_same_numbers_whenever_it_is_taken():
    drawn = []
    for parts in ((1, 2, 3), (1, 2, 3, 0), (1, 2, 4)):
        seed_everything(*parts)
        drawn.append((torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random()))
    assert drawn[0] == drawn[1] and all(one != other for one, other in zip(drawn[0], drawn[2], strict=True))


def test_a_stage_that_the_processes_cannot_share_is_refused_before_the_first_step(tmp_path):
    run = run_of(stages=(Stage(until=0.5), Stage(until=1.0, batch_size=17)))
    session = Session(torch.device("cpu"), torch.float32, world_size=2)
    with pytest.raises(UserError, match="batch_size 17 cannot be shared by 2 processes"):
        Trainer(Convolution(), None, None, run, session, None, seed=0, name="run").fit()


@pytest.mark.parametrize(
    ("environment", "told"),
    [
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE is '2', but RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT is missing"),
        ({"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_PORT": "1"}, "MASTER_ADDR is missing"),
        ({"WORLD_SIZE": "two", "RANK": "0", "LOCAL_RANK": "0"}, "WORLD_SIZE is 'two', but WORLD_SIZE"),
    ],
)
def test_half_of_torchruns_environment_is_one_error(monkeypatch, environment, told):
    for name in TORCHRUN:
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    opened = open_session(Machine(device="cpu"), "float32")
    with pytest.raises(UserError, match=f"{told}.*start several processes with torchrun, or unset"), opened:
        pass


def test_one_process_needs_no_torchrun(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "1")
    with open_session(Machine(device="cpu"), "float32") as session:
        assert session.world_size == 1


def test_accuracy_counts_the_first_five(tmp_path):
    """Against sorting by hand, with three classes and with seven."""
    session = Session(torch.device("cpu"), torch.float32)
    for classes in (3, 7):
        scores, labels = torch.randn(50, classes), torch.randint(0, classes, (50,))
        found = TopK()
        for part in (slice(0, 20), slice(20, 50)):
            found.add(scores[part], labels[part])
        ranks = [
            sorted(row, reverse=True).index(row[label])
            for row, label in zip(scores.tolist(), labels, strict=True)
        ]
        expected = {f"top{k}": 100 * sum(rank < k for rank in ranks) / 50 for k in (1, 5)}
        assert found.percent(session) == pytest.approx(expected)


def test_the_accuracy_of_no_image_is_an_error():
    with pytest.raises(UserError, match="no validation image can be read"):
        TopK().percent(Session(torch.device("cpu"), torch.float32))

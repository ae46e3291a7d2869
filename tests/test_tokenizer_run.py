"""The tokenizer as a run: trained, resumed, read from a released file, used by pre-training."""

import json
from pathlib import Path

import pytest
import torch
from project import write_params

from replicate.cli import main
from replicate.config import load
from replicate.models.dalle import DalleEncoder
from replicate.models.tokenizer import Tokenizer, load_tokenizer
from replicate.models.weights import load_weights, save_weights
from replicate.pipeline.launch import with_upstream

RUN = Path("results/smoke/grid/mae/mae_tokens")
SMALL = {"epochs": 300, "width": 256, "vocabulary": 1024}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A folder with data in it, and params.yaml whose tokenizer is small."""
    folder = tmp_path_factory.mktemp("tokens")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        settle()
        assert main(["data", "write"]) == 0
    return folder


@pytest.fixture
def inside(project, monkeypatch):
    monkeypatch.chdir(project)
    settle()


def settle(**tokenizer) -> None:
    write_params(Path.cwd(), runs={"mae_tokens": SMALL | tokenizer})


def results(folder: Path) -> dict:
    return json.loads((folder / "metrics.json").read_text())["results"]


def test_a_run_on_tokens_says_which_tokenizer_it_lacks(inside, capsys):
    assert main(["pretrain", "mae_token"]) == 2
    assert "python -m replicate tokenizer mae_tokens" in capsys.readouterr().err


def test_broken_off_it_continues_to_the_weights_of_an_unbroken_run(inside, monkeypatch):
    calls = []
    forward = Tokenizer.forward

    def break_at_the_fifth_step(self, images):
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return forward(self, images)

    with monkeypatch.context() as patch:
        patch.setattr(Tokenizer, "forward", break_at_the_fifth_step)
        assert main(["tokenizer", "mae_tokens"]) == 130
    assert not (RUN / "metrics.json").exists() and list(Path(".replicate/runs").glob("*/checkpoint.pt"))
    assert main(["tokenizer", "mae_tokens"]) == 0
    continued = load_weights(RUN / "weights/seed0.safetensors")
    found = results(RUN)
    for kept in Path(".replicate/runs").glob("*/finished.json"):
        kept.unlink()
    assert main(["tokenizer", "mae_tokens"]) == 0
    whole = load_weights(RUN / "weights/seed0.safetensors")
    assert all(torch.equal(whole[name], continued[name]) for name in whole)
    assert found["seeds"] == [0] and results(RUN)["per_seed"][0] == found["per_seed"][0]


def test_pre_training_learns_to_predict_its_tokens(inside):
    assert main(["tokenizer", "mae_tokens"]) == 0
    tokenizer, found = load_tokenizer(RUN / "weights/seed0.safetensors"), results(RUN)["per_seed"][0]
    assert tokenizer.vocabulary == found["vocabulary"] == 64 and tokenizer.stride == 8
    assert 1 < found["perplexity"] <= found["tokens_used"] <= 64 and found["val_mse"] > 0
    assert main(["pretrain", "mae_token"]) == 0
    folder = Path("results/smoke/grid/mae/mae_token")
    assert load_weights(folder / "weights/seed0.safetensors")["decoder_pred.weight"].shape[0] == 64
    history = (folder / "history.csv").read_text().splitlines()
    losses = [float(line.split(",")[history[0].split(",").index("loss")]) for line in history[1:]]
    assert losses[-1] < losses[0] < 1.5 * torch.log(torch.tensor(64.0))


def test_a_released_tokenizer_takes_its_place(inside, capsys):
    torch.manual_seed(0)
    save_weights(DalleEncoder(width=4, vocabulary=32, blocks_per_group=1).state_dict(), "dalle.safetensors")
    settle(file="dalle.safetensors")
    assert main(["tokenizer", "mae_tokens"]) == 0
    found = results(RUN)["per_seed"][0]
    assert found["vocabulary"] == 32 and "val_mse" not in found
    assert load_tokenizer(RUN / "weights/seed0.safetensors").vocabulary == 32
    settle(file="nowhere.safetensors")
    assert main(["tokenizer", "mae_tokens"]) == 2
    assert "nowhere.safetensors, which is missing" in capsys.readouterr().err


def test_each_run_comes_after_those_that_it_starts_from(inside):
    order = with_upstream(load("params.yaml"), ["mae_token_lin", "mae_base_lin"])
    assert order == ["mae_tokens", "mae_token", "mae_token_lin", "mae_base", "mae_base_lin"]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"tokenizer": "other"}, "which is not a tokenizer"),
        ({"target": "pixel"}, "target token alone needs a tokenizer; target is pixel"),
    ],
)
def test_tokens_without_a_tokenizer_are_refused(inside, capsys, change, told):
    write_params(Path.cwd(), runs={"mae_token": change})
    assert main(["budget"]) == 2 and told in capsys.readouterr().err

"""LARS and k-NN against formulas of their own, and runs whose moving average of weights is what is scored."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from project import write_params
from scipy.spatial.distance import cdist
from torch import nn

from replicate.cli import main
from replicate.models.build import probe_head
from replicate.trainers import classify
from replicate.trainers.knn import knn_votes
from replicate.trainers.linear import lars


def lars_by_hand(weights, gradients, rates, *, momentum=0.9, trust=0.001, decay=0.0, adapt):
    """You et al. 2017 in numpy: v <- m v + (trust |w| / |g|) g; w <- w - lr v. Without `adapt`: SGD."""
    w, velocity = weights.astype(np.float64).copy(), np.zeros_like(weights, dtype=np.float64)
    for gradient, rate in zip(gradients, rates, strict=True):
        g = gradient.astype(np.float64) + decay * w
        if adapt:
            g = g * trust * np.linalg.norm(w) / np.linalg.norm(g)
        velocity = momentum * velocity + g
        w = w - rate * velocity
    return w


def test_lars_follows_its_formula_with_a_changing_rate():
    rng = np.random.default_rng(0)
    head = nn.Linear(6, 4).double()
    matrix, bias = head.weight.detach().numpy().copy(), head.bias.detach().numpy().copy()
    matrix_steps, bias_steps = rng.normal(size=(8, 4, 6)), rng.normal(size=(8, 4))
    rates = np.linspace(6.4, 0.1, 8)
    optimizer = lars(head, lr=1.0)
    for step, rate in enumerate(rates):
        for group in optimizer.param_groups:
            group["lr"] = rate
        head.weight.grad, head.bias.grad = (
            torch.from_numpy(matrix_steps[step]),
            torch.from_numpy(bias_steps[step]),
        )
        optimizer.step()
    assert head.weight.detach().numpy() == pytest.approx(
        lars_by_hand(matrix, matrix_steps, rates, adapt=True), abs=1e-9
    )
    assert head.bias.detach().numpy() == pytest.approx(
        lars_by_hand(bias, bias_steps, rates, adapt=False), abs=1e-9
    )


def test_lars_adapts_matrices_alone_and_decays_nothing():
    """Appendix A.1, Table 9: no weight decay; a matrix's step does not depend on the gradient's size."""
    steps = []
    for size in (1.0, 1000.0):
        torch.manual_seed(0)
        head = probe_head(6, 4)
        optimizer = lars(head, lr=6.4)
        before = head[1].weight.detach().clone()
        for parameter in head.parameters():
            parameter.grad = torch.full_like(parameter, size)
        optimizer.step()
        steps.append((head[1].weight.detach() - before, head[1].bias.detach()))
        assert all(
            group["weight_decay"] == 0 and group["momentum"] == 0.9 for group in optimizer.param_groups
        )
        moved = (head[1].weight.detach() - before).norm() / before.norm()
        assert moved.item() == pytest.approx(6.4 * 0.001, rel=1e-3)
    torch.testing.assert_close(steps[0][0], steps[1][0])
    torch.testing.assert_close(1000 * steps[0][1], steps[1][1])


def test_the_probes_batchnorm_is_a_standardisation():
    torch.manual_seed(0)
    head, features = probe_head(6, 3), 5 + 3 * torch.randn(64, 6)
    expected = (features - features.mean(0)) / (features.var(0, unbiased=False) + 1e-6).sqrt()
    torch.testing.assert_close(
        head(features), expected @ head[1].weight.T + head[1].bias, rtol=1e-4, atol=1e-5
    )
    for _ in range(300):
        head(features)
    head.eval()
    alone = head(features[:1])
    running = (features[:1] - features.mean(0)) / (features.var(0, unbiased=True) + 1e-6).sqrt()
    torch.testing.assert_close(alone, running @ head[1].weight.T + head[1].bias, rtol=1e-3, atol=1e-4)


def test_knn_votes_against_scipy():
    rng = np.random.default_rng(1)
    bank, queries, labels = rng.normal(size=(50, 8)), rng.normal(size=(7, 8)), rng.integers(0, 5, 50)
    unit = [torch.from_numpy(x / np.linalg.norm(x, axis=1, keepdims=True)).float() for x in (queries, bank)]
    votes = knn_votes(*unit, torch.from_numpy(labels), 5, neighbours=6).numpy()
    similarity = 1 - cdist(queries, bank, "cosine")
    for row, found in zip(similarity, votes, strict=True):
        nearest = np.argsort(-row)[:6]
        expected = [np.exp(row[nearest][labels[nearest] == k] / 0.07).sum() for k in range(5)]
        assert found == pytest.approx(expected, rel=1e-3)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ema")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_params(folder, budget={"ema": 0.7, "evaluate_epochs": 0.02})
        assert main(["data", "write"]) == 0
        assert main(["pretrain", "mae_scratch"]) == 0
    return folder


def test_training_from_scratch_scores_the_moving_average(project, monkeypatch):
    """MAE, Table 10 scores the average e <- d e + (1 - d) w over all steps, and the weights beside it."""
    monkeypatch.chdir(project)
    weights, scored = [], []
    update, accuracy = classify.ModelEmaV3.update, classify.accuracy

    def noting(self, model, *rest):
        if not weights:
            weights.append(named(self.module))
        weights.append(named(model))
        return update(self, model, *rest)

    def watching(model, *rest):
        scored.append(named(model))
        return accuracy(model, *rest)

    monkeypatch.setattr(classify.ModelEmaV3, "update", noting)
    monkeypatch.setattr(classify, "accuracy", watching)
    assert main(["evaluate", "mae_scratch_ft"]) == 0
    average = {name: value.double() for name, value in weights[0].items()}
    for current in weights[1:]:
        average = {name: 0.7 * value + 0.3 * current[name].double() for name, value in average.items()}
    last_average, last_weights = scored[-2:]
    assert len(weights) > 6
    for name, value in average.items():
        torch.testing.assert_close(last_average[name].double(), value, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(last_weights[name], weights[-1][name], rtol=0, atol=0)
    found = json.loads(Path("results/smoke/grid/mae/mae_scratch_ft/metrics.json").read_text())["results"][
        "per_seed"
    ][0]
    assert {"top1", "top1_without_ema", "trainable"} <= set(found)


@pytest.mark.parametrize(
    ("run", "expected"), [("mae_partial_05", "half"), ("mae_partial_1", 1), ("mae_base_lin", 0)]
)
def test_a_run_reports_the_parameters_that_it_trained(project, monkeypatch, run, expected):
    """ViT-L at this budget: 48 wide; 10 classes; half a block is norm2 and the MLP."""
    monkeypatch.chdir(project)
    budget = {"ema": 0.7, "evaluate_epochs": 0.02}
    write_params(project, budget=budget, runs={run: {"pretrain": "mae_scratch"}})
    assert main(["evaluate", run]) == 0
    [path] = Path("results/smoke").rglob(f"{run}/metrics.json")
    trained = json.loads(path.read_text())["results"]["per_seed"][0]["trainable"]
    width, classes = 48, json.loads(Path("data/smoke/full/manifest.json").read_text())
    head = (width + 1) * len(classes["class_names"])
    mlp = 2 * width + width * 4 * width + 4 * width + 4 * width * width + width
    attention = 2 * width + 3 * width * width + 3 * width + width * width + width
    assert (
        trained == {"half": head + 2 * width + mlp, 1: head + 2 * width + mlp + attention, 0: head}[expected]
    )


def named(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.named_parameters()}

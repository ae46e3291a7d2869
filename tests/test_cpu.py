import copy
import pickle

import pytest
import torch
import torch.nn.functional as F

from replicate.config.backbones import Backbone
from replicate.models import cpu
from replicate.models.build import build_classifier
from replicate.models.mae import MAE


@pytest.fixture
def onednn(monkeypatch):
    """The float32 detour taken on any processor whose torch has it."""
    if not torch.backends.mkldnn.is_available():
        pytest.skip("torch without oneDNN")
    monkeypatch.setattr(cpu, "_onednn_is_faster", lambda: True)
    monkeypatch.setattr(cpu, "WORTHWHILE", 0)


def gradients(layer, x):
    x = x.clone().requires_grad_()
    output = layer(x)
    output.square().sum().backward()
    return [output.detach(), x.grad, *(p.grad for p in layer.parameters())]


def names_in_graph(output):
    found, waiting = "", [output.grad_fn]
    while waiting:
        node = waiting.pop()
        found += type(node).__name__
        waiting += [following for following, _ in node.next_functions if following is not None]
    return found


@pytest.mark.parametrize("shape", [(5, 7), (2, 3, 7), (1, 200, 7)])
@pytest.mark.parametrize("bias", [True, False])
def test_linear_through_onednn_equals_torchs(onednn, shape, bias):
    torch.manual_seed(0)
    plain = torch.nn.Linear(7, 11, bias=bias)
    tuned = cpu.tune_for_cpu(torch.nn.Sequential(torch.nn.Linear(7, 11, bias=bias)))
    tuned[0].load_state_dict(plain.state_dict())
    x = torch.randn(shape)
    assert "OneDnn" in names_in_graph(tuned(x.requires_grad_()))
    for ours, theirs in zip(gradients(tuned, x.detach()), gradients(plain, x.detach()), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
        assert ours.is_contiguous()


def test_frozen_layers_and_strided_inputs(onednn):
    layer = cpu.tune_for_cpu(torch.nn.Sequential(torch.nn.Linear(6, 4)))
    layer.requires_grad_(False)
    x = torch.randn(6, 5, requires_grad=True)
    layer(x.t()).sum().backward()
    torch.testing.assert_close(x.grad, layer[0].weight.sum(0)[:, None].expand(6, 5))
    assert layer[0].weight.grad is None


def test_other_types_and_small_products_take_torchs_path(monkeypatch):
    monkeypatch.setattr(cpu, "_product", lambda *_: pytest.fail("the detour was taken"))
    layer = cpu.tune_for_cpu(torch.nn.Sequential(torch.nn.Linear(8, 8)))
    layer(torch.randn(2, 8))
    monkeypatch.setattr(cpu, "WORTHWHILE", 0)
    layer.double()(torch.randn(2, 8, dtype=torch.float64))
    with torch.autocast("cpu", torch.bfloat16):
        layer.float()(torch.randn(2, 8))
    with cpu.plain_torch():
        layer(torch.randn(2, 8))


def test_attention_in_bfloat16_equals_the_fused_kernel(monkeypatch):
    torch.manual_seed(0)
    model = cpu.tune_for_cpu(MAE(32, 8, 64, 2, 4, 32, 1, 2))
    images, noise = torch.randn(2, 3, 32, 32), torch.rand(2, 16)
    with torch.autocast("cpu", torch.bfloat16):
        with monkeypatch.context() as patch:
            patch.setattr(
                F, "scaled_dot_product_attention", lambda *_, **__: pytest.fail("the fused kernel ran")
            )
            tuned = model(images, noise).pred.float()
        with cpu.plain_torch():
            fused = model(images, noise).pred.float()
    exact = model(images, noise).pred
    torch.testing.assert_close(tuned, fused, rtol=0, atol=0.05)
    assert (tuned - exact).square().mean() < 1.5 * (fused - exact).square().mean()
    with torch.autocast("cpu", torch.bfloat16):
        model(images, noise).pred.float().square().mean().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attend(dtype):
    q, k, v = (torch.randn(2, 3, 10, 8).to(dtype) for _ in range(3))
    expected = F.scaled_dot_product_attention(q.float(), k.float(), v.float())
    torch.testing.assert_close(
        cpu.attend(q, k, v).float(), expected, rtol=0, atol=1e-5 if dtype == torch.float32 else 0.02
    )


def test_tuning_keeps_names_and_values():
    torch.manual_seed(0)
    block = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.LayerNorm(4))
    before = {name: tensor.clone() for name, tensor in block.state_dict().items()}
    after = cpu.tune_for_cpu(block).state_dict()
    assert before.keys() == after.keys() and all(
        torch.equal(after[name], tensor) for name, tensor in before.items()
    )


@pytest.mark.parametrize(
    "activation", [torch.nn.ReLU(inplace=True), torch.nn.SiLU(inplace=True), lambda x: x.add_(1)]
)
@pytest.mark.parametrize("shape", [(5, 7), (2, 3, 7)])
def test_an_in_place_operation_may_follow_a_tuned_layer(onednn, activation, shape):
    torch.manual_seed(0)
    plain, x = torch.nn.Linear(7, 11), torch.randn(shape)
    tuned = cpu.tune_for_cpu(copy.deepcopy(plain))
    for ours, theirs in zip(
        *(gradients(Followed(layer, activation), x) for layer in (tuned, plain)), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


class Followed(torch.nn.Module):
    def __init__(self, layer, activation):
        super().__init__()
        self.layer, self.activation = layer, activation

    def forward(self, x):
        return self.activation(self.layer(x))


def test_a_tuned_layer_has_a_second_derivative(onednn):
    """As gradient penalties need."""
    torch.manual_seed(0)
    plain, x = torch.nn.Linear(7, 11), torch.randn(5, 7)
    tuned, found = cpu.tune_for_cpu(copy.deepcopy(plain)), []
    for layer in (tuned, plain):
        inputs = x.clone().requires_grad_()
        (slope,) = torch.autograd.grad(layer(inputs).square().sum(), inputs, create_graph=True)
        slope.square().sum().backward()
        found.append([inputs.grad, layer.weight.grad])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_a_tuned_model_keeps_its_classes_and_can_be_copied(onednn):
    """A copy, such as a moving average's, computes with its own weights."""
    model = cpu.tune_for_cpu(torch.nn.Sequential(torch.nn.Linear(4, 4)))
    assert type(model[0]) is torch.nn.Linear
    twin, x = copy.deepcopy(model), torch.randn(2, 4)
    torch.nn.init.zeros_(model[0].weight)
    assert torch.equal(model(x), model[0].bias.expand(2, 4)) and not torch.equal(twin(x), model(x))
    layers = pickle.loads(pickle.dumps(twin))
    assert torch.equal(layers(x), twin(x))


def test_layers_of_a_subclass_keep_their_own_forward_pass():
    class Doubled(torch.nn.Linear):
        def forward(self, input):
            return 2 * super().forward(input)

    layer, x = Doubled(4, 4), torch.randn(2, 4)
    assert torch.equal(cpu.tune_for_cpu(torch.nn.Sequential(layer))(x), layer(x))


def test_the_models_themselves_are_not_tuned(monkeypatch):
    """The trainer tunes them, where it also compiles them."""
    monkeypatch.setattr(cpu, "_onednn_is_faster", lambda: True)
    monkeypatch.setattr(cpu, "WORTHWHILE", 0)
    model = MAE(32, 8, 64, 1, 1, 32, 1, 1)
    assert "OneDnn" not in names_in_graph(model(torch.randn(2, 3, 32, 32)).pred)
    assert "OneDnn" in names_in_graph(cpu.tune_for_cpu(model)(torch.randn(2, 3, 32, 32)).pred)
    classifier = build_classifier(
        Backbone("vit", {"embed_dim": 64, "depth": 1, "num_heads": 1, "patch_size": 8}), 5, 32
    )
    assert "OneDnn" not in names_in_graph(classifier(torch.randn(2, 3, 32, 32)))


def test_the_trainer_tunes_a_model_on_a_cpu(tmp_path):
    from test_engine import Regression, train

    task = Regression()
    train(tmp_path, task=task)
    assert "forward" in vars(task.model[0])


@pytest.mark.slow
def test_a_tuned_model_compiles_as_one_graph():
    model = MAE(32, 8, 64, 1, 1, 32, 1, 1)
    images, noise = torch.randn(2, 3, 32, 32), torch.rand(2, 16)
    expected = model(images, noise).pred
    compiled = torch.compile(cpu.tune_for_cpu(model), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(images, noise).pred, expected)

import pytest
import torch
import torch.nn.functional as F

import replicate.compat  # noqa: F401
from replicate.models import cpu
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


@pytest.mark.parametrize("shape", [(5, 7), (2, 3, 7), (1, 200, 7)])
@pytest.mark.parametrize("bias", [True, False])
def test_linear_through_onednn_equals_torchs(onednn, shape, bias):
    torch.manual_seed(0)
    plain = torch.nn.Linear(7, 11, bias=bias)
    tuned = cpu.tune_for_cpu(torch.nn.Sequential(torch.nn.Linear(7, 11, bias=bias)))
    tuned[0].load_state_dict(plain.state_dict())
    x = torch.randn(shape)
    assert "OneDnn" in type(tuned(x.requires_grad_()).view(-1).grad_fn.next_functions[0][0]).__name__
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
    model = MAE(image_size=32, patch_size=8, embed_dim=64, depth=2, num_heads=4, decoder_embed_dim=32, decoder_depth=1, decoder_num_heads=2)
    images, noise = torch.randn(2, 3, 32, 32), torch.rand(2, 16)
    with torch.autocast("cpu", torch.bfloat16):
        with monkeypatch.context() as patch:
            patch.setattr(F, "scaled_dot_product_attention", lambda *_, **__: pytest.fail("the fused kernel ran"))
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
    torch.testing.assert_close(cpu.attend(q, k, v).float(), expected, rtol=0, atol=1e-5 if dtype == torch.float32 else 0.02)


def test_tuning_keeps_names_and_values():
    torch.manual_seed(0)
    block = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.LayerNorm(4))
    before = {name: tensor.clone() for name, tensor in block.state_dict().items()}
    after = cpu.tune_for_cpu(block).state_dict()
    assert before.keys() == after.keys() and all(torch.equal(after[name], tensor) for name, tensor in before.items())

"""Targets against formulas and libraries that the package does not use for them."""

import numpy as np
import pytest
import torch

import replicate.compat  # noqa: F401
from replicate import targets
from replicate.errors import UserError
from replicate.loaders.pixels import normalise
from replicate.models.tokenizer import Tokenizer
from replicate.models.weights import save_weights
from replicate.patches import patchify, unpatchify


@pytest.fixture
def images():
    return torch.randn(3, 3, 32, 48, generator=torch.Generator().manual_seed(0))


def test_patch_vector_is_row_column_channel(images):
    patches = patchify(images, 16)
    assert patches.shape == (3, 6, 768)
    for index, (top, left) in enumerate((r, c) for r in (0, 16) for c in (0, 16, 32)):
        expected = images[1, :, top : top + 16, left : left + 16].permute(1, 2, 0).reshape(-1)
        assert torch.equal(patches[1, index], expected)
    assert torch.equal(unpatchify(patches, 16, (2, 3)), images)


def test_normalised_pixels_use_the_unbiased_variance(images):
    target = targets.build("pixel", 16)
    assert target.dim == 768 and target.loss == "mse" and not list(target.parameters())
    patches = patchify(images, 16).double().numpy()
    expected = (patches - patches.mean(-1, keepdims=True)) / np.sqrt(
        patches.var(-1, keepdims=True, ddof=1) + 1e-6
    )
    np.testing.assert_allclose(target(images).numpy(), expected, atol=2e-6)
    flat = target(torch.full((1, 3, 16, 16), 0.5))
    assert flat.abs().max() < 1e-3


def test_unnormalise_gives_the_pixels_back(images):
    target = targets.build("pixel", 16, norm_pix=True)
    torch.testing.assert_close(
        target.unnormalise(target(images), images), patchify(images, 16), atol=1e-5, rtol=1e-5
    )
    plain = targets.build("pixel", 16, norm_pix=False)
    assert torch.equal(plain(images), patchify(images, 16))
    assert torch.equal(plain.unnormalise(plain(images), images), plain(images))


def test_user_errors(images):
    with pytest.raises(UserError, match="hog, pca, pixel, token"):
        targets.build("pixels", 16)
    with pytest.raises(UserError, match="norm_pixel"):
        targets.build("pixel", 16, norm_pixel=True)
    with pytest.raises(UserError, match="32x48 is not a multiple of patch_size 15"):
        targets.build("pixel", 15)(images)


def photographs(count: int, size: int = 64, seed: int = 0) -> torch.Tensor:
    """Raw uint8 images whose neighbouring pixels resemble each other, as in photographs."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, size // 8, size // 8, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size, mode="bicubic")
    return (
        (255 * (smooth + 0.1 * torch.randn(smooth.shape, generator=generator))).clamp(0, 255).to(torch.uint8)
    )


def test_pca_against_numpy_svd():
    raw = photographs(40)
    target = targets.build("pca", 8)
    assert target.dim == 24 and target.loss == "mse" and not list(target.parameters()) and target.needs_fit
    with pytest.raises(UserError, match="not been fitted"):
        target(raw)
    target.fit(raw.split(16))
    patches = patchify(normalise(raw), 8).flatten(0, 1).double().numpy()
    centred = patches - patches.mean(0)
    axes = np.linalg.svd(centred, full_matrices=False)[2][:24].T
    ours = target(raw).flatten(0, 1).numpy()
    np.testing.assert_allclose(np.abs(ours), np.abs(centred @ axes), atol=2e-3)
    assert (target.axes.gather(0, target.axes.abs().argmax(0, keepdim=True)) > 0).all()
    rebuilt = target.unnormalise(target(raw), raw).flatten(0, 1).numpy()
    np.testing.assert_allclose(rebuilt, centred @ axes @ axes.T + patches.mean(0), atol=1e-3)


def test_pca_axes_travel_with_the_state_and_do_not_depend_on_batching():
    raw = photographs(24)
    fitted = targets.build("pca", 8).fit(raw.split(24))
    other = targets.build("pca", 8).fit(normalise(raw).split(5))
    torch.testing.assert_close(fitted.axes, other.axes, atol=1e-4, rtol=0)
    loaded = targets.build("pca", 8)
    loaded.load_state_dict(fitted.state_dict())
    assert not loaded.needs_fit and torch.equal(loaded(raw), fitted(raw))
    assert targets.build("pca", 16).dim == 96
    with pytest.raises(UserError, match="200 components, but a 8x8 patch has 192"):
        targets.build("pca", 8, components=200)
    with pytest.raises(UserError, match="too few"):
        targets.build("pca", 16).fit([raw[:1]])


@pytest.fixture(scope="module")
def trained_tokenizer():
    torch.manual_seed(0)
    tokenizer = Tokenizer(8, vocabulary=64, width=32, depth=1, code_width=8)
    images = normalise(photographs(64))
    optimizer = torch.optim.Adam(tokenizer.parameters(), 3e-3)
    history = []
    for step in range(120):
        loss, metrics = tokenizer(images[step % 4 * 16 :][:16])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append({name: value.item() for name, value in metrics.items()})
    return tokenizer, history


def test_tokenizer_learns_and_uses_its_vocabulary(trained_tokenizer):
    tokenizer, history = trained_tokenizer
    images = normalise(photographs(16, seed=9))
    assert history[-1]["reconstruction"] < 0.5 * history[0]["reconstruction"]
    assert history[-1]["perplexity"] > 16
    ids = tokenizer.ids(images)
    assert ids.shape == (16, 64) and ids.dtype == torch.int64 and ids.min() >= 0 and ids.max() < 64
    rebuilt = tokenizer.reconstruct(ids, (8, 8))
    assert rebuilt.shape == images.shape
    assert (rebuilt - images).square().mean() < 0.7 * images.var()


def test_straight_through_gradient_reaches_the_encoder(trained_tokenizer):
    tokenizer = Tokenizer(8, vocabulary=16, width=16, depth=1)
    tokenizer(normalise(photographs(2)))[0].backward()
    assert all(
        parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in tokenizer.parameters()
    )


def test_token_target_from_a_file(trained_tokenizer, tmp_path):
    tokenizer, _ = trained_tokenizer
    tokenizer.save(tmp_path / "tokenizer.safetensors")
    raw = photographs(4)
    target = targets.build("token", 8, tokenizer=str(tmp_path / "tokenizer.safetensors"))
    assert target.dim == 64 and target.loss == "cross_entropy"
    assert torch.equal(target(raw), tokenizer.ids(normalise(raw)))
    target.train()
    assert not target.tokenizer.training and not any(p.requires_grad for p in target.parameters())
    doubled = targets.build("token", 16, tokenizer=tokenizer)
    assert doubled(raw).shape == (4, 16)
    save_weights({"head.weight": torch.ones(2)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="other.safetensors is no tokenizer"):
        targets.build("token", 8, tokenizer=tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="tokenizer"):
        targets.build("token", 8)


def test_dalle_encoder_against_flava_codebook(tmp_path):
    from transformers import FlavaImageCodebook, FlavaImageCodebookConfig

    torch.manual_seed(0)
    config = FlavaImageCodebookConfig(hidden_size=16, vocab_size=50)
    oracle = FlavaImageCodebook(config).eval()
    for parameter in oracle.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    save_weights(oracle.state_dict(), tmp_path / "flava.safetensors")
    released = {
        k.replace(".group.", ".").replace(".path.", ".").replace("weight", "w").replace("bias", "b")
        for k in oracle.state_dict()
    }
    state = dict(
        zip(sorted(released), (oracle.state_dict()[k] for k in sorted(oracle.state_dict())), strict=True)
    )
    save_weights(state, tmp_path / "dalle.pt")
    raw = photographs(2, 32)
    expected = oracle.get_codebook_indices(0.8 * raw.float() / 255 + 0.1).flatten(1)
    for name in ("flava.safetensors", "dalle.pt"):
        target = targets.build("token", 8, tokenizer=tmp_path / name)
        assert target.dim == 50
        assert (target(raw) == expected).float().mean() > 0.95  # near ties may fall either way
    assert targets.build("token", 16, tokenizer=tmp_path / "flava.safetensors")(raw).shape == (2, 4)
    del state["blocks.output.conv.w"]
    save_weights(state, tmp_path / "broken.pt")
    with pytest.raises(UserError, match="broken.pt is no complete encoder"):
        targets.build("token", 8, tokenizer=tmp_path / "broken.pt")

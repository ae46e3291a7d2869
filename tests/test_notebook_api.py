"""`from replicate import ...`: the documented lines, and every kind of weights and image."""

import os
import re
import shutil
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import replicate
from replicate import load_model, p2dist, reconstruct
from replicate.errors import UserError
from replicate.explore import images
from replicate.loaders.pixels import normalise
from replicate.models.mae import MAE
from replicate.models.weights import save_weights

ROOT = Path(__file__).resolve().parents[1]
SMALL = {"image_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 1}
DECODER = {"decoder_embed_dim": 32, "decoder_depth": 1, "decoder_num_heads": 1}


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with params.yaml at the smoke budget and nothing trained."""
    text = re.sub(r"(?m)^budget: \w+", "budget: smoke", (ROOT / "params.yaml").read_text())
    (tmp_path / "params.yaml").write_text(text)
    shutil.copy(ROOT / "budgets.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def documented_lines() -> str:
    block = re.search(r"\n((?:    .*\n|\n)+)", replicate.__doc__)[1]
    return textwrap.dedent(block).strip()


def test_the_documented_lines_run_in_a_script(project):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", documented_lines()]
    done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.match(r"loss \d\.\d{3}\n", done.stdout) and "light_75 gets random weights" in done.stderr


def test_readme_shows_the_documented_lines():
    text = (ROOT / "README.md").read_text()
    if "from replicate import" in text:
        assert documented_lines() in text


def test_importing_the_package_loads_no_torch():
    code = "import sys, replicate; print('torch' in sys.modules, dir(replicate).count('load_model'))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "1"]
    with pytest.raises(AttributeError, match="nothing"):
        replicate.nothing  # noqa: B018


def test_a_trained_run_is_read_from_its_results(project):
    with pytest.warns(UserWarning, match="random weights"):
        untrained = load_model("light_75", seed=1)
    path = project / "results/smoke/efficient_learners/light_75/weights/seed0.safetensors"
    save_weights(untrained.model.state_dict(), path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = load_model("light_75")
    assert model.weights == path and not model.training
    expected, found = reconstruct(untrained, "chelsea", seed=3), reconstruct(model, "chelsea", seed=3)
    assert found.loss == expected.loss
    assert load_model("light_75", weights=path).weights == path


@pytest.mark.parametrize("norm_pix", [True, False])
def test_a_released_checkpoint_gives_the_references_loss(project, norm_pix):
    """By definition: the mean squared error over masked patches, of normalised pixels or not."""
    torch.manual_seed(0)
    reference = MAE(**SMALL, **DECODER).eval()
    torch.save({"model": reference.state_dict(), "args": {}}, project / "mae.pth")
    found = reconstruct(load_model("mae.pth", norm_pix=norm_pix), "coffee", mask_ratio=0.5, seed=2)
    raw = images.square("coffee", 32)[None]
    noise = torch.rand(1, 16, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        prediction = reference(normalise(raw), noise, 0.5).pred[0]
    patches = normalise(raw)[0].reshape(3, 4, 8, 4, 8).permute(1, 3, 2, 4, 0).reshape(16, 192)
    if norm_pix:
        mean, variance = patches.mean(1, keepdim=True), patches.var(1, keepdim=True)
        patches = (patches - mean) / (variance + 1e-6).sqrt()
    error = (prediction - patches).square().mean(1)
    hidden = noise[0].argsort().argsort() >= 8
    assert found.mask.flatten().tolist() == hidden.tolist()
    assert found.loss == pytest.approx(float(error[hidden].mean()), rel=1e-5)
    np.testing.assert_allclose(found.error[found.mask], error[hidden], rtol=1e-4)
    assert np.isnan(found.error[~found.mask]).all()


def test_p2dist_is_in_pixels_of_a_patch_of_16(project):
    with pytest.warns(UserWarning, match="random weights"):
        model = load_model("light_75")
    found = reconstruct(model, "rocket", mask_ratio=0.75)
    mask = torch.from_numpy(found.mask).float().flatten()[None]
    expected = p2dist(mask, found.mask.shape, 16).view(found.mask.shape).numpy()
    np.testing.assert_allclose(found.p2dist[found.mask], expected[found.mask])


def test_files_pil_images_arrays_and_tensors_give_the_same(project):
    with pytest.warns(UserWarning, match="random weights"):
        model = load_model("light_75")
    pixels = images.photograph("astronaut")
    Image.fromarray(pixels).save("photo.png")
    ways = ("astronaut", "photo.png", Path("photo.png"), Image.fromarray(pixels), pixels)
    tensor = images.square(pixels, model.run.image_size)
    losses = {reconstruct(model, way).loss for way in (*ways, tensor)}
    assert len(losses) == 1


def test_a_run_that_predicts_hog_shows_glyphs(project):
    with pytest.warns(UserWarning, match="random weights"):
        model = load_model("fastmim_vit_hog_128")
    found = reconstruct(model, "chelsea")
    assert len(found.views) == 4 and found.loss > 0
    found.save("picture.png")
    assert Image.open("picture.png").width > 100
    assert found._repr_png_()[0].startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("name", "predicted"), [("mae_token", 512), ("mae_pca", 24), ("fastmim_vit_hog_128", 108)]
)
def test_any_run_loads_whatever_it_predicts(project, name, predicted):
    with pytest.warns(UserWarning, match="random weights"):
        model = load_model(name)
    raw = images.square("chelsea", model.run.image_size)[None]
    assert model(raw).pred.shape[-1] == predicted


def test_the_vocabulary_of_a_run_on_tokens_is_read_off_its_weights(project):
    with pytest.warns(UserWarning, match="random weights"):
        state = load_model("mae_token").model.state_dict()
    for part in ("weight", "bias"):
        state[f"decoder_pred.{part}"] = state[f"decoder_pred.{part}"][:40]
    save_weights(state, project / "tokens.safetensors")
    model = load_model("mae_token", "tokens.safetensors")
    with pytest.raises(
        UserError, match="target token is no picture; choose a run whose target is pixel or hog"
    ):
        reconstruct(model, "chelsea")
    assert model.model.target_dim == 40


def test_a_checkpoint_of_a_run_loads_by_its_name(project):
    """A checkpoint holds the model below a name, beside what else was trained."""
    with pytest.warns(UserWarning, match="random weights"):
        untrained = load_model("light_75")
    task = {f"model.{name}": tensor + 1 for name, tensor in untrained.model.state_dict().items()}
    torch.save({"task": task | {"probe.weight": torch.zeros(3)}, "history": []}, project / "epoch00003.pt")
    found = load_model("light_75", "epoch00003.pt").model.state_dict()
    assert torch.equal(found["cls_token"], task["model.cls_token"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("light_57",), "no run 'light_57'"),
        (("light_75_llrd_80",), "light_75_llrd_80 is no pre-training; it starts from light_75"),
        (("missing.pth",), "missing.pth"),
        (("light_75", "other.safetensors"), "other.safetensors: does not fit the run's model"),
    ],
)
def test_a_mistake_is_an_error_that_names_it(project, arguments, message):
    save_weights(MAE(**SMALL, **DECODER).state_dict(), project / "other.safetensors")
    with pytest.raises(UserError, match=re.escape(message)):
        load_model(*arguments)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ("missing.jpg", "missing.jpg: no such image file"),
        ("params.yaml", "params.yaml: cannot be read as an image"),
        (np.zeros((8, 8)), r"must be uint8 \(H, W, 3\); it is float64 \(8, 8\)"),
    ],
)
def test_an_image_that_cannot_be_used_is_named(project, image, message):
    with pytest.raises(UserError, match=message):
        images.square(image, 32)

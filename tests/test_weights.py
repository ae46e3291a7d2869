import argparse
import os

import pytest
import torch

from replicate.config.backbones import vit_backbone
from replicate.errors import UserError
from replicate.models import huggingface
from replicate.models.classifier import build_classifier, load_encoder
from replicate.models.mae import MAE
from replicate.models.weights import (
    export_weights,
    import_weights,
    load_safetensors,
    load_weights,
    save_weights,
    sizes_of,
)

SIZES = dict(image_size=32, patch_size=8, embed_dim=64, depth=2, num_heads=1)
DECODER = dict(decoder_embed_dim=32, decoder_depth=1, decoder_num_heads=1)


@pytest.fixture
def model() -> MAE:
    torch.manual_seed(0)
    return MAE(**SIZES, **DECODER)


def released(tmp_path, model, name="mae_full.pth", decoder=True, **extra):
    """A file as the reference releases them."""
    state = {key: value for key, value in model.state_dict().items() if decoder or not key.startswith(("decoder", "mask_token"))}
    path = tmp_path / name
    torch.save({"model": state, **extra}, path)
    return path


def assert_equal_states(one, other):
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_released_checkpoint_comes_in_and_goes_out_unchanged(tmp_path, model):
    source = released(tmp_path, model, epoch=1599, args=argparse.Namespace(lr=1e-3, output_dir="./out"))
    ours, back = tmp_path / "sub" / "mae.safetensors", tmp_path / "back.pth"
    import_weights(source, ours, need_decoder=True)
    assert_equal_states(load_weights(ours), model.state_dict())
    assert load_safetensors(ours)[1]["origin"] == "mae_full.pth"
    export_weights(ours, back)
    content = torch.load(back, weights_only=True)
    assert list(content) == ["model"]
    assert_equal_states(content["model"], model.state_dict())
    fresh = MAE(**sizes_of(load_weights(back)))
    fresh.load_state_dict(load_weights(back), strict=True)
    images, noise = torch.randn(2, 3, 32, 32), torch.rand(2, 16)
    assert torch.equal(fresh(images, noise).pred, model(images, noise).pred)


def test_sizes_of_the_released_models():
    for sizes in (dict(), dict(embed_dim=1280, depth=32, num_heads=16, patch_size=14)):
        with torch.device("meta"):
            state = MAE(**sizes).state_dict()
            MAE(**sizes_of(state)).load_state_dict(state, strict=True)
        assert sizes_of(state)["num_heads"] == sizes.get("num_heads", 12)


def test_distributed_and_bare_state_dicts_are_understood(tmp_path, model):
    path = tmp_path / "bare.pth"
    torch.save({"module." + name: tensor for name, tensor in model.state_dict().items()}, path)
    import_weights(path, tmp_path / "ours.safetensors")
    assert_equal_states(load_weights(tmp_path / "ours.safetensors"), model.state_dict())


@pytest.mark.parametrize("version", [4, 5])
def test_published_weights_of_transformers_come_in(tmp_path, model, version):
    names = {4: huggingface._LEAVES_4, 5: huggingface._LEAVES_5}[version]
    theirs = huggingface._renamed(model.state_dict(), names)
    save_weights(theirs, tmp_path / "model.safetensors")
    import_weights(tmp_path / "model.safetensors", tmp_path / "ours.safetensors", need_decoder=True)
    assert_equal_states(load_weights(tmp_path / "ours.safetensors"), model.state_dict())
    encoder = {name.removeprefix("vit."): tensor for name, tensor in theirs.items() if name.startswith("vit.")}
    save_weights(encoder, tmp_path / "encoder.safetensors")
    import_weights(tmp_path / "encoder.safetensors", tmp_path / "ours.safetensors")
    with pytest.raises(UserError, match="holds the encoder only"):
        import_weights(tmp_path / "encoder.safetensors", tmp_path / "ours.safetensors", need_decoder=True)


def test_an_encoder_alone_is_refused_only_when_the_decoder_is_needed(tmp_path, model):
    source = released(tmp_path, model, "mae_pretrain_vit.pth", decoder=False)
    ours = tmp_path / "encoder.safetensors"
    for action in (import_weights, export_weights):
        with pytest.raises(UserError, match="mae_pretrain_vit.pth holds the encoder only.*needs a checkpoint that has the decoder"):
            action(source, ours, need_decoder=True)
        assert not ours.exists()
    import_weights(source, ours)
    classifier = build_classifier(vit_backbone("vit", embed_dim=64, depth=2, num_heads=1, patch_size=8), 5, image_size=32)
    load_encoder(classifier, load_weights(ours))
    assert torch.equal(classifier.cls_token, model.cls_token)


@pytest.mark.parametrize(
    ("drop", "message"),
    [
        ("blocks.0.attn.qkv.bias", "no masked autoencoder's checkpoint: blocks.0.attn.qkv.bias is missing"),
        ("norm.weight", "norm.weight is missing"),
        ("decoder_pred.bias", "incomplete decoder: decoder_pred.bias is missing"),
        ("mask_token", "incomplete decoder: mask_token is missing"),
    ],
)
def test_incomplete_checkpoints_are_refused(tmp_path, model, drop, message):
    path = tmp_path / "x.pth"
    torch.save({"model": {name: tensor for name, tensor in model.state_dict().items() if name != drop}}, path)
    with pytest.raises(UserError, match=message):
        import_weights(path, tmp_path / "y.safetensors")


def test_another_kind_of_model_is_refused(tmp_path):
    path = tmp_path / "resnet.pth"
    torch.save({"conv1.weight": torch.zeros(3)}, path)
    with pytest.raises(UserError, match="resnet.pth is no masked autoencoder's"):
        import_weights(path, tmp_path / "y.safetensors")
    torch.save({"model": "nothing"}, path)
    with pytest.raises(UserError, match="resnet.pth holds no weights"):
        load_weights(path)


def test_mask_tokens_in_the_encoder_have_no_reference_format(tmp_path):
    path = tmp_path / "slow.safetensors"
    save_weights(MAE(**SIZES, **DECODER, mask_tokens_in_encoder=True).state_dict(), path)
    with pytest.raises(UserError, match="mask tokens in the encoder"):
        export_weights(path, tmp_path / "slow.pth")


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_with_code_in_it_is_never_run(tmp_path, model, legacy):
    path, harm = tmp_path / "evil.pth", tmp_path / "harm"
    torch.save({"model": model.state_dict(), "args": Bomb(harm)}, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(UserError, match=r"evil.pth holds pickled code \(\w+.mkdir\), which is never run"):
        load_weights(path)
    assert not harm.exists()


def test_damaged_and_missing_files_are_named(tmp_path, model):
    pickled, safe = released(tmp_path, model), tmp_path / "mae.safetensors"
    save_weights(model.state_dict(), safe)
    for path in (pickled, safe):
        whole = path.read_bytes()
        for part in (whole[: len(whole) // 2], b"", b"not weights at all"):
            path.write_bytes(part)
            with pytest.raises(UserError, match=path.name) as caught:
                load_weights(path)
            assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="nowhere.pth: no such weights file"):
        load_weights(tmp_path / "nowhere.pth")


def test_a_write_that_fails_leaves_nothing_and_the_old_file_whole(tmp_path, model, monkeypatch):
    path = tmp_path / "mae.safetensors"
    save_weights(model.state_dict(), path)
    before = path.read_bytes()

    def full_disk(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("replicate.models.weights.save_file", full_disk)
    with pytest.raises(UserError, match="mae.safetensors could not be written.*No space left"):
        save_weights(model.state_dict(), path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
    with pytest.raises(UserError, match="choose one of these suffixes"):
        save_weights(model.state_dict(), tmp_path / "mae.npz")


def test_shared_and_strided_tensors_survive(tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    state = {"a": base, "b": base, "c": base.t(), "d": base[1:]}
    save_weights(state, tmp_path / "x.safetensors", {"run": "light"})
    loaded, metadata = load_safetensors(tmp_path / "x.safetensors")
    assert metadata == {"run": "light"}
    assert_equal_states(loaded, state)

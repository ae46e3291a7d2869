import argparse
import os

import numpy as np
import pytest
import torch

from replicate.config.backbones import vit_backbone
from replicate.errors import UserError
from replicate.models.build import build_classifier, load_encoder
from replicate.models.huggingface import to_transformers
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
    state = {
        key: value
        for key, value in model.state_dict().items()
        if decoder or not key.startswith(("decoder", "mask_token"))
    }
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


def in_layout_5(model, folder):
    """A file that the installed transformers (version 5) writes with save_pretrained."""
    to_transformers(model).save_pretrained(folder)
    return folder / "model.safetensors"


def in_state_dict_5(model, folder):
    torch.save(to_transformers(model).state_dict(), folder / "state.pt")
    return folder / "state.pt"


def in_layout_4(model, folder):
    """Published files, written by version 4: only the decoder's blocks are named unlike version 5's."""
    state = load_weights(in_layout_5(model, folder))
    state = {
        name.replace("decoder.decoder_encoder.layer.", "decoder.decoder_layers."): t
        for name, t in state.items()
    }
    save_weights(state, folder / "published.safetensors")
    return folder / "published.safetensors"


@pytest.mark.parametrize("layout", [in_layout_4, in_layout_5, in_state_dict_5])
def test_weights_of_transformers_come_in(tmp_path, model, layout):
    path, ours = layout(model, tmp_path), tmp_path / "ours.safetensors"
    import_weights(path, ours, need_decoder=True)
    assert_equal_states(load_weights(ours), {name: model.state_dict()[name] for name in load_weights(ours)})
    assert load_weights(ours).keys() == model.state_dict().keys()
    encoder = {
        n.removeprefix("vit."): tensor for n, tensor in load_weights(path).items() if n.startswith("vit.")
    }
    save_weights(encoder, tmp_path / "encoder.safetensors")
    import_weights(tmp_path / "encoder.safetensors", ours)
    with pytest.raises(UserError, match="holds the encoder only"):
        import_weights(tmp_path / "encoder.safetensors", ours, need_decoder=True)


def test_transformers_reads_what_is_exported_for_it(tmp_path, model):
    from transformers import ViTMAEForPreTraining

    save_weights(model.state_dict(), tmp_path / "ours.safetensors")
    export_weights(tmp_path / "ours.safetensors", tmp_path / "hf", format="hf")
    theirs, report = ViTMAEForPreTraining.from_pretrained(tmp_path / "hf", output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    images, noise = torch.randn(2, 3, 32, 32), torch.rand(2, 16)
    torch.testing.assert_close(theirs.eval()(images, noise=noise).logits, model(images, noise).pred)
    import_weights(tmp_path / "hf" / "model.safetensors", tmp_path / "back.safetensors", need_decoder=True)
    assert load_weights(tmp_path / "back.safetensors").keys() == model.state_dict().keys()


def test_rectangular_models_are_not_exported_for_transformers(tmp_path):
    path = tmp_path / "wide.safetensors"
    save_weights(MAE(**SIZES | {"image_size": (16, 64)}, **DECODER).state_dict(), path)
    with pytest.raises(UserError, match="takes square ones only"):
        export_weights(path, tmp_path / "hf", format="hf")


def test_a_rectangular_checkpoint_is_not_taken_for_a_square_one():
    """2x8 patches are as many as 4x4."""
    state = MAE(**SIZES | {"image_size": (16, 64)}, **DECODER).state_dict()
    assert sizes_of(state)["image_size"] == (16, 64)
    MAE(**sizes_of(state)).load_state_dict(state, strict=True)


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "model.", "module._orig_mod.", "encoder.", "backbone."]
)
@pytest.mark.parametrize("keys", [(), ("model",), ("state_dict",), ("model_ema",), ("state_dict", "model")])
def test_wrapped_checkpoints_come_in(tmp_path, model, prefix, keys):
    content = {prefix + name: tensor for name, tensor in model.state_dict().items()}
    for key in keys:
        content = {key: content, "epoch": 3}
    torch.save(content, tmp_path / "x.pth")
    import_weights(tmp_path / "x.pth", tmp_path / "ours.safetensors", need_decoder=True)
    assert_equal_states(load_weights(tmp_path / "ours.safetensors"), model.state_dict())


def with_nan(state):
    broken = state["blocks.1.mlp.fc1.bias"].clone()
    broken[3] = torch.nan
    return state | {"blocks.1.mlp.fc1.bias": broken}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state | {"reg_token": torch.zeros(1, 4, 64)}, r"it has register tokens \(reg_token\)"),
        (
            lambda state: state | {"blocks.0.ls1.gamma": torch.ones(64)},
            r"it has layer scale \(blocks.0.ls1.gamma\)",
        ),
        (lambda state: state | {"rope.freqs": torch.ones(8)}, "relative or rotary positions"),
        (lambda state: state | {"pos_embed": state["pos_embed"][:, 1:]}, "none for the class token"),
        (with_nan, "blocks.1.mlp.fc1.bias has values that are NaN or infinite"),
        (lambda state: state | {"extra.weight": torch.zeros(1)}, "extra.weight is unknown to the model"),
        (
            lambda state: state | {"norm.weight": torch.zeros(3)},
            r"norm.weight is \(3,\), where the other tensors imply \(64,\)",
        ),
    ],
)
def test_what_the_model_could_not_use_is_refused_at_import(tmp_path, model, change, message):
    path = tmp_path / "x.pth"
    torch.save({"model": change(model.state_dict())}, path)
    with pytest.raises(UserError, match=f"x.pth.*{message}"):
        import_weights(path, tmp_path / "y.safetensors")
    assert not (tmp_path / "y.safetensors").exists()


@pytest.mark.parametrize("legacy", [False, True])
def test_numbers_of_numpy_are_no_code(tmp_path, model, legacy):
    """Trainers store numpy's scalars and arrays beside the weights, such as the best accuracy."""
    extra = {
        "best": np.float64(83.6),
        "epoch": np.int64(3),
        "history": np.arange(3.0),
        "done": np.bool_(True),
    }
    torch.save(
        {"model": model.state_dict(), **extra}, tmp_path / "x.pth", _use_new_zipfile_serialization=not legacy
    )
    assert_equal_states(load_weights(tmp_path / "x.pth"), model.state_dict())


def test_numbers_of_numpy_1_are_no_code(tmp_path, model):
    """numpy 1 pickled its scalars under another module's name."""
    path = tmp_path / "x.pth"
    torch.save(
        {"model": model.state_dict(), "best": np.float64(83.6)}, path, _use_new_zipfile_serialization=False
    )
    path.write_bytes(path.read_bytes().replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    assert_equal_states(load_weights(path), model.state_dict())


def test_an_encoder_alone_is_refused_only_when_the_decoder_is_needed(tmp_path, model):
    source = released(tmp_path, model, "mae_pretrain_vit.pth", decoder=False)
    ours = tmp_path / "encoder.safetensors"
    for action in (import_weights, export_weights):
        with pytest.raises(
            UserError,
            match="mae_pretrain_vit.pth holds the encoder only.*needs a checkpoint that has the decoder",
        ):
            action(source, ours, need_decoder=True)
        assert not ours.exists()
    import_weights(source, ours)
    backbone = vit_backbone("vit", embed_dim=64, depth=2, num_heads=1, patch_size=8)
    classifier = build_classifier(backbone, 5, image_size=32)
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
    torch.save(
        {"model": model.state_dict(), "args": Bomb(harm)}, path, _use_new_zipfile_serialization=not legacy
    )
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
    with pytest.raises(UserError, match="mae.safetensors: cannot be written.*No space left"):
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

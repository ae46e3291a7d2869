"""CrossMAE against a reimplementation in plain torch, its masks, its cost, its options and its runs."""

import math

import pytest
import torch
import torch.nn.functional as F
from project import ROOT, run, write_params
from pydantic import ValidationError
from torch.utils.flop_counter import FlopCounterMode

from replicate.config import PretrainRun, load, published
from replicate.cost.crossmae import crossmae_cost, crossmae_macs
from replicate.cost.macs import NORM, mae_macs
from replicate.errors import UserError
from replicate.losses.reconstruction import reconstruction_loss
from replicate.models.activations import activation_bytes
from replicate.models.build import build_classifier, build_pretraining_model, load_encoder
from replicate.models.crossmae import CrossMAE
from replicate.models.mae import MAE
from replicate.targets.pixel import Target

SIZES = dict(image_size=64, patch_size=8, embed_dim=48, depth=2, num_heads=4)
DECODER = dict(decoder_embed_dim=32, decoder_depth=3, decoder_num_heads=2)
PARAMS = load(ROOT / "params.yaml")


def small(**options) -> CrossMAE:
    torch.manual_seed(0)
    return CrossMAE(**SIZES | DECODER | {"prediction_ratio": 0.25} | options)


def batch(images: int = 3):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(images, 3, 64, 64, generator=generator), torch.rand(images, 64, generator=generator)


# An independent reimplementation: one image at a time, one head at a time, from the state dict alone.


def layer_norm(x, state, name):
    centred = x - x.mean(-1, keepdim=True)
    scale = (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    return centred / scale * state[f"{name}.weight"] + state[f"{name}.bias"]


def linear(x, state, name):
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def mlp(x, state, name):
    hidden = linear(x, state, f"{name}.fc1")
    return linear(0.5 * hidden * (1 + torch.erf(hidden / math.sqrt(2))), state, f"{name}.fc2")


def attend(query, key, value, heads):
    """(Q, C), (T, C), (T, C) -> (Q, C), head by head."""
    out = []
    for q, k, v in zip(query.chunk(heads, 1), key.chunk(heads, 1), value.chunk(heads, 1), strict=True):
        out.append(((q @ k.T) / math.sqrt(q.shape[1])).softmax(1) @ v)
    return torch.cat(out, 1)


def encoder_maps(image, visible, state):
    """The encoder's input and the output of each block, for one image (3, 64, 64)."""
    patches = F.unfold(image[None], 8, stride=8)[
        0
    ].T  # (L, 3 * 64), channels first as the convolution has them
    tokens = patches @ state["patch_embed.proj.weight"].flatten(1).T + state["patch_embed.proj.bias"]
    tokens = (tokens + state["pos_embed"][0, 1:])[visible]
    x = torch.cat([state["cls_token"][0] + state["pos_embed"][0, :1], tokens])
    maps = [x]
    for k in range(SIZES["depth"]):
        qkv = linear(layer_norm(x, state, f"blocks.{k}.norm1"), state, f"blocks.{k}.attn.qkv")
        x = x + linear(attend(*qkv.chunk(3, 1), SIZES["num_heads"]), state, f"blocks.{k}.attn.proj")
        x = x + mlp(layer_norm(x, state, f"blocks.{k}.norm2"), state, f"blocks.{k}.mlp")
        maps.append(x)
    return maps


def reimplemented(image, noise, state, mask_ratio=0.75, prediction_ratio=0.25, weighted=True):
    """{patch: prediction} of one image."""
    order = noise.argsort().tolist()
    visible = order[: int(64 * (1 - mask_ratio))]
    predicted = order[len(visible) + int(64 * (mask_ratio - prediction_ratio)) :]
    maps = encoder_maps(image, visible, state)
    x = state["mask_token"][0] + state["decoder_pos_embed"][0, 1:][predicted]
    for k in range(DECODER["decoder_depth"]):
        if weighted:
            weights = state["decoder_map_weights.weight"][k]
            y = sum(weight * one for weight, one in zip(weights, maps, strict=True))
            y = layer_norm(y, state, f"decoder_map_norms.{k}")
        else:
            y = layer_norm(maps[-1], state, "norm")
        name = f"decoder_blocks.{k}"
        q = linear(layer_norm(x, state, f"{name}.norm1"), state, f"{name}.cross_attn.q")
        key, value = linear(y, state, f"{name}.cross_attn.kv").chunk(2, 1)
        attended = attend(q, key, value, DECODER["decoder_num_heads"])
        x = x + linear(attended, state, f"{name}.cross_attn.proj")
        x = x + mlp(layer_norm(x, state, f"{name}.norm2"), state, f"{name}.mlp")
    x = linear(layer_norm(x, state, "decoder_norm"), state, "decoder_pred")
    return dict(zip(predicted, x, strict=True))


@pytest.mark.parametrize("prediction_ratio", [0.25, 0.75])
@pytest.mark.parametrize("weighted", [True, False])
def test_predictions_equal_a_reimplementation(weighted, prediction_ratio):
    model = small(last_features_only=not weighted, prediction_ratio=prediction_ratio)
    generator = torch.Generator().manual_seed(2)
    for parameter in model.parameters():  # norms and biases too must matter
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    images, noise = batch()
    with torch.no_grad():
        found = model(images, noise)
    for k in range(len(images)):
        arguments = {"prediction_ratio": prediction_ratio, "weighted": weighted}
        expected = reimplemented(images[k], noise[k], model.state_dict(), **arguments)
        assert set(expected) == set(found.scored[k].nonzero().flatten().tolist())
        for patch, values in expected.items():
            torch.testing.assert_close(found.pred[k, patch], values, atol=1e-5, rtol=1e-5)
    assert not found.pred[found.scored == 0].any()


def test_the_encoder_is_mae():
    torch.manual_seed(0)
    mae = MAE(**SIZES, **DECODER)
    shared = {name: tensor for name, tensor in mae.state_dict().items() if not name.startswith("decoder")}
    model = small()
    assert set(shared) <= set(model.state_dict())
    model.load_state_dict(shared, strict=False)
    images, noise = batch()
    torch.testing.assert_close(model(images, noise).latent, mae(images, noise).latent)


# Masks


@pytest.mark.parametrize("mask", ["random", "block", "grid"])
@pytest.mark.parametrize(
    ("mask_ratio", "prediction_ratio", "counts"),
    [
        (0.75, 0.25, (16, 32, 16)),
        (0.75, 0.75, (16, 0, 48)),
        (0.9, 0.33, (6, 36, 22)),
        (0.75, None, (16, 0, 48)),
    ],
)
def test_visible_skipped_and_predicted_patches(mask, mask_ratio, prediction_ratio, counts):
    """floor(64 (1 - m)) visible, floor(64 (m - p)) skipped, the rest predicted."""
    model = small(mask=mask, mask_ratio=mask_ratio, prediction_ratio=prediction_ratio)
    found = model(*batch())
    visible, skipped = found.mask == 0, (found.mask > 0) & (found.scored == 0)
    assert [
        tuple(int(one.sum()) for one in row) for row in zip(visible, skipped, found.scored, strict=True)
    ] == [counts] * 3
    assert not (visible & (found.scored > 0)).any()


def test_the_released_counts():
    """ViT-B of the released command: of 196 patches 49 are visible, 98 are skipped, 49 are predicted."""
    model = CrossMAE(
        224, patch_size=16, embed_dim=16, depth=1, num_heads=1, prediction_ratio=0.25, decoder_depth=1
    )
    found = model(torch.randn(1, 3, 224, 224))
    assert (int((found.mask == 0).sum()), int(found.scored.sum())) == (49, 49)


@pytest.mark.parametrize("mask", ["random", "block"])
def test_every_masked_patch_is_predicted_equally_often(mask):
    model = small(mask=mask, depth=1, decoder_depth=1)
    generator = torch.Generator().manual_seed(3)
    found = model(torch.zeros(1000, 3, 64, 64), torch.rand(1000, 64, generator=generator))
    share = found.scored.sum(0) / found.mask.sum(0)
    assert share.min() > 0.23 and share.max() < 0.44  # one in three, six standard errors either way


def test_a_patch_is_decoded_on_its_own():
    """A model that predicts every masked patch says the same of those that it predicted before."""
    model, (images, noise) = small(), batch()
    few = model(images, noise)
    model.prediction_ratio = None
    every = model(images, noise)
    assert torch.equal(every.scored, every.mask)
    torch.testing.assert_close(every.pred * few.scored[..., None], few.pred, atol=1e-5, rtol=1e-5)


# Loss and gradients


def loss_of(model, images, noise):
    found = model(images, noise)
    return reconstruction_loss(found.pred, torch.zeros_like(found.pred) + images.mean(), found.scored)


def test_the_loss_covers_predicted_patches_alone():
    model, (images, noise) = small(), batch()
    target = Target(8, norm_pix=True)(((images.clamp(-2, 2) + 2) * 60).to(torch.uint8))
    found = model(images, noise)
    loss = reconstruction_loss(found.pred, target, found.scored)
    elsewhere = target + 100 * (1 - found.scored)[..., None]
    assert torch.equal(loss, reconstruction_loss(found.pred, elsewhere, found.scored))
    chosen = found.scored > 0
    torch.testing.assert_close(loss, (found.pred - target)[chosen].square().mean())


@pytest.mark.parametrize("last_features_only", [False, True])
def test_every_trainable_parameter_has_a_gradient(last_features_only):
    model = small(last_features_only=last_features_only)
    loss_of(model, *batch()).backward()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in trained.values())
    frozen = {"pos_embed", "decoder_pos_embed"} | (
        set() if last_features_only else {"norm.weight", "norm.bias"}
    )
    assert {name for name, p in model.named_parameters() if not p.requires_grad} == frozen


def test_initial_weights():
    model = CrossMAE(
        32, patch_size=8, embed_dim=64, depth=11, num_heads=2, decoder_embed_dim=64, decoder_num_heads=2
    )
    weights = model.decoder_map_weights.weight
    assert weights.shape == (12, 12) and weights.std().item() == pytest.approx(1 / math.sqrt(12), rel=0.2)
    bound = math.sqrt(6 / (64 + 128))  # Xavier: keys and values are one matrix
    kv = model.decoder_blocks[0].cross_attn.kv
    assert kv.weight.abs().max().item() == pytest.approx(bound, rel=0.01) and not kv.bias.any()


def test_golden_loss():
    """The loss of seed 0 on fixed images, by the model and by the reimplementation."""
    model, (images, noise) = small(), batch()
    found = model(images, noise)
    target = images.unfold(2, 8, 8).unfold(3, 8, 8).permute(0, 2, 3, 4, 5, 1).reshape(3, 64, 192)
    loss = reconstruction_loss(found.pred, target, found.scored).item()
    predictions = [reimplemented(images[k], noise[k], model.state_dict()) for k in range(3)]
    errors = [
        (value - target[k, patch]).square().mean()
        for k, one in enumerate(predictions)
        for patch, value in one.items()
    ]
    assert loss == pytest.approx(torch.stack(errors).mean().item(), rel=1e-5)
    assert loss == pytest.approx(1.2983325, rel=1e-4)


# Options


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"prediction_ratio": 0.8}, r"prediction_ratio 0.8 must be a share of all patches in \(0, 0.75\]"),
        ({"prediction_ratio": 0.0}, "prediction_ratio 0.0 must be"),
        ({"decoder_depth": 0}, "at least one block of cross-attention"),
        ({"score_all": True}, "score_all belongs to MAE"),
        ({"decoder_beta": 26.0}, "decoder_beta belongs to MAE"),
        ({"mask_tokens_in_encoder": True}, "mask_tokens_in_encoder belongs to MAE"),
        ({"decoder_num_heads": 3}, "decoder width 32 is not a multiple of its 3 heads"),
    ],
)
def test_a_model_that_cannot_be_is_refused(options, words):
    with pytest.raises(UserError, match=words):
        small(**options)


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("full_75", {"prediction_ratio": 0.25}, "belong to method crossmae"),
        ("full_75", {"last_features_only": True}, "belong to method crossmae"),
        ("fastmim_vit_hog_128", {"prediction_ratio": 0.25}, "belong to method crossmae"),
        ("crossmae_base", {"prediction_ratio": 0.8}, "prediction_ratio 0.8 exceeds mask_ratio 0.75"),
        ("crossmae_base", {"score_all": True}, "score_all needs predictions of visible patches"),
        ("crossmae_base", {"decoder_beta": 26.0}, "decoder_beta drops tokens of MAE's decoder"),
        ("crossmae_base", {"mask_tokens_in_encoder": True}, "belongs to method mae"),
        ("crossmae_base", {"mask_unit": 32}, "belong to method mim"),
    ],
)
def test_options_of_other_methods_are_refused(name, changes, words):
    with pytest.raises(ValidationError, match=words):
        PretrainRun.model_validate(PARAMS.run(name).model_dump() | changes)


# Sizes and weights


def test_a_resolution_stage_runs():
    model = small()
    model.set_image_size(32)
    found = model(torch.randn(2, 3, 32, 32))
    assert found.pred.shape == (2, 16, 192) and found.scored.sum(1).tolist() == [4.0, 4.0]


def test_the_encoder_loads_into_a_classifier():
    model = small()
    pretrained = PARAMS.run("crossmae_base").model_copy(
        update={"backbone": "vit", "backbone_kwargs": {k: v for k, v in SIZES.items() if k != "image_size"}}
    )
    classifier = build_classifier(pretrained, 5, 64)
    load_encoder(classifier, model.state_dict())
    torch.testing.assert_close(classifier.blocks[1].mlp.fc1.weight, model.blocks[1].mlp.fc1.weight)


# Cost


@torch.no_grad()
def counted(model) -> float:
    """Multiply-adds of one image by torch's counter; LayerNorm counts 5 an element."""
    norm = {torch.ops.aten.native_layer_norm: lambda shape, *_, **__: 2 * NORM * math.prod(shape)}
    with FlopCounterMode(display=False, custom_mapping=norm) as counter:
        model(
            torch.empty(1, 3, *model.image_size, device="meta"),
            torch.empty(1, model.num_patches, device="meta"),
        )
    return counter.get_total_flops() / 2


BASE = dict(embed_dim=768, depth=12, num_heads=12)
HUGE = dict(embed_dim=1280, depth=32, num_heads=16, patch_size=14)


@pytest.mark.parametrize(
    "sizes",
    [
        BASE | {"prediction_ratio": 0.25},
        BASE | {"prediction_ratio": 0.25, "last_features_only": True},
        BASE | {"image_size": 448, "target_dim": 64},
        HUGE | {"prediction_ratio": 0.25, "decoder_embed_dim": 256, "decoder_depth": 8},
    ],
)
def test_multiply_adds_equal_torchs_count(sizes):
    with torch.device("meta"):
        model = CrossMAE(**sizes)
    closed, plain = crossmae_macs(**sizes), {k: sizes[k] for k in ("embed_dim", "depth", "num_heads")}
    assert counted(model) == closed.total
    geometry = {key: sizes[key] for key in ("patch_size", "image_size") if key in sizes}
    assert closed.encoder == mae_macs(**plain, **geometry, project_masked=False).encoder


def test_a_runs_cost_is_its_models():
    run = PARAMS.resolve("crossmae_base", "smoke")
    model = build_pretraining_model(run, run.patch_size**2 * 3)
    cost = crossmae_cost(run, 4)
    assert cost.parameters == sum(p.numel() for p in model.parameters())
    assert cost.trainable == sum(p.numel() for p in model.parameters() if p.requires_grad)
    images = torch.randn(8, 3, run.image_size, run.image_size)
    kept = activation_bytes(lambda: model(images).pred, model.parameters()) / len(images)
    assert cost.activations == pytest.approx(kept, rel=0.1)


def test_decoding_is_cheaper_than_maes():
    """The abstract's 2.5 to 3.7 times, for ViT-B: 2.59 against 8 blocks, 3.87 against 12."""
    ours = crossmae_macs(**BASE, prediction_ratio=0.25).decoder
    eight, twelve = (mae_macs(**BASE, decoder_depth=depth).decoder / ours for depth in (8, 12))
    assert (round(eight, 2), round(twelve, 2)) == (2.59, 3.87)


# The paper's room and runs


def test_released_recipes():
    recipes = published.recipes()["crossmae"]
    pretrain, finetune = (
        PARAMS.resolve("crossmae_vit_b_25", "paper"),
        PARAMS.resolve("crossmae_vit_b_25_ft", "paper"),
    )
    shared = ["weight_decay", "batch_size", "warmup_epochs", "epochs", "mask_ratio", "prediction_ratio"]
    shared += [
        "decoder_depth",
        "decoder_width",
        "layer_decay",
        "drop_path",
        "random_erasing",
        "mixup",
        "cutmix",
    ]
    for resolved, recipe in ((pretrain, recipes["pretrain"]), (finetune, recipes["finetune"])):
        assert resolved.base_lr == pytest.approx(float(recipe["lr"]))
        for key in shared:
            assert key not in recipe or getattr(resolved, key) == pytest.approx(float(recipe[key])), key
    assert PARAMS.run("crossmae_vit_s").decoder_width == 256


def test_the_rival_differs_in_the_decoder_alone():
    ours, rival = (PARAMS.run(name).model_dump() for name in ("crossmae_base", "full_75"))
    differ = {key for key in ours if ours[key] != rival[key]}
    assert differ == {"paper", "method", "decoder_depth", "prediction_ratio"}
    ours, rival = (PARAMS.run(name).model_dump() for name in ("crossmae_base_ft", "crossmae_mae_ft"))
    assert {key for key in ours if ours[key] != rival[key]} == {"pretrain"}


def test_every_number_names_its_source():
    values = published.values().query("paper == 'crossmae'")
    assert len(values) == 13 and values["note"].str.contains("README|2401.14391").all()


def test_smoke_runs_from_the_command_line(tmp_path):
    write_params(tmp_path)
    run(tmp_path, "data", "write")
    run(tmp_path, "pretrain", "crossmae_base")
    run(tmp_path, "evaluate", "crossmae_base_ft")
    results = tmp_path / "results" / "smoke" / "crossmae"
    assert (results / "crossmae_base" / "metrics.json").exists()
    assert '"top1"' in (results / "crossmae_base_ft" / "metrics.json").read_text()

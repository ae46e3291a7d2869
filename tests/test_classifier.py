import pytest
import torch

from replicate.config import PretrainRun
from replicate.config.backbones import VIT_SIZES, Backbone, vit_backbone
from replicate.errors import UserError
from replicate.models.build import (
    METHODS,
    build_classifier,
    build_pretraining_model,
    build_probe,
    load_encoder,
    pooled,
    tokens,
)
from replicate.models.mae import MAE
from replicate.models.vit import freeze_for_partial, init_head

TINY = vit_backbone("vit", embed_dim=48, depth=4, num_heads=4, patch_size=8)


def pretrained(seed: int = 0, image_size=64, **options) -> MAE:
    torch.manual_seed(seed)
    small = dict(decoder_embed_dim=32, decoder_depth=1, decoder_num_heads=4)
    return MAE(image_size=image_size, **{**TINY.kwargs, **small, **options})


def parameters(model) -> int:
    return sum(p.numel() for p in model.parameters())


def trainable(model) -> set[str]:
    return {name for name, p in model.named_parameters() if p.requires_grad}


def test_backbones_by_name_and_by_numbers():
    assert vit_backbone("vit_base_patch16").kwargs == dict(
        embed_dim=768, depth=12, num_heads=12, patch_size=16
    )
    assert vit_backbone("vit_huge_patch14_224").kwargs["patch_size"] == 14
    assert vit_backbone("vit_small_patch16", depth=4).kwargs == dict(
        embed_dim=384, depth=4, num_heads=6, patch_size=16
    )
    assert TINY.is_vit and not Backbone("swin_base", {"window": 7}).is_vit


@pytest.mark.parametrize(
    ("name", "numbers", "message"),
    [
        ("resnet50", {}, "no Vision Transformer"),
        ("vit", dict(embed_dim=64), "depth is missing"),
        ("vit_base_patch16", dict(heads=3), "unknown number 'heads'"),
        ("vit_base_patch16", dict(num_heads=7), "not a multiple of num_heads 7"),
        ("vit_base_patch16", dict(depth=0), "depth 0"),
        ("vit_base_patch16", dict(depth=2.5), "depth 2.5"),
    ],
)
def test_impossible_backbones_are_named(name, numbers, message):
    with pytest.raises(UserError, match=message):
        vit_backbone(name, **numbers)


@pytest.mark.parametrize("size", VIT_SIZES)
def test_sizes_agree_with_timm(size):
    import timm

    name = f"vit_{size}_patch{14 if size == 'huge' else 16}_224"
    with torch.device("meta"):
        theirs, ours = timm.create_model(name, num_classes=10), build_classifier(vit_backbone(name), 10)
    assert parameters(theirs) == parameters(ours)


def test_parameters_of_the_fine_tuning_model():
    with torch.device("meta"):
        model = build_classifier(vit_backbone("vit_base_patch16"), 1000)
    assert parameters(model) == 86_567_656
    assert (
        isinstance(model.norm, torch.nn.Identity) and model.fc_norm.eps == model.blocks[0].norm1.eps == 1e-6
    )
    assert model.pos_embed.requires_grad and model.no_weight_decay() >= {"pos_embed", "cls_token"}


def test_the_first_gradient_reaches_the_encoder_through_the_heads_spread():
    gradients = []
    for std in (2e-5, 0.02):
        torch.manual_seed(0)
        model = build_classifier(TINY, 50, image_size=64)
        before = {
            name: tensor.clone()
            for name, tensor in model.state_dict().items()
            if not name.startswith("head.")
        }
        init_head(model, std)
        assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in before.items())
        assert model.head.weight.detach().std() == pytest.approx(std, rel=0.1) and not model.head.bias.any()
        with torch.enable_grad():
            torch.nn.functional.cross_entropy(model(torch.randn(4, 3, 64, 64)), torch.arange(4)).backward()
        gradients.append(model.patch_embed.proj.weight.grad.norm())
    assert gradients[1] / gradients[0] == pytest.approx(0.02 / 2e-5, rel=0.5)


def test_timms_mae_weights_load_completely():
    import timm

    with torch.device("meta"):
        state = timm.create_model("vit_base_patch16_224.mae", pretrained=False).state_dict()
        model = build_classifier(vit_backbone("vit_base_patch16"), 1000)
    assert len(state) == 150
    load_encoder(model, state)
    with pytest.raises(UserError):
        load_encoder(
            model, {name: tensor for name, tensor in state.items() if name != "blocks.11.attn.qkv.bias"}
        )


def test_timms_mae_weights_give_timms_features():
    import timm

    theirs = timm.create_model("vit_base_patch16_224.mae", pretrained=False, depth=1).eval()
    backbone = vit_backbone("vit_base_patch16", depth=1)
    model, probe = build_classifier(backbone, 10).eval(), build_probe(backbone, 10).eval()
    load_encoder(model, theirs.state_dict())
    load_encoder(probe, theirs.state_dict())
    image = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(
            probe.forward_features(image), theirs.forward_features(image), rtol=0, atol=0
        )
        theirs.norm = torch.nn.Identity()
        torch.testing.assert_close(
            model.forward_features(image), theirs.forward_features(image), rtol=0, atol=0
        )


def test_the_classifier_pools_patch_tokens_then_normalises():
    model = build_classifier(TINY, 5, image_size=64).eval()
    images = torch.randn(2, 3, 64, 64)
    tokens = model.forward_features(images)
    expected = model.head(torch.nn.functional.layer_norm(tokens[:, 1:].mean(1), (48,), eps=1e-6))
    torch.testing.assert_close(model(images), expected)


def test_the_encoder_computes_what_it_did_in_pre_training():
    """With every patch visible, the pre-training encoder's last norm is what the probe reads."""
    mae = pretrained()
    probe = build_probe(TINY, 5, image_size=64).eval()
    load_encoder(probe, mae.state_dict())
    images = torch.randn(2, 3, 64, 64)
    noise = torch.arange(64).expand(2, -1) / 64
    latent, _, _ = mae.forward_encoder(images, 0.0, noise)
    torch.testing.assert_close(probe.forward_features(images), latent, rtol=1e-5, atol=1e-5)


def test_only_head_and_norm_keep_their_own_values():
    mae = pretrained()
    model = build_classifier(TINY, 5, image_size=64)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    load_encoder(model, mae.state_dict())
    for name, tensor in model.state_dict().items():
        source = before if name.startswith(("head.", "fc_norm.")) else mae.state_dict()
        assert torch.equal(tensor, source[name]), name


def test_position_embeddings_follow_the_image_size():
    mae = pretrained()
    larger = build_classifier(TINY, 5, image_size=96)
    load_encoder(larger, mae.state_dict())
    assert larger.pos_embed.shape == (1, 145, 48) and torch.equal(
        larger.pos_embed[:, :1], mae.pos_embed[:, :1]
    )
    assert larger(torch.randn(1, 3, 96, 96)).shape == (1, 5)
    wide = build_classifier(TINY, 5, image_size=(64, 32))
    load_encoder(wide, mae.state_dict())
    assert wide.pos_embed.shape == (1, 33, 48)


def learned(state, seed=0):
    """A checkpoint whose positions are learned, as a fine-tuned one's are."""
    table = torch.randn(state["pos_embed"].shape, generator=torch.Generator().manual_seed(seed))
    return state | {"pos_embed": table}


def test_a_rectangular_checkpoint_with_sine_cosine_positions_tells_its_grid():
    """4x16 patches are as many as 8x8: the table says which."""
    state = pretrained(image_size=(32, 128)).state_dict()
    square, expected = build_classifier(TINY, 5, image_size=64), build_classifier(TINY, 5, image_size=64)
    load_encoder(square, state)
    load_encoder(expected, learned(state) | {"pos_embed": state["pos_embed"]}, trained_at=(32, 128))
    assert torch.equal(square.pos_embed, expected.pos_embed) and not torch.equal(
        square.pos_embed, state["pos_embed"]
    )


def test_a_rectangular_checkpoint_with_learned_positions_needs_its_image_size():
    state = learned(pretrained(image_size=(64, 32)).state_dict())
    same, square = build_classifier(TINY, 5, image_size=(64, 32)), build_classifier(TINY, 5, image_size=64)
    load_encoder(same, state)
    assert torch.equal(same.pos_embed, state["pos_embed"])
    with pytest.raises(UserError, match="x.safetensors: 32 positions are no square grid"):
        load_encoder(square, state, "x.safetensors")
    load_encoder(square, state, trained_at=(64, 32))
    with pytest.raises(UserError, match="32 positions are not a grid of 4x4"):
        load_encoder(square, state, trained_at=32)


def test_positions_that_fit_two_grids_are_refused():
    state = learned(pretrained(image_size=64).state_dict())
    wide = build_classifier(TINY, 5, image_size=(32, 128))
    with pytest.raises(UserError, match="64 positions may be 8x8 or 4x16"):
        load_encoder(wide, state)
    load_encoder(wide, state, trained_at=64)
    assert not torch.equal(wide.pos_embed, state["pos_embed"])


@pytest.mark.parametrize("antialias", [True, False])
def test_positions_are_resampled_with_or_without_a_filter(antialias):
    """MAE's and FastMIM's fine-tuning do not filter, timm's and DailyMAE's do."""
    state = pretrained().state_dict()
    model = build_classifier(TINY, 5, image_size=48)
    load_encoder(model, state, antialias=antialias)
    image = state["pos_embed"][:, 1:].reshape(1, 8, 8, 48).permute(0, 3, 1, 2)
    expected = torch.nn.functional.interpolate(image, size=(6, 6), mode="bicubic", antialias=antialias)
    torch.testing.assert_close(model.pos_embed[:, 1:], expected.flatten(2).transpose(1, 2))


def test_a_table_without_a_row_for_the_class_token_is_refused():
    state = pretrained().state_dict()
    with pytest.raises(UserError, match="x.pth: pos_embed has no row for a class token"):
        load_encoder(
            build_classifier(TINY, 5, image_size=64),
            state | {"pos_embed": state["pos_embed"][:, 1:]},
            "x.pth",
        )


def test_a_stage_at_another_resolution_keeps_the_parameters():
    model = build_classifier(TINY, 5, image_size=64).eval()
    images = torch.randn(2, 3, 64, 64)
    before = model(images)
    parameter = model.pos_embed
    smaller = model(torch.randn(2, 3, 48, 48))
    smaller.sum().backward()
    assert smaller.shape == (2, 5) and model.pos_embed is parameter and parameter.grad is not None
    assert torch.equal(model(images), before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(embed_dim=64), "x.pth does not fit the model: it holds a ViT of width 64, 4 blocks, patch 8"),
        (
            dict(depth=6),
            "a ViT of width 48, 6 blocks, patch 8, the model is a ViT of width 48, 4 blocks, patch 8",
        ),
        (dict(patch_size=16), "patch 16"),
        (dict(mlp_ratio=2.0), r"blocks.0.mlp.fc1.weight is \(96, 48\) where the model has \(192, 48\)"),
    ],
)
def test_another_models_checkpoint_is_refused(options, message):
    model = build_classifier(TINY, 5, image_size=64)
    with pytest.raises(UserError, match=message):
        load_encoder(model, pretrained(**options).state_dict(), "x.pth")


def test_incomplete_and_foreign_checkpoints_are_refused():
    model = build_classifier(TINY, 5, image_size=64)
    state = pretrained().state_dict()
    with pytest.raises(UserError, match="blocks.2.norm1.bias is missing"):
        load_encoder(model, {name: tensor for name, tensor in state.items() if name != "blocks.2.norm1.bias"})
    with pytest.raises(UserError, match="rope.freqs is unknown to the model"):
        load_encoder(model, {**state, "rope.freqs": torch.zeros(1)})
    with pytest.raises(UserError, match="missing"):
        load_encoder(model, {"conv1.weight": torch.zeros(1)})


@pytest.mark.parametrize(
    "prefix",
    [
        "module.",
        "encoder.",
        "module.encoder.",
        "_orig_mod.",
        "module._orig_mod.model.",
        "model.",
        "backbone.",
        "model.encoder.backbone.",
    ],
)
def test_wrapped_checkpoints_load(prefix):
    """torch.compile, data parallelism, trainers and other code bases each put a prefix before the names."""
    state = pretrained().state_dict()
    model = build_classifier(TINY, 5, image_size=64)
    beside = {"head.weight": torch.zeros(3, 48), "probe.weight": torch.zeros(1)}
    load_encoder(model, {prefix + name: tensor for name, tensor in state.items()} | beside)
    assert torch.equal(model.cls_token, state["cls_token"])


def test_blocks_that_pre_training_left_out_stay_new_only_where_the_run_says_so():
    shallow, model = pretrained(depth=3).state_dict(), build_classifier(TINY, 5, image_size=64)
    with pytest.raises(UserError, match="3 blocks"):
        load_encoder(model, shallow)
    fresh = load_encoder(model, shallow, drop_blocks=1)
    assert fresh and all(name.startswith("blocks.3.") for name in fresh)


def test_the_pooled_feature_is_what_the_head_sees():
    model, images = build_classifier(TINY, 5, image_size=64).eval(), torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(model.head(pooled(model, images)), model(images))
    normed = torch.nn.functional.layer_norm(model.forward_features(images)[:, 1:], (48,), eps=1e-6)
    torch.testing.assert_close(tokens(model, images), normed)


BLOCK = 4 * 48 + (48 * 144 + 144) + (48 * 48 + 48) + (48 * 192 + 192) + (192 * 48 + 48)
HALF = 2 * 48 + (48 * 192 + 192) + (192 * 48 + 48)
HEAD, NORM = 48 * 5 + 5, 2 * 48


@pytest.mark.parametrize(
    ("blocks", "expected"),
    [(0, HEAD), (0.5, HEAD + NORM + HALF), (1, HEAD + NORM + BLOCK), (2, HEAD + NORM + 2 * BLOCK), (4, None)],
)
def test_partial_fine_tuning_trains_exactly_what_it_says(blocks, expected):
    model = build_classifier(TINY, 5, image_size=64)
    names = freeze_for_partial(model, blocks)
    assert set(names) == trainable(model)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == (expected or parameters(model))
    model(torch.randn(2, 3, 64, 64)).sum().backward()
    assert {name for name, p in model.named_parameters() if p.grad is not None} == set(names)


def test_half_a_block_is_its_mlp():
    model = build_classifier(TINY, 5, image_size=64)
    assert {name.rsplit(".", 1)[0] for name in freeze_for_partial(model, 0.5)} == {
        "blocks.3.norm2",
        "blocks.3.mlp.fc1",
        "blocks.3.mlp.fc2",
        "fc_norm",
        "head",
    }


@pytest.mark.parametrize("blocks", [-1, 1.5, 5])
def test_impossible_numbers_of_blocks_are_refused(blocks):
    with pytest.raises(UserError, match="up to the model's depth, 4"):
        freeze_for_partial(build_classifier(TINY, 5, image_size=64), blocks)


def test_the_probe_trains_one_linear_layer_on_the_normalised_class_token():
    probe = build_probe(TINY, 5, image_size=64)
    load_encoder(probe, pretrained().state_dict())
    norm, linear = probe.head
    assert trainable(probe) == {"head.1.weight", "head.1.bias"}
    assert norm.eps == 1e-6 and not norm.affine and linear.weight.std().item() == pytest.approx(0.01, rel=0.2)
    images = torch.randn(16, 3, 64, 64)
    token = probe.forward_features(images)[:, 0]
    expected = linear((token - token.mean(0)) / (token.var(0, unbiased=False) + 1e-6).sqrt())
    torch.testing.assert_close(probe(images), expected, rtol=1e-4, atol=1e-5)


def test_the_head_starts_small():
    model = build_classifier(TINY, 1000, image_size=64)
    assert model.head.weight.std().item() == pytest.approx(2e-5, rel=0.1) and not model.head.bias.any()


def test_stochastic_depth_grows_with_depth():
    rates = [
        getattr(block.drop_path1, "drop_prob", 0.0)
        for block in build_classifier(TINY, 5, drop_path=0.3).blocks
    ]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3])


def test_unknown_pooling_is_named():
    with pytest.raises(UserError, match="pool 'max'"):
        build_classifier(TINY, 5, pool="max")


def a_run(method: str, **changes) -> PretrainRun:
    numbers = dict(embed_dim=48, depth=2, num_heads=4, patch_size=8)
    stated = dict(
        paper="mae", method=method, backbone="vit", backbone_kwargs=numbers, image_size=32, epochs=1,
        warmup_epochs=0, batch_size=8, base_lr=1e-3, weight_decay=0.05, betas=(0.9, 0.95),
        crop_scale=(0.2, 1.0), mask_ratio=0.75, decoder_depth=1, decoder_width=32,
    )  # fmt: skip
    return PretrainRun(**stated | changes)


@pytest.mark.parametrize("method", ["mae", "mim"])
def test_a_run_builds_its_model_and_what_is_fine_tuned_from_it(method):
    run = a_run(method, mask="grid", score_all=True, mask_ratio=0.5, mask_token="zero")
    model = build_pretraining_model(run, target_dim=7, with_difficulty=True)
    prediction = model(torch.randn(2, 3, 32, 32))
    assert prediction.pred.shape == (2, 16, 7) and prediction.difficulty.shape == (2, 16)
    assert (
        prediction.scored.all() and prediction.mask.sum(1).tolist() == [8, 8] and not model.mask_token.any()
    )
    for build in (build_classifier, build_probe):
        classifier = build(run, 5, 32)
        assert load_encoder(classifier, model.state_dict()) == []
        assert classifier(torch.randn(2, 3, 32, 32)).shape == (2, 5)


def test_a_third_method_is_one_entry(monkeypatch):
    monkeypatch.setitem(
        METHODS, "mine", lambda run, target_dim, with_difficulty: torch.nn.Linear(2, target_dim)
    )
    run = a_run("mae").model_copy(update={"method": "mine"})
    assert build_pretraining_model(run, 3).out_features == 3
    with pytest.raises(UserError, match="method 'theirs' is unknown: choose mae, crossmae, mim, mine"):
        build_pretraining_model(run.model_copy(update={"method": "theirs"}), 3)

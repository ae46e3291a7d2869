"""UperNet on taps of a ViT, against transformers' implementation with the same weights."""

import pytest
import torch
from torch import nn

from replicate.errors import UserError
from replicate.models.vit import ViT
from replicate.transfer.taps import BIAS_TABLE, StageTaps, VitTaps, relative_positions
from replicate.transfer.upernet import Segmenter

WIDTH, DEPTH, HEADS, PATCH, SIZE, CLASSES, HEAD = 32, 4, 2, 8, 64, 7, 16


def ours(taps=(0, 1, 2, 3)):
    vit = ViT(SIZE, PATCH, embed_dim=WIDTH, depth=DEPTH, num_heads=HEADS)
    model = Segmenter(VitTaps(vit, taps, layer_scale=1.0), CLASSES, HEAD, auxiliary_width=8)
    with torch.no_grad():
        for parameter in model.parameters():  # zero tables and unit scales would hide mistakes
            parameter.add_(torch.randn_like(parameter) * 0.2)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
    return model.eval()


def theirs(taps):
    transformers = pytest.importorskip("transformers")
    backbone = transformers.BeitConfig(
        hidden_size=WIDTH,
        num_hidden_layers=DEPTH,
        num_attention_heads=HEADS,
        intermediate_size=4 * WIDTH,
        image_size=SIZE,
        patch_size=PATCH,
        layer_norm_eps=1e-6,
        use_absolute_position_embeddings=True,
        use_relative_position_bias=True,
        layer_scale_init_value=1.0,
        use_mean_pooling=True,
        out_indices=[tap + 1 for tap in taps],
        add_fpn=True,
        reshape_hidden_states=True,
    )
    options = {
        "hidden_size": HEAD,
        "num_labels": CLASSES,
        "auxiliary_channels": 8,
        "auxiliary_in_channels": None,
    }
    config = transformers.UperNetConfig(backbone_config=backbone, **options)
    return transformers.UperNetForSemanticSegmentation(config).eval()


def copy(source: nn.Module, target: nn.Module) -> None:
    """Copy all tensors in order of their modules; the modules are listed below in the same order."""
    mine, own = source.state_dict(), target.state_dict()
    assert len(mine) == len(own)
    target.load_state_dict(
        {name: tensor.reshape(own[name].shape) for name, tensor in zip(own, mine.values(), strict=True)}
    )


def transfer(model: Segmenter, other: nn.Module) -> None:
    vit, backbone = model.taps.vit, other.backbone
    state = backbone.state_dict()
    root = "beit." if any(name.startswith("beit.") for name in state) else ""
    new = {
        f"{root}embeddings.cls_token": vit.cls_token,
        f"{root}embeddings.position_embeddings": vit.pos_embed,
    }
    for name in state:
        if "patch_embeddings" in name:
            new[name] = vit.patch_embed.proj.weight if name.endswith("weight") else vit.patch_embed.proj.bias
    for number, block in enumerate(vit.blocks):
        layers = f"{root}layers.{number}."
        prefix = layers if f"{layers}lambda_1" in state else f"{root}encoder.layer.{number}."
        q, k, v = block.attn.qkv.weight.chunk(3)
        q_bias, _, v_bias = block.attn.qkv.bias.chunk(3)
        parts = {
            "lambda_1": block.ls1.gamma,
            "lambda_2": block.ls2.gamma,
            "layernorm_before.weight": block.norm1.weight,
            "layernorm_before.bias": block.norm1.bias,
            "layernorm_after.weight": block.norm2.weight,
            "layernorm_after.bias": block.norm2.bias,
            "relative_position_bias.relative_position_bias_table": getattr(block.attn, BIAS_TABLE),
        }
        for name in state:
            if not name.startswith(prefix):
                continue
            tail = name.removeprefix(prefix)
            found = parts.get(tail)
            for words, weight, bias in (  # names of transformers 5, and of 4
                (("q_proj", "attention.query"), q, q_bias),
                (("k_proj", "attention.key"), k, None),
                (("v_proj", "attention.value"), v, v_bias),
                (("o_proj", "attention.output"), block.attn.proj.weight, block.attn.proj.bias),
                (("fc1", "intermediate.dense"), block.mlp.fc1.weight, block.mlp.fc1.bias),
                (("fc2", "output.dense"), block.mlp.fc2.weight, block.mlp.fc2.bias),
            ):
                if found is None and any(word in tail for word in words):
                    found = weight if tail.endswith("weight") else bias
            assert found is not None, name
            new[name] = found
    levels = model.pyramid.levels
    fpn = [name for name in state if name.startswith("fpn.")]
    values = [*levels[0].state_dict().values(), *levels[1].state_dict().values()]
    new |= dict(zip(fpn, values, strict=True))
    assert new.keys() == state.keys(), state.keys() ^ new.keys()
    backbone.load_state_dict(new)
    head, decode = model.head, other.decode_head
    for mine, own in (
        (head.classify, decode.classifier),
        (head.pooled, decode.psp_modules),
        (head.bottleneck, decode.bottleneck),
        (head.laterals, decode.lateral_convs),
        (head.smooth, decode.fpn_convs),
        (head.fuse, decode.fpn_bottleneck),
        (model.auxiliary[0], other.auxiliary_head.convs),
        (model.auxiliary[2], other.auxiliary_head.classifier),
    ):
        copy(mine, own)


@pytest.mark.parametrize("taps", [(0, 1, 2, 3)])
def test_equals_transformers_with_the_same_weights(taps):
    torch.manual_seed(0)
    model, other = ours(taps).double(), theirs(taps).double()  # depth blows single rounding up
    transfer(model, other)
    images = torch.randn(2, 3, SIZE, SIZE, dtype=torch.float64)
    with torch.no_grad():
        scores, _ = model(images)
        expected = other(images).logits.float()
    assert scores.shape == (2, CLASSES, SIZE, SIZE)
    assert expected.std() > 0.1
    torch.testing.assert_close(scores, expected, atol=1e-5, rtol=1e-5)


def test_the_auxiliary_head_reads_its_tap_in_training_only():
    model = ours()
    images = torch.randn(2, 3, SIZE, SIZE)
    assert model(images)[1] is None
    scores, auxiliary = model.train()(images)
    assert auxiliary.shape == scores.shape
    auxiliary.sum().backward()
    assert model.taps.vit.blocks[2].mlp.fc1.weight.grad is not None
    assert model.taps.vit.blocks[3].mlp.fc1.weight.grad is None  # the auxiliary head reads the third tap


def test_relative_positions_of_a_small_grid():
    index = relative_positions((1, 2))
    # A table of 1 x 3 offsets, then class to patch, patch to class, class to class.
    assert index.tolist() == [[5, 3, 3], [4, 1, 0], [4, 2, 1]]


def test_zero_tables_change_nothing_and_loading_keeps_them():
    torch.manual_seed(0)
    source = ViT(32, PATCH, embed_dim=WIDTH, depth=DEPTH, num_heads=HEADS)
    vit = ViT(SIZE, PATCH, embed_dim=WIDTH, depth=DEPTH, num_heads=HEADS)
    taps = VitTaps(vit, (0, 1, 2, 3), relative_bias=True, layer_scale=1.0).eval()
    taps.load({f"encoder.{name}": tensor for name, tensor in source.state_dict().items()}, "x.safetensors")
    plain = ViT(SIZE, PATCH, embed_dim=WIDTH, depth=DEPTH, num_heads=HEADS)
    bare = VitTaps(plain, (0, 1, 2, 3), relative_bias=False).eval()
    bare.load(source.state_dict(), "x.safetensors")
    images = torch.randn(1, 3, SIZE, SIZE)
    for left, right in zip(taps(images), bare(images), strict=True):
        torch.testing.assert_close(left, right, atol=1e-5, rtol=1e-5)
    with pytest.raises(UserError, match=r"x\.safetensors"):
        taps.load({"blocks.0.norm1.weight": torch.ones(WIDTH)}, "x.safetensors")


def test_layer_decay_puts_the_head_above_the_last_block():
    taps = VitTaps(ViT(SIZE, PATCH, embed_dim=WIDTH, depth=DEPTH, num_heads=HEADS), (0, 1, 2, 3))
    of = {}
    for group in taps.parameter_groups(0.05, 0.5):
        for parameter in group["params"]:
            of[id(parameter)] = group
    last, first = taps.vit.blocks[-1], taps.vit.blocks[0]
    assert of[id(last.mlp.fc1.weight)]["lr_scale"] == 0.5
    assert of[id(first.mlp.fc1.weight)]["lr_scale"] == 0.5**DEPTH
    assert of[id(taps.vit.patch_embed.proj.weight)]["lr_scale"] == 0.5 ** (DEPTH + 1)
    assert of[id(taps.vit.pos_embed)]["weight_decay"] == 0.0
    assert id(getattr(first.attn, BIAS_TABLE)) in of
    trained = {id(parameter) for parameter in taps.parameters() if parameter.requires_grad}
    assert of.keys() == trained


def test_a_hierarchy_gives_a_map_of_every_stage():
    from replicate.models.backbones import build_backbone

    backbone = build_backbone("swin_base", 64, dims=(8, 16, 32, 64), depths=(1, 1, 1, 1), heads=(1, 1, 2, 2))
    taps = StageTaps(backbone, (8, 16, 32, 64))
    maps = taps(torch.randn(1, 3, 64, 64))
    assert [tuple(map_.shape[1:]) for map_ in maps] == [(8, 16, 16), (16, 8, 8), (32, 4, 4), (64, 2, 2)]
    model = Segmenter(taps, CLASSES, HEAD, plain=False).train()
    scores, _ = model(torch.randn(2, 3, 64, 64))
    assert scores.shape == (2, CLASSES, 64, 64)

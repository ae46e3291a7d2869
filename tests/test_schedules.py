"""Learning rates over iterations against published logs, and over layers against the released code."""

from pathlib import Path

import numpy as np
import pytest
import torch

from replicate.config import load
from replicate.config.backbones import Backbone, vit_backbone
from replicate.config.hierarchies import HIERARCHIES
from replicate.models.build import build_classifier
from replicate.schedules.layer_decay import decayed_groups, layer_levels, layer_scales, plain_groups
from replicate.schedules.lr import set_learning_rate, warmup_cosine
from replicate.schedules.stages import view_at
from replicate.trainers.pretrain import PretrainTask

TINY = vit_backbone("vit", embed_dim=32, depth=1, num_heads=2, patch_size=8)


@pytest.fixture(scope="module")
def params():
    return load(Path(__file__).resolve().parents[1] / "params.yaml")


def epoch_mean(epoch: int, iterations: int, **schedule) -> float:
    return float(
        np.mean([warmup_cosine(epoch + step / iterations, **schedule) for step in range(iterations)])
    )


def test_pretraining_schedule_matches_a_published_log():
    schedule = {"peak": 2.4e-3, "epochs": 400, "warmup_epochs": 20}
    assert epoch_mean(0, 312, **schedule) == pytest.approx(5.9807692307692306e-05, rel=1e-12)
    assert epoch_mean(399, 312, **schedule) == pytest.approx(1.3735555563738351e-08, rel=1e-6)


def test_finetuning_schedule_matches_a_published_log():
    schedule = {"peak": 4e-3, "epochs": 100, "warmup_epochs": 5, "min_lr": 1e-6}
    assert epoch_mean(0, 1251, **schedule) == pytest.approx(3.996802557953638e-4, rel=1e-12)
    assert epoch_mean(99, 1251, **schedule) == pytest.approx(1.3648543179918189e-06, rel=1e-6)


def test_layer_decay_has_fourteen_levels_for_twelve_blocks():
    model = build_classifier(
        vit_backbone("vit", embed_dim=32, depth=12, num_heads=2, patch_size=8), 10, image_size=32
    )
    groups = decayed_groups(model, weight_decay=0.05, layer_decay=0.65)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    scale = {names[id(parameter)]: group["lr_scale"] for group in groups for parameter in group["params"]}
    assert sorted(set(scale.values())) == pytest.approx(layer_scales(12, 0.65))
    assert (
        scale["cls_token"]
        == scale["pos_embed"]
        == scale["patch_embed.proj.weight"]
        == pytest.approx(0.65**13)
    )
    for block in range(12):
        assert scale[f"blocks.{block}.attn.qkv.weight"] == pytest.approx(0.65 ** (12 - block))
    assert scale["head.weight"] == scale["fc_norm.weight"] == 1.0
    assert pytest.approx(0.00875, abs=1e-5) == 0.65**11  # "less than 1 %" (section 1)


BLOCKS = {
    "vit_small_patch16": 12,
    "vit_base_patch16": 12,
    "vit_large_patch16": 24,
    "vit_huge_patch14": 32,
    "swin_base": 2 + 2 + 18 + 2,
    "swin_large": 2 + 2 + 18 + 2,
    "twins_svt_large": 2 + 2 + 18 + 2,
    "pvt_large": 3 + 8 + 27 + 3,
    "pvt_v2_b2": 3 + 4 + 6 + 3,
    "pvt_v2_b5": 3 + 6 + 40 + 3,
    "convnext_tiny": 3 + 3 + 9 + 3,
    "convnext_base": 3 + 3 + 27 + 3,
    "convnextv2_base": 3 + 3 + 27 + 3,
    "cmt_tiny": 2 + 2 + 10 + 2,
    "cmt_xs": 3 + 3 + 12 + 3,
    "cmt_small": 3 + 3 + 16 + 3,
    "cmt_base": 4 + 4 + 20 + 4,
}
"""Blocks of the papers' backbones, all stages together."""
TIMM_BLOCKS = {
    "deit_tiny_patch16_224": 12,
    "swinv2_tiny_window8_256": 2 + 2 + 6 + 2,
    "pvt_v2_b0": 2 + 2 + 2 + 2,
    "mvitv2_tiny": 1 + 2 + 5 + 2,
    "coatnet_0_224": 2 + 3 + 5 + 2,
    "efficientnet_b0": 1 + 2 + 2 + 3 + 3 + 4 + 1,
    "resnet50": 3 + 4 + 6 + 3,
    "convmixer_768_32": 32,
}


def built(name):
    with torch.device("meta"):
        return build_classifier(Backbone(name, {}), 10, image_size=256 if "256" in name else 224)


def test_every_backbone_that_a_run_names_is_counted(params):
    named = {run.backbone for run in params.pretrain_runs.values()} | set(HIERARCHIES)
    assert named <= set(BLOCKS)


@pytest.mark.parametrize(("name", "blocks"), (BLOCKS | TIMM_BLOCKS).items())
def test_a_block_is_a_level(name, blocks):
    levels = layer_levels(built(name))
    assert sorted(set(levels.values())) == list(range(blocks + 2))
    final = [name for name in levels if name.startswith(("norm.", "fc_norm.", "head", "fc.", "classifier"))]
    assert final and all(levels[name] == blocks + 1 for name in final)


@pytest.mark.parametrize(
    ("name", "scale"), [("pvt_v2_b2", 0.0225), ("pvt_v2_b5", 7.3e-6), ("swin_base", 0.8**25)]
)
def test_the_stem_learns_as_slowly_as_in_the_released_code(name, scale):
    model = built(name)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = decayed_groups(model, weight_decay=0.05, layer_decay=0.8)
    found = {names[id(p)]: group["lr_scale"] for group in groups for p in group["params"]}
    assert set(found) == set(names.values())
    assert found["patch_embed.proj.weight"] == pytest.approx(scale, rel=0.01)
    assert found["head.weight" if name.startswith("pvt") else "head.fc.weight"] == 1.0


@pytest.mark.parametrize(
    ("name", "levels"),
    [
        (
            "swin_base",
            {
                "layers.1.downsample.reduction": 2,
                "layers.2.downsample.norm": 4,
                "layers.3.downsample.norm": 22,
            },
        ),
        (
            "pvt_v2_b2",
            {"stages.1.downsample.proj": 3, "stages.0.norm": 3, "stages.2.norm": 13, "stages.3.norm": 17},
        ),
        (
            "cmt_small",
            {"stages.0.patch_embed.proj": 1, "stages.1.patch_embed.proj": 4, "stages.3.patch_embed.norm": 23},
        ),
        ("convnext_tiny", {"stages.1.downsample.0": 4, "stages.3.downsample.1": 16, "head.norm": 19}),
        ("twins_svt_large", {"patch_embeds.1.proj": 2, "pos_block.1.proj.0": 3, "pos_block.0.proj.0": 1}),
        (
            "pvt_large",
            {"stages.0.patch_embed.proj": 0, "stages.1.patch_embed.proj": 3, "stages.3.patch_embed.norm": 38},
        ),
    ],
)
def test_what_lies_between_stages_is_where_the_official_code_has_it(name, levels):
    """Swin and PVTv2 (FastMIM's code): with the block before. CMT and ConvNeXt (its own): with the next."""
    found = layer_levels(built(name))
    assert {part: found[f"{part}.weight"] for part in levels} == levels


def decays_of(groups, model):
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {names[id(parameter)]: group["weight_decay"] for group in groups for parameter in group["params"]}


def test_weight_decay_exemptions_in_finetuning():
    model = build_classifier(TINY, 10, image_size=32)
    decays = decays_of(decayed_groups(model, 0.05, 0.75), model)
    for name, parameter in model.named_parameters():
        exempt = parameter.ndim <= 1 or name in ("cls_token", "pos_embed")
        assert decays[name] == (0.0 if exempt else 0.05), name


@pytest.mark.parametrize("name", ["light_90", "fastmim_vit_hog_128", "fastmim_swin_hog_128"])
def test_tokens_are_decayed_in_pretraining(params, name):
    """MAE and FastMIM give no list of exemptions: only 1-D parameters of a layer escape."""
    model = PretrainTask(params.resolve(name, "smoke"), 0, 10).model
    decays = decays_of(plain_groups(model, 0.05), model)
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert set(decays) == trainable
    for part in trainable:
        token = part.endswith(("cls_token", "mask_token"))
        assert decays[part] == (0.05 if token or model.get_parameter(part).ndim > 1 else 0.0), part
    assert decays["mask_token"] == 0.05


def test_groups_keep_their_own_scale_of_the_learning_rate():
    weights = [torch.nn.Parameter(torch.zeros(2)) for _ in range(2)]
    optimizer = torch.optim.AdamW([{"params": weights[:1], "lr_scale": 0.5}, {"params": weights[1:]}], lr=1.0)
    set_learning_rate(optimizer, 0.1)
    assert [group["lr"] for group in optimizer.param_groups] == [0.05, 0.1]


def test_stages_fill_their_gaps_from_the_run(params):
    run = params.run("light_90")
    stages = (
        {"until": 0.3, "image_size": 160},
        {"until": 0.6, "image_size": 192, "mask_ratio": 0.8},
        {"until": 1.0},
    )
    staged = type(run).model_validate(run.model_dump() | {"stages": stages})
    views = [view_at(staged, epoch) for epoch in (0, 29, 30, 59, 60, 99)]
    assert [view.image_size for view in views] == [160, 160, 192, 192, 224, 224]
    assert [view.mask_ratio for view in views] == [0.9, 0.9, 0.8, 0.8, 0.9, 0.9]
    assert {view.batch_size for view in views} == {1024}

"""Learning rates over iterations and layers against published runs' logs, and stages against their definition."""

import numpy as np
import pytest
import torch

from replicate.config import load
from replicate.schedules.layer_decay import decayed_groups, layer_scales, plain_groups
from replicate.schedules.lr import set_learning_rate, warmup_cosine
from replicate.schedules.stages import view_at


def epoch_mean(epoch: int, iterations: int, **schedule) -> float:
    return float(np.mean([warmup_cosine(epoch + step / iterations, **schedule) for step in range(iterations)]))


def test_pretraining_schedule_matches_a_published_log():
    schedule = {"peak": 2.4e-3, "epochs": 400, "warmup_epochs": 20}
    assert epoch_mean(0, 312, **schedule) == pytest.approx(5.9807692307692306e-05, rel=1e-12)
    assert epoch_mean(399, 312, **schedule) == pytest.approx(1.3735555563738351e-08, rel=1e-6)


def test_finetuning_schedule_matches_a_published_log():
    schedule = {"peak": 4e-3, "epochs": 100, "warmup_epochs": 5, "min_lr": 1e-6}
    assert epoch_mean(0, 1251, **schedule) == pytest.approx(3.996802557953638e-4, rel=1e-12)
    assert epoch_mean(99, 1251, **schedule) == pytest.approx(1.3648543179918189e-06, rel=1e-6)


def test_layer_decay_has_fourteen_levels_for_twelve_blocks():
    from replicate.models.build import build_classifier
    from replicate.config.backbones import vit_backbone

    model = build_classifier(vit_backbone("vit", embed_dim=32, depth=12, num_heads=2, patch_size=8), 10, image_size=32)
    groups = decayed_groups(model, weight_decay=0.05, layer_decay=0.65)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    scale = {names[id(parameter)]: group["lr_scale"] for group in groups for parameter in group["params"]}
    assert sorted(set(scale.values())) == pytest.approx(layer_scales(12, 0.65))
    assert scale["cls_token"] == scale["pos_embed"] == scale["patch_embed.proj.weight"] == pytest.approx(0.65**13)
    for block in range(12):
        assert scale[f"blocks.{block}.attn.qkv.weight"] == pytest.approx(0.65 ** (12 - block))
    assert scale["head.weight"] == scale["fc_norm.weight"] == 1.0
    assert pytest.approx(0.00875, abs=1e-5) == 0.65**11  # "less than 1 %" (section 1)


def test_weight_decay_exemptions():
    from replicate.models.build import build_classifier
    from replicate.models.mae import MAE
    from replicate.config.backbones import vit_backbone

    model = build_classifier(vit_backbone("vit", embed_dim=32, depth=1, num_heads=2, patch_size=8), 10, image_size=32)
    decays = {id(p): group["weight_decay"] for group in decayed_groups(model, 0.05, 0.75) for p in group["params"]}
    for name, parameter in model.named_parameters():
        exempt = parameter.ndim <= 1 or name in ("cls_token", "pos_embed")
        assert decays[id(parameter)] == (0.0 if exempt else 0.05), name
    mae = MAE(32, 8, 32, 1, 2, 32, 1, 1)
    decays = {id(p): group["weight_decay"] for group in plain_groups(mae, 0.05) for p in group["params"]}
    assert decays[id(mae.cls_token)] == decays[id(mae.mask_token)] == 0.05
    assert decays[id(mae.norm.weight)] == 0.0 and id(mae.pos_embed) not in decays


def test_groups_keep_their_own_scale_of_the_learning_rate():
    weights = [torch.nn.Parameter(torch.zeros(2)) for _ in range(2)]
    optimizer = torch.optim.AdamW([{"params": weights[:1], "lr_scale": 0.5}, {"params": weights[1:]}], lr=1.0)
    set_learning_rate(optimizer, 0.1)
    assert [group["lr"] for group in optimizer.param_groups] == [0.05, 0.1]


def test_stages_fill_their_gaps_from_the_run(tmp_path):
    from pathlib import Path

    run = load(Path(__file__).resolve().parents[1] / "params.yaml").run("light_90")
    stages = ({"until": 0.3, "image_size": 160}, {"until": 0.6, "image_size": 192, "mask_ratio": 0.8}, {"until": 1.0})
    staged = type(run).model_validate(run.model_dump() | {"stages": stages})
    views = [view_at(staged, epoch) for epoch in (0, 29, 30, 59, 60, 99)]
    assert [view.image_size for view in views] == [160, 160, 192, 192, 224, 224]
    assert [view.mask_ratio for view in views] == [0.9, 0.9, 0.8, 0.8, 0.9, 0.9]
    assert {view.batch_size for view in views} == {1024}

"""Mask R-CNN on the house's encoders: attention in windows, pyramids, weights, parameter groups, training."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from replicate.config.hierarchies import HIERARCHIES
from replicate.errors import UserError
from replicate.models.backbones import build_backbone, build_encoder
from replicate.models.vit import ViT
from replicate.trainers.batches import Place
from replicate.trainers.session import Session
from replicate.transfer import detection, train
from replicate.transfer.coco import CocoImages
from replicate.transfer.detector import AlignedPooler, build_detector, load_encoder
from replicate.transfer.sampling import PlacedSampler, averaged
from replicate.transfer.scenes import Settings, write_scenes
from replicate.transfer.taps import stage_numbers
from replicate.transfer.windowed import WindowedViT, in_windows, quarters

SMALL_VIT = {"embed_dim": 32, "depth": 4, "num_heads": 2, "patch_size": 8}
SMALL_STAGES = {"width_scale": 0.125, "max_depth": 1, "patch_size": 2}
FAMILIES = ("swin_base", "pvt_large", "pvt_v2_b2", "twins_svt_large", "convnext_tiny", "cmt_tiny")
OBJECT = {
    "boxes": torch.tensor([[8.0, 8, 40, 32]]),
    "labels": torch.tensor([2]),
    "masks": torch.ones(1, 64, 64, dtype=torch.uint8),
}
NOTHING = {
    "boxes": torch.zeros(0, 4),
    "labels": torch.zeros(0, dtype=torch.int64),
    "masks": torch.zeros(0, 64, 64, dtype=torch.uint8),
}


def paper_run(**changes):
    """MAE Table 4."""
    stated = {"image_size": 1024, "test_size": 1024, "neck": "taps_fpn", "window": 16, "norm": "bn"}
    stated |= {"head_width": 256, "fc_width": 1024, "proposals": (2000, 1000, 1000), "rpn_batch": 256}
    stated |= {"roi_batch": 512, "drop_path": 0.1, "weight_decay": 0.1, "layer_decay": 1.0}
    return SimpleNamespace(**stated | {"jitter": (0.1, 2.0), "copy_paste": False} | changes)


def small_run(**changes):
    small = {
        "image_size": 64,
        "test_size": 64,
        "window": 3,
        "head_width": 8,
        "fc_width": 16,
        "drop_path": 0.0,
    }
    small |= {"proposals": (40, 40, 20), "rpn_batch": 16, "roi_batch": 8}
    return paper_run(**small | changes)


def pretraining(name="vit", image_size=64, **kwargs):
    return SimpleNamespace(backbone=name, backbone_kwargs=kwargs, image_size=image_size, drop_blocks=0)


def small(neck, **numbers):
    norm = "ln" if neck == "simple_fpn" else "bn"
    return build_detector(pretraining(**SMALL_VIT | numbers), small_run(neck=neck, norm=norm), 3)


def encoder_tokens(encoder, images):
    return encoder(images)[-1].flatten(2).transpose(1, 2)


def test_maes_detector_has_the_parameters_that_mimdet_reports():
    with torch.device("meta"):
        model = build_detector(pretraining("vit_base_patch16", 224), paper_run(), 80)
    assert round(sum(parameter.numel() for parameter in model.parameters()) / 1e6, 2) == 118.67


def test_vitdet_builds_at_the_papers_sizes():
    with torch.device("meta"):
        run = paper_run(neck="simple_fpn", norm="ln", window=14)
        model = build_detector(pretraining("vit_base_patch16", 224), run, 80)
    assert model.backbone.strides == (4, 8, 16, 32)
    assert model.backbone.encoder.blocks[0].attn.rel_pos_h.shape == (27, 64)
    assert model.backbone.encoder.blocks[2].attn.rel_pos_h.shape == (127, 64)


@pytest.mark.slow
@pytest.mark.parametrize("name", HIERARCHIES)
def test_every_hierarchy_builds_at_the_papers_sizes(name):
    with torch.device("meta"):
        model = build_detector(pretraining(name, 224), paper_run(neck="fpn", window=7), 80)
    assert model.backbone.strides == (4, 8, 16, 32)


def test_global_blocks_end_the_quarters_of_the_depth():
    assert quarters(12) == (2, 5, 8, 11) and quarters(24) == (5, 11, 17, 23)
    assert quarters(2) == (0, 0, 0, 1)  # fewer blocks than maps: some give two


@pytest.mark.parametrize("positions", ["shared", "decomposed"])
def test_without_windows_and_relative_positions_the_encoder_is_the_plain_vit(positions):
    vit = ViT(32, **SMALL_VIT)
    images = torch.randn(2, 3, 32, 32)
    tokens = vit.patch_embed(images) + vit.pos_embed[:, 1:]
    for block in vit.blocks:
        tokens = block(tokens)
    found = encoder_tokens(WindowedViT(vit, 99, positions), images)
    torch.testing.assert_close(found, tokens, rtol=1e-5, atol=1e-5)


def test_windows_keep_tokens_apart_and_pad_with_zeros():
    tokens = torch.arange(1.0, 26).view(1, 5, 5, 1)
    sums = in_windows(lambda parts: parts.sum(1, keepdim=True).expand_as(parts), tokens, 3)[0, :, :, 0]
    blocks = tokens[0, :, :, 0]
    expected = torch.empty(5, 5)
    for rows in (slice(0, 3), slice(3, 5)):
        for columns in (slice(0, 3), slice(3, 5)):
            expected[rows, columns] = blocks[rows, columns].sum()
    assert torch.equal(sums, expected)


def test_decomposed_positions_equal_timms_segment_anything():
    from timm.models.vision_transformer_sam import get_decomposed_rel_pos_bias

    from replicate.transfer.windowed import _decomposed_bias

    tables = SimpleNamespace(rel_pos_h=torch.randn(5, 4), rel_pos_w=torch.randn(7, 4))
    queries = torch.randn(2, 3, 12, 4)
    found = _decomposed_bias(tables, (3, 4))(queries)
    theirs = get_decomposed_rel_pos_bias(queries.flatten(0, 1), *vars(tables).values(), (3, 4), (3, 4))
    torch.testing.assert_close(found.flatten(0, 1), theirs.view(6, 12, 12), rtol=1e-5, atol=1e-5)


def test_a_shared_table_adds_the_entry_of_two_patches_offset():
    encoder = WindowedViT(ViT((16, 24), **SMALL_VIT), 9, "shared")  # a grid of 2 x 3
    nn.init.normal_(encoder.rel_pos_global)
    bias = encoder._shared_biases()[True](torch.zeros(1))[0]
    for query in range(6):
        for key in range(6):
            down, right = query // 3 - key // 3, query % 3 - key % 3
            entry = encoder.rel_pos_global[(down + 1) * 5 + right + 2]
            assert torch.equal(bias[:, query, key], entry)


def test_a_region_is_pooled_from_the_level_of_its_size():
    pooler = AlignedPooler((4, 8, 16, 32), 1)
    maps = {
        str(level): torch.full((1, 1, 64 // 2**level, 64 // 2**level), float(level)) for level in range(4)
    }
    sides = torch.tensor([20.0, 56, 111, 112, 224, 250])  # 112 pixels are 14 cells of stride 8
    boxes = torch.stack([torch.zeros(6), torch.zeros(6), sides, sides], 1)
    pooled = pooler(maps, [boxes], [(256, 256)]).flatten().tolist()
    assert pooled == pytest.approx([0, 0, 0, 1, 2, 2])


@pytest.mark.parametrize(("neck", "depth"), [("taps_fpn", 2), ("taps_fpn", 5), ("simple_fpn", 5)])
def test_a_step_trains_every_parameter_and_finding_nothing_is_fine(neck, depth):
    torch.manual_seed(0)
    model = small(neck, depth=depth)
    losses = model([torch.rand(3, 64, 64) for _ in range(2)], [OBJECT, NOTHING])
    sum(losses.values()).backward()
    idle = [name for name, part in model.named_parameters() if part.requires_grad and part.grad is None]
    assert not idle and len(losses) == 5
    empty = model([torch.rand(3, 64, 64)], [NOTHING])
    assert all(torch.isfinite(loss) for loss in empty.values()) and empty["loss_mask"] == 0
    assert all(torch.isfinite(buffer.float()).all() for buffer in model.buffers())


@pytest.mark.parametrize("name", FAMILIES)
def test_hierarchies_train_and_take_their_pretrained_weights(name):
    torch.manual_seed(0)
    source = pretraining(name, 64, **SMALL_STAGES)
    model = build_detector(source, small_run(neck="fpn", window=4), 3)
    sum(model([torch.rand(3, 64, 64)], [OBJECT]).values()).backward()
    assert not [n for n, part in model.named_parameters() if part.requires_grad and part.grad is None]
    state = build_encoder(name, 64, **SMALL_STAGES).state_dict()
    load_encoder(model, source, {f"encoder.{key}": tensor for key, tensor in state.items()})
    taken = model.backbone.encoder.backbone.state_dict()
    assert all(torch.equal(tensor, state[f"backbone.{key}"]) for key, tensor in taken.items())


@pytest.mark.parametrize("name", ["cmt_tiny", "pvt_large"])
def test_the_last_stage_map_is_the_feature_map_before_its_norm(name):
    model = build_backbone(name, 64, **SMALL_STAGES).eval()
    images = torch.randn(1, 3, 64, 64)
    maps = model.stage_maps(images)
    assert [tuple(stage.shape[2:]) for stage in maps] == [(32, 32), (16, 16), (8, 8), (4, 4)]
    normed = model.norm(maps[-1].permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    torch.testing.assert_close(model.feature_map(images), normed, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("neck", ["taps_fpn", "simple_fpn"])
def test_a_vit_takes_weights_of_pretraining_and_of_classifiers_and_resamples_positions(neck):
    source, model = pretraining(**SMALL_VIT), small(neck)
    for num_classes in (0, 5):
        trained = ViT(32, **SMALL_VIT, num_classes=num_classes)
        nn.init.normal_(trained.blocks[2].mlp.fc1.weight)
        load_encoder(model, source, trained.state_dict())
        encoder = model.backbone.encoder
        assert torch.equal(encoder.blocks[2].mlp.fc1.weight, trained.blocks[2].mlp.fc1.weight)
        assert encoder.pos_embed.shape == (1, 64, 32)
    assert encoder.pos_embed.requires_grad == (neck == "simple_fpn")
    own = ViT(64, **SMALL_VIT)
    load_encoder(model, source, own.state_dict())
    assert torch.equal(encoder.pos_embed, own.pos_embed[:, 1:])


def test_weights_of_another_model_are_refused_and_necks_that_do_not_fit():
    other = ViT(32, **SMALL_VIT | {"embed_dim": 64}).state_dict()
    with pytest.raises(UserError, match=r"x\.safetensors does not fit the model: .* width 64"):
        load_encoder(small("taps_fpn"), pretraining(**SMALL_VIT), other, "x.safetensors")
    with pytest.raises(UserError, match="neck 'fpn' does not fit backbone 'vit'"):
        build_detector(pretraining(**SMALL_VIT), small_run(neck="fpn"), 3)
    with pytest.raises(UserError, match="neck 'taps_fpn' does not fit backbone 'swin_base'"):
        build_detector(pretraining("swin_base"), small_run(), 3)
    with pytest.raises(UserError, match="window: a detector on a plain ViT needs"):
        build_detector(pretraining(**SMALL_VIT), small_run(window=None), 3)


@pytest.mark.parametrize(
    "name",
    ["swin_base", "swin_large", "pvt_large", "pvt_v2_b2", "twins_svt_large", "convnext_tiny", "cmt_small"],
)
def test_a_hierarchy_without_a_window_keeps_its_pre_trainings_rule(name):
    source = pretraining(name, 64)
    source.backbone_kwargs = {}
    assert stage_numbers(source, 128, None) == {}
    windowed = stage_numbers(source, 128, 4)
    assert windowed == ({"windows_across": 8.0} if name.startswith("swin") else {})


def test_layer_decay_counts_from_the_heads_down():
    model = small("simple_fpn")
    groups = model.parameter_groups(0.1, 0.5)
    scale = {id(part): group["lr_scale"] for group in groups for part in group["params"]}
    decay = {id(part): group["weight_decay"] for group in groups for part in group["params"]}
    assert len(scale) == sum(part.requires_grad for part in model.parameters())
    encoder = model.backbone.encoder
    assert scale[id(model.roi_heads.box_predictor.cls_score.weight)] == 1.0
    assert scale[id(encoder.blocks[3].attn.rel_pos_h)] == 0.5
    assert scale[id(encoder.blocks[0].mlp.fc1.weight)] == 0.5**4
    assert scale[id(encoder.pos_embed)] == 0.5**5
    assert decay[id(encoder.pos_embed)] == decay[id(encoder.blocks[0].norm1.weight)] == 0.0
    assert decay[id(encoder.blocks[3].attn.rel_pos_h)] == decay[id(model.rpn.head.cls_logits.weight)] == 0.1


def test_shared_tables_do_not_decay():
    model = small("taps_fpn")
    groups = model.parameter_groups(0.1, 1.0)
    decay = {id(part): group["weight_decay"] for group in groups for part in group["params"]}
    assert {group["lr_scale"] for group in groups} == {1.0}
    assert decay[id(model.backbone.encoder.rel_pos_global)] == 0.0
    assert id(model.backbone.encoder.pos_embed) not in decay


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    settings = Settings(8, 8, image_size=64, sides=(0.2, 0.6), objects=(2, 4))
    folder = write_scenes(tmp_path_factory.mktemp("scenes") / "set", settings)
    return CocoImages(folder / "train2017", folder / "annotations/instances_train2017.json", "drop")


def test_training_samples_depend_on_the_generator_alone(images):
    data = detection.TrainImages(images, small_run(copy_paste=True))
    (one, first), (same, second) = (data.item(3, np.random.default_rng(5)) for _ in "ab")
    assert torch.equal(one, same) and all(torch.equal(first[key], second[key]) for key in first)
    assert one.shape == (3, 64, 64) and one.dtype == torch.uint8
    other, _ = data.item(3, np.random.default_rng(6))
    assert not torch.equal(one, other)


def test_detections_are_in_the_images_own_pixels_and_are_scored(images):
    pytest.importorskip("faster_coco_eval")
    model = small("taps_fpn").train()
    wide = np.zeros((30, 90, 3), np.uint8)
    found = detection.detect(model, [images.pixels(0), wide])
    assert model.training and len(found) == 2
    assert found[1]["masks"].shape[1:] == (30, 90)
    assert found[1]["boxes"].max() <= 90.001 and found[1]["boxes"][:, 3].max() <= 30.001
    assert all((one["scores"].diff() <= 0).all() for one in found)
    scores = detection.evaluate(model, images)
    assert set(scores) == {f"{ap}_{kind}" for ap in ("ap", "ap50", "ap75") for kind in ("box", "mask")}


def test_the_task_sums_the_losses_of_eight_bit_images():
    task = detection.DetectionTask(small("taps_fpn"), small_run())
    loss, parts = task(torch.zeros(2, 3, 64, 64, dtype=torch.uint8), [OBJECT, NOTHING])
    assert float(loss.detach()) == pytest.approx(sum(float(part) for part in parts.values()), rel=1e-5)
    assert loss.requires_grad and not any(part.requires_grad for part in parts.values())


class _Still:
    """A generator that keeps every image at its own scale and place."""

    def uniform(self, low, high):
        return 1.0

    def random(self):
        return 1.0

    def integers(self, count):
        return 0


@pytest.mark.slow
def test_eight_pictures_are_learned_by_heart(images):
    pytest.importorskip("faster_coco_eval")
    torch.manual_seed(0)
    sizes = {"window": 4, "head_width": 32, "fc_width": 128, "proposals": (100, 100, 50)}
    run = small_run(**sizes, rpn_batch=64, roi_batch=32, jitter=(1.0, 1.0), weight_decay=0.05)
    vit = {"embed_dim": 96, "depth": 5, "num_heads": 4, "patch_size": 8}
    task = detection.DetectionTask(build_detector(pretraining(**vit), run, images.num_classes), run)
    data, rate, steps = detection.TrainImages(images, run), 3e-3, 900
    items = [data.item(index, _Still()) for index in range(len(data))]
    optimizer = torch.optim.AdamW(task.parameter_groups(), lr=rate)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1, (step + 1) / 20) * (1 + np.cos(np.pi * step / steps)) / 2
        pictures, targets = zip(*items[step % 2 :: 2], strict=True)
        loss, _ = task(torch.stack(pictures), list(targets))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(task.parameters(), 5.0)
        optimizer.step()
    scores = detection.evaluate(task.model, images)
    assert scores["ap_box"] >= 90 and scores["ap_mask"] >= 90


def test_what_is_sampled_of_an_image_depends_on_its_place_in_the_global_batch():
    """One process of four images, and two of two each: the same samples, and fewer where there are few."""
    matched = [torch.randint(-1, 3, (500,), generator=torch.Generator().manual_seed(k)) for k in range(4)]
    matched[3][:] = torch.where(torch.arange(500) < 5, 1, -1)  # five positives, nothing else

    def sampled(first, images):
        torch.manual_seed(11)
        sampler = PlacedSampler(64, 0.25)
        with Place(first, len(images), 4):
            return sampler, sampler(images)

    whole, (positive, negative) = sampled(0, matched)
    for first in (0, 2):
        _, part = sampled(first, matched[first : first + 2])
        for found, expected in zip(part, (positive, negative), strict=True):
            assert all(map(torch.equal, found, expected[first : first + 2]))
    assert [int(mask.sum()) for mask in positive] == [16, 16, 16, 5]
    assert [int(mask.sum()) for mask in negative] == [48, 48, 48, 0]
    assert (whole.positives, whole.taken) == (53, 197)
    for mask, other, labels in zip(positive, negative, matched, strict=True):
        assert (labels[mask.bool()] >= 1).all() and (labels[other.bool()] == 0).all()
    assert not torch.equal(positive[0], positive[1])


def test_losses_of_two_processes_average_to_the_mean_over_all_samples(monkeypatch):
    """This process has 3 samples of mean 2, the other has 1 of mean 6 and, of the other kind, 4 of mean 5."""
    for name, value in (("is_initialized", True), ("get_world_size", 2)):
        monkeypatch.setattr(torch.distributed, name, lambda value=value: value)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda total: total.copy_(torch.tensor([4.0, 4.0])))
    ours = averaged({"box": torch.tensor(2.0), "mask": torch.tensor(0.0)}, torch.tensor([3.0, 0.0]))
    theirs = averaged({"box": torch.tensor(6.0), "mask": torch.tensor(5.0)}, torch.tensor([1.0, 4.0]))
    means = {name: float(ours[name] + theirs[name]) / 2 for name in ours}
    assert means == pytest.approx({"box": (3 * 2 + 6) / 4, "mask": 5.0})


def step_of(images, micro_batch):
    """Losses and gradients of one step on four pictures, one of them without an object."""
    few = {"batch_size": 4, "roi_batch": 64, "drop_path": 0.3}
    run = small_run(neck="simple_fpn", norm="ln", clip_grad=None, stages=[], **few)
    torch.manual_seed(0)
    model = build_detector(pretraining("vit", **SMALL_VIT), run, images.num_classes)
    task, data = detection.DetectionTask(model, run), detection.TrainImages(images, run)
    session = Session(torch.device("cpu"), torch.float32, workers=1, micro_batch=micro_batch)
    pictures, targets = zip(*(data.item(k, np.random.default_rng(k)) for k in range(4)), strict=True)
    targets = [*targets[:3], NOTHING]
    trainer = train.DenseTrainer(task, SimpleNamespace(), None, run, session, None, 0, "step")
    trainer._set_up()
    trainer.stepped, gradients = task, {}
    trainer._update = lambda: gradients.update({k: p.grad.clone() for k, p in task.named_parameters()}) or {}
    logs = trainer._step(train.DenseBatch(torch.stack(pictures), targets), 4, 0, 0, None)
    return {name: float(value) for name, value in logs.items()}, gradients


@pytest.mark.parametrize("micro_batch", [1, 2])
def test_micro_batches_change_roundings_alone(images, micro_batch):
    losses, gradients = step_of(images, None)
    split, others = step_of(images, micro_batch)
    assert split == pytest.approx(losses, rel=1e-5) and losses["loss_mask"] > 0
    assert gradients.keys() == others.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(others[name], gradient, rtol=1e-3, atol=1e-6)

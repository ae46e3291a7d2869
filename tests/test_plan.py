"""The planner: closed forms against counted models, a plan of all runs, and the tables of docs/costs.md."""

import contextlib
from typing import get_args

import pandas as pd
import pytest
import torch
from project import ROOT
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from replicate.cli import main
from replicate.config import PretrainRun, load
from replicate.config.backbones import vit_backbone
from replicate.cost import counted, plan
from replicate.cost.activations import classifier_activations, mae_activations
from replicate.cost.data_size import IMAGENET, beton_bytes
from replicate.cost.methods import METHODS
from replicate.cost.rates import DEVICES, Rates, rates_of
from replicate.cost.runs import evaluate_cost, pretrain_cost
from replicate.cost.target_dim import target_dim
from replicate.cost.vit import decoded_patches
from replicate.errors import UserError
from replicate.models.activations import activation_bytes
from replicate.models.build import build_classifier, build_pretraining_model
from replicate.models.cpu import plain_torch
from replicate.models.mae import MAE
from replicate.models.tokenizer import Tokenizer
from replicate.report import plan_table
from replicate.schedules.stages import view_at
from replicate.trainers import pretrain
from replicate.trainers.pretrain import PretrainTask
from replicate.trainers.teacher import Teacher


@pytest.fixture(scope="module")
def params():
    return load(ROOT / "params.yaml")


@pytest.fixture(scope="module")
def whole(params):
    return plan.plan(params, [], "paper", rates_of("a100"), 8)


def kept_per_image(model, images, low: bool) -> float:
    """What one more image adds to the tensors that autograd keeps."""

    def step(count):
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            output = model(images[:count])
        output = output.pred if hasattr(output, "pred") else output
        return output.float().square().mean()

    few, more = (activation_bytes(lambda count=count: step(count), model.parameters()) for count in (1, 5))
    return (more - few) / 4


@pytest.mark.parametrize("low", [False, True], ids=["float32", "bfloat16"])
def test_closed_forms_of_activations_match_autograd(low):
    values = 2 if low else 4
    images = torch.randn(5, 3, 64, 64)
    sizes = {"embed_dim": 96, "depth": 3, "num_heads": 3}
    decoder = {"decoder_embed_dim": 64, "decoder_depth": 2}
    kept = mae_activations(
        patches=64, visible=16, patch_values=192, target_dim=192, bytes_per_value=values, **sizes, **decoder
    )
    assert kept == pytest.approx(
        kept_per_image(MAE(64, 8, decoder_num_heads=2, **sizes, **decoder), images, low), rel=0.1
    )
    model = build_classifier(vit_backbone("vit", patch_size=8, **sizes), 10, image_size=64)
    assert classifier_activations(patches=64, bytes_per_value=values, **sizes) == pytest.approx(
        kept_per_image(model, images, low), rel=0.1
    )


def test_every_run_is_planned_and_each_shape_counted_once(params, whole):
    lines = whole
    misses = {one: one.cache_info().misses for one in (counted._counted_encoder, counted._classifier)}
    assert max(misses.values()) <= 70, "runs of equal shape share one count"
    assert set(lines.index) == set(params.runs)
    assert lines.drop(columns=["images_s"]).notna().all().all() and (lines.device_hours > 0).all()
    assert (lines.micro_batch > 0).all(), "every run fits a device at some micro-batch"
    assert plan.totals(lines).loc["all", "device_hours"] == pytest.approx(lines.device_hours.sum())


def test_multiply_adds_match_the_papers(params, whole):
    assert whole.loc["full_75", "gmacs"] == pytest.approx(9.795, rel=0.01), (
        "Efficient MAE Table 3, less the projections of masked patches"
    )
    assert whole.loc["full_75", "params_m"] == pytest.approx(111.9, abs=0.1)
    assert whole.loc["light_90_llrd_80", "params_m"] == pytest.approx(86.57, abs=0.01)


def test_decoder_masking_keeps_as_many_patches_as_the_paper_prints():
    """Efficient MAE Table 8, exact distances."""
    assert decoded_patches("random", 0.85, 14, 16, 26.0) == pytest.approx(145.2, abs=1.5)


def test_hours_follow_from_multiply_adds(params):
    one = plan.plan(params, ["full_75"], "paper", Rates(2 / 312e12), 1).loc["full_75"]
    eight = plan.plan(params, ["full_75"], "paper", Rates(2 / 312e12), 8).loc["full_75"]
    assert one.device_hours == pytest.approx(one.exa_macs * 1e18 * 2 / 312e12 / 3600)
    assert eight.device_hours == pytest.approx(one.device_hours) and eight.hours == pytest.approx(
        one.hours / 8
    )
    assert eight.images_s == pytest.approx(8 * one.images_s)


def test_a_batch_that_does_not_fit_is_split_evenly(params):
    small = plan.plan(params, ["full_75"], "paper", Rates(1e-14, memory=24e9), 1).loc["full_75"]
    assert 0 < small.micro_batch < 4096 and 4096 % small.micro_batch == 0 and small.memory_gib < 24e9 / 2**30


def test_a_tokenizer_trains_once_for_all_seeds(params):
    run = params.resolve("mae_tokens", "gpu")
    line = plan.plan(params, ["mae_tokens"], "gpu", Rates(1e-12)).loc["mae_tokens"]
    cells, width, values = (run.image_size // run.patch_size) ** 2, run.width, run.patch_size**2 * 3
    convolutions = 2 * cells * (values * width + run.depth * 2 * 9 * width**2 + width * run.code_width)
    assert line.kind == "tokenizer" and line.gmacs * 1e9 == pytest.approx(
        convolutions + cells * run.code_width * run.vocabulary, rel=0.01
    )
    assert line.device_hours == pytest.approx(line.exa_macs * 1e18 * 1e-12 / 3600, rel=0.01)


def test_frozen_backbones_cost_a_forward_pass(params):
    run, source = params.run("light_90_llrd_80"), params.resolve("light_90", "paper")
    probe = evaluate_cost(run.model_copy(update={"protocol": "linear"}), source, 1000, 2)
    assert probe.macs == probe.forward and probe.trainable == 769_000
    half = evaluate_cost(run.model_copy(update={"tuned_blocks": 6.0}), source, 1000, 2)
    assert half.macs == pytest.approx(2 * half.forward)


def test_any_backbone_can_be_counted_on_the_meta_device(params):
    """Counted as an unknown backbone, a ViT costs what its closed form says, but for norms and the loss."""
    run = params.resolve("light_90", "paper").model_copy(
        update={"method": "mim", "backbone": "swin_base", "backbone_kwargs": {}, "image_size": 128}
    )
    swin = pretrain_cost(run, 2)
    assert 80e6 < swin.parameters < 100e6 and swin.macs == 3 * swin.forward > 0
    vit = pretrain_cost(run.model_copy(update={"backbone": "vit_base_patch16", "backbone_kwargs": {}}), 2)
    assert vit.forward == pytest.approx(
        64 * (12 * 768**2 * 12 + 768**2) + 64 * (12 * 512**2 + 512 * 768 * 2), rel=0.05
    )


def test_encoder_and_decoder_add_up_to_the_whole_model(params):
    """Against torch's own counter, on the model as a run builds it."""
    changes = {
        "method": "mim",
        "backbone": "swin_base",
        "backbone_kwargs": {"depths": (2, 2, 2, 2)},
        "image_size": 128,
        "mask_unit": 16,
    }
    run = params.resolve("light_90", "paper").model_copy(
        update=changes | {"decoder_depth": 2, "decoder_width": 64}
    )
    found = pretrain_cost(run, 4)
    with torch.device("meta"):
        model = build_pretraining_model(run, target_dim(run, run.patch_size))
        images, noise = torch.empty(1, 3, 128, 128), torch.empty(1, model.num_patches)
    with FlopCounterMode(display=False) as counter:
        kept = activation_bytes(lambda: model(images, noise).pred, [*model.parameters(), *model.buffers()])
    assert found.forward == counter.get_total_flops() / 2 and found.parameters == sum(
        p.numel() for p in model.parameters()
    )
    assert found.activations == pytest.approx(kept, rel=0.002)


SMALL = {
    "backbone": "vit",
    "backbone_kwargs": {"patch_size": 8, "embed_dim": 192, "depth": 2, "num_heads": 3},
    "decoder_depth": 1,
    "decoder_width": 64,
}
LARGER = {
    "backbone": "vit",
    "backbone_kwargs": {"patch_size": 8, "embed_dim": 256, "depth": 3, "num_heads": 4},
}
IMAGES, LABELS = 4, 10


def counted_step(run, teacher=None, low: bool = False, tokenizer=None) -> tuple[float, float]:
    """(multiply-adds, bytes kept) an image of one real step, forward and backward, on torch's own kernels."""
    task = PretrainTask(run, 0, LABELS, tokenizer, teacher)
    images = torch.randint(0, 256, (IMAGES, 3, run.image_size, run.image_size), dtype=torch.uint8)
    labels = torch.arange(IMAGES) % LABELS

    def step():
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            loss = task(images, labels, torch.arange(IMAGES), 0, 0.5)[0]
        if task.probe is not None:
            task.probe.step()
        return loss

    head = task.probe.head if task.probe else None
    own = [*task.parameters(), *([*head.parameters(), *head.buffers()] if head else ())]
    with plain_torch():
        kept = activation_bytes(step, own)
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            step().backward()
    return counter.get_total_flops() / 2 / IMAGES, kept / IMAGES


@pytest.mark.parametrize("size", [64, 96])
@pytest.mark.parametrize("method", ["mae", "mim"])
def test_an_online_probe_costs_what_it_adds_to_a_real_step(params, method, size):
    """The encoder on every patch of the stage's images, without gradient, and a linear layer."""
    changes = SMALL | {"method": method, "image_size": size, "stages": (), "target_options": {}}
    run = params.run("daily_s5").model_copy(update=changes)
    bare = run.model_copy(update={"online_probe": False})
    (with_probe, kept), (without, kept_without) = counted_step(run), counted_step(bare)
    costs, model = pretrain_cost(run, 4, LABELS), pretrain_cost(bare, 4, LABELS)
    assert (
        costs.macs - model.macs == pytest.approx(with_probe - without, rel=0.015)
        and with_probe > 1.2 * without
    )
    assert costs.probe == pytest.approx(with_probe - without, rel=0.015), "scoring an image is the same pass"
    of_the_batch = 2 * 192 * 4 / IMAGES  # the batch norm keeps a mean and a deviation, whatever the batch
    added = kept - kept_without - of_the_batch
    assert costs.activations - model.activations == pytest.approx(added, rel=0.02)
    assert costs.trainable - model.trainable == costs.held == (192 + 1) * LABELS + 2 * 192
    assert (costs.forward, costs.parameters) == (model.forward, model.parameters), (
        "the validation loss needs no probe"
    )


@pytest.mark.parametrize("low", [False, True], ids=["float32", "bfloat16"])
def test_a_teacher_costs_what_it_adds_to_a_real_step(params, low):
    """It sees images of the student's size, and nothing of it is trained or kept."""
    student = SMALL | {"image_size": 64, "method": "mim"}
    run = params.run("fastmim_distillation").model_copy(update=student)
    tuning, source = (
        params.run("fastmim_vit_l_hog_128_ft"),
        params.run("fastmim_vit_l_hog_128").model_copy(update=LARGER),
    )
    model = build_classifier(vit_backbone("vit", **LARGER["backbone_kwargs"]), LABELS, image_size=32)
    with_teacher, kept = counted_step(run, Teacher(model, 32), low)
    alone = run.model_copy(update={"objective": "reconstruction"})
    without, kept_without = counted_step(alone, low=low)
    values = 2 if low else 4
    costs, bare = (
        pretrain_cost(run, values, LABELS, (tuning.model_copy(update={"image_size": 32}), source)),
        pretrain_cost(alone, values, LABELS),
    )
    assert (
        costs.macs - bare.macs == pytest.approx(with_teacher - without, rel=0.015)
        and with_teacher > 1.5 * without
    )
    tokens, projection = 64 * 256, (192 + 1) * 256
    rounded = (
        2 * 192 * 256 / IMAGES if low else 0
    )  # autocast's copy of the projection's weight, of which there is one a step
    assert costs.activations - bare.activations == pytest.approx(kept - kept_without - rounded, rel=0.02)
    assert costs.trainable - bare.trainable == projection
    # But for the tables of positions, which the teacher holds for its own images' size.
    assert costs.held == pytest.approx(sum(p.numel() for p in model.parameters()) + projection, abs=tokens)
    assert costs.state_bytes - bare.state_bytes == 4 * costs.held + 12 * projection
    with pytest.raises(ValueError, match="needs its teacher"):
        pretrain_cost(run, 4)


def test_supmaes_head_costs_what_it_adds_to_a_real_step(params):
    run = params.run("supmae_50").model_copy(update=SMALL | {"image_size": 64})
    alone = run.model_copy(update={"objective": "reconstruction"})
    (with_head, kept), (without, kept_without) = counted_step(run), counted_step(alone)
    costs, bare = pretrain_cost(run, 4, LABELS), pretrain_cost(alone, 4, LABELS)
    assert costs.macs - bare.macs == pytest.approx(with_head - without, rel=0.015)
    assert costs.activations - bare.activations == pytest.approx(kept - kept_without, rel=0.5), (
        "a few vectors, of MB"
    )
    head = PretrainTask(run, 0, LABELS).extra
    assert costs.trainable - bare.trainable == sum(p.numel() for p in head.parameters())


class NoLookup(torch.nn.Module):
    """The right number of tokens, without arithmetic."""

    vocabulary, stride = 32, 16

    def ids(self, images):
        return torch.zeros(len(images), (images.shape[-1] // self.stride) ** 2, dtype=torch.int64)


def test_a_tokenizer_costs_what_it_adds_to_a_real_step(params):
    """One token a patch: its strides of 16 pixels for patches of 8 are those of an image twice as wide."""
    run = params.run("mae_token").model_copy(update=SMALL | {"image_size": 64})
    sizes = {"patch_size": 16, "vocabulary": 32, "width": 64, "depth": 1, "code_width": 8}
    own, model = params.run("mae_tokens").model_copy(update=sizes), Tokenizer(**sizes)
    (with_tokenizer, kept), (without, kept_without) = (
        counted_step(run, tokenizer=model),
        counted_step(run, tokenizer=NoLookup()),
    )
    costs, bare = pretrain_cost(run, 4, LABELS, tokenizer=own), pretrain_cost(run, 4, LABELS)
    assert (
        costs.macs - bare.macs == pytest.approx(with_tokenizer - without, rel=0.015)
        and with_tokenizer > 1.1 * without
    )
    assert costs.activations == bare.activations and kept == kept_without, "frozen"
    assert costs.held == sum(p.numel() for p in model.parameters()) and costs.trainable == bare.trainable
    assert pretrain_cost(run, 4, LABELS, tokenizer=own.model_copy(update={"file": "dvae.pkl"})) == bare, (
        "a released one is not opened"
    )


def test_the_plan_counts_a_tokenizer_with_the_runs_that_predict_its_tokens(params, whole):
    run = params.resolve("mae_token", "paper")
    images = run.epochs * plan._whole_batches(IMAGENET["train"], run.batch_size)
    assert whole.loc["mae_token", "exa_macs"] * 1e9 / images - pretrain_cost(
        run, 2
    ).macs / 1e9 == pytest.approx(0.53, abs=0.03)


def test_the_plan_counts_what_runs_beside_a_model(params, whole):
    """ViT-B on a whole image is 17.58 * 10^9 multiply-adds, ViT-L on one of 128 pixels 19.9."""
    images = plan._whole_batches(IMAGENET["train"], 4096)
    assert whole.loc["daily_1600", "exa_macs"] - whole.loc["full_75", "exa_macs"] == pytest.approx(
        1600 * images * 17.58e-9, rel=0.005
    )
    images = plan._whole_batches(IMAGENET["train"], 2048)
    taught = (
        whole.loc["fastmim_distillation", "exa_macs"] - whole.loc["fastmim_vit_hog_128_ep400", "exa_macs"]
    )
    assert taught == pytest.approx(400 * images * 20.05e-9, rel=0.005), "the projection of 64 tokens is 0.15"
    smaller = whole.loc["daily_160", "exa_macs"] / whole.loc["daily_224", "exa_macs"]
    assert (160 / 224) ** 2 * 0.95 < smaller < (160 / 224) ** 2, (
        "the probe sees the run's images, not 224 pixels"
    )


def test_a_method_without_a_cost_is_refused_by_name(params):
    run = params.run("light_90").model_copy(update={"method": "mine"})
    with pytest.raises(UserError, match="method mine: its cost is unknown; add it to METHODS"):
        pretrain_cost(run, 2)


def test_every_method_of_the_schema_has_a_cost():
    assert set(METHODS) == set(get_args(PretrainRun.model_fields["method"].annotation))


@pytest.mark.parametrize("epochs", [7, 24, 40])
def test_the_plan_scores_a_probe_as_often_as_the_trainer_does(params, monkeypatch, epochs):
    """Every stage's scorings at its own size."""
    run = params.run("daily_s5").model_copy(update={"epochs": epochs, "warmup_epochs": 1} | SMALL)
    task, sizes = PretrainTask(run, 0, LABELS), []

    def fit(trainer):
        for epoch in range(epochs):
            task.set_view(view_at(run, epoch))
            trainer.after_epoch(epoch)

    def score(probe, batches):
        sizes.append(task.model.image_size[0])
        return {}

    images = contextlib.nullcontext(type("Images", (), {"epoch": lambda self, number: ()})())
    monkeypatch.setattr(pretrain.Trainer, "fit", fit)
    monkeypatch.setattr(pretrain.OnlineProbe, "accuracy", score)
    for name in ("training_loader", "validation_loader"):
        monkeypatch.setattr(pretrain, name, lambda *_: images)
    session = type("Session", (), {"device": torch.device("cpu")})
    pretrain._train(task, type("Context", (), {"run": run, "session": session, "name": "daily_s5"}), 0, None)
    stages = plan._stages(run)
    planned = plan._probe_scores(run, stages)
    assert sum(planned) == len(sizes) and {view.image_size for view in stages} == {192, 224}
    for size in (192, 224):
        assert sum(
            n for n, view in zip(planned, stages, strict=True) if view.image_size == size
        ) == sizes.count(size)


def test_data_set_bytes_match_the_paper():
    assert beton_bytes(IMAGENET["train"], 500, 95) == pytest.approx(101e9)


def test_the_command_says_what_it_assumes(capsys, tmp_path):
    arguments = [
        "plan",
        "light_90",
        "--budget",
        "paper",
        "--device",
        "h200",
        "--csv",
        str(tmp_path / "p.csv"),
    ]
    assert main(["--params", str(ROOT / "params.yaml"), *arguments]) == 0
    said = capsys.readouterr().out
    assert "light_90" in said and "ImageNet-1k is assumed" in said
    assert pd.read_csv(tmp_path / "p.csv").run.tolist() == ["light_90"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--device", "tpu"], "--device tpu"),
        (["--device", "a100", "--efficiency", "40"], "--efficiency 40"),
        (["--budget", "huge"], "no budget 'huge'"),
    ],
)
def test_a_mistake_prints_a_one_line_error(capsys, arguments, message):
    assert main(["--params", str(ROOT / "params.yaml"), "plan", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_the_command_regenerates_page_and_prices(tmp_path, params):
    page, prices = tmp_path / plan_table.PAGE, tmp_path / plan_table.PRICES
    page.parent.mkdir()
    prices.parent.mkdir(parents=True)
    text = (ROOT / plan_table.PAGE).read_text()
    before, after = text[: text.index(plan_table.START)], text[text.index(plan_table.END) :]
    page.write_text(f"{before}{plan_table.START}{after}")
    plan_table.update_page(tmp_path, params)
    assert page.read_text() == text, "run: python -m replicate plan --page"
    assert prices.read_text() == (ROOT / plan_table.PRICES).read_text()


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [(79095.4, 3, "79,100"), (11.02, 3, "11.0"), (0.6034, 2, "0.60"), (9.96, 2, "10"), (1003.2, 2, "1,000")]
    + [(7.07, 2, "7.1"), (0, 3, "0"), (170.4, 3, "170")],
)
def test_the_page_shows_significant_digits(value, digits, text):
    assert plan_table.rounded(value, digits) == text


def test_a_page_without_markers_is_refused(tmp_path, params):
    (tmp_path / plan_table.PAGE).parent.mkdir()
    (tmp_path / plan_table.PAGE).write_text("nothing")
    with pytest.raises(UserError, match="lacks the markers"):
        plan_table.update_page(tmp_path, params)


def test_known_devices_state_their_assumptions():
    assert all(0 < device.efficiency < 1 and device.peak > 1e14 for device in DEVICES.values())

import json

import pytest
import torch

from replicate.config.backbones import vit_backbone
from replicate.cost.bench import Timing, compare, interleave, take_turns, timed_window, write_results
from replicate.cost.macs import classifier_macs, count_forward, count_mae, mae_macs
from replicate.cost.memory import activation_bytes, cuda_peak_bytes, mae_activation_bytes
from replicate.cost.parameters import classifier_parameters, count_parameters, mae_parameters
from replicate.models.build import build_classifier
from replicate.models.cpu import plain_torch
from replicate.models.mae import MAE
from replicate.models.vit import freeze_for_partial

BASE = dict(embed_dim=768, depth=12, num_heads=12)
LARGE = dict(embed_dim=1024, depth=24, num_heads=16)
HUGE = dict(embed_dim=1280, depth=32, num_heads=16, patch_size=14)
SMALL = dict(image_size=32, patch_size=8, embed_dim=64, depth=2, num_heads=4)
DECODER = dict(decoder_embed_dim=32, decoder_depth=2, decoder_num_heads=4)


def meta(**sizes) -> MAE:
    with torch.device("meta"):
        return MAE(**sizes)


@pytest.mark.parametrize(
    ("sizes", "ratio", "printed"),
    [
        (LARGE, 0.01, 66.42),
        (LARGE, 0.25, 51.40),
        (LARGE, 0.50, 35.97),
        (LARGE, 0.75, 20.78),
        (LARGE, 0.85, 14.64),
        (LARGE, 0.90, 11.59),
        (LARGE, 0.95, 8.548),
        (BASE, 0.75, 9.795),
        (HUGE, 0.75, 48.600),
    ],
)
def test_multiply_adds_of_the_papers(sizes, ratio, printed):
    """Efficient MAE, Tables 1, 3 and 4: by closed form and counted on the model, equal to the last digit and to the
    printed rounding.
    """
    closed = mae_macs(**sizes, mask_ratio=ratio)
    places = 3 if printed in (8.548, 9.795, 48.600) else 2
    assert round(closed.giga, places) == printed
    assert count_mae(meta(**sizes), mask_ratio=ratio) == closed


def test_encoder_alone_on_every_patch():
    assert round(mae_macs(**LARGE, mask_ratio=0.0).encoder / 1e9, 2) == 61.60
    head = 1024 * 1000 + 5 * 1024 - 197 * 5 * 1024
    full = classifier_macs(num_classes=1000, **LARGE, patch_size=16).total
    assert full == mae_macs(**LARGE, mask_ratio=0.0).encoder + head


@pytest.mark.parametrize(("sizes", "ratio", "kept", "printed"), [(LARGE, 0.85, 150, 14.155), (BASE, 0.85, 150, 7.569)])
def test_multiply_adds_with_decoder_masking(sizes, ratio, kept, printed):
    closed = mae_macs(**sizes, mask_ratio=ratio, kept=kept)
    assert round(closed.giga, 3) == printed
    tokens = torch.zeros(196, dtype=torch.bool)
    tokens[: 29 + kept] = True
    small = MAE(**{**sizes, "depth": 1})
    counted = count_mae(small, ratio, tokens)
    assert counted == mae_macs(**{**sizes, "depth": 1}, mask_ratio=ratio, kept=kept)
    assert counted.decoder == closed.decoder


def test_rows_that_the_paper_prints_otherwise():
    """Table 4's ViT-L at .90 (printed 10.3) and Table 3's ViT-H (31.3), with the counts that Algorithm 1 leaves at beta 26."""
    assert mae_macs(**LARGE, mask_ratio=0.90, kept=136.7).giga == pytest.approx(10.44, abs=0.005)
    assert mae_macs(**HUGE, mask_ratio=0.85, kept=203.0).giga == pytest.approx(31.55, abs=0.005)


def test_mask_tokens_in_the_encoder_cost_three_times_as_much():
    """Table 1c prints 3.3x; the shapes give 3.23."""
    slow, fast = mae_macs(**LARGE, mask_tokens_in_encoder=True), mae_macs(**LARGE)
    assert slow.total / fast.total == pytest.approx(3.23, abs=0.005)
    assert count_mae(meta(**LARGE, mask_tokens_in_encoder=True)) == slow


def test_the_decoder_is_a_tenth_of_the_encoder_per_token():
    """Section 4.1: 9 % of the multiply-adds per token (blocks: 8.6 %, with embedding and prediction head: 8.9 %)."""
    macs = mae_macs(**LARGE, mask_ratio=0.0)
    assert 0.085 < macs.decoder / macs.encoder < 0.09


def test_only_visible_patches_are_projected():
    saved = mae_macs(**BASE).total - count_mae(meta(**BASE), project_masked=False).total
    assert saved == 147 * 768 * 768


@pytest.mark.parametrize(
    "options",
    [
        dict(),
        dict(decoder_depth=1, decoder_embed_dim=128),
        dict(target_dim=96),
        dict(mlp_ratio=2.0),
        dict(image_size=(32, 48)),
        dict(mask_tokens_in_encoder=True),
    ],
)
def test_closed_forms_equal_counts_for_any_configuration(options):
    sizes = {**SMALL, **DECODER, **options}
    model = meta(**sizes)
    for ratio in (0.0, 0.5, 0.75):
        assert count_mae(model, ratio) == mae_macs(**sizes, mask_ratio=ratio)
        assert count_mae(model, ratio, project_masked=False) == mae_macs(**sizes, mask_ratio=ratio, project_masked=False)
    assert count_parameters(model) == mae_parameters(**sizes).total


def test_parameters_of_the_papers():
    assert [mae_parameters(**sizes).total for sizes in (BASE, LARGE, HUGE)] == [111_907_840, 329_541_888, 657_074_508]
    assert classifier_parameters(num_classes=1000, **BASE, patch_size=16) == 86_567_656


def test_classifiers_are_counted_too():
    backbone = vit_backbone("vit", embed_dim=64, depth=2, num_heads=4, patch_size=8)
    model = build_classifier(backbone, 10, image_size=32)
    sizes = dict(num_classes=10, image_size=32, **backbone.kwargs)
    assert count_forward(model, 32) == classifier_macs(**sizes).total and model.training
    assert count_parameters(model) == classifier_parameters(**sizes)
    freeze_for_partial(model, 0)
    assert count_parameters(model, trainable=True) == 65 * 10


def test_counting_leaves_the_model_alone():
    model = MAE(**SMALL, **DECODER)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    count_mae(model)
    assert all(torch.equal(tensor, before[name]) and tensor.device.type == "cpu" for name, tensor in model.state_dict().items())


# Memory


def mae_activations(batch: int, **options) -> int:
    model = MAE(**{**SMALL, **DECODER, **options})
    images, noise = torch.randn(batch, 3, 32, 32), torch.rand(batch, 16)
    return activation_bytes(lambda: model(images, noise), model.parameters())


def test_saved_tensors_of_a_linear_layer_with_gelu():
    layer = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.GELU(), torch.nn.Linear(16, 8))
    x = torch.randn(4, 8)
    assert activation_bytes(lambda: layer(x), layer.parameters()) == 4 * (4 * 8 + 4 * 16 + 4 * 16)


def test_views_count_once():
    x = torch.randn(10, requires_grad=True)

    def forward():
        y = x.exp()
        return y[:5] * y[5:]

    assert activation_bytes(forward, [x]) == 40


def test_activation_memory_follows_the_batch_and_the_tokens():
    one, two, four = (mae_activations(batch) for batch in (1, 2, 4))
    assert four - two == pytest.approx(2 * (two - one), rel=0.01)
    assert mae_activations(4, mask_ratio=0.9) < four < mae_activations(4, mask_tokens_in_encoder=True)


@pytest.mark.parametrize("options", [dict(), dict(mask_tokens_in_encoder=True), dict(depth=3, decoder_depth=1, mask_ratio=0.9)])
def test_activations_counted_from_shapes_are_those_of_a_real_pass(options):
    with plain_torch():
        real = [mae_activations(batch, **options) for batch in (1, 3)]
    assert [mae_activation_bytes(batch, **{**SMALL, **DECODER, **options}) for batch in (1, 3)] == real


def test_activations_of_a_large_model_need_no_memory():
    """ViT-L at the paper's size: 126 MB an image at 75 %, and 2.8 times as much with mask tokens in the encoder."""
    plain, slow = (mae_activation_bytes(**LARGE, mask_tokens_in_encoder=tokens) for tokens in (False, True))
    assert plain / 2**20 == pytest.approx(126, rel=0.03) and slow / plain == pytest.approx(2.77, abs=0.1)


def test_decoder_masking_saves_activations():
    plain = mae_activations(8, image_size=32, mask_ratio=0.85, decoder_beta=1e9)
    assert mae_activations(8, image_size=32, mask_ratio=0.85, decoder_beta=8.0) < 0.8 * plain


def test_the_gpus_peak_is_none_without_a_gpu():
    peak = cuda_peak_bytes(lambda: None)
    assert peak is None if not torch.cuda.is_available() else peak >= 0


# Timings


def test_cases_take_turns():
    calls = []
    timings = interleave({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=3, warmup=1)
    assert calls == ["a", "b"] + ["a", "b"] + ["b", "a"] + ["a", "b"]
    assert len(timings["a"].seconds) == 3 and timings["a"].median >= 0


def test_a_window_starts_with_a_running_loader():
    """The clock moves by a second a batch; three of five batches come after the second."""
    clock = [0]

    def batches():
        for _ in range(5):
            clock[0] += 1
            yield None

    assert timed_window(batches, 2, lambda: clock[0]) == 3
    turns = []
    timings = take_turns({"a": lambda: turns.append("a") or 1.0, "b": lambda: turns.append("b") or 2.0}, 2)
    assert turns == ["a", "b", "b", "a"] and timings["b"].seconds == (2.0, 2.0)


def test_results_have_the_agreed_form(tmp_path, capsys):
    row = compare("step", "small", Timing((1.0, 2.0, 1.0)), Timing((2.0, 2.0, 3.0)), batch=4)
    assert set(row) >= {"name", "case", "ours", "theirs", "ratio", "unit", "spread", "machine", "revision"}
    assert row["ours"] == 1.0 and row["ratio"] == 2.0 and row["batch"] == 4
    path = write_results("step", [row], tmp_path)
    assert json.loads(path.read_text()) == [row]
    assert "ratio 2.00" in capsys.readouterr().out

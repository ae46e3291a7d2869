"""Closed forms of cost against counts on the real modules, and how timings are taken."""

import json
import math
from itertools import chain

import pytest
import torch
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from replicate.config.backbones import vit_backbone
from replicate.cost.bench import Timing, compare, interleave, take_turns, timed_window, write_results
from replicate.cost.macs import NORM, Macs, classifier_macs, mae_macs
from replicate.cost.memory import mae_activation_bytes
from replicate.cost.parameters import classifier_parameters, count_parameters, mae_parameters
from replicate.masking import num_visible
from replicate.models.activations import activation_bytes
from replicate.models.build import build_classifier
from replicate.models.cpu import plain_torch
from replicate.models.mae import MAE
from replicate.models.vit import freeze_for_partial

BASE = dict(embed_dim=768, depth=12, num_heads=12)
LARGE = dict(embed_dim=1024, depth=24, num_heads=16)
HUGE = dict(embed_dim=1280, depth=32, num_heads=16, patch_size=14)
SMALL = dict(image_size=32, patch_size=8, embed_dim=64, depth=2, num_heads=4)
DECODER = dict(decoder_embed_dim=32, decoder_depth=2, decoder_num_heads=4)


class OneMethod(torch.nn.Module):
    """Makes one method of a module its forward, for `functional_call`."""

    def __init__(self, module, method):
        super().__init__()
        self.module, self.method = module, method

    def forward(self, *inputs):
        return getattr(self.module, self.method)(*inputs)


@torch.no_grad()
def counted(function, *inputs):
    """(multiply-adds by torch's counter, output); LayerNorm counts 5 an element, as in the papers."""
    norm = {torch.ops.aten.native_layer_norm: lambda shape, *_, **__: 2 * NORM * math.prod(shape)}
    with FlopCounterMode(display=False, custom_mapping=norm) as counter:
        output = function(*inputs)
    return counter.get_total_flops() / 2, output


def on_meta(module, method="forward"):
    """A method that runs on the meta device, whatever device the module is on."""
    one = OneMethod(module, method)
    tensors = chain(one.named_parameters(), one.named_buffers())
    shapes = {name: torch.empty_like(tensor, device="meta") for name, tensor in tensors}
    return lambda *inputs: functional_call(one, shapes, inputs)


def count_mae(model, mask_ratio=None, kept=None, project_masked=True) -> Macs:
    """One image through a real MAE. kept (L,) bool: patches that enter the decoder, which then runs."""
    ratio = model.mask_ratio if mask_ratio is None else mask_ratio
    images = torch.empty(1, 3, *model.image_size, device="meta")
    noise = torch.empty(1, model.num_patches, device="meta")
    encoder, (latent, _, restore) = counted(on_meta(model, "forward_encoder"), images, ratio, noise)
    if kept is None:
        decoder, _ = counted(on_meta(model, "forward_decoder"), latent, restore)
    else:
        visible_first = torch.argsort((~kept).float(), stable=True)[None]
        latent = torch.zeros(latent.shape, device=kept.device)
        with sdpa_kernel(SDPBackend.MATH), plain_torch():
            decoder, _ = counted(model.forward_decoder, latent, torch.argsort(visible_first, 1), kept[None])
    if project_masked and not model.mask_tokens_in_encoder:
        masked = model.num_patches - num_visible(model.num_patches, ratio)
        encoder += masked * model.patch_embed.proj.weight.numel()
    return Macs(encoder, decoder)


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
    """Efficient MAE, Tables 1, 3 and 4: the closed form equals the count, and the print to its rounding."""
    closed = mae_macs(**sizes, mask_ratio=ratio)
    places = 3 if printed in (8.548, 9.795, 48.600) else 2
    assert round((closed.total / 1e9), places) == printed
    assert count_mae(meta(**sizes), mask_ratio=ratio) == closed


def test_encoder_alone_on_every_patch():
    assert round(mae_macs(**LARGE, mask_ratio=0.0).encoder / 1e9, 2) == 61.60
    head = 1024 * 1000 + 5 * 1024 - 197 * 5 * 1024
    full = classifier_macs(num_classes=1000, **LARGE, patch_size=16)
    assert full == mae_macs(**LARGE, mask_ratio=0.0).encoder + head


@pytest.mark.parametrize(
    ("sizes", "ratio", "kept", "printed"), [(LARGE, 0.85, 150, 14.155), (BASE, 0.85, 150, 7.569)]
)
def test_multiply_adds_with_decoder_masking(sizes, ratio, kept, printed):
    closed = mae_macs(**sizes, mask_ratio=ratio, kept=kept)
    assert round((closed.total / 1e9), 3) == printed
    tokens = torch.zeros(196, dtype=torch.bool)
    tokens[: 29 + kept] = True
    small = MAE(**{**sizes, "depth": 1})
    counted = count_mae(small, ratio, tokens)
    assert counted == mae_macs(**{**sizes, "depth": 1}, mask_ratio=ratio, kept=kept)
    assert counted.decoder == closed.decoder


def test_rows_that_the_paper_prints_otherwise():
    """Table 4's ViT-L at .90 (printed 10.3) and Table 3's ViT-H (31.3), by Algorithm 1 at beta 26."""
    assert mae_macs(**LARGE, mask_ratio=0.90, kept=136.7).total / 1e9 == pytest.approx(10.44, abs=0.005)
    assert mae_macs(**HUGE, mask_ratio=0.85, kept=203.0).total / 1e9 == pytest.approx(31.55, abs=0.005)


def test_mask_tokens_in_the_encoder_cost_three_times_as_much():
    """Table 1c prints 3.3x; the shapes give 3.23."""
    slow, fast = mae_macs(**LARGE, mask_tokens_in_encoder=True), mae_macs(**LARGE)
    assert slow.total / fast.total == pytest.approx(3.23, abs=0.005)
    assert count_mae(meta(**LARGE, mask_tokens_in_encoder=True)) == slow


def test_the_decoder_is_a_tenth_of_the_encoder_per_token():
    """Section 4.1 prints 9 % of the multiply-adds per token; blocks alone are 8.6 %, all 8.9 %."""
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
        assert count_mae(model, ratio, project_masked=False) == mae_macs(
            **sizes, mask_ratio=ratio, project_masked=False
        )
    assert count_parameters(model) == mae_parameters(**sizes).total


def test_parameters_of_the_papers():
    assert [mae_parameters(**sizes).total for sizes in (BASE, LARGE, HUGE)] == [
        111_907_840,
        329_541_888,
        657_074_508,
    ]
    assert classifier_parameters(num_classes=1000, **BASE, patch_size=16) == 86_567_656


def test_classifiers_are_counted_too():
    backbone = vit_backbone("vit", embed_dim=64, depth=2, num_heads=4, patch_size=8)
    model = build_classifier(backbone, 10, image_size=32)
    sizes = dict(num_classes=10, image_size=32, **backbone.kwargs)
    images = torch.empty(1, 3, 32, 32, device="meta")
    assert counted(on_meta(model.eval()), images)[0] == classifier_macs(**sizes)
    assert count_parameters(model) == classifier_parameters(**sizes)
    freeze_for_partial(model, 0)
    assert count_parameters(model, trainable=True) == 65 * 10


# Memory


def mae_activations(batch: int, **options) -> int:
    model = MAE(**{**SMALL, **DECODER, **options})
    images, noise = torch.randn(batch, 3, 32, 32), torch.rand(batch, 16, generator=torch.manual_seed(0))
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


@pytest.mark.parametrize(
    "options", [dict(), dict(mask_tokens_in_encoder=True), dict(depth=3, decoder_depth=1, mask_ratio=0.9)]
)
def test_activations_counted_from_shapes_are_those_of_a_real_pass(options):
    with plain_torch():
        real = [mae_activations(batch, **options) for batch in (1, 3)]
    assert [mae_activation_bytes(batch, **{**SMALL, **DECODER, **options}) for batch in (1, 3)] == real


def test_activations_of_a_large_model_need_no_memory():
    """ViT-L: 126 MB an image at 75 %, and 2.8 times as much with mask tokens in the encoder."""
    plain, slow = (mae_activation_bytes(**LARGE, mask_tokens_in_encoder=tokens) for tokens in (False, True))
    assert plain / 2**20 == pytest.approx(126, rel=0.03) and slow / plain == pytest.approx(2.77, abs=0.1)


def test_decoder_masking_saves_activations():
    plain = mae_activations(8, image_size=32, mask_ratio=0.85, decoder_beta=1e9)
    assert mae_activations(8, image_size=32, mask_ratio=0.85, decoder_beta=8.0) < 0.8 * plain


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

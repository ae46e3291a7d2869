"""Image-space masking: what the model sees, what it predicts where, and resolution stages."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from replicate.errors import UserError
from replicate.losses.reconstruction import reconstruction_loss
from replicate.masking import num_visible
from replicate.models.backbones import build_encoder
from replicate.models.mim import BASELINES, MIM
from replicate.models.resized import carry_optimizer_state
from replicate.schedules.layer_decay import plain_groups
from replicate.targets import build as build_target

VIT = {"embed_dim": 32, "depth": 2, "num_heads": 2, "patch_size": 16}
SWIN = {"width_scale": 0.125, "max_depth": 2}
BACKBONES = {
    "vit": VIT,
    "swin_base": SWIN,
    "pvt_large": SWIN | {"max_depth": 1},
    "cmt_small": SWIN | {"max_depth": 1},
    "convnext_tiny": SWIN,
}


def model(name: str = "vit", image_size: int = 64, target_dim: int = 12, **options) -> MIM:
    torch.manual_seed(0)
    numbers = BACKBONES.get(name, {}) | options.pop("numbers", {})
    encoder = build_encoder(name, image_size, drop_blocks=options.pop("drop_blocks", 0), **numbers)
    return MIM(encoder, target_dim, **({"decoder_embed_dim": 32} | options))


def images(size: int = 64, batch: int = 3, seed: int = 0) -> Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(seed))


def noise(units: int, batch: int = 3) -> Tensor:
    return torch.rand(batch, units, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("ratio", [0.5, 0.75])
def test_prediction_covers_every_unit_and_scores_the_masked(name: str, ratio: float) -> None:
    mim = model(name, 128)
    units = (128 // mim.encoder.stride) ** 2
    out = mim(images(128), mask_ratio=ratio)
    assert out.pred.shape == (3, units, 12) and out.grid == (128 // mim.encoder.stride,) * 2
    assert torch.equal(out.mask, out.scored)
    assert (out.mask.sum(1) == units - num_visible(units, ratio)).all()
    assert out.difficulty is None


@pytest.mark.parametrize("name", BACKBONES)
def test_nothing_of_a_masked_unit_reaches_the_prediction(name: str) -> None:
    mim = model(name, 64, mask_ratio=0.5).eval()
    fixed = noise(mim.num_patches)
    out = mim(images(), fixed)
    hidden = (
        out.mask.view(3, 1, *out.grid)
        .repeat_interleave(mim.patch_size, 2)
        .repeat_interleave(mim.patch_size, 3)
    )
    assert torch.equal(mim(torch.where(hidden > 0, images(seed=9), images()), fixed).pred, out.pred)
    assert not torch.equal(mim(torch.where(hidden > 0, images(), images(seed=9)), fixed).pred, out.pred)


def test_a_vits_class_token_goes_through_the_decoder_and_is_dropped_last() -> None:
    """As in FastMIM's code. Oracle: the decoder run by hand on class token and patches."""
    mim = model(mask_ratio=0.5, decoder_depth=2).eval()
    out = mim(images(), noise(16))
    tokens = mim.encoder.backbone.forward_features(mim.masked_images(images(), out.mask))
    assert tokens.shape == (3, 17, 32) and torch.equal(out.latent, tokens[:, 1:])
    decoded = mim.decoder_embed(tokens)
    for block in mim.decoder_blocks:
        decoded = block(decoded)
    torch.testing.assert_close(out.pred, mim.decoder_pred(mim.decoder_norm(decoded))[:, 1:])
    out.pred.square().mean().backward()
    assert mim.encoder.backbone.cls_token.grad.any()


def test_the_mask_token_is_three_numbers_that_learn() -> None:
    mim = model()
    assert mim.mask_token.shape == (1, 3, 1, 1)
    masked = torch.zeros(3, 16)
    masked[:, 5] = 1
    seen = mim.masked_images(images(), masked)
    assert torch.equal(seen[:, :, 16:32, 16:32], mim.mask_token.detach().view(3, 1, 1).expand(3, 3, 16, 16))
    seen[:, :, 16:32, 16:32] = images()[:, :, 16:32, 16:32]
    assert torch.equal(seen, images())
    mim(images()).pred.sum().backward()
    assert mim.mask_token.grad.abs().sum() > 0


FIRST_WIDTHS = {"vit": 32, "swin_base": 16, "pvt_large": 8, "cmt_small": 8, "convnext_tiny": 16}
"""Width of the first stage's tokens: an eighth of the published one; ConvNeXt-T's 12 rounds up to 16."""


@pytest.mark.parametrize("name", BACKBONES)
def test_masking_first_tokens_hides_the_unit_too(name: str) -> None:
    mim = model(name, 64, mask_ratio=0.5, mask_space="patch").eval()
    fixed = noise(mim.num_patches)
    out = mim(images(), fixed)
    if name != "cmt_small":  # whose stem has looked over the unit's edge before
        hidden = (
            out.mask.view(3, 1, *out.grid)
            .repeat_interleave(mim.patch_size, 2)
            .repeat_interleave(mim.patch_size, 3)
        )
        assert torch.equal(mim(torch.where(hidden > 0, images(seed=9), images()), fixed).pred, out.pred)
    out.pred.sum().backward()
    assert mim.mask_token.shape == (1, 1, FIRST_WIDTHS[name])
    assert mim.mask_token.grad.abs().sum() > 0


@pytest.mark.parametrize("space", ["image", "patch"])
def test_pre_training_decays_the_mask_token(space: str) -> None:
    """As the reference does; timm's rule exempts parameters of one dimension."""
    mim = model(mask_space=space)
    decayed = next(group for group in plain_groups(mim, 0.05) if group["weight_decay"])
    assert any(parameter is mim.mask_token for parameter in decayed["params"])


@pytest.mark.parametrize("space", ["image", "patch"])
def test_a_zero_mask_token_stays_zero(space: str) -> None:
    mim = model(mask_space=space, mask_token="zero")
    mim(images()).pred.sum().backward()
    assert mim.mask_token.grad is None and not mim.mask_token.any()


@pytest.mark.parametrize(
    ("name", "mask_unit", "size", "unit", "units"),
    [
        ("vit", 8, 64, 8, 64),
        ("vit", 32, 64, 16, 16),
        ("vit", None, 64, 16, 16),
        ("swin_base", 16, 64, 16, 16),
        ("swin_base", 64, 128, 32, 16),
    ],
)
def test_mask_units_finer_and_coarser_than_tokens(
    name: str, mask_unit: int | None, size: int, unit: int, units: int
) -> None:
    mim = model(name, size, mask_unit=mask_unit, mask_ratio=0.5)
    out = mim(images(size))
    assert mim.patch_size == unit and out.pred.shape == (3, units, 12)
    assert out.mask.mean() == 0.5
    side = max(1, (mask_unit or unit) // unit)
    blocks = out.mask.view(3, out.grid[0] // side, side, out.grid[1] // side, side).transpose(2, 3).flatten(3)
    assert (blocks == blocks[..., :1]).all()


def test_units_within_a_token_come_in_raster_order() -> None:
    mim = model(mask_unit=8, target_dim=1)
    with torch.no_grad():
        mim.decoder_pred.weight.zero_()
        mim.decoder_pred.bias.copy_(torch.arange(4.0))
    rows = mim(images()).pred[0, :, 0].view(8, 8)
    assert torch.equal(rows, torch.tensor([[0.0, 1.0], [2.0, 3.0]]).repeat(4, 4))


@pytest.mark.parametrize(
    ("name", "depth", "width"),
    [("1b256d", 1, 256), ("4b512d", 4, 512), ("8b512d", 8, 512), ("linear", 0, 256)],
)
def test_decoder_sizes_of_table_16(name: str, depth: int, width: int) -> None:
    mim = model(decoder_depth=depth, decoder_embed_dim=width)
    decoder = sum(p.numel() for key, p in mim.named_parameters() if key.startswith("decoder"))
    block = 12 * width**2 + 13 * width
    if depth:
        assert decoder == 33 * width + depth * block + 2 * width + 12 * (width + 1)
        assert mim.decoder_blocks[0].attn.num_heads == width // 32
    else:
        assert decoder == 12 * 33


@pytest.mark.parametrize(
    ("baseline", "target", "options"), [("simmim", "pixel", {"norm_pix": False}), ("maskfeat", "hog", {})]
)
@pytest.mark.parametrize("name", ["vit", "swin_base"])
def test_simmim_and_maskfeat_are_settings(baseline: str, target: str, options: dict, name: str) -> None:
    unit = 16 if name == "vit" else 32
    what = build_target(target, patch_size=unit, **options)
    mim = model(name, 128, what.dim, **BASELINES[baseline])
    assert mim.patch_size == unit and len(mim.decoder_blocks) == 0
    out = mim(images(128))
    loss = reconstruction_loss(out.pred, what(images(128)), out.scored)
    loss.backward()
    assert torch.isfinite(loss) and mim.mask_token.grad is not None
    masked = round(out.mask.mean().item(), 2)
    assert masked == pytest.approx(BASELINES[baseline]["mask_ratio"], abs=0.1)


def test_score_all_and_difficulty() -> None:
    out = model(score_all=True, with_difficulty=True)(images())
    assert out.scored.all() and not out.mask.all()
    assert out.difficulty.shape == out.mask.shape and (out.difficulty[out.mask == 0] == 0).all()


def test_dropped_blocks_are_gone() -> None:
    whole, less = model(), model(drop_blocks=1)
    assert [len(stage) for stage in less.encoder.backbone.stage_blocks()] == [1]
    assert less(images()).pred.shape == whole(images()).pred.shape


@pytest.mark.parametrize("name", BACKBONES)
def test_the_same_size_is_the_identity(name: str) -> None:
    mim = model(name, 64, mask_ratio=0.5).eval()
    fixed = noise(mim.num_patches)
    before = mim(images(), fixed).pred
    assert mim.set_image_size((64, 64)) == {}
    assert torch.equal(mim(images(), fixed).pred, before)


def picture(size: int) -> Tensor:
    """The same picture at any size, eight times: only a unit's position tells what a mask hides."""
    y, x = torch.meshgrid(*[(torch.arange(size) + 0.5) / size * 2 - 1] * 2, indexing="ij")
    return 1.5 * torch.stack([x, y, (3.14 * x).sin() * (3.14 * y).cos()]).expand(8, 3, size, size)


def colours(size: int, unit: int = 16) -> Tensor:
    """The mean colour of every unit of the picture, which no resolution changes."""
    return torch.nn.functional.avg_pool2d(picture(size), unit).flatten(2).transpose(1, 2)


def step(mim: MIM, optimizer: torch.optim.Optimizer, size: int, seed: int) -> float:
    """One step towards the mean colour of every masked unit."""
    torch.manual_seed(seed)
    out = mim(picture(size))
    loss = reconstruction_loss(out.pred, colours(size, mim.patch_size), out.scored)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


def progressive(name: str, image_size: int, **options) -> tuple[MIM, torch.optim.Optimizer]:
    mim = model(
        name,
        image_size,
        3,
        numbers={"patch_size": 16 if name == "vit" else 2} | options.pop("numbers", {}),
        **options,
    )
    return mim, new_optimizer(mim)


def new_optimizer(mim: MIM) -> torch.optim.Optimizer:
    return torch.optim.AdamW(mim.parameters(), lr=3e-3, betas=(0.9, 0.95))


class Trained(NamedTuple):
    name: str
    mim: MIM
    optimizer: torch.optim.Optimizer
    untrained_loss: float


BEFORE, AFTER = 64, 96
STEPS = {"vit": 100, "swin_base": 150, "pvt_large": 60, "cmt_small": 60}
SHALLOW = {"swin_base": {"depths": (1, 1, 1, 2)}}


@pytest.fixture(
    scope="module",
    params=["vit", "swin_base", "pvt_large", pytest.param("cmt_small", marks=pytest.mark.slow)],
)
def trained(request: pytest.FixtureRequest) -> Trained:
    """A model that locates a masked unit by its tables, at 64 pixels, and the optimiser that trained it.

    The tables of Swin and PVT start large and smooth, which a few steps from small noise would not make them.
    """
    name = request.param
    mim, optimizer = progressive(name, BEFORE, mask_ratio=0.5, numbers=SHALLOW.get(name, {}))
    for index, table in enumerate(tables(mim).values()):
        table.data.copy_(smooth(table.data, index) if name in ("swin_base", "pvt_large") else table.data)
    untrained = frozen_loss(mim)
    for seed in range(STEPS[name]):
        step(mim, optimizer, BEFORE, seed)
    return Trained(name, mim, optimizer, untrained)


def tables(mim: MIM) -> dict[str, torch.nn.Parameter]:
    """What a stage resamples: learned position tables, and a ViT's fixed one."""
    kinds = ("pos_embed", "relative_position_bias_table", "position_bias")
    return {key: table for key, table in mim.named_parameters() if key.endswith(kinds)}


def smooth(table: Tensor, index: int) -> Tensor:
    """Swin's (positions, heads): every head looks to one side. PVT's (1, [1 +] positions, C): waves."""
    side = math.isqrt(table.shape[-2])
    y, x = (grid.reshape(-1, 1) for grid in torch.meshgrid(*[torch.linspace(-1, 1, side)] * 2, indexing="ij"))
    channel = torch.arange(table.shape[-1])
    angle = 2 * math.pi * channel / len(channel) + index * math.pi / 2
    if table.ndim == 2:
        return -12 * ((x - angle.cos() / 2).square() + (y - angle.sin() / 2).square())
    waves = torch.sin(2 * x * angle.cos() + 2 * y * angle.sin() + 3 * channel)
    return torch.cat([table[0, : table.shape[1] - side**2], waves])[None]


def interpolated(key: str, table: Tensor, shape: torch.Size) -> Tensor:
    """Bicubic interpolation of a table of positions (FastMIM A.3.2).

    Swin: (positions, heads); PVT and ViT: (1, [1 +] positions, C); CMT: (heads, queries, keys).
    """

    def along_first(rows: Tensor, count: int) -> Tensor:
        old, new = math.isqrt(len(rows)), math.isqrt(count)
        prefix = len(rows) - old**2
        image = rows[prefix:].T.reshape(1, -1, old, old)
        grid = (
            torch.nn.functional.interpolate(image, size=(new, new), mode="bicubic", antialias=True)
            .flatten(2)[0]
            .T
        )
        return torch.cat([rows[:prefix], grid])

    if table.ndim == 2:
        return along_first(table, shape[0])
    if key.endswith("pos_embed"):
        return along_first(table[0], shape[1])[None]
    heads, queries, keys = shape
    by_query = along_first(table.transpose(0, 1).flatten(1), queries).unflatten(1, (heads, -1))
    return (
        along_first(by_query.permute(2, 0, 1).flatten(1), keys)
        .unflatten(1, (queries, heads))
        .permute(2, 1, 0)
    )


def frozen_loss(mim: MIM) -> float:
    """The loss on data that never change: the same picture behind the same 32 masks."""
    size, masks = mim.image_size[0], torch.Generator().manual_seed(5)
    losses = []
    with torch.no_grad():
        for _ in range(4):
            out = mim(picture(size), torch.rand(8, mim.num_patches, generator=masks))
            losses.append(reconstruction_loss(out.pred, colours(size, mim.patch_size), out.scored).item())
    return sum(losses) / len(losses)


MARGIN = 0.15 * colours(BEFORE)[0].var(dim=0, unbiased=False).mean().item()
"""Small beside the cost of predicting the picture's mean colour; more than a few steps' chance."""


def loss_by_resolution_alone(trained: Trained) -> float:
    """The loss of a model built for the new size, with the trained weights and interpolated tables."""
    other, _ = progressive(trained.name, AFTER, mask_ratio=0.5, numbers=SHALLOW.get(trained.name, {}))
    shapes = {key: table.shape for key, table in other.state_dict().items()}
    of_positions = tables(trained.mim)
    state = {
        key: interpolated(key, value, shapes[key]) if key in of_positions else value
        for key, value in trained.mim.state_dict().items()
    }
    other.load_state_dict(state)
    return frozen_loss(other)


def next_stage(trained: Trained) -> tuple[MIM, torch.optim.Optimizer]:
    mim, optimizer = copy.deepcopy((trained.mim, trained.optimizer))
    carry_optimizer_state(optimizer, mim.set_image_size(AFTER))
    return mim, optimizer


def worst_of_the_next_steps(mim: MIM, optimizer: torch.optim.Optimizer) -> float:
    losses = []
    for seed in range(3):
        step(mim, optimizer, AFTER, 1000 + seed)
        losses.append(frozen_loss(mim))
    return max(losses)


def test_a_resolution_stage_continues_the_loss(trained: Trained) -> None:
    """Up to the jump that the resolution itself causes, which is small beside what was learned."""
    before, alone = frozen_loss(trained.mim), loss_by_resolution_alone(trained)
    assert before + MARGIN < 0.4 * trained.untrained_loss
    assert alone < before + MARGIN
    mim, optimizer = next_stage(trained)
    assert frozen_loss(mim) == pytest.approx(alone, rel=1e-4)
    assert worst_of_the_next_steps(mim, optimizer) < alone + MARGIN


@pytest.mark.parametrize(
    "spoil",
    [
        torch.zeros_like,
        lambda table: table[:, torch.randperm(table.shape[1])],
        lambda table: table.flip(0, 1),
    ],
)
def test_spoiled_tables_would_have_broken_it(trained: Trained, spoil: Callable[[Tensor], Tensor]) -> None:
    if trained.name == "cmt_small":
        pytest.skip("its convolutions tell where a unit is without the table")
    mim, optimizer = next_stage(trained)
    torch.manual_seed(0)
    for table in tables(mim).values():
        table.data.copy_(spoil(table.data.reshape(1, -1, table.shape[-1])).view_as(table))
    alone = loss_by_resolution_alone(trained)
    assert frozen_loss(mim) > alone + 2 * MARGIN
    assert worst_of_the_next_steps(mim, optimizer) > alone + MARGIN


def test_an_optimiser_without_its_state_would_have_broken_it(trained: Trained) -> None:
    mim, _ = next_stage(trained)
    assert worst_of_the_next_steps(mim, new_optimizer(mim)) > loss_by_resolution_alone(trained) + 2 * MARGIN


def test_the_moments_go_through_a_stage(trained: Trained) -> None:
    """Bit for bit where a parameter keeps its shape, interpolated as the table itself where it does not."""
    mim, optimizer = copy.deepcopy((trained.mim, trained.optimizer))
    learned = {key: table for key, table in tables(mim).items() if table.requires_grad}
    first = next(iter(learned.values()), None)
    if first is not None:  # a peak beside nothing, which bicubic interpolation undershoots
        second_moment = optimizer.state[first]["exp_avg_sq"]
        second_moment.zero_().view(-1, second_moment.shape[-1])[0] = 1.0
    old = copy.deepcopy(
        {
            key: optimizer.state[parameter]
            for key, parameter in mim.named_parameters()
            if parameter in optimizer.state
        }
    )
    resized = mim.set_image_size(AFTER)
    assert {id(table) for table in resized if table.requires_grad} == {
        id(table) for table in learned.values()
    }
    carry_optimizer_state(optimizer, resized)
    undershot = False
    for key, parameter in mim.named_parameters():
        for name, value in old.get(key, {}).items():
            now = optimizer.state[parameter][name]
            if key not in learned or name == "step":
                assert torch.equal(now, value)
                continue
            expected = interpolated(key, value, parameter.shape)
            if name == "exp_avg_sq":
                undershot |= bool((expected < 0).any())
                expected = expected.clamp(min=0)
            assert now.any()
            torch.testing.assert_close(now, expected, rtol=1e-4, atol=1e-6 * value.abs().max().item())
    assert undershot == bool(learned)


def test_constant_moments_stay_constant(trained: Trained) -> None:
    mim, optimizer = copy.deepcopy((trained.mim, trained.optimizer))
    learned = [table for table in tables(mim).values() if table.requires_grad]
    for table in learned:
        optimizer.state[table]["exp_avg"].fill_(-0.3)
        optimizer.state[table]["exp_avg_sq"].fill_(0.02)
    carry_optimizer_state(optimizer, mim.set_image_size(AFTER))
    for table in learned:
        torch.testing.assert_close(optimizer.state[table]["exp_avg"], torch.full_like(table, -0.3))
        torch.testing.assert_close(optimizer.state[table]["exp_avg_sq"], torch.full_like(table, 0.02))


@pytest.mark.parametrize("name", ["vit", "swin_base", "pvt_large"])
@pytest.mark.parametrize("cut", [1, 2, 3])
def test_a_resumed_progressive_run_equals_an_unbroken_one(name: str, cut: int) -> None:
    """Sizes 32, 32, 48, 48; cut inside the first stage, between stages, and inside the second."""
    sizes = [32, 32, 48, 48]
    unbroken, memory = train(None, sizes, 0, name)
    half, half_memory = train(None, sizes[:cut], 0, name)
    checkpoint = copy.deepcopy((half.state_dict(), half_memory.state_dict(), half.image_size))
    resumed, _ = train(checkpoint, sizes[cut:], cut, name)
    assert all(
        torch.equal(tensor, resumed.state_dict()[key]) for key, tensor in unbroken.state_dict().items()
    )


def train(
    checkpoint: tuple | None, sizes: list[int], start: int, name: str
) -> tuple[MIM, torch.optim.Optimizer]:
    mim, optimizer = progressive(name, 32)
    if checkpoint:
        mim.set_image_size(checkpoint[2])
        mim.load_state_dict(checkpoint[0])
        optimizer.load_state_dict(checkpoint[1])
    for offset, size in enumerate(sizes):
        carry_optimizer_state(optimizer, mim.set_image_size(size))
        step(mim, optimizer, size, seed=start + offset)
    return mim, optimizer


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: model(mask_space="pixels"), "mask_space 'pixels' is unknown: choose image, patch"),
        (lambda: model(mask_token="mean"), "mask_token 'mean' is unknown"),
        (lambda: model(mask_unit=24), "mask_unit 24 must divide"),
        (lambda: model(mask_unit=0), "mask_unit 0 must be a whole number of pixels >= 1"),
        (lambda: model(mask_unit=-16), "mask_unit -16 must be a whole number of pixels >= 1"),
        (
            lambda: model(mask_unit=8, mask_space="patch"),
            "mask_unit 8 must be a multiple of the first tokens' 16 pixels",
        ),
        (
            lambda: model("resnet10t", mask_space="patch"),
            "backbone ResNet: its first tokens are not known here",
        ),
        (lambda: model("resnet10t", drop_blocks=1), "backbone ResNet: its blocks are in no known list"),
        (lambda: model(mask_unit=64, image_size=96), "multiple of patch_size 64"),
        (lambda: model(mask_ratio=1.0), "mask_ratio 1.0"),
        (lambda: model()(images(96)), "images are 96x96 but the model is set for 64x64"),
        (lambda: model(mask_unit=32).set_image_size(80), "80x80"),
        (lambda: model(decoder_embed_dim=100), "decoder width 100 is not a multiple"),
    ],
)
def test_mistakes_are_refused(call, message: str) -> None:
    with pytest.raises(UserError, match=message):
        call()

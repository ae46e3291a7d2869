"""Image-space masking: what the model sees, what it predicts where, and how it goes through resolution stages."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from replicate.errors import UserError
from replicate.losses.reconstruction import reconstruction_loss
from replicate.masking import num_visible
from replicate.models.backbones import build_encoder
from replicate.models.mim import BASELINES, MIM
from replicate.resized import carry_optimizer_state
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
    numbers = BACKBONES[name] | options.pop("numbers", {})
    encoder = build_encoder(name, image_size, drop_blocks=options.pop("drop_blocks", 0), **numbers)
    return MIM(encoder, target_dim, **({"decoder_width": 32} | options))


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
    assert out.p2dist is None


@pytest.mark.parametrize("name", BACKBONES)
def test_nothing_of_a_masked_unit_reaches_the_prediction(name: str) -> None:
    mim = model(name, 64, mask_ratio=0.5).eval()
    fixed = noise(mim.num_patches)
    out = mim(images(), fixed)
    hidden = out.mask.view(3, 1, *out.grid).repeat_interleave(mim.unit, 2).repeat_interleave(mim.unit, 3)
    assert torch.equal(mim(torch.where(hidden > 0, images(seed=9), images()), fixed).pred, out.pred)
    assert not torch.equal(mim(torch.where(hidden > 0, images(), images(seed=9)), fixed).pred, out.pred)


def test_the_mask_token_is_three_numbers_that_learn() -> None:
    mim = model()
    assert mim.mask_token.shape == (3,)
    masked = torch.zeros(3, 16)
    masked[:, 5] = 1
    seen = mim.masked_images(images(), masked)
    assert torch.equal(seen[:, :, 16:32, 16:32], mim.mask_token.detach().view(3, 1, 1).expand(3, 3, 16, 16))
    seen[:, :, 16:32, 16:32] = images()[:, :, 16:32, 16:32]
    assert torch.equal(seen, images())
    mim(images()).pred.sum().backward()
    assert mim.mask_token.grad.abs().sum() > 0


@pytest.mark.parametrize("name", ["vit", "swin_base", "convnext_tiny", "pvt_large", "cmt_small"])
def test_masking_first_tokens_hides_the_unit_too(name: str) -> None:
    mim = model(name, 64, mask_ratio=0.5, mask_space="patch").eval()
    fixed = noise(mim.num_patches)
    out = mim(images(), fixed)
    if name != "cmt_small":  # whose stem has looked over the unit's edge before
        hidden = out.mask.view(3, 1, *out.grid).repeat_interleave(mim.unit, 2).repeat_interleave(mim.unit, 3)
        assert torch.equal(mim(torch.where(hidden > 0, images(seed=9), images()), fixed).pred, out.pred)
    out.pred.sum().backward()
    assert mim.mask_token.shape == (32,) if name == "vit" else True
    assert mim.mask_token.grad.abs().sum() > 0


@pytest.mark.parametrize("space", ["image", "patch"])
def test_a_zero_mask_token_stays_zero(space: str) -> None:
    mim = model(mask_space=space, mask_token="zero")
    mim(images()).pred.sum().backward()
    assert mim.mask_token.grad is None and not mim.mask_token.any()


@pytest.mark.parametrize(
    ("name", "mask_unit", "size", "unit", "units"),
    [("vit", 8, 64, 8, 64), ("vit", 32, 64, 16, 16), ("vit", None, 64, 16, 16), ("swin_base", 16, 64, 16, 16), ("swin_base", 64, 128, 32, 16)],
)
def test_mask_units_finer_and_coarser_than_tokens(name: str, mask_unit: int | None, size: int, unit: int, units: int) -> None:
    mim = model(name, size, mask_unit=mask_unit, mask_ratio=0.5)
    out = mim(images(size))
    assert mim.unit == unit and out.pred.shape == (3, units, 12)
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


@pytest.mark.parametrize(("name", "depth", "width"), [("1b256d", 1, 256), ("4b512d", 4, 512), ("8b512d", 8, 512), ("linear", 0, 256)])
def test_decoder_sizes_of_table_16(name: str, depth: int, width: int) -> None:
    mim = model(decoder_depth=depth, decoder_width=width)
    decoder = sum(p.numel() for key, p in mim.named_parameters() if key.startswith("decoder"))
    block = 12 * width**2 + 13 * width
    if depth:
        assert decoder == 33 * width + depth * block + 2 * width + 12 * (width + 1)
        assert mim.decoder_blocks[0].attn.num_heads == width // 32
    else:
        assert decoder == 12 * 33


@pytest.mark.parametrize(("baseline", "target", "options"), [("simmim", "pixel", {"norm_pix": False}), ("maskfeat", "hog", {})])
@pytest.mark.parametrize("name", ["vit", "swin_base"])
def test_simmim_and_maskfeat_are_settings(baseline: str, target: str, options: dict, name: str) -> None:
    unit = 16 if name == "vit" else 32
    what = build_target(target, patch_size=unit, **options)
    mim = model(name, 128, what.dim, **BASELINES[baseline])
    assert mim.unit == unit and len(mim.decoder_blocks) == 0
    out = mim(images(128))
    loss = reconstruction_loss(out.pred, what(images(128)), out.scored)
    loss.backward()
    assert torch.isfinite(loss) and mim.mask_token.grad is not None
    masked = round(out.mask.mean().item(), 2)
    assert masked == pytest.approx(BASELINES[baseline]["mask_ratio"], abs=0.1)


def test_score_all_and_p2dist() -> None:
    out = model(score_all=True, with_p2dist=True)(images())
    assert out.scored.all() and not out.mask.all()
    assert out.p2dist.shape == out.mask.shape and (out.p2dist[out.mask == 0] == 0).all()


def test_dropped_blocks_are_gone() -> None:
    whole, less = model(), model(drop_blocks=1)
    assert len(less.encoder.blocks) == len(whole.encoder.blocks) - 1
    assert less(images()).pred.shape == whole(images()).pred.shape


@pytest.mark.parametrize("name", BACKBONES)
def test_the_same_size_is_the_identity(name: str) -> None:
    mim = model(name, 64, mask_ratio=0.5).eval()
    fixed = noise(mim.num_patches)
    before = mim(images(), fixed).pred
    assert mim.set_image_size((64, 64)) == {}
    assert torch.equal(mim(images(), fixed).pred, before)


def picture(size: int) -> Tensor:
    """The same picture at any size, eight times: what lies behind a mask can only be told from where it is."""
    y, x = torch.meshgrid(*[(torch.arange(size) + 0.5) / size * 2 - 1] * 2, indexing="ij")
    return 1.5 * torch.stack([x, y, (3.14 * x).sin() * (3.14 * y).cos()]).expand(8, 3, size, size)


def step(mim: MIM, optimizer: torch.optim.Optimizer, size: int, seed: int) -> float:
    """One step towards the mean colour of every masked unit, which no resolution changes."""
    torch.manual_seed(seed)
    out = mim(picture(size))
    target = torch.nn.functional.avg_pool2d(picture(size), mim.unit).flatten(2).transpose(1, 2)
    loss = reconstruction_loss(out.pred, target, out.scored)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


def progressive(name: str, image_size: int) -> tuple[MIM, torch.optim.Optimizer]:
    mim = model(name, image_size, 3, numbers={"patch_size": 16 if name == "vit" else 2})
    return mim, torch.optim.AdamW(mim.parameters(), lr=3e-3, betas=(0.9, 0.95))


@pytest.mark.parametrize(
    ("name", "steps"), [("vit", 100), ("pvt_large", 100), pytest.param("cmt_small", 30, marks=pytest.mark.slow), ("swin_base", 20)]
)
def test_a_resolution_stage_continues_the_loss(name: str, steps: int) -> None:
    mim, optimizer = progressive(name, 64)
    losses = [step(mim, optimizer, 64, seed) for seed in range(steps)]
    untrained, trained = losses[0], sum(losses[-5:]) / 5
    assert trained < 0.4 * untrained
    carry_optimizer_state(optimizer, mim.set_image_size(96))
    after = [step(mim, optimizer, 96, steps + seed) for seed in range(4)]
    assert max(after) < trained + 0.12 * (untrained - trained)


def test_scrambled_positions_would_have_broken_it() -> None:
    mim, optimizer = progressive("vit", 64)
    losses = [step(mim, optimizer, 64, seed) for seed in range(100)]
    mim.set_image_size(96)
    table = mim.encoder.backbone.pos_embed
    table.data = table.data[:, torch.randperm(table.shape[1])]
    assert step(mim, optimizer, 96, 100) > 0.5 * losses[0]


@pytest.mark.parametrize("name", ["vit", "swin_base", "pvt_large"])
@pytest.mark.parametrize("cut", [1, 2, 3])
def test_a_resumed_progressive_run_equals_an_unbroken_one(name: str, cut: int) -> None:
    """Sizes 32, 32, 48, 48; cut inside the first stage, between stages, and inside the second."""
    sizes = [32, 32, 48, 48]
    unbroken, memory = train(None, sizes, 0, name)
    half, half_memory = train(None, sizes[:cut], 0, name)
    checkpoint = copy.deepcopy((half.state_dict(), half_memory.state_dict(), half.image_size))
    resumed, _ = train(checkpoint, sizes[cut:], cut, name)
    assert all(torch.equal(tensor, resumed.state_dict()[key]) for key, tensor in unbroken.state_dict().items())


def train(checkpoint: tuple | None, sizes: list[int], start: int, name: str) -> tuple[MIM, torch.optim.Optimizer]:
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
        (lambda: model(mask_space="pixels"), "mask_space 'pixels' is unknown: choose image or patch"),
        (lambda: model(mask_token="mean"), "mask_token 'mean' is unknown"),
        (lambda: model(mask_unit=24), "mask_unit 24 must divide"),
        (lambda: model(mask_unit=64, image_size=96), "multiple of patch_size 64"),
        (lambda: model(mask_ratio=1.0), "mask_ratio 1.0"),
        (lambda: model()(images(96)), "images are 96x96 but the model is set for 64x64"),
        (lambda: model(mask_unit=32).set_image_size(80), "80x80"),
        (lambda: model(decoder_width=100), "decoder_width 100 is not a multiple"),
    ],
)
def test_mistakes_are_told(call, message: str) -> None:
    with pytest.raises(UserError, match=message):
        call()

"""Published numbers from first principles: multiply-adds, parameters, masks and their distances, learning-rate scales, crops.

Every function takes the setting of a printed number (`{"backbone": "ViT-L", "mask_ratio": "0.85", ...}`) and returns a `Range`:
equal ends for what is exact, two standard errors to either side for an expectation over random masks.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping

from replicate.report.ranges import Range

Setting = Mapping[str, str]

SIDE, PATCH, PATCHES = 14, 16, 196
CLASSES = 1000
IMAGENET_IMAGES = 1281167
MASKS = 2048
VITS = {"ViT-S": "small_patch16", "ViT-B": "base_patch16", "ViT-L": "large_patch16", "ViT-H": "huge_patch14"}
BACKBONES = {
    "Swin-B": "swin_base",
    "Swin-L": "swin_large",
    "Twins-L": "twins_svt_large",
    "PVTv1-L": "pvt_large",
    "PVTv2-B2": "pvt_v2_b2",
    "PVTv2-B5": "pvt_v2_b5",
    "ConvNeXt-T": "convnext_tiny",
    "ConvNeXt-B": "convnext_base",
    "ConvNeXtV2-B": "convnextv2_base",
    "CMT-S": "cmt_small",
    "CMT-B": "cmt_base",
}
FUNCTIONS = (
    "multiply_adds",
    "decoder_share",
    "decoder_per_token",
    "mask_token_cost",
    "visible_patches",
    "neighbours_visible",
    "patches_decoded",
    "first_block_rate",
    "perceptual_ratio",
    "apparent_size",
    "fewer_tokens",
    "loader_hours",
)


# ---- cost


def multiply_adds(setting: Setting) -> Range:
    """GFLOPs of a pre-training forward pass as the papers count them (Efficient MAE Tables 1, 3, 4).

    Mask ratio 0 is the encoder alone. Decoder masking (`dm=1`, or the full method) decodes the patches that beta 26 keeps.
    """
    ratio = float(setting["mask_ratio"])
    masked_decoder = setting["dm"] == "1" if "dm" in setting else setting.get("method") == "EfficientMAE"
    if not masked_decoder:
        macs = _mae_macs(setting["backbone"], ratio, None)
        return Range.exact((macs.encoder if ratio == 0 else macs.total) / 1e9)
    kept = _kept(26.0, ratio, 16 if setting["backbone"].endswith("/14") else SIDE)
    return Range(*(_mae_macs(setting["backbone"], ratio, count).total / 1e9 for count in kept))


def decoder_share(setting: Setting) -> Range:
    """Percentage of ViT-B's multiply-adds that the eight-block decoder takes (MAE Are Secretly Efficient Learners, sec 4)."""
    macs = _mae_macs("ViT-B", float(setting["mask_ratio"]), None)
    return Range.exact(100 * macs.decoder / macs.total)


def decoder_per_token(setting: Setting) -> Range:
    """Multiply-adds of the decoder's blocks against ViT-L's, at equally many tokens, in percent (MAE sec 4.1)."""
    from replicate.cost.macs import block_macs

    depth, width = int(setting["decoder_depth"]), int(setting["decoder_width"])
    return Range.exact(100 * depth * block_macs(1 + PATCHES, width) / (24 * block_macs(1 + PATCHES, 1024)))


def mask_token_cost(setting: Setting) -> Range:
    """Multiply-adds with mask tokens in the encoder over those without (MAE Table 1c)."""
    from replicate.cost.macs import mae_macs

    sizes = _vit("ViT-L")
    full = mae_macs(**sizes, mask_ratio=float(setting["mask_ratio"]), mask_tokens_in_encoder=True).total
    return Range.exact(full / mae_macs(**sizes, mask_ratio=float(setting["mask_ratio"])).total)


def parameters(setting: Setting) -> tuple[float, float]:
    """Millions of parameters of the encoder alone and with a classifier of 1000 classes: papers do not say which they count."""
    name = setting["backbone"].partition("/")[0].replace("-b", "-B")
    encoder, head = _vit_parameters(name) if name in VITS else _other_parameters(name)
    return encoder / 1e6, (encoder + head) / 1e6


def _vit(name: str) -> dict[str, int]:
    from replicate.config.backbones import vit_backbone

    return dict(vit_backbone("vit_" + VITS[name.partition("/")[0]]).kwargs)


@functools.cache
def _mae_macs(name: str, mask_ratio: float, kept: float | None):
    from replicate.cost.macs import mae_macs

    return mae_macs(**_vit(name), mask_ratio=mask_ratio, kept=kept)


def _vit_parameters(name: str) -> tuple[int, int]:
    from replicate.cost.parameters import classifier_parameters

    counts = [classifier_parameters(num_classes=classes, **_vit(name)) for classes in (0, CLASSES)]
    return counts[0], counts[1] - counts[0]


@functools.cache
def _other_parameters(name: str) -> tuple[int, int]:
    """Encoder and head of a backbone, built without memory."""
    import torch

    from replicate.config.backbones import Backbone
    from replicate.cost.parameters import count_parameters
    from replicate.models.build import build_classifier

    with torch.device("meta"):
        model = build_classifier(Backbone(BACKBONES[name]), CLASSES)
    heads = [part for part in model.modules() if isinstance(part, torch.nn.Linear) and part.out_features == CLASSES]
    head = count_parameters(heads[-1])
    return count_parameters(model) - head, head


def fewer_tokens(setting: Setting, from_side: int, to_side: int) -> Range:
    """How many percent fewer tokens a smaller grid has."""
    return Range.exact(100 * (1 - to_side**2 / from_side**2))


def loader_hours(setting: Setting, images_per_second: float, epochs: int, least: bool = False) -> Range:
    """Hours that so many epochs of ImageNet-1k take at a loader's rate; with `least`, anything from there on."""
    hours = IMAGENET_IMAGES * epochs / images_per_second / 3600
    return Range(hours, hours, math.inf if least else hours)


# ---- masks


def visible_patches(setting: Setting) -> Range:
    """Patches left by random masking."""
    from replicate.masking import num_visible

    return Range.exact(num_visible(int(setting["patches"]), float(setting["mask_ratio"])))


def neighbours_visible(setting: Setting) -> Range:
    """Percentage of masked patches with a visible one in their 3 x 3 neighbourhood, in expectation (Efficient MAE sec 3.3)."""
    return Range.exact(100 * _seen(1, float(setting["mask_ratio"])))


def patches_decoded(setting: Setting) -> Range:
    """Masked patches that a difficulty metric, or a threshold beta on P2Dist, leaves to decode (Efficient MAE Tables 5 and 8)."""
    ratio = float(setting["mask_ratio"])
    masked = PATCHES - _visible_count(ratio)
    metric = setting.get("difficulty_metric", "p2dist")
    if metric == "p2dist":
        beta = setting.get("beta", "26")
        return Range.exact(masked) if beta == "None" else _kept(float(beta), ratio)
    reach = {"visible_patches_in_3x3": 1, "sum_inverse_distance_5x5": 2}.get(metric, SIDE)
    return Range.exact(masked * _seen(reach, ratio))


def p2dist_grows_with_mask_ratio() -> tuple[bool, float, str]:
    """Whether mean P2Dist of masked patches rises over 0.75, 0.85, 0.9; the last mean over the first, and a note."""
    means = [float(_distances(ratio).mean()) for ratio in (0.75, 0.85, 0.9)]
    return means == sorted(means), means[-1] / means[0], "mean P2Dist " + ", ".join(f"{mean:.1f}" for mean in means) + " pixels"


def mask_token_flops_ratio_above_3() -> tuple[bool, float, str]:
    """Whether mask tokens in ViT-L's encoder cost more than three times the multiply-adds at 75 %; the ratio, and a note."""
    ratio = mask_token_cost({"mask_ratio": "0.75"}).value
    return ratio > 3, ratio, f"multiply-adds {ratio:.2f} times"


def _visible_count(mask_ratio: float) -> int:
    from replicate.masking import num_visible

    return num_visible(PATCHES, mask_ratio)


@functools.cache
def _seen(reach: int, mask_ratio: float) -> float:
    """Expected share of masked patches with a visible one within `reach` rows and columns.

    Given that a patch is masked, its n neighbours are all masked with probability C(L-1-n, V) / C(L-1, V).
    """
    visible = _visible_count(mask_ratio)
    blind = 0.0
    for row in range(SIDE):
        for column in range(SIDE):
            neighbours = _within(row, reach) * _within(column, reach) - 1
            blind += math.comb(PATCHES - 1 - neighbours, visible) / math.comb(PATCHES - 1, visible)
    return 1 - blind / PATCHES


def _within(place: int, reach: int) -> int:
    return min(place + reach, SIDE - 1) - max(place - reach, 0) + 1


@functools.cache
def _kept(beta: float, mask_ratio: float, side: int = SIDE) -> Range:
    """Expected number of masked patches with P2Dist (Algorithm 1) of at most beta, two standard errors either way.

    ViT-H's 16 x 16 grid of 14-pixel patches keeps its beta in pixels at P = 16.
    """
    counts = (_distances(mask_ratio, side) <= beta).view(-1, _masked(mask_ratio, side)).sum(1).double()
    error = 2 * float(counts.std()) / math.sqrt(len(counts))
    return Range(float(counts.mean()), float(counts.mean()) - error, float(counts.mean()) + error)


def _masked(mask_ratio: float, side: int) -> int:
    from replicate.masking import num_visible

    return side**2 - num_visible(side**2, mask_ratio)


@functools.cache
def _distances(mask_ratio: float, side: int = SIDE):
    """P2Dist of every masked patch of many random masks, mask after mask."""
    import torch

    from replicate.difficulty import p2dist_approx
    from replicate.masking import random_masking

    noise = torch.rand(MASKS, side**2, generator=torch.Generator().manual_seed(0))
    mask = random_masking(noise, mask_ratio).mask
    return p2dist_approx(mask, (side, side), PATCH)[mask.bool()]


# ---- schedules and crops


def first_block_rate(setting: Setting) -> Range:
    """The first block's learning rate against the last block's, in percent (MAE Are Secretly Efficient Learners, sec 1)."""
    from replicate.schedules.layer_decay import layer_scales

    scales = layer_scales(12, float(setting["llrd"]))
    return Range.exact(100 * scales[1] / scales[12])


def perceptual_ratio(setting: Setting) -> Range:
    """E[sigma] of a stage's crops (DailyMAE Eq. 2)."""
    from replicate.schedules import perceptual

    return Range.exact(perceptual.perceptual_ratio(*_sides(setting)))


def apparent_size(setting: Setting) -> Range:
    """The paper's E[h / sigma] of a stage's crops, in pixels (DailyMAE Eq. 1)."""
    from replicate.schedules import perceptual

    return Range.exact(perceptual.apparent_size(int(setting["res"]), *_sides(setting)))


def _sides(setting: Setting) -> tuple[float, float]:
    return float(setting["sigma_minus"]), float(setting["sigma_plus"])

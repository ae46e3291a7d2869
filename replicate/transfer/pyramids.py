"""Feature pyramids of a detector: four maps at strides 1/4, 1/2, 1 and 2 of a ViT's patch, or of a hierarchy.

Every pyramid ends with a fifth map, the fourth at half its resolution, which only the region proposals read.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence

from timm.layers import LayerNorm2d
from torch import Tensor, nn
from torch.nn import functional

from replicate.transfer import operators  # noqa: F401  (before torchvision's operators are used)

from torchvision.ops import Conv2dNormActivation, FeaturePyramidNetwork  # isort: skip
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool  # isort: skip

NORMS: dict[str, type[nn.Module]] = {"bn": nn.BatchNorm2d, "ln": LayerNorm2d}
LEVELS = ("0", "1", "2", "3")
VIT_SCALES = (4.0, 2.0, 1.0, 0.5)


class TapsFPN(nn.Module):
    """Four taps of a ViT, brought to four resolutions, then a feature pyramid network (Li et al. 2021)."""

    def __init__(self, channels: int, width: int, norm: str) -> None:
        super().__init__()
        groups = math.gcd(32, channels)
        self.adapt = nn.ModuleList(
            [
                nn.Sequential(
                    _double(channels), nn.GroupNorm(groups, channels), nn.GELU(), _double(channels)
                ),
                _double(channels),
                nn.Identity(),
                nn.MaxPool2d(2),
            ]
        )
        self.fpn = fpn((channels,) * 4, width, norm)

    def forward(self, taps: Sequence[Tensor]) -> OrderedDict[str, Tensor]:
        maps = [adapt(tap) for adapt, tap in zip(self.adapt, taps, strict=True)]
        return self.fpn(OrderedDict(zip(LEVELS, maps, strict=True)))


class SimplePyramid(nn.Module):
    """ViTDet's pyramid: the last map alone, at four resolutions, with LayerNorm and no path downwards."""

    def __init__(self, channels: int, width: int, norm: str) -> None:
        super().__init__()
        half, quarter = max(channels // 2, 1), max(channels // 4, 1)
        scaled = [
            [_double(channels, half), NORMS[norm](half), nn.GELU(), _double(half, quarter)],
            [_double(channels, half)],
            [],
            [nn.MaxPool2d(2)],
        ]
        widths = (quarter, half, channels, channels)
        self.levels = nn.ModuleList(
            nn.Sequential(*parts, *_lateral_and_output(before, width, norm))
            for parts, before in zip(scaled, widths, strict=True)
        )

    def forward(self, taps: Sequence[Tensor]) -> OrderedDict[str, Tensor]:
        maps = [level(taps[-1]) for level in self.levels]
        maps.append(functional.max_pool2d(maps[-1], 1, 2))
        return OrderedDict(zip((*LEVELS, "pool"), maps, strict=True))


class StagesFPN(nn.Module):
    """The maps of a hierarchy's four stages, normalised, then a feature pyramid network."""

    def __init__(self, channels: Sequence[int], width: int, norm: str) -> None:
        super().__init__()
        self.norms = nn.ModuleList(LayerNorm2d(count) for count in channels)
        self.fpn = fpn(channels, width, norm)

    def forward(self, stages: Sequence[Tensor]) -> OrderedDict[str, Tensor]:
        maps = [norm(stage) for norm, stage in zip(self.norms, stages, strict=True)]
        return self.fpn(OrderedDict(zip(LEVELS, maps, strict=True)))


def fpn(channels: Sequence[int], width: int, norm: str) -> FeaturePyramidNetwork:
    """torchvision's feature pyramid network with a norm after every convolution."""
    return FeaturePyramidNetwork(list(channels), width, LastLevelMaxPool(), NORMS[norm])


def _double(channels: int, out: int | None = None) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(channels, out or channels, 2, 2)


def _lateral_and_output(before: int, width: int, norm: str) -> list[nn.Module]:
    options = {"norm_layer": NORMS[norm], "activation_layer": None}
    return [
        Conv2dNormActivation(before, width, 1, **options),
        Conv2dNormActivation(width, width, 3, **options),
    ]

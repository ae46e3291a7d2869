"""UperNet (Xiao et al. 2018): pyramid pooling and a feature pyramid that classify every pixel.

MAE's Table 5 and FastMIM's Table 6 use it by BEiT's code, with an auxiliary head in training.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate


def conv(inputs: int, outputs: int, size: int = 1) -> nn.Sequential:
    """Convolution that keeps the map's size, batch norm, ReLU."""
    layer = nn.Conv2d(inputs, outputs, size, padding=size // 2, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


def resized(map_: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear, corners not aligned."""
    return interpolate(map_, size=tuple(size), mode="bilinear", align_corners=False)


class Pyramid(nn.Module):
    """Four maps of a ViT, all at stride 16, at strides 4, 8, 16 and 32 (BEiT)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        up = [nn.ConvTranspose2d(channels, channels, 2, stride=2) for _ in range(3)]
        quarter = nn.Sequential(up[0], nn.BatchNorm2d(channels), nn.GELU(), up[1])
        self.levels = nn.ModuleList([quarter, up[2], nn.Identity(), nn.MaxPool2d(2, ceil_mode=True)])

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        return [level(map_) for level, map_ in zip(self.levels, maps, strict=True)]


class UperNet(nn.Module):
    """Maps of rising stride with `channels` -> scores (N, classes, h, w) at the first map's stride."""

    def __init__(
        self,
        channels: Sequence[int],
        width: int,
        classes: int,
        pools: Sequence[int] = (1, 2, 3, 6),
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.pooled = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(bins), conv(channels[-1], width)) for bins in pools
        )
        self.bottleneck = conv(channels[-1] + len(pools) * width, width, 3)
        self.laterals = nn.ModuleList(conv(inputs, width) for inputs in channels[:-1])
        self.smooth = nn.ModuleList(conv(width, width, 3) for _ in channels[:-1])
        self.fuse = conv(len(channels) * width, width, 3)
        self.dropout = nn.Dropout2d(dropout)
        self.classify = nn.Conv2d(width, classes, 1)
        init_normal(self)

    def forward(self, maps: list[Tensor]) -> Tensor:
        last = maps[-1]
        context = [resized(pool(last), last.shape[2:]) for pool in self.pooled]
        levels = [lateral(map_) for lateral, map_ in zip(self.laterals, maps[:-1], strict=True)]
        levels.append(self.bottleneck(torch.cat([last, *context], dim=1)))
        for below in range(len(levels) - 1, 0, -1):
            levels[below - 1] = levels[below - 1] + resized(levels[below], levels[below - 1].shape[2:])
        outputs = [smooth(level) for smooth, level in zip(self.smooth, levels[:-1], strict=True)]
        outputs.append(levels[-1])
        size = outputs[0].shape[2:]
        fused = self.fuse(torch.cat([resized(output, size) for output in outputs], dim=1))
        return self.classify(self.dropout(fused))


class Auxiliary(nn.Sequential):
    """The fully convolutional head (Long et al. 2015): (N, C, h, w) -> scores (N, classes, h, w)."""

    def __init__(self, channels: int, width: int, classes: int, dropout: float = 0.1) -> None:
        super().__init__(conv(channels, width, 3), nn.Dropout2d(dropout), nn.Conv2d(width, classes, 1))
        init_normal(self)


def init_normal(head: nn.Module) -> None:
    """Classifiers from N(0, .01), as mmsegmentation has them; its other convolutions keep torch's values."""
    for module in head.modules():
        if isinstance(module, nn.Conv2d) and module.bias is not None:
            nn.init.normal_(module.weight, std=0.01)
            nn.init.zeros_(module.bias)


class Segmenter(nn.Module):
    """An encoder's four maps, the pyramid of a ViT, UperNet, and the auxiliary head in training.

    forward: images float (N, 3, H, W) -> (scores, auxiliary scores or None), each (N, classes, H, W) float32.
    """

    def __init__(
        self,
        taps: nn.Module,
        classes: int,
        width: int = 768,
        pools: Sequence[int] = (1, 2, 3, 6),
        dropout: float = 0.1,
        auxiliary_width: int | None = 256,
        auxiliary_tap: int = 2,
        plain: bool = True,
    ) -> None:
        super().__init__()
        channels = taps.channels
        self.taps = taps
        self.pyramid = Pyramid(channels[0]) if plain else None
        self.head = UperNet(channels, width, classes, pools, dropout)
        self.auxiliary_tap = auxiliary_tap
        self.auxiliary = None
        if auxiliary_width is not None:
            self.auxiliary = Auxiliary(channels[auxiliary_tap], auxiliary_width, classes, dropout)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        maps = self.taps(images)
        if self.pyramid is not None:
            maps = self.pyramid(maps)
        size = images.shape[2:]
        scores = resized(self.head(maps).float(), size)
        if self.auxiliary is None or not self.training:
            return scores, None
        return scores, resized(self.auxiliary(maps[self.auxiliary_tap]).float(), size)

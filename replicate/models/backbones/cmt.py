"""CMT: convolutions and Transformer blocks in four stages (Guo et al., CVPR 2022, section 3, Tables 1, 2).

A convolutional stem halves the image; before each stage a 2 x 2 convolution of stride 2 halves it again. A
block has three parts: a local perception unit (Eq. 1), a lightweight attention that reduces keys and values
by a depth-wise convolution (Eq. 3), and an inverted residual feed-forward network (Eqs. 4-5). The blocks of a
stage share one learned relative position bias. As in FastMIM's code, the bias starts at N(0, 1), block norms
have eps 1e-6, and an encoder without a head ends with a LayerNorm.

Ti, XS and B have the 9.49, 15.2 and 45.7 M parameters that their paper prints for images of 160, 192 and 256
pixels. S has 26.3 M where the paper prints 25.1: the paper's own widths, depths and ratios do not add up to
that.
"""

from __future__ import annotations

from functools import partial

import torch
from timm.layers import DropPath
from torch import Tensor, nn

from replicate.config.hierarchies import Hierarchy
from replicate.models.features import Size, StageTables
from replicate.models.resample import Grid, resample_pair_bias, trained_grid
from replicate.patches import grid_of

REDUCTIONS = (8, 4, 2, 1)
HEAD_DIM = 1280
_Norm = partial(nn.LayerNorm, eps=1e-6)


def _conv_gelu_bn(in_chans: int, dim: int, kernel: int, stride: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(in_chans, dim, kernel, stride, kernel // 2)
    return nn.Sequential(convolution, nn.GELU(), nn.BatchNorm2d(dim))


class LightweightAttention(nn.Module):
    """Multi-head self-attention with keys and values reduced by `reduction` along each side (Eq. 3)."""

    def __init__(self, dim: int, num_heads: int, reduction: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q, self.k, self.v = (nn.Linear(dim, dim) for _ in range(3))
        self.proj = nn.Linear(dim, dim)
        self.reduce = None
        if reduction > 1:
            convolution = nn.Conv2d(dim, dim, reduction, reduction, groups=dim)
            self.reduce = nn.Sequential(convolution, nn.BatchNorm2d(dim))

    def forward(self, features: Tensor, bias: Tensor) -> Tensor:
        """(N, h, w, C), bias (heads, h * w, keys) -> (N, h, w, C)."""
        reduced = features
        if self.reduce is not None:
            reduced = self.reduce(features.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        query, key, value = (
            layer(tokens).flatten(1, 2).unflatten(2, (self.num_heads, -1)).transpose(1, 2)
            for layer, tokens in ((self.q, features), (self.k, reduced), (self.v, reduced))
        )
        mixed = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=bias.to(query.dtype))
        return self.proj(mixed.transpose(1, 2).flatten(2)).unflatten(1, features.shape[1:3])


class InvertedResidual(nn.Module):
    """Feed-forward network; its hidden layer has a depth-wise convolution with a shortcut (Eqs. 4-5)."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.expand = _conv_gelu_bn(dim, hidden, 1)
        self.local = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.activate = nn.Sequential(nn.GELU(), nn.BatchNorm2d(hidden))
        self.project = nn.Sequential(nn.Conv2d(hidden, dim, 1), nn.BatchNorm2d(dim))

    def forward(self, features: Tensor) -> Tensor:
        """(N, C, h, w) -> (N, C, h, w)."""
        wide = self.expand(features)
        return self.project(self.activate(self.local(wide) + wide))


class Block(nn.Module):
    """Local perception unit, attention and feed-forward network, each with a shortcut (Eqs. 6-8)."""

    def __init__(self, dim: int, num_heads: int, reduction: int, mlp_ratio: float, drop_path: float) -> None:
        super().__init__()
        self.local = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.norm1, self.norm2 = _Norm(dim), _Norm(dim)
        self.attn = LightweightAttention(dim, num_heads, reduction)
        self.mlp = InvertedResidual(dim, int(dim * mlp_ratio))
        self.drop_path = DropPath(drop_path)

    def forward(self, features: Tensor, bias: Tensor) -> Tensor:
        """(N, C, h, w), bias (heads, h * w, keys) -> (N, C, h, w)."""
        features = features + self.local(features)
        attended = self.attn(self.norm1(features.permute(0, 2, 3, 1)), bias)
        features = features + self.drop_path(attended.permute(0, 3, 1, 2))
        normed = self.norm2(features.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return features + self.drop_path(self.mlp(normed))


class PatchEmbed(nn.Module):
    """2 x 2 convolution of stride 2, or of stride 1 that keeps the size, then LayerNorm over channels."""

    def __init__(self, in_chans: int, dim: int, stride: int = 2) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_chans, dim, 2, stride)
        self.pad = (0, 1, 0, 1) if stride == 1 else None
        self.norm = nn.LayerNorm(dim)

    def forward(self, features: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, dim, H / 2, W / 2)."""
        if self.pad is not None:
            features = nn.functional.pad(features, self.pad)
        return self.norm(self.proj(features).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Stage(nn.Module):
    """Patch embedding and blocks, which share one relative position bias (heads, tokens, reduced tokens)."""

    def __init__(
        self, patch_embed: PatchEmbed, grid: Grid, num_heads: int, reduction: int, blocks: list[Block]
    ) -> None:
        super().__init__()
        self.grid, self.reduction = grid, reduction
        self.patch_embed = patch_embed
        self.blocks = nn.ModuleList(blocks)
        queries, keys = (side[0] * side[1] for side in self.grids(grid))
        self.position_bias = nn.Parameter(torch.zeros(num_heads, queries, keys))
        nn.init.normal_(self.position_bias)

    def grids(self, grid: tuple[int, int]) -> list[tuple[int, int]]:
        """The grids of queries and of keys."""
        return [grid, (grid[0] // self.reduction, grid[1] // self.reduction)]

    def forward(self, features: Tensor) -> Tensor:
        features = self.patch_embed(features)
        for block in self.blocks:
            features = block(features, self.position_bias)
        return features

    def resample(self, bias: Tensor, old_grid: Grid | None = None, antialias: bool = True) -> Tensor:
        """A bias of another grid, for this stage's grid."""
        old_grid = trained_grid(bias.shape[1], self.grid, old_grid)
        return resample_pair_bias(bias, self.grids(old_grid), self.grids(self.grid), antialias)


class CMT(StageTables, nn.Module):
    """CMT: (N, 3, H, W) -> (N, num_classes), by a projection to 1280 channels, their mean, a linear layer.

    Image sides must be multiples of the stride, 32 for patches of 4.
    """

    table = "position_bias"

    def __init__(
        self,
        numbers: Hierarchy,
        image_size: int | tuple[int, int] = 224,
        in_chans: int = 3,
        num_classes: int = 1000,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.stride, self.patch_size, self.num_features = numbers.stride, numbers.patch_size, numbers.dims[-1]
        grid_of(image_size, self.stride)
        stem_dim = numbers.options["stem_dim"]
        self.stem = nn.Sequential(
            _conv_gelu_bn(in_chans, stem_dim, 3, max(1, self.patch_size // 2)),
            _conv_gelu_bn(stem_dim, stem_dim, 3),
            _conv_gelu_bn(stem_dim, stem_dim, 3),
        )
        rates = iter(torch.linspace(0, drop_path, sum(numbers.depths), device="cpu").tolist())
        stages, width = [], stem_dim
        ratio = numbers.options["mlp_ratio"]
        shapes = zip(numbers.dims, numbers.depths, numbers.heads, REDUCTIONS, strict=True)
        for index, (dim, depth, heads, reduction) in enumerate(shapes):
            blocks = [Block(dim, heads, reduction, ratio, next(rates)) for _ in range(depth)]
            grid = grid_of(image_size, self.patch_size * 2**index)
            halved = 1 if self.patch_size == 1 and index == 0 else 2
            stages.append(Stage(PatchEmbed(width, dim, halved), grid, heads, reduction, blocks))
            width = dim
        self.stages = nn.ModuleList(stages)
        if not num_classes:
            self.norm = _Norm(self.num_features)
        self.head = _Head(self.num_features, num_classes) if num_classes else nn.Identity()
        self.apply(_initialize)

    def stage_maps(self, images: Tensor) -> list[Tensor]:
        """(N, 3, H, W) -> the last map of each stage, (N, C_i, h_i, w_i)."""
        maps = [self.stem(images)]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        return maps[1:]

    def forward_features(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, C, h, w), after the last norm of an encoder."""
        features = self.stage_maps(images)[-1]
        if hasattr(self, "norm"):
            features = self.norm(features.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return features

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.forward_features(images))

    def embedding(self) -> nn.Module:
        return self.stages[0].patch_embed

    def get_classifier(self) -> nn.Module:
        return self.head.fc if isinstance(self.head, _Head) else self.head

    def no_weight_decay(self) -> set[str]:
        """Relative position biases."""
        return {name for name, _ in self.named_parameters() if name.endswith("position_bias")}

    def group_matcher(self, coarse: bool = False) -> dict:
        """timm's description of the layers for layer-wise decay: one level a block."""
        tables, blocks = r"^stages\.(\d+)\.(?:patch_embed|position_bias)", r"^stages\.(\d+)\.blocks\.(\d+)"
        return {"stem": "^stem", "blocks": r"^stages\.(\d+)" if coarse else [(tables, (0,)), (blocks, None)]}


class _Head(nn.Module):
    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.project = nn.Sequential(nn.Conv2d(width, HEAD_DIM, 1), nn.BatchNorm2d(HEAD_DIM), nn.SiLU())
        self.fc = nn.Linear(HEAD_DIM, num_classes)

    def forward(self, features: Tensor) -> Tensor:
        return self.fc(self.project(features).mean(dim=(2, 3)))


def _initialize(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out")
        nn.init.zeros_(module.bias)


def build(
    numbers: Hierarchy, name: str, image_size: Size, in_chans: int, num_classes: int, drop_path: float
) -> nn.Module:
    """CMT with these numbers; `num_classes` 0 leaves out the head."""
    return CMT(numbers, image_size, in_chans, num_classes, drop_path)

"""Pyramid Vision Transformer, version 1 (Wang et al., ICCV 2021, section 3, Table 1); timm has version 2.

Four stages of Transformer blocks. Before each, a patch embedding halves the resolution (quarters it in the
first stage) and a learned position embedding is added. Attention reduces keys and values by `sr_ratio` a
side. A class token joins the last stage.
"""

from __future__ import annotations

from functools import partial

import torch
from timm.layers import DropPath, Mlp, resample_abs_pos_embed
from torch import Tensor, nn

from replicate.config.hierarchies import Hierarchy
from replicate.models.features import Size, StageTables
from replicate.models.resample import Grid, trained_grid
from replicate.patches import grid_of

SR_RATIOS = (8, 4, 2, 1)
_Norm = partial(nn.LayerNorm, eps=1e-6)


class ReducedAttention(nn.Module):
    """Spatial-reduction attention (Eqs. 1-3): keys and values come from a strided projection of the map."""

    def __init__(self, dim: int, num_heads: int, sr_ratio: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)
        self.reduce = nn.Conv2d(dim, dim, sr_ratio, sr_ratio) if sr_ratio > 1 else None
        self.norm = _Norm(dim) if sr_ratio > 1 else None

    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """(N, L, C) -> (N, L, C); `grid` is (rows, columns) of the tokens."""
        reduced = tokens
        if self.reduce is not None:
            reduced = self.reduce(tokens.transpose(1, 2).unflatten(2, grid))
            reduced = self.norm(reduced.flatten(2).transpose(1, 2))
        query = self.q(tokens).unflatten(2, (self.num_heads, -1)).transpose(1, 2)
        key, value = self.kv(reduced).unflatten(2, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(query, key, value)
        return self.proj(mixed.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Pre-norm Transformer block with spatial-reduction attention."""

    def __init__(self, dim: int, num_heads: int, sr_ratio: int, mlp_ratio: float, drop_path: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = _Norm(dim), _Norm(dim)
        self.attn = ReducedAttention(dim, num_heads, sr_ratio)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.drop_path = DropPath(drop_path)

    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        tokens = tokens + self.drop_path(self.attn(self.norm1(tokens), grid))
        return tokens + self.drop_path(self.mlp(self.norm2(tokens)))


class PatchEmbed(nn.Module):
    """Non-overlapping patches of the map before, projected and normalised."""

    def __init__(self, patch_size: int, in_chans: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_chans, dim, patch_size, patch_size)
        self.norm = _Norm(dim)

    def forward(self, features: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, h, w, dim)."""
        return self.norm(self.proj(features).permute(0, 2, 3, 1))


class Stage(nn.Module):
    """Patch embedding, position embedding, blocks; with a class token in front when `cls_token` is set."""

    def __init__(self, patch_embed: PatchEmbed, grid: Grid, blocks: list[Block], cls_token: bool) -> None:
        super().__init__()
        dim = patch_embed.proj.out_channels
        self.grid = grid
        self.patch_embed = patch_embed
        self.blocks = nn.ModuleList(blocks)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim)) if cls_token else None
        self.pos_embed = nn.Parameter(torch.zeros(1, cls_token + grid[0] * grid[1], dim))

    def forward(self, features: Tensor) -> Tensor:
        """(N, C, H, W) -> tokens (N, [1 +] h * w, dim)."""
        tokens = self.patch_embed(features).flatten(1, 2)
        if self.cls_token is not None:
            tokens = torch.cat([self.cls_token.expand(len(tokens), -1, -1), tokens], 1)
        tokens = tokens + self.pos_embed
        for block in self.blocks:
            tokens = block(tokens, self.grid)
        return tokens

    def as_map(self, tokens: Tensor) -> Tensor:
        """Tokens (N, [1 +] h * w, C) -> (N, C, h, w), without the class token."""
        return tokens[:, -self.grid[0] * self.grid[1] :].transpose(1, 2).unflatten(2, self.grid)

    def resample(self, table: Tensor, old_grid: Grid | None = None, antialias: bool = True) -> Tensor:
        """A position table of another grid, for this stage's grid."""
        prefix = int(self.cls_token is not None)
        old_grid = trained_grid(table.shape[1] - prefix, self.grid, old_grid)
        return resample_abs_pos_embed(table, list(self.grid), list(old_grid), prefix, antialias=antialias)


class PyramidVisionTransformer(StageTables, nn.Module):
    """PVT: (N, 3, H, W) -> (N, num_classes), from the class token, which `feature_map` leaves out.

    Image sides must be multiples of the stride, 32 for patches of 4.
    """

    table, num_prefix_tokens = "pos_embed", 1

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
        rates = iter(torch.linspace(0, drop_path, sum(numbers.depths), device="cpu").tolist())
        stages = []
        ratios = numbers.options["mlp_ratios"]
        shapes = zip(numbers.dims, numbers.depths, numbers.heads, SR_RATIOS, ratios, strict=True)
        for index, (dim, depth, heads, sr_ratio, mlp_ratio) in enumerate(shapes):
            blocks = [Block(dim, heads, sr_ratio, mlp_ratio, next(rates)) for _ in range(depth)]
            embed = PatchEmbed(2 if index else self.patch_size, in_chans, dim)
            grid = grid_of(image_size, self.patch_size * 2**index)
            stages.append(Stage(embed, grid, blocks, cls_token=index == 3))
            in_chans = dim
        self.stages = nn.ModuleList(stages)
        self.norm = _Norm(self.num_features)
        self.head = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()
        self.apply(_initialize)

    def forward_features(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) -> tokens of the last stage (N, 1 + h * w, C) after the last norm."""
        return self.norm(self._stage_tokens(images)[-1])

    def stage_maps(self, images: Tensor) -> list[Tensor]:
        """(N, 3, H, W) -> the last map of each stage, (N, C_i, h_i, w_i), without class token and norm."""
        found = zip(self.stages, self._stage_tokens(images), strict=True)
        return [stage.as_map(tokens) for stage, tokens in found]

    def _stage_tokens(self, images: Tensor) -> list[Tensor]:
        found: list[Tensor] = []
        for number, stage in enumerate(self.stages):
            before = self.stages[number - 1].as_map(found[-1]) if found else images
            found.append(stage(before))
        return found

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.forward_features(images)[:, 0])

    def embedding(self) -> nn.Module:
        return self.stages[0].patch_embed

    def get_classifier(self) -> nn.Module:
        return self.head

    def no_weight_decay(self) -> set[str]:
        """Position embeddings and class token: fine-tuning does not decay them."""
        return {name for name, _ in self.named_parameters() if name.endswith(("pos_embed", "cls_token"))}

    def group_matcher(self, coarse: bool = False) -> dict:
        """timm's description of the layers for layer-wise decay: one level a block."""
        tables = r"^stages\.(\d+)\.(?:patch_embed|pos_embed|cls_token)"
        blocks = [(tables, (0,)), (r"^stages\.(\d+)\.blocks\.(\d+)", None), ("^norm", (99999,))]
        stem = r"^stages\.0\.(?:patch_embed|pos_embed)"
        return {"stem": stem, "blocks": r"^stages\.(\d+)" if coarse else blocks}


def _initialize(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
    elif isinstance(module, Stage):
        nn.init.trunc_normal_(module.pos_embed, std=0.02)
        if module.cls_token is not None:
            nn.init.trunc_normal_(module.cls_token, std=0.02)


def build(
    numbers: Hierarchy, name: str, image_size: Size, in_chans: int, num_classes: int, drop_path: float
) -> nn.Module:
    """PVT with these numbers; `num_classes` 0 leaves out the head."""
    return PyramidVisionTransformer(numbers, image_size, in_chans, num_classes, drop_path)

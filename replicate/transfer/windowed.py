"""A plain ViT for large images: attention within windows, but over the whole image in a few blocks.

After each quarter of the blocks, one block attends globally, and the map behind it is a tap. Two forms:

shared      Li et al. 2021 (MAE Table 4): one table of relative positions for all windowed blocks and one for
            all global blocks, both zero at first; the absolute positions are fixed
decomposed  ViTDet (Li et al. 2022; Efficient MAE Table 10): tables of rows and of columns in every block,
            multiplied with its queries, zero at first; the absolute positions are learned

Both leave out the class token and the last norm.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from replicate.models.resample import span
from replicate.models.vit import ViT

POSITIONS = ("shared", "decomposed")
Bias = Callable[[Tensor], Tensor]
"""Queries (N, heads, L, D) to what is added to the attention's logits, (N or 1, heads, L, L)."""


class WindowedViT(nn.Module):
    """(N, 3, H, W) -> the maps (N, C, h, w) after each quarter of the blocks.

    vit     gives the parts; its image size is the only one from now on
    window  patches along a side of a window; a larger one than the grid is clipped to it
    """

    def __init__(self, vit: ViT, window: int, positions: str) -> None:
        super().__init__()
        self.grid: tuple[int, int] = tuple(vit.patch_embed.grid_size)
        self.channels, self.stride, self.positions = vit.embed_dim, vit.stride, positions
        self.window = min(window, *self.grid)
        self.taps = quarters(len(vit.blocks))
        self.patch_embed, self.blocks = vit.patch_embed, vit.blocks
        learned = positions == "decomposed"
        self.pos_embed = nn.Parameter(vit.pos_embed.data[:, 1:].clone(), requires_grad=learned)
        heads = vit.blocks[0].attn.num_heads
        if learned:
            for number, block in enumerate(self.blocks):
                for name, side in zip(("rel_pos_h", "rel_pos_w"), self._reach(number), strict=True):
                    block.attn.register_parameter(name, _zeros(2 * side - 1, vit.embed_dim // heads))
        else:
            self.rel_pos_global = _zeros(_count(self.grid), heads)
            if len(self.blocks) > len(set(self.taps)):
                self.rel_pos_windowed = _zeros(_count((self.window, self.window)), heads)

    def _reach(self, number: int) -> tuple[int, int]:
        """(rows, columns) of the patches that attend to one another in a block."""
        return self.grid if number in self.taps else (self.window, self.window)

    def forward(self, images: Tensor) -> list[Tensor]:
        tokens = self.patch_embed(images) + self.pos_embed
        tokens, maps = tokens.unflatten(1, self.grid), {}
        shared = {} if self.positions == "decomposed" else self._shared_biases()
        for number, block in enumerate(self.blocks):
            is_global = number in self.taps
            reach = self._reach(number)
            bias = shared[is_global] if shared else _decomposed_bias(block.attn, reach)
            normed = block.norm1(tokens)
            attended = (
                _attend(block.attn, normed.flatten(1, 2), bias).unflatten(1, self.grid)
                if is_global
                else in_windows(lambda part, b=block, f=bias: _attend(b.attn, part, f), normed, self.window)
            )
            tokens = tokens + block.drop_path1(attended)
            tokens = tokens + block.drop_path2(block.mlp(block.norm2(tokens)))
            if is_global:
                maps[number] = tokens.permute(0, 3, 1, 2).contiguous()
        return [maps[tap] for tap in self.taps]

    def _shared_biases(self) -> dict[bool, Bias]:
        """Biases of global (True) and of windowed blocks, if there are any, each computed once a pass."""
        tables = {True: (self.rel_pos_global, self.grid)}
        if hasattr(self, "rel_pos_windowed"):
            tables[False] = self.rel_pos_windowed, (self.window, self.window)
        return {is_global: _shared_bias(table, reach) for is_global, (table, reach) in tables.items()}

    def no_weight_decay(self) -> set[str]:
        """Absolute positions, and shared tables as in MIMDet; ViTDet decays its tables."""
        return {"pos_embed", "rel_pos_windowed", "rel_pos_global"}

    def take(self, source: nn.Module) -> None:
        """Copy the encoder of a loaded ViT of the same sizes; relative positions stay as they are."""
        theirs, ours = source.state_dict(), self.state_dict()
        taken = {name: theirs[name] for name in ours if name in theirs}
        prefix = theirs["pos_embed"].shape[1] - self.pos_embed.shape[1]
        self.load_state_dict(taken | {"pos_embed": theirs["pos_embed"][:, prefix:]}, strict=False)


def quarters(depth: int) -> tuple[int, ...]:
    """The last block of each quarter, counted from 0: 2, 5, 8, 11 of 12 blocks; fewer than 4 repeat."""
    return tuple(max(0, depth * quarter // 4 - 1) for quarter in (1, 2, 3, 4))


def in_windows(attend: Callable[[Tensor], Tensor], tokens: Tensor, window: int) -> Tensor:
    """Attend within windows of (N, h, w, C) tokens; the last windows are padded with zeros, as in ViTDet."""
    count, height, width, channels = tokens.shape
    below, right = -height % window, -width % window
    padded = functional.pad(tokens, (0, 0, 0, right, 0, below))
    rows, columns = (height + below) // window, (width + right) // window
    parts = padded.view(count, rows, window, columns, window, channels).transpose(2, 3)
    parts = attend(parts.reshape(-1, window * window, channels))
    parts = parts.view(count, rows, columns, window, window, channels).transpose(2, 3)
    return parts.reshape(count, height + below, width + right, channels)[:, :height, :width]


def _attend(attention: nn.Module, tokens: Tensor, bias: Bias) -> Tensor:
    """timm's attention with its own weights and an additive bias: (N, L, C) -> (N, L, C)."""
    qkv = attention.qkv(tokens).unflatten(2, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)
    query, key, value = qkv.unbind(0)
    mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=bias(query))
    return attention.proj(mixed.transpose(1, 2).flatten(2))


def _shared_bias(table: Tensor, reach: tuple[int, int]) -> Bias:
    bias = table[_pairs(reach, table.device)].permute(2, 0, 1)[None]
    return lambda queries: bias.to(queries.dtype)


def _decomposed_bias(attention: nn.Module, reach: tuple[int, int]) -> Bias:
    def bias(queries: Tensor) -> Tensor:
        rows, columns = (
            table[_offsets(side, table.device)].to(queries.dtype)
            for table, side in zip((attention.rel_pos_h, attention.rel_pos_w), reach, strict=True)
        )
        by_place = queries.unflatten(2, reach)
        by_row = torch.einsum("nahwd,hkd->nahwk", by_place, rows)
        by_column = torch.einsum("nahwd,wkd->nahwk", by_place, columns)
        return (by_row[..., :, None] + by_column[..., None, :]).flatten(4).flatten(2, 3)

    return bias


def _offsets(side: int, device: torch.device) -> Tensor:
    """Numbers of the relative positions along one axis, (side, side): query's place minus key's, from 0."""
    places = torch.arange(side, device=device)
    return places[:, None] - places[None] + side - 1


def _pairs(reach: tuple[int, int], device: torch.device) -> Tensor:
    """Rows of a table of (2 h - 1) (2 w - 1) relative positions for each pair of patches, (h w, h w)."""
    rows, columns = (_offsets(side, device) for side in reach)
    pairs = rows[:, None, :, None] * (2 * reach[1] - 1) + columns[None, :, None, :]
    return pairs.reshape(reach[0] * reach[1], -1)


def _count(reach: tuple[int, int]) -> int:
    rows, columns = span(reach)
    return rows * columns


def _zeros(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.zeros(*shape))

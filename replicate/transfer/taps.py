"""Feature maps for a dense head: taps of a plain ViT, or the stages of a hierarchy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from timm.layers import LayerScale
from torch import Tensor, nn

from replicate.config.backbones import is_plain_vit, vit_backbone
from replicate.config.hierarchies import hierarchy, is_hierarchy
from replicate.errors import UserError
from replicate.models.backbones import build_backbone
from replicate.models.loading import load_encoder, without_prefixes
from replicate.models.vit import ViT
from replicate.schedules.layer_decay import decayed_groups

if TYPE_CHECKING:
    from replicate.config import PretrainRun, SegmentRun

BIAS_TABLE = "relative_position_bias_table"
NEW = (BIAS_TABLE, "ls1.gamma", "ls2.gamma")
"""Parameters of a block that transfer adds: no pre-training has them."""


def relative_positions(grid: tuple[int, int]) -> Tensor:
    """BEiT's index (1 + h w, 1 + h w) into a table of (2 h - 1) (2 w - 1) + 3 rows.

    The last three rows are for the class token: to a patch, from a patch, and to itself.
    """
    height, width = grid
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    rows, columns = rows.flatten(), columns.flatten()
    between_rows = rows[:, None] - rows[None] + height - 1
    index = between_rows * (2 * width - 1) + columns[:, None] - columns[None] + width - 1
    last = (2 * height - 1) * (2 * width - 1)
    whole = torch.full((1 + len(rows), 1 + len(rows)), last, dtype=torch.long)
    whole[1:, 0], whole[0, 0] = last + 1, last + 2
    whole[1:, 1:] = index
    return whole


class VitTaps(nn.Module):
    """A plain ViT that gives the tokens after some of its blocks as maps: (N, 3, H, W) -> 4 of (N, C, h, w).

    The class token takes part; the last norm does not. Positions are learned here, as in BEiT's code.
    """

    def __init__(
        self, vit: ViT, taps: Sequence[int], relative_bias: bool = True, layer_scale: float | None = None
    ) -> None:
        super().__init__()
        if max(taps) >= len(vit.blocks):
            raise UserError(f"taps {list(taps)}: the encoder has blocks 0 to {len(vit.blocks) - 1}")
        self.vit, self.taps = vit, tuple(taps)
        self.channels = (vit.embed_dim,) * len(self.taps)
        vit.norm = nn.Identity()
        vit.pos_embed.requires_grad = True
        self.grid: tuple[int, int] = tuple(vit.patch_embed.grid_size)
        if layer_scale is not None:
            for block in vit.blocks:
                block.ls1, block.ls2 = (LayerScale(vit.embed_dim, layer_scale) for _ in range(2))
        if relative_bias:
            rows = (2 * self.grid[0] - 1) * (2 * self.grid[1] - 1) + 3
            for block in vit.blocks:
                table = nn.Parameter(torch.zeros(rows, block.attn.num_heads))
                block.attn.register_parameter(BIAS_TABLE, table)
            self.register_buffer("positions", relative_positions(self.grid), persistent=False)

    def forward(self, images: Tensor) -> list[Tensor]:
        tokens = self.vit.norm_pre(self.vit._pos_embed(self.vit.patch_embed(images)))
        found: dict[int, Tensor] = {}
        for number, block in enumerate(self.vit.blocks):
            tokens = block(tokens, attn_mask=self._bias(block.attn, tokens.dtype))
            if number in self.taps:
                found[number] = tokens[:, 1:].transpose(1, 2).unflatten(2, self.grid)
        return [found[tap] for tap in self.taps]

    def _bias(self, attention: nn.Module, dtype: torch.dtype) -> Tensor | None:
        """(1, heads, tokens, tokens), added to the attention's logits."""
        table = getattr(attention, BIAS_TABLE, None)
        return None if table is None else table[self.positions].permute(2, 0, 1)[None].to(dtype)

    def load(self, state: dict[str, Tensor], path: str, antialias: bool = True) -> None:
        """Load a pre-trained encoder; what transfer adds stays new. Raises UserError for another model's."""
        own = {name: tensor for name, tensor in self.vit.state_dict().items() if name.endswith(NEW)}
        wanted = self.vit.state_dict().keys() - own.keys()
        load_encoder(self.vit, without_prefixes(state, wanted) | own, path, antialias=antialias)

    def parameter_groups(self, weight_decay: float, layer_decay: float) -> list[dict[str, Any]]:
        """Groups with `lr_scale`: the head's level is one above the last block's."""
        return below_head(decayed_groups(self.vit, weight_decay, layer_decay), layer_decay)


class StageTaps(nn.Module):
    """A hierarchy's maps, each normalised: (N, 3, H, W) -> 4 of (N, C_i, H / s_i, W / s_i)."""

    def __init__(self, backbone: nn.Module, channels: Sequence[int]) -> None:
        super().__init__()
        self.backbone, self.channels = backbone, tuple(channels)
        if hasattr(backbone, "norm"):
            backbone.norm = nn.Identity()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for width in self.channels)

    def forward(self, images: Tensor) -> list[Tensor]:
        maps = self.backbone.stage_maps(images)[-len(self.channels) :]
        pairs = zip(self.norms, maps, strict=True)
        return [norm(map_.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) for norm, map_ in pairs]

    def load(self, state: dict[str, Tensor], path: str, antialias: bool = True) -> None:
        load_encoder(self.backbone, state, path, antialias=antialias)

    def parameter_groups(self, weight_decay: float, layer_decay: float) -> list[dict[str, Any]]:
        groups = below_head(decayed_groups(self.backbone, weight_decay, layer_decay), layer_decay)
        return groups + decayed_groups(self.norms, weight_decay, 1.0)


def below_head(groups: list[dict[str, Any]], layer_decay: float) -> list[dict[str, Any]]:
    """An encoder's groups one level down, for a head that lies outside the encoder."""
    return [group | {"lr_scale": group["lr_scale"] * layer_decay} for group in groups]


def build_taps(source: PretrainRun, run: SegmentRun) -> VitTaps | StageTaps:
    """The encoder of a pre-training as segmentation reads it, untrained, at the run's image size."""
    name, kwargs = source.backbone, source.backbone_kwargs
    if is_plain_vit(name, kwargs):
        numbers = vit_backbone(name, **kwargs).kwargs
        vit = ViT(run.image_size, **numbers, drop_path=run.drop_path)
        return VitTaps(vit, run.taps, run.relative_bias, run.layer_scale)
    if not is_hierarchy(name):
        raise UserError(f"backbone {name!r}: UperNet takes a plain ViT or a hierarchy of FastMIM Table 4")
    backbone = hierarchy_backbone(source, run.image_size, run.drop_path, run.window)
    return StageTaps(backbone, hierarchy(name, **kwargs).dims)


def hierarchy_backbone(
    source: PretrainRun, image_size: int, drop_path: float, window: int | None = None
) -> nn.Module:
    """A pre-training's hierarchy at another image size, with the numbers of `stage_numbers`."""
    numbers = stage_numbers(source, image_size, window)
    return build_backbone(source.backbone, image_size, drop_path=drop_path, **numbers)


def stage_numbers(source: PretrainRun, image_size: int, window: int | None) -> dict[str, Any]:
    """What builds a hierarchy at another image size.

    window  tokens a side of Swin's windows; None: the pre-training's own rule. Others have no windows.
    """
    kwargs = dict(source.backbone_kwargs)
    numbers = hierarchy(source.backbone, **kwargs)
    if window is not None and "windows_across" in numbers.options:
        kwargs["windows_across"] = image_size / numbers.patch_size / window
    return kwargs

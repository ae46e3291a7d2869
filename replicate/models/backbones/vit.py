"""The Vision Transformer as an encoder of all tokens (FastMIM A.3.2): class token, fixed sine-cosine positions, last norm."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

import replicate.compat  # noqa: F401
from replicate.models.backbones.features import FeatureMap
from replicate.models.backbones.resample import replace_data
from replicate.models.pos_embed import resample_pos_embed, sincos_2d
from replicate.models.resized import Resized
from replicate.patches import grid_of, pair

from timm.models.vision_transformer import VisionTransformer  # isort: skip  (after replicate.compat)


class ViT(FeatureMap, VisionTransformer):
    """timm's Vision Transformer without a head, initialised as MAE is."""

    def __init__(self, image_size: tuple[int, int], patch_size: int, embed_dim: int, depth: int, num_heads: int, **kwargs) -> None:
        super().__init__(
            img_size=image_size,
            patch_size=patch_size,
            embed_dim=embed_dim,
            depth=depth,
            num_heads=num_heads,
            num_classes=0,
            global_pool="",
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
            **kwargs,
        )
        self.stride = patch_size
        self._built_grid = grid_of(image_size, patch_size)
        with torch.no_grad():
            self.pos_embed.copy_(sincos_2d(embed_dim, self._built_grid))
        self.pos_embed.requires_grad = False
        initialize(self)

    def set_input_size(self, img_size: int | tuple[int, int]) -> Resized:
        """Resamples the fixed table of the size that the model was built for: the way to a size never matters."""
        super(FeatureMap, self).set_input_size(img_size=pair(img_size))
        grid = grid_of(img_size, self.stride)
        table = resample_pos_embed(sincos_2d(self.embed_dim, self._built_grid), self._built_grid, grid)
        resized: Resized = {}
        replace_data(self.pos_embed, lambda old: table.to(old), resized)
        return resized


def initialize(model: nn.Module) -> None:
    """Xavier-uniform on every matrix, the patch projection as one, and N(0, .02) on the class token (MAE, appendix A.1)."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    if hasattr(model, "patch_embed"):
        nn.init.xavier_uniform_(model.patch_embed.proj.weight.data.flatten(1))
        nn.init.zeros_(model.patch_embed.proj.bias)
        nn.init.normal_(model.cls_token, std=0.02)

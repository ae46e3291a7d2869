"""The plain Vision Transformer, as an encoder of all tokens (FastMIM A.3.2) and as a classifier (MAE)."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from timm.layers import resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from replicate.errors import UserError
from replicate.models.features import FeatureMap, Size, xavier_linear
from replicate.models.pos_embed import class_row_missing, sincos_2d, sincos_grid
from replicate.models.prediction import check_choice
from replicate.models.resample import trained_grid
from replicate.models.resized import Resized, replace_data
from replicate.patches import grid_of, pair


class ViT(FeatureMap, VisionTransformer):
    """timm's Vision Transformer, so that timm's tools apply, initialised as MAE is.

    num_classes  0: an encoder with fixed sine-cosine positions and its last norm
    pool         of a classifier: "avg" averages the patch tokens, then normalises (`fc_norm`); "token" takes
                 the class token after the last norm

    A classifier takes images of any size that the patch divides: it resamples its learned position embeddings
    in every pass, so that a resolution stage keeps the parameters and the optimiser's state. Its head starts
    at trunc-normal 2e-5, as in the reference.
    """

    decoded_prefix = 1

    def __init__(
        self,
        image_size: int | Size,
        patch_size: int,
        num_classes: int = 0,
        drop_path: float = 0.0,
        pool: str = "avg",
        **kwargs: Any,
    ) -> None:
        grid_of(image_size, patch_size)  # refuses a size that does not fit
        check_choice("pool", pool, ("avg", "token"))
        super().__init__(
            img_size=image_size,
            patch_size=patch_size,
            num_classes=num_classes,
            global_pool=pool if num_classes else "",
            drop_path_rate=drop_path,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
            dynamic_img_size=bool(num_classes),
            **kwargs,
        )
        self.stride, self._built_grid = patch_size, grid_of(image_size, patch_size)
        self._initialize()

    def _initialize(self) -> None:
        """Xavier-uniform matrices (MAE, appendix A.1); the positions of an encoder are fixed."""
        if not self.num_classes:
            with torch.no_grad():
                self.pos_embed.copy_(sincos_2d(self.embed_dim, self._built_grid))
            self.pos_embed.requires_grad = False
        xavier_linear(self.blocks)
        nn.init.xavier_uniform_(self.patch_embed.proj.weight.data.flatten(1))
        nn.init.zeros_(self.patch_embed.proj.bias)
        if self.num_classes:
            init_head(self, 2e-5)
        else:
            nn.init.normal_(self.cls_token, std=0.02)

    def set_input_size(self, img_size: int | Size) -> Resized:
        """Take images of another size; an encoder resamples the table of the size that it was built for."""
        old_grid, grid = self.patch_embed.grid_size, grid_of(img_size, self.stride)
        if self.num_classes:
            resample = partial(resample_abs_pos_embed, new_size=list(grid), old_size=list(old_grid))
        else:
            table = resample_abs_pos_embed(
                sincos_2d(self.embed_dim, self._built_grid), list(grid), list(self._built_grid)
            )
            resample = table.to
        resized: Resized = {}
        self.patch_embed.set_input_size(pair(img_size))
        replace_data(self.pos_embed, resample, resized)
        return resized

    def fit_state(
        self, state: dict[str, Tensor], trained_at: Size | None = None, antialias: bool = True
    ) -> dict[str, Tensor]:
        """Position embeddings of another grid, resampled.

        The grid of a sine-cosine table is inferred from its values.
        """
        table = state.get("pos_embed")
        if table is None or table.ndim != 3 or table.shape[-1] != self.embed_dim:
            return state
        if class_row_missing(table):
            raise UserError("pos_embed has no row for a class token, which the model needs")
        own = tuple(self.patch_embed.grid_size)
        stated = sincos_grid(table) if trained_at is None else grid_of(trained_at, self.stride)
        old = trained_grid(table.shape[1] - 1, own, stated)
        return state | {"pos_embed": resample_abs_pos_embed(table, list(own), list(old), antialias=antialias)}


def init_head(classifier: nn.Module, std: float) -> None:
    """Initialise the head's weights from a trunc-normal of this standard deviation, and zero its bias.

    The reference's 2e-5 keeps the loss from the encoder until the head has grown. That costs a hundred epochs
    nothing, but it costs a few epochs much.
    """
    heads = classifier.get_classifier()
    for head in heads if isinstance(heads, tuple) else (heads,):  # DeiT's distilled models have two
        layer = [part for part in head.modules() if isinstance(part, nn.Linear | nn.Conv2d)][-1]
        nn.init.trunc_normal_(layer.weight, std=std)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


def freeze_for_partial(classifier: nn.Module, blocks: float) -> list[str]:
    """Leave only the last `blocks` blocks trainable (MAE, section 4.3); returns the names that train.

    0      the head alone (fc_norm stays as initialised)
    0.5    norm2 and MLP of the last block, fc_norm and the head
    k      the last k blocks, fc_norm and the head
    depth  everything, also patch projection, class token and position embeddings

    Raises UserError for any other number.
    """
    depth = len(classifier.blocks)
    if blocks != 0.5 and (blocks != int(blocks) or not 0 <= blocks <= depth):
        choices = f"choose 0, 0.5 or a whole number up to the model's depth, {depth}"
        raise UserError(f"blocks {blocks} cannot be tuned: {choices}")
    prefixes = ["head."]
    if blocks > 0:
        prefixes += ["fc_norm.", "norm."]
    if blocks == 0.5:
        prefixes += [f"blocks.{depth - 1}.norm2.", f"blocks.{depth - 1}.mlp."]
    else:
        prefixes += [f"blocks.{index}." for index in range(depth - int(blocks), depth)]
    trainable = []
    for name, parameter in classifier.named_parameters():
        parameter.requires_grad = blocks == depth or name.startswith(tuple(prefixes))
        if parameter.requires_grad:
            trainable.append(name)
    return trainable

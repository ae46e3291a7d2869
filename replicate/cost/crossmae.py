"""CrossMAE's pre-training: multiply-adds in closed form, memory and parameters counted on the meta device."""

from __future__ import annotations

import functools
from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING, Any

import torch

from replicate.config.backbones import vit_backbone
from replicate.cost.counted import Count, count
from replicate.cost.image_cost import TRAINED, ImageCost
from replicate.cost.macs import NORM, Macs, mae_macs
from replicate.cost.shapes import shapes_only
from replicate.cost.target_dim import target_dim
from replicate.masking import num_visible
from replicate.patches import grid_of

if TYPE_CHECKING:
    from replicate.config import PretrainRun


def crossmae_macs(
    *,
    image_size: int | tuple[int, int] = 224,
    patch_size: int = 16,
    decoder_embed_dim: int = 512,
    decoder_depth: int = 12,
    target_dim: int | None = None,
    mask_ratio: float = 0.75,
    prediction_ratio: float | None = None,
    last_features_only: bool = False,
    **vit: int,
) -> Macs:
    """Multiply-adds of one image's forward pass, as `replicate.cost.macs` counts them.

    The arguments are `CrossMAE`'s; `vit` holds embed_dim, depth and num_heads. The encoder projects visible
    patches alone, as it does here.
    """
    from replicate.models.crossmae import num_predicted

    patches, width = prod(grid_of(image_size, patch_size)), decoder_embed_dim
    tokens = 1 + num_visible(patches, mask_ratio)
    queries = num_predicted(patches, mask_ratio, prediction_ratio)
    values = patch_size**2 * 3 if target_dim is None else target_dim

    block = queries * width**2 * (1 + 1 + 8)  # query and output projections, MLP
    block += tokens * vit["embed_dim"] * 2 * width  # keys and values
    block += 2 * queries * tokens * width + 2 * NORM * queries * width
    if not last_features_only:
        block += (1 + vit["depth"] + NORM) * tokens * vit["embed_dim"]  # mixes all maps, normalises the mix
    decoder = decoder_depth * block + queries * width * (NORM + values)

    sizes = {"image_size": image_size, "patch_size": patch_size, "mask_ratio": mask_ratio, **vit}
    return Macs(mae_macs(**sizes, project_masked=False).encoder, decoder)


def crossmae_cost(run: PretrainRun, bytes_per_value: int) -> ImageCost:
    """A step of CrossMAE on one image."""
    sizes = vit_backbone(run.backbone, **run.backbone_kwargs).kwargs | {
        "image_size": run.image_size,
        "mask_ratio": run.mask_ratio,
        "decoder_embed_dim": run.decoder_width,
        "decoder_depth": run.decoder_depth,
        "target_dim": target_dim(run, run.patch_size),
        "prediction_ratio": run.prediction_ratio,
        "last_features_only": run.last_features_only,
    }
    macs = crossmae_macs(**sizes).total
    counted = _counted(**sizes).as_cost(bytes_per_value)
    return replace(counted, macs=TRAINED * macs, forward=macs)


@functools.cache
def _counted(image_size: int, decoder_embed_dim: int, **sizes: Any) -> Count:
    from replicate.models.crossmae import CrossMAE

    heads = max(1, decoder_embed_dim // 32)
    with shapes_only():
        model = CrossMAE(image_size, decoder_embed_dim=decoder_embed_dim, decoder_num_heads=heads, **sizes)
    noise = torch.empty(1, model.num_patches, device="meta")
    return count(model, image_size, lambda images: model(images, noise).pred)

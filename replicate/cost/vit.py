"""Costs of Vision Transformers by their closed forms: MAE's pre-training, and evaluations."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from replicate.config.backbones import vit_backbone
from replicate.cost.activations import classifier_activations, mae_activations
from replicate.cost.image_cost import FROZEN, TRAINED, EncoderCost, ImageCost
from replicate.cost.macs import classifier_macs, mae_macs
from replicate.cost.parameters import block_parameters, classifier_parameters, mae_parameters
from replicate.cost.target_dim import target_dim
from replicate.masking import num_visible

if TYPE_CHECKING:
    from replicate.config import EvaluateRun, PretrainRun

SAMPLED_MASKS = 256


def mae_cost(run: PretrainRun, bytes_per_value: int) -> ImageCost:
    """A step of MAE; decoder masking counts the patches that it leaves on average."""
    vit = vit_backbone(run.backbone, **run.backbone_kwargs).kwargs
    patch, side = vit["patch_size"], run.image_size // vit["patch_size"]
    shared = {
        "decoder_embed_dim": run.decoder_width,
        "decoder_depth": run.decoder_depth,
        "target_dim": target_dim(run, patch),
    }
    sizes = {
        "image_size": run.image_size,
        **vit,
        **shared,
        "mask_tokens_in_encoder": run.mask_tokens_in_encoder,
    }
    beta, kept = run.decoder_beta, None
    if beta is not None:
        kept = decoded_patches(run.mask, run.mask_ratio, side, patch, beta)
    macs = mae_macs(**sizes, mask_ratio=run.mask_ratio, kept=kept, project_masked=False).total
    parameters = mae_parameters(**sizes).total
    positions = (1 + side**2) * (vit["embed_dim"] + run.decoder_width)
    activations = mae_activations(
        patches=side**2,
        visible=side**2 if run.mask_tokens_in_encoder else num_visible(side**2, run.mask_ratio),
        embed_dim=vit["embed_dim"],
        depth=vit["depth"],
        num_heads=vit["num_heads"],
        patch_values=patch**2 * 3,
        kept=kept,
        bytes_per_value=bytes_per_value,
        **shared,
    )
    blocks = vit["depth"] + run.decoder_depth
    return ImageCost(TRAINED * macs, macs, parameters, parameters - positions, activations, blocks)


def mae_encoder_cost(run: PretrainRun, image_size: int) -> EncoderCost:
    """A run's encoder on a whole image."""
    vit = vit_backbone(run.backbone, **run.backbone_kwargs).kwargs
    macs = classifier_macs(image_size=image_size, num_classes=0, **vit)
    return EncoderCost(macs, vit["embed_dim"], (image_size // vit["patch_size"]) ** 2, vit["depth"])


def classifier_cost(
    run: EvaluateRun, source: PretrainRun, num_classes: int, bytes_per_value: int
) -> ImageCost:
    """An evaluation of a plain ViT: blocks that are not tuned run forward only."""
    vit = vit_backbone(source.backbone, **source.backbone_kwargs).kwargs
    width, depth, size = (
        vit["embed_dim"],
        vit["depth"],
        {"image_size": run.image_size, "num_classes": num_classes},
    )
    forward, parameters = classifier_macs(**size, **vit), classifier_parameters(**size, **vit)
    tuned = 0 if run.protocol != "finetune" else depth if run.tuned_blocks is None else run.tuned_blocks
    trained, trainable = forward, parameters
    if tuned != depth:
        trained = forward * tuned / depth
        trainable = int(tuned * block_parameters(width)) + (width + 1) * num_classes
    activations = classifier_activations(
        patches=(run.image_size // vit["patch_size"]) ** 2,
        embed_dim=width,
        depth=tuned,
        num_heads=vit["num_heads"],
        bytes_per_value=bytes_per_value,
    )
    macs = FROZEN * forward + (TRAINED - FROZEN) * trained
    return ImageCost(macs, forward, parameters, trainable, activations, depth)


@functools.cache
def decoded_patches(mask: str, mask_ratio: float, side: int, patch_size: int, beta: float) -> float:
    """Mean number of masked patches within `beta` pixels of P2Dist (Efficient MAE, section 4.2)."""
    import torch

    from replicate.difficulty import p2dist
    from replicate.masking import sample_mask

    noise = torch.rand(SAMPLED_MASKS, side * side, generator=torch.Generator().manual_seed(0))
    masked = sample_mask(mask, noise, mask_ratio, (side, side)).mask
    near = (p2dist(masked, (side, side), patch_size) <= beta) & (masked > 0)
    return float(near.sum(dim=1).float().mean())

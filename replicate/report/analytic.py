"""Multiply-adds and parameters of the models that several papers print."""

from __future__ import annotations

import functools
from typing import Any

from replicate.errors import UserError

CLASSES = 1000
VITS = {"ViT-S": "small_patch16", "ViT-B": "base_patch16", "ViT-L": "large_patch16", "ViT-H": "huge_patch14"}
"""Vision Transformers as the papers call them."""

HIERARCHIES = {
    "Swin-B": "swin_base",
    "Swin-L": "swin_large",
    "Twins-L": "twins_svt_large",
    "PVTv1-L": "pvt_large",
    "PVTv2-B2": "pvt_v2_b2",
    "PVTv2-B5": "pvt_v2_b5",
    "ConvNeXt-T": "convnext_tiny",
    "ConvNeXt-B": "convnext_base",
    "ConvNeXtV2-B": "convnextv2_base",
    "CMT-S": "cmt_small",
    "CMT-B": "cmt_base",
}
"""The other backbones as the papers call them."""

INITIALISERS = ("uniform_", "normal_", "erfinv_", "mul_", "add_", "clamp_", "fill_", "zero_")
"""In-place operations that only set initial values; on a model without memory they take most of the time."""


def vit_sizes(name: str) -> dict[str, Any]:
    """Width, depth, heads and patch size of "ViT-L" or "ViT-H/14"."""
    from replicate.config.backbones import vit_backbone

    return dict(vit_backbone("vit_" + VITS[name.partition("/")[0]]).kwargs)


def run_sizes(run: Any) -> dict[str, Any]:
    """Shape of a masked autoencoder's run, stated or resolved, as `replicate.cost` counts it."""
    from replicate.config.backbones import vit_backbone

    sizes = dict(vit_backbone(run.backbone, **run.backbone_kwargs).kwargs)
    sizes |= {"decoder_embed_dim": run.decoder_width, "decoder_depth": run.decoder_depth}
    return sizes | {"image_size": run.image_size, "mask_tokens_in_encoder": run.mask_tokens_in_encoder}


def run_macs(run: Any, kept: float | None = None) -> float:
    """Multiply-adds of an image's forward pass through a run's model; `kept` as in `mae_macs`."""
    from replicate.cost import macs

    return macs.mae_macs(mask_ratio=run.mask_ratio, kept=kept, **run_sizes(run)).total


@functools.cache
def mae_macs(name: str, mask_ratio: float, kept: float | None = None, mask_tokens_in_encoder: bool = False):
    """Multiply-adds of one image's forward pass through a masked autoencoder with the default decoder.

    `kept` is the number of masked patches that the decoder gets, None for all.
    """
    from replicate.cost import macs

    options = {"mask_ratio": mask_ratio, "kept": kept, "mask_tokens_in_encoder": mask_tokens_in_encoder}
    return macs.mae_macs(**vit_sizes(name), **options)


def parameters(backbone: str) -> tuple[float, float]:
    """Millions of parameters of the encoder alone and with a classifier of 1000 classes.

    Papers do not say which of the two they count. Raises UserError for an unknown backbone.
    """
    name = backbone.partition("/")[0].replace("-b", "-B")
    encoder, head = _vit_parameters(name) if name in VITS else _hierarchy_parameters(name)
    return encoder / 1e6, (encoder + head) / 1e6


def _vit_parameters(name: str) -> tuple[int, int]:
    from replicate.cost.parameters import classifier_parameters

    encoder, whole = (classifier_parameters(num_classes=n, **vit_sizes(name)) for n in (0, CLASSES))
    return encoder, whole - encoder


@functools.cache
def _hierarchy_parameters(name: str) -> tuple[int, int]:
    """Encoder and head, counted on a model that is built without memory and without initial values."""
    import torch
    from torch.overrides import TorchFunctionMode

    from replicate.config.backbones import Backbone
    from replicate.cost.parameters import count_parameters
    from replicate.models.build import build_classifier

    class NoInitialValues(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            if getattr(function, "__name__", "") in INITIALISERS:
                return args[0] if args else kwargs["tensor"]
            return function(*args, **(kwargs or {}))

    if name not in HIERARCHIES:
        known = ", ".join([*VITS, *HIERARCHIES])
        raise UserError(f"papers/*/values.csv: unknown backbone {name!r}; known: {known}")
    with torch.device("meta"), NoInitialValues():
        model = build_classifier(Backbone(HIERARCHIES[name]), CLASSES)
    heads = [p for p in model.modules() if isinstance(p, torch.nn.Linear) and p.out_features == CLASSES]
    head = count_parameters(heads[-1])
    return count_parameters(model) - head, head

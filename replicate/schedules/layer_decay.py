"""Layer-wise learning-rate decay (LLRD): the deeper the layer, the larger its step.

MAE Are Secretly Efficient Learners, Eq. 1: the i-th of h layers learns at lr * alpha ** (h - i). A ViT of 12 blocks has 14 levels:
the embeddings are level 0, block i is level i, and the norm and head before the logits are level 13 with scale 1.
"""

from __future__ import annotations

from typing import Any

from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from torch import nn


def decayed_groups(model: nn.Module, weight_decay: float, layer_decay: float) -> list[dict[str, Any]]:
    """Parameter groups with an `lr_scale` each; no weight decay on biases, 1-D parameters, class token and position embedding.

    With layer_decay 1.0 every group has scale 1. Frozen parameters are in no group.
    """
    exempt = tuple(model.no_weight_decay()) if hasattr(model, "no_weight_decay") else ()
    return param_groups_layer_decay(model, weight_decay=weight_decay, no_weight_decay_list=exempt, layer_decay=layer_decay)


def plain_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Pre-training's groups: no weight decay on biases and 1-D parameters; class and mask tokens ARE decayed, as in the reference."""
    return param_groups_weight_decay(model, weight_decay=weight_decay)


def layer_scales(depth: int, layer_decay: float) -> list[float]:
    """The `depth + 2` scales from the embeddings to the head, for tables and pictures."""
    return [layer_decay ** (depth + 1 - level) for level in range(depth + 2)]

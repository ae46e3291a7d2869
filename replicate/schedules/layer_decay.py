"""Layer-wise learning-rate decay (LLRD): the deeper the layer, the larger its step.

MAE Are Secretly Efficient Learners, Eq. 1: layer i of h learns at lr * alpha ** (h - i). The embeddings are
level 0, block i is level i, and the final norm and the head are level depth + 1 with scale 1. A ViT of 12
blocks has 14 levels. A hierarchy counts the blocks of all its stages, as FastMIM's code does: PVTv2-b2 has 16
blocks and so 18 levels.
"""

from __future__ import annotations

import re
from fnmatch import fnmatch
from typing import Any

from timm.models import group_parameters
from torch import nn

_BLOCK = re.compile(
    r"(?:(?:stages|layers|levels)\.(\d+)\.(?:\w+\.)?\w*blocks"  # stages.S.blocks.B
    r"|blocks\.(\d+)(?=\.\d+\.(?!fn|weight|bias))|blocks"  # blocks.S.B (not a ConvMixer's), blocks.B
    r"|stages\.(\d+)|layer(\d+))\.(\d+)\."  # stages.S.B, layerS.B
)
_OF_STAGE = re.compile(r"(?:stages|layers|levels|patch_embeds|pos_block)\.(\d+)\.")
_DOWNSAMPLING_WITH_NEXT_BLOCK = {"ConvNeXt", "CMT"}
"""By their official code. In that of Swin and PVTv2 a stage's downsampling belongs to the block before it."""


def layer_levels(model: nn.Module) -> dict[str, int]:
    """The level of every parameter by its name.

    0 is the embeddings, i block i, depth + 1 the final norm and the head. What else a stage has counts with a
    neighbouring block. Where timm's own groups of a model are finer than its blocks, they are the levels.
    """
    names = [name for name, _ in model.named_parameters()]
    blocks = {name: _stage_and_block(match) for name in names if (match := _BLOCK.match(name))}
    number = {block: level for level, block in enumerate(sorted(set(blocks.values())), start=1)}
    timms = _timms_levels(model)
    if len(set(timms.values())) > len(number) + 2:
        return timms
    with_next = any(kind.__name__ in _DOWNSAMPLING_WITH_NEXT_BLOCK for kind in type(model).__mro__)
    top, levels, begun = len(number) + 1, {}, set()
    for name in names:
        if name in blocks:
            levels[name] = number[blocks[name]]
            begun.add(blocks[name][0])
        elif match := _OF_STAGE.match(name):
            stage = int(match[1])
            before, last = (sum(block[0] < limit for block in number) for limit in (stage, stage + 1))
            final = "norm" in name and last == len(number)
            if name.startswith("pos_block"):  # in Twins it follows the first block of its stage
                levels[name] = before + 1
            elif stage in begun:
                levels[name] = top if final else last
            else:
                levels[name] = before + with_next
        else:
            levels[name] = top if begun else 0
    return levels


def _stage_and_block(match: re.Match[str]) -> tuple[int, int]:
    *stage, block = match.groups()
    return next((int(number) for number in stage if number), 0), int(block)


def _timms_levels(model: nn.Module) -> dict[str, int]:
    matcher = getattr(model, "group_matcher", None)
    return group_parameters(model, matcher(), reverse=True) if matcher else {}


def decayed_groups(model: nn.Module, weight_decay: float, layer_decay: float) -> list[dict[str, Any]]:
    """Fine-tuning's parameter groups, each with its `lr_scale`; frozen parameters are in none.

    Weight decay is 0 for biases, 1-D parameters and what `model.no_weight_decay()` names (class token,
    position embeddings). With layer_decay 1.0 every group has scale 1.
    """
    exempt = tuple(model.no_weight_decay()) if hasattr(model, "no_weight_decay") else ()
    levels = layer_levels(model)
    top = max(levels.values())
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        decays = parameter.ndim > 1 and not any(fnmatch(name, pattern) for pattern in exempt)
        fresh = {
            "lr_scale": layer_decay ** (top - levels[name]),
            "weight_decay": weight_decay * decays,
            "params": [],
        }
        groups.setdefault((levels[name], decays), fresh)["params"].append(parameter)
    return list(groups.values())


def plain_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Pre-training's groups: no weight decay on biases and 1-D parameters, but on class and mask tokens.

    MAE's and FastMIM's code decay both tokens. FastMIM's mask token has shape (1, 3, 1, 1) there, so a token
    of three numbers is no 1-D parameter.
    """
    exempt, decayed = [], []
    for name, parameter in model.named_parameters():
        token = name.endswith(("cls_token", "mask_token"))
        decays = token or (parameter.ndim > 1 and not name.endswith(".bias"))
        if parameter.requires_grad:
            (decayed if decays else exempt).append(parameter)
    groups = {"params": exempt, "weight_decay": 0.0}, {"params": decayed, "weight_decay": weight_decay}
    return [group for group in groups if group["params"]]


def layer_scales(depth: int, layer_decay: float) -> list[float]:
    """The `depth + 2` scales from the embeddings to the head, for tables and pictures."""
    return [layer_decay ** (depth + 1 - level) for level in range(depth + 2)]

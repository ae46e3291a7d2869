"""The encoder of DALL-E's discrete VAE (Ramesh et al. 2021), the tokenizer of BEiT and of MAE's Table 1d.

Four groups of residual blocks with max pooling between them; stride 8, 8,192 tokens. This project does not
include its weights.
"""

from __future__ import annotations

import re
from collections import OrderedDict

import torch
from torch import Tensor, nn

from replicate.errors import UserError
from replicate.loaders.pixels import IMAGENET_MEAN, IMAGENET_STD

_MARGIN = 0.1  # maps pixels from 0..1 to .1 .. .9, where the model's logit-Laplace likelihood is defined
_WIDENING = (1, 2, 4, 8)


class EncoderBlock(nn.Module):
    """A bottleneck of three 3x3 convolutions and one 1x1, scaled by 1 / layers**2 and added to the input."""

    def __init__(self, inputs: int, outputs: int, layers: int) -> None:
        super().__init__()
        hidden = outputs // 4
        self.gain = 1 / layers**2
        self.id_path = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()
        widths = (inputs, hidden, hidden, hidden, outputs)
        path = OrderedDict()
        for number in range(1, 5):
            size = 3 if number < 4 else 1
            path[f"relu_{number}"] = nn.ReLU()
            path[f"conv_{number}"] = nn.Conv2d(widths[number - 1], widths[number], size, padding=size // 2)
        self.res_path = nn.Sequential(path)

    def forward(self, x: Tensor) -> Tensor:
        return self.id_path(x) + self.gain * self.res_path(x)


class DalleEncoder(nn.Module):
    """Images in the normalised space -> tokens, one for every 8x8 pixels."""

    stride = 2 ** (len(_WIDENING) - 1)

    def __init__(self, width: int = 256, vocabulary: int = 8192, blocks_per_group: int = 2) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        layers = len(_WIDENING) * blocks_per_group
        blocks = OrderedDict(input=nn.Conv2d(3, width, 7, padding=3))
        inputs = width
        for group, factor in enumerate(_WIDENING, 1):
            members = OrderedDict()
            for number in range(1, blocks_per_group + 1):
                members[f"block_{number}"] = EncoderBlock(inputs, factor * width, layers)
                inputs = factor * width
            if group < len(_WIDENING):
                members["pool"] = nn.MaxPool2d(2)
            blocks[f"group_{group}"] = nn.Sequential(members)
        blocks["output"] = nn.Sequential(OrderedDict(relu=nn.ReLU(), conv=nn.Conv2d(inputs, vocabulary, 1)))
        self.blocks = nn.Sequential(blocks)

    @torch.no_grad()
    def ids(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, H / 8 * W / 8) int64 tokens in raster order."""
        mean, std = (images.new_tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
        pixels = images * std + mean
        return self.blocks((1 - 2 * _MARGIN) * pixels.clamp(0, 1) + _MARGIN).argmax(dim=1).flatten(1)


def from_state(state: dict[str, Tensor], path: str) -> DalleEncoder:
    """The encoder that a state dict describes, by its shapes. Raises UserError if a tensor is missing."""
    state = {_our_name(name): tensor for name, tensor in state.items() if name.startswith("blocks.")}
    blocks = {match[1] for name in state if (match := re.match(r"blocks\.group_1\.block_(\d+)\.", name))}
    try:
        width, vocabulary = len(state["blocks.input.weight"]), len(state["blocks.output.conv.weight"])
        encoder = DalleEncoder(width, vocabulary, len(blocks))
        encoder.load_state_dict(state)
    except (KeyError, RuntimeError) as error:
        reason = str(error).splitlines()[-1].strip()
        raise UserError(f"{path} is no complete encoder of DALL-E's discrete VAE: {reason}") from None
    return encoder


def _our_name(name: str) -> str:
    """The release calls parameters w and b; FLAVA's copy nests them under `group` and `path`."""
    name = name.replace(".group.", ".").replace(".path.", ".")
    return re.sub(r"\.b$", ".bias", re.sub(r"\.w$", ".weight", name))

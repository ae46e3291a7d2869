"""Costs counted operator by operator on the meta device, for models without a closed form."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from replicate.config.backbones import Backbone
from replicate.cost.image_cost import FROZEN, TRAINED, EncoderCost, ImageCost
from replicate.cost.parameters import count_parameters
from replicate.cost.shapes import MultiplyAdds, shapes_only
from replicate.cost.target_dim import target_dim
from replicate.models.activations import activation_bytes

if TYPE_CHECKING:
    from replicate.config import EvaluateRun, PretrainRun, TokenizerRun

LOW_PRECISION = 0.6
"""Bytes kept under autocast over those kept in float32, about."""
LEAST_CALLS = 12
"""Convolutional networks have no attention to count; they call about as many operators as a ViT-B."""


@dataclass(frozen=True)
class Count:
    """One image through a module in float32. attentions: layers of attention that it passes."""

    macs: float
    activations: float
    parameters: int
    trainable: int
    attentions: int

    def __add__(self, other: Count) -> Count:
        return Count(*(mine + theirs for mine, theirs in zip(astuple(self), astuple(other), strict=True)))

    @property
    def calls(self) -> int:
        return max(LEAST_CALLS, self.attentions)

    def as_cost(self, bytes_per_value: int) -> ImageCost:
        """The cost of a step; without trainable parameters it is a forward pass."""
        passes = TRAINED if self.trainable else FROZEN
        kept = self.activations * (1.0 if bytes_per_value == 4 else LOW_PRECISION)
        return ImageCost(passes * self.macs, self.macs, self.parameters, self.trainable, kept, self.calls)


def count(model: nn.Module, image_size: int, forward: Callable[[torch.Tensor], Any]) -> Count:
    """Count `forward(images)` of a model on the meta device; what it returns does not matter."""
    images = torch.empty(1, 3, image_size, image_size, device="meta")
    with MultiplyAdds() as counter:
        kept = activation_bytes(lambda: forward(images), [*model.parameters(), *model.buffers()])
    attentions = sum(type(module).__name__.endswith("Attention") for module in model.modules())
    return Count(counter.total, kept, count_parameters(model), count_parameters(model, True), attentions)


def mim_cost(run: PretrainRun, bytes_per_value: int) -> ImageCost:
    """A step of a pre-training on masked images. Its encoder is counted once for all decoders and targets."""
    encoder, width, stride, prefix = _encoder(run, run.image_size)
    shape = (run.image_size, width, stride, prefix, target_dim(run, run.patch_size))
    decoder = _mim_decoder(*shape, run.decoder_depth, run.decoder_width, run.mask_unit)
    return (encoder + decoder).as_cost(bytes_per_value)


def mim_encoder_cost(run: PretrainRun, image_size: int) -> EncoderCost:
    """A run's encoder on a whole image."""
    counted, width, stride, _ = _encoder(run, image_size)
    return EncoderCost(counted.macs, width, (image_size // stride) ** 2, counted.calls)


def classifier_cost(
    run: EvaluateRun, source: PretrainRun, num_classes: int, bytes_per_value: int
) -> ImageCost:
    """An evaluation of any backbone. Only fine-tuning trains it."""
    backbone = source.backbone, json.dumps(source.backbone_kwargs)
    trains = run.protocol == "finetune"
    return _classifier(*backbone, num_classes, run.image_size, run.drop_path, trains).as_cost(bytes_per_value)


def tokenizer_training_cost(run: TokenizerRun, bytes_per_value: int) -> ImageCost:
    """A step of a tokenizer's own training."""
    return _tokenizer(*_tokenizer_sizes(run), run.image_size, "rebuilt").as_cost(bytes_per_value)


def token_lookup_cost(tokenizer: TokenizerRun, image_size: int) -> ImageCost:
    """A frozen tokenizer that gives an image its tokens. It keeps nothing for a backward pass."""
    counted = _tokenizer(*_tokenizer_sizes(tokenizer), image_size, "ids")
    return ImageCost(FROZEN * counted.macs, held=counted.parameters, calls=tokenizer.depth)


def _encoder(run: PretrainRun, image_size: int) -> tuple[Count, int, int, int]:
    drop_blocks = run.drop_blocks if isinstance(run.drop_blocks, int) else tuple(run.drop_blocks)
    return _counted_encoder(run.backbone, json.dumps(run.backbone_kwargs), drop_blocks, image_size)


@functools.cache
def _counted_encoder(
    name: str, kwargs: str, drop_blocks: int | tuple, image_size: int
) -> tuple[Count, int, int, int]:
    """(cost, channels, stride, class tokens) of an encoder."""
    from replicate.models.backbones import build_encoder

    with shapes_only():
        encoder = build_encoder(name, image_size, drop_blocks=drop_blocks, **json.loads(kwargs))
    numbers = encoder.num_features, encoder.stride, encoder.num_prefix_tokens
    return count(encoder, image_size, encoder), *numbers


@functools.cache
def _mim_decoder(
    image_size: int,
    width: int,
    stride: int,
    prefix: int,
    values: int,
    depth: int,
    decoder_width: int,
    mask_unit: int | None,
) -> Count:
    """Masking, decoder and head behind last tokens of `width` channels."""
    from replicate.models.mim import MIM

    with shapes_only():
        model = MIM(
            _LastTokens(image_size, width, stride, prefix), values, depth, decoder_width, mask_unit=mask_unit
        )
    noise = torch.empty(1, model.num_patches, device="meta")
    return count(model, image_size, lambda images: model(images, noise).pred)


class _LastTokens(nn.Module):
    """Stands in for an encoder that has been counted already."""

    def __init__(self, image_size: int, width: int, stride: int, prefix: int) -> None:
        super().__init__()
        self.num_features, self.stride, self.num_prefix_tokens = width, stride, prefix
        self.image_size = image_size, image_size

    def tokens(self, images: torch.Tensor) -> torch.Tensor:
        number = self.num_prefix_tokens + (self.image_size[0] // self.stride) ** 2
        return torch.empty(len(images), number, self.num_features, device="meta", requires_grad=True)


@functools.cache
def _classifier(
    name: str, kwargs: str, num_classes: int, image_size: int, drop_path: float, trains: bool
) -> Count:
    from replicate.models.build import build_classifier

    backbone = Backbone(name, json.loads(kwargs))
    with shapes_only():
        model = build_classifier(backbone, num_classes, image_size=image_size, drop_path=drop_path)
    if not trains:
        model.requires_grad_(False)
    return count(model, image_size, model)


def _tokenizer_sizes(run: TokenizerRun) -> tuple[int, ...]:
    return run.patch_size, run.vocabulary, run.width, run.depth, run.code_width


@functools.cache
def _tokenizer(
    patch_size: int, vocabulary: int, width: int, depth: int, code_width: int, image_size: int, method: str
) -> Count:
    """One method of a tokenizer: "rebuilt" decodes what it encodes, "ids" only looks tokens up."""
    from replicate.models.tokenizer import Tokenizer

    with shapes_only():
        model = Tokenizer(patch_size, vocabulary, width, depth, code_width)
    return count(model, image_size, getattr(model, method))

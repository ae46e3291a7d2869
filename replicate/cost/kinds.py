"""What one image of a run costs: multiply-adds, parameters and kept activations, without any memory or arithmetic being spent.

Vision Transformers are in closed form (`macs`, `activations`); any other backbone is built on the meta device, where tensors are shapes, and
counted there. Runs that differ in learning rate, epochs or data cost the same an image and are counted once.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from replicate.config.backbones import is_plain_vit, vit_backbone
from replicate.masking import num_visible

if TYPE_CHECKING:
    from replicate.config import EvaluateRun, PretrainRun, TokenizerRun
    from replicate.cost.beside import Beside, Encoder

TRAINED, FROZEN = 3, 1
"""Passes that a multiply-add of the forward costs: a trained layer's matrix product has two gradients."""
VOCABULARY = 8192
"""Tokens of the released discrete VAE (MAE, Table 6)."""
CLASSES = 1000
"""Of ImageNet-1k, where a caller does not know better."""
SAMPLED_MASKS = 256
SCHEDULE = {
    "paper",
    "dataset",
    "epochs",
    "warmup_epochs",
    "batch_size",
    "base_lr",
    "min_lr",
    "weight_decay",
    "betas",
    "clip_grad",
    "stages",
}
PIXELS = {"crop", "crop_scale", "color_jitter", "interpolation", "flip", "auto_augment", "random_erasing", "mixup", "cutmix"}
LOSS = {"loss_norm", "score_all", "weighting", "weighting_options", "difficulty", "label_smoothing", "layer_decay", "drop_path", "head_std", "ema"}
BESIDE = {"online_probe", "objective", "teacher"}
"""What adds to the model's cost and is counted by itself (`replicate.cost.beside`)."""
NOT_SHAPES = {"paper", "dataset", "keep_weights"} | SCHEDULE | PIXELS | LOSS | BESIDE
"""What never changes the cost of an image in the model; everything else may."""
NOT_SHAPES_IN_IMAGE_SPACE = {"mask", "mask_ratio", "mask_space", "mask_token", "mask_tokens_in_encoder", "target", "target_options", "tokenizer"}
"""A mask drawn on the image leaves the encoder all of its tokens, and of a target only its width counts."""


@dataclass(frozen=True)
class ImageCost:
    """One image of one run. macs: forward and backward multiply-adds; forward: those of scoring it; activations: bytes; calls: blocks passed.

    Of a pre-training `forward` and `parameters` are the model's alone; `held` parameters lie beside it in memory, and `probe` is what the
    online probe's scoring of an image takes.
    """

    macs: float
    forward: float
    parameters: int
    trainable: int
    activations: float
    calls: int
    held: int = 0
    probe: float = 0.0

    @property
    def state_bytes(self) -> float:
        """Weights in float32 and, of those that train, gradients and AdamW's two moments."""
        return 4 * (self.parameters + self.held) + 12 * self.trainable

    def joined_by(self, other: Beside) -> ImageCost:
        """The cost of a step that runs `other` as well."""
        return replace(
            self,
            macs=self.macs + other.macs,
            trainable=self.trainable + other.trainable,
            activations=self.activations + other.activations,
            calls=self.calls + other.calls,
            held=self.held + other.parameters,
            probe=self.probe + other.scored,
        )


def pretrain_cost(
    run: PretrainRun,
    bytes_per_value: int,
    num_classes: int = CLASSES,
    teacher: tuple[EvaluateRun, PretrainRun] | None = None,
    tokenizer: TokenizerRun | None = None,
) -> ImageCost:
    """The cost of a resolved pre-training run at its own image size and mask ratio, what runs beside the model included.

    num_classes: of the labels that a probe or a supervised term learns. teacher: of a distillation, the resolved fine-tuning that it learns
    from and that one's pre-training; ValueError where it is missing. tokenizer: the workbook's own that gives the target's tokens; a released
    one is not opened, and so costs nothing here.
    """
    count = _vit_mae if run.method == "mae" and run.backbone.startswith("vit") else _any_mim
    model = _once(count, run, None, 0, bytes_per_value)
    return functools.reduce(ImageCost.joined_by, _beside(run, bytes_per_value, num_classes, teacher, tokenizer), model)


def evaluate_cost(run: EvaluateRun, source: PretrainRun, num_classes: int, bytes_per_value: int) -> ImageCost:
    """The cost of an evaluation of `source`'s backbone: frozen blocks run forward only."""
    count = _vit_classifier if is_plain_vit(source.backbone, source.backbone_kwargs) else _any_classifier
    return _once(count, run, source, num_classes, bytes_per_value)


def tokenizer_cost(run: TokenizerRun, bytes_per_value: int) -> ImageCost:
    """The cost of training a tokenizer of the workbook's own, counted on the meta device."""
    return _once(_tokenizer, run, None, 0, bytes_per_value)


_known: dict[Any, ImageCost] = {}


def _once(count, run: Any, source: Any, num_classes: int, bytes_per_value: int) -> ImageCost:
    in_image_space = count is _any_mim
    shape = run.model_dump_json(exclude=NOT_SHAPES | {"pretrain"} | (NOT_SHAPES_IN_IMAGE_SPACE if in_image_space else set()))
    width = target_dim(run, run.patch_size) if in_image_space else 0
    origin = source and source.model_dump_json(include={"backbone", "backbone_kwargs"})
    key = (count, shape, width, origin, num_classes, bytes_per_value)
    if key not in _known:
        _known[key] = count(run, source, num_classes, bytes_per_value)
    return _known[key]


def _beside(
    run: PretrainRun,
    bytes_per_value: int,
    num_classes: int,
    teacher: tuple[EvaluateRun, PretrainRun] | None,
    tokenizer: TokenizerRun | None,
) -> list[Beside]:
    from replicate.cost import beside

    found = []
    if tokenizer is not None and not tokenizer.file:
        side = run.image_size // run.patch_size * tokenizer.patch_size  # one token a patch, whatever the tokenizer's stride
        found.append(_looked_up(tokenizer.patch_size, tokenizer.vocabulary, tokenizer.width, tokenizer.depth, tokenizer.code_width, side))
    if run.online_probe:
        found.append(beside.online_probe(_whole_image(run, run.image_size), num_classes))
    if run.objective == "supmae":
        found.append(beside.supmae(_whole_image(run, run.image_size).width, num_classes))
    if run.objective == "distillation":
        if teacher is None:
            raise ValueError("the cost of a distillation needs its teacher")
        tuning, source = teacher
        # The teacher sees the student's images, whatever size it was tuned at.
        frozen = evaluate_cost(tuning.model_copy(update={"image_size": run.image_size}), source, num_classes, bytes_per_value)
        width = _whole_image(source, run.image_size).width
        found.append(beside.distillation(_whole_image(run, run.image_size), frozen, width, bytes_per_value))
    return found


@functools.cache
def _looked_up(patch: int, vocabulary: int, width: int, depth: int, code_width: int, image_size: int) -> Beside:
    """A frozen tokenizer that gives an image its tokens; the numbers are `Tokenizer`'s."""
    from replicate.cost.beside import Beside
    from replicate.cost.shapes import shapes_only
    from replicate.models.tokenizer import Tokenizer

    with shapes_only():
        model = Tokenizer(patch, vocabulary, width, depth, code_width)
    count = _counted(model, image_size, model.ids)
    return Beside(FROZEN * count.macs, 0.0, count.parameters, 0, depth)


def _whole_image(run: PretrainRun, image_size: int) -> Encoder:
    """A run's encoder on an unmasked image; of a ViT its class token is no token of it."""
    from replicate.cost.beside import Encoder
    from replicate.cost.macs import classifier_macs

    if run.method == "mae" and run.backbone.startswith("vit"):
        vit = vit_backbone(run.backbone, **run.backbone_kwargs).kwargs
        macs = classifier_macs(image_size=image_size, num_classes=0, **vit).total
        return Encoder(macs, vit["embed_dim"], (image_size // vit["patch_size"]) ** 2, vit["depth"])
    count, width, stride, _ = _encoder_of(run.model_copy(update={"image_size": image_size}))
    return Encoder(count.macs, width, (image_size // stride) ** 2, count.calls)


def _vit_mae(run: PretrainRun, _: None, __: int, bytes_per_value: int) -> ImageCost:
    from replicate.cost.activations import mae_activations
    from replicate.cost.macs import mae_macs
    from replicate.cost.parameters import mae_parameters

    vit = vit_backbone(run.backbone, **run.backbone_kwargs).kwargs
    patch, patches = vit["patch_size"], (run.image_size // vit["patch_size"]) ** 2
    sizes = {
        "image_size": run.image_size,
        **vit,
        "decoder_embed_dim": run.decoder_width,
        "decoder_depth": run.decoder_depth,
        "target_dim": target_dim(run, patch),
        "mask_tokens_in_encoder": run.mask_tokens_in_encoder,
    }
    kept = None if run.decoder_beta is None else decoded_patches(run.mask, run.mask_ratio, run.image_size // patch, patch, run.decoder_beta)
    macs = mae_macs(**sizes, mask_ratio=run.mask_ratio, kept=kept, project_masked=False).total
    total = mae_parameters(**sizes).total
    fixed = (1 + patches) * (vit["embed_dim"] + run.decoder_width)
    activations = mae_activations(
        patches=patches,
        visible=patches if run.mask_tokens_in_encoder else num_visible(patches, run.mask_ratio),
        embed_dim=vit["embed_dim"],
        depth=vit["depth"],
        num_heads=vit["num_heads"],
        patch_values=patch**2 * 3,
        decoder_embed_dim=run.decoder_width,
        decoder_depth=run.decoder_depth,
        target_dim=sizes["target_dim"],
        kept=kept,
        bytes_per_value=bytes_per_value,
    )
    return ImageCost(TRAINED * macs, macs, total, total - fixed, activations, vit["depth"] + run.decoder_depth)


def _vit_classifier(run: EvaluateRun, source: PretrainRun, num_classes: int, bytes_per_value: int) -> ImageCost:
    from replicate.cost.activations import classifier_activations
    from replicate.cost.macs import classifier_macs
    from replicate.cost.parameters import block_parameters, classifier_parameters

    vit = vit_backbone(source.backbone, **source.backbone_kwargs).kwargs
    size = {"image_size": run.image_size, "num_classes": num_classes}
    forward = classifier_macs(**size, **vit).total
    parameters = classifier_parameters(**size, **vit)
    depth, tuned = vit["depth"], _tuned_blocks(run, vit["depth"])
    trained = forward if tuned == depth else forward * tuned / depth
    head = (vit["embed_dim"] + 1) * num_classes
    trainable = parameters if tuned == depth else int(tuned * block_parameters(vit["embed_dim"])) + head
    kept = classifier_activations(
        patches=(run.image_size // vit["patch_size"]) ** 2,
        embed_dim=vit["embed_dim"],
        depth=tuned,
        num_heads=vit["num_heads"],
        bytes_per_value=bytes_per_value,
    )
    return ImageCost(forward * FROZEN + trained * (TRAINED - FROZEN), forward, parameters, trainable, kept, depth)


def _tuned_blocks(run: EvaluateRun, depth: int) -> float:
    if run.protocol != "finetune":
        return 0
    return depth if run.tuned_blocks is None else run.tuned_blocks


@dataclass(frozen=True)
class _Count:
    """What one image costs a module in float32. attentions: how many layers of attention it passes."""

    macs: float
    activations: float
    parameters: int
    trainable: int
    attentions: int

    def __add__(self, other: _Count) -> _Count:
        return _Count(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))

    @property
    def calls(self) -> int:
        """Blocks passed."""
        return max(12, self.attentions)

    def as_cost(self, bytes_per_value: int) -> ImageCost:
        """Two bytes a value keep about 0.6 of what float32 keeps."""
        share = 1.0 if bytes_per_value == 4 else 0.6
        passes = TRAINED if self.trainable else FROZEN
        return ImageCost(passes * self.macs, self.macs, self.parameters, self.trainable, self.activations * share, self.calls)


def _any_mim(run: PretrainRun, _: None, __: int, bytes_per_value: int) -> ImageCost:
    """Any backbone, counted on the meta device: its encoder once for all decoders and targets."""
    import torch
    from torch import nn

    from replicate.cost.shapes import shapes_only
    from replicate.models.mim import MIM

    encoder, width, stride, prefix = _encoder_of(run)

    class Features(nn.Module):
        """Stands in for the encoder that has been counted: its last tokens alone."""

        num_features, image_size = width, (run.image_size, run.image_size)

        def tokens(self, images: torch.Tensor) -> torch.Tensor:
            count = prefix + (run.image_size // stride) ** 2
            return torch.empty(len(images), count, width, device="meta", requires_grad=True)

    Features.stride, Features.num_prefix_tokens = stride, prefix
    with shapes_only():
        model = MIM(Features(), target_dim(run, run.patch_size), run.decoder_depth, run.decoder_width, mask_unit=run.mask_unit)
    noise = torch.empty(1, model.num_patches, device="meta")
    return (encoder + _counted(model, run.image_size, lambda images: model(images, noise).pred)).as_cost(bytes_per_value)


def _encoder_of(run: PretrainRun) -> tuple[_Count, int, int, int]:
    return _counted_encoder(run.model_dump_json(include={"backbone", "backbone_kwargs", "drop_blocks", "image_size"}))


@functools.cache
def _counted_encoder(numbers: str) -> tuple[_Count, int, int, int]:
    """The cost, channels, stride and class tokens of a run's encoder; `numbers` is what the run says of it, in JSON."""
    from replicate.cost.shapes import shapes_only
    from replicate.models.backbones import build_encoder

    stated = json.loads(numbers)
    with shapes_only():
        encoder = build_encoder(stated["backbone"], stated["image_size"], drop_blocks=stated["drop_blocks"], **stated["backbone_kwargs"])
    cost = _counted(encoder, stated["image_size"], encoder)
    return cost, encoder.num_features, encoder.stride, encoder.num_prefix_tokens


def _any_classifier(run: EvaluateRun, source: PretrainRun, num_classes: int, bytes_per_value: int) -> ImageCost:
    from replicate.cost.shapes import shapes_only
    from replicate.models.build import build_classifier

    with shapes_only():
        model = build_classifier(source, num_classes, run.image_size, run.drop_path)
    if run.protocol != "finetune":
        model.requires_grad_(False)
    return _counted(model, run.image_size, model).as_cost(bytes_per_value)


def _tokenizer(run: TokenizerRun, _: None, __: int, bytes_per_value: int) -> ImageCost:
    from replicate.cost.shapes import shapes_only
    from replicate.models.tokenizer import Tokenizer

    with shapes_only():
        model = Tokenizer(run.patch_size, run.vocabulary, run.width, run.depth, run.code_width)
    return _counted(model, run.image_size, lambda images: model.rebuilt(images)[0]).as_cost(bytes_per_value)


def _counted(model: Any, image_size: int, forward: Any) -> _Count:
    """Multiply-adds and activations of a model on the meta device, where everything is float32."""
    import torch

    from replicate.cost.memory import activation_bytes
    from replicate.cost.shapes import MultiplyAdds

    images = torch.empty(1, 3, image_size, image_size, device="meta")
    with MultiplyAdds() as counter:
        kept = activation_bytes(lambda: forward(images), [*model.parameters(), *model.buffers()])
    parameters = sum(p.numel() for p in model.parameters())
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    attentions = sum(type(module).__name__.endswith("Attention") for module in model.modules())
    return _Count(counter.total, kept, parameters, trainable, attentions)


def target_dim(run: PretrainRun, unit: int) -> int:
    """Numbers predicted for a unit of `unit` pixels, as the run's target says; a tokenizer is not opened for it."""
    if run.target == "token":
        return VOCABULARY
    import torch

    from replicate import targets

    with torch.device("meta"):
        return targets.build(run.target, unit, **run.target_options).dim


@functools.cache
def decoded_patches(mask: str, ratio: float, side: int, patch: int, beta: float) -> float:
    """Masked patches whose P2Dist lies within `beta` pixels, a mean over sampled masks: what decoder masking leaves (Efficient MAE, sec 4.2)."""
    import torch

    from replicate.difficulty import p2dist
    from replicate.masking import sample_mask

    noise = torch.rand(SAMPLED_MASKS, side * side, generator=torch.Generator().manual_seed(0))
    masked = sample_mask(mask, noise, ratio, (side, side)).mask
    near = (p2dist(masked, (side, side), patch) <= beta) & (masked > 0)
    return float(near.sum(dim=1).float().mean())

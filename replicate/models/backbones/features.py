"""What every backbone offers to masked image modelling: a feature map, its blocks, its first tokens, and another resolution."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from replicate.errors import UserError
from replicate.models.resized import Resized
from replicate.patches import pair


class FeatureMap:
    """Mixed into a timm model: reads its last features as a map and finds its parts by the names that timm's models share."""

    stride: int

    def feature_map(self, images: Tensor) -> Tensor:
        """(N, in_chans, H, W) -> (N, C, H / stride, W / stride), after the last norm of a model that normalises before it pools."""
        features = self.forward_features(images)
        if features.ndim == 3:
            tokens = features[:, getattr(self, "num_prefix_tokens", 0) :]
            grid = (images.shape[-2] // self.stride, images.shape[-1] // self.stride)
            return tokens.transpose(1, 2).unflatten(2, grid)
        return features.permute(0, 3, 1, 2) if getattr(self, "output_fmt", "NCHW") == "NHWC" else features

    def stage_blocks(self) -> list[nn.ModuleList | nn.Sequential]:
        """The lists of blocks of each stage; a model without stages has one. UserError for a model that keeps them elsewhere."""
        stages = getattr(self, "layers", None) or getattr(self, "stages", None)
        if stages is not None and all(hasattr(stage, "blocks") for stage in stages):
            return [stage.blocks for stage in stages]
        blocks = getattr(self, "blocks", None)
        if not isinstance(blocks, nn.ModuleList | nn.Sequential) or not len(blocks):
            kind = type(self).__name__
            raise UserError(f"backbone {kind}: its blocks are in no list known here, so it takes no drop_blocks, no mask_space 'patch', no taps")
        nested = isinstance(blocks[0], nn.ModuleList | nn.Sequential)
        return list(blocks) if nested else [blocks]

    @property
    def first_tokens_channels_last(self) -> bool:
        """Whether `embedding` puts channels last, as Transformers do; convolutional stems put them first."""
        return not hasattr(self, "stem")

    def embedding(self) -> nn.Module:
        """The module that turns pixels into the first tokens. UserError for a model that calls it something else."""
        for name in ("patch_embed", "stem"):
            if hasattr(self, name):
                return getattr(self, name)
        if not hasattr(self, "patch_embeds"):
            raise UserError(f"backbone {type(self).__name__}: it has no first tokens to mask known here; use mask_space 'image'")
        return self.patch_embeds[0]

    @property
    def first_patch(self) -> int:
        """Pixels between the first tokens: the stride of the only stage, or an eighth of it before three halvings."""
        return self.stride // 2 ** (len(self.stage_blocks()) - 1)

    def set_input_size(self, img_size: int | tuple[int, int]) -> Resized:
        """Takes images of another size from now on. Nothing to do where no parameter depends on it."""
        return {}

    def fit_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """A checkpoint of another resolution, resampled to this model's. Nothing to do where no parameter depends on it."""
        return state


class Encoder(nn.Module):
    """A backbone as masked image modelling sees it: images in, feature map out.

    `num_features` channels, `stride` pixels between the map's positions, `image_size` (height, width).
    """

    def __init__(self, backbone: nn.Module, image_size: int | tuple[int, int], drop_blocks: int | Sequence[int] = 0) -> None:
        super().__init__()
        self.backbone = backbone
        self.num_features: int = backbone.num_features
        self.stride: int = backbone.stride
        self.image_size = pair(image_size)
        if drop_blocks:
            drop_last_blocks(backbone.stage_blocks(), drop_blocks)

    def forward(self, images: Tensor) -> Tensor:
        """(N, in_chans, H, W) -> (N, num_features, H / stride, W / stride)."""
        return self.backbone.feature_map(images)

    @property
    def blocks(self) -> list[nn.Module]:
        """All blocks in the order in which they run."""
        return [block for stage in self.backbone.stage_blocks() for block in stage]

    def set_image_size(self, image_size: int | tuple[int, int]) -> Resized:
        """Takes images of another size from now on; the same size changes nothing. Every parameter stays the same object.

        Returns the parameters whose shape changed with how to resample what belongs to them: hand it to `carry_optimizer_state`.
        """
        size = pair(image_size)
        if size == self.image_size:
            return {}
        self.image_size = size
        return self.backbone.set_input_size(size)


def drop_last_blocks(stages: list[nn.ModuleList | nn.Sequential], drop: int | Sequence[int]) -> None:
    """Removes the last blocks of an encoder (FastMIM Table 1c).

    drop: how many of the last stage's blocks, or one number a stage: (0, 0, 2, 0) leaves Swin-B [2, 2, 16, 2].
    Raises UserError when a stage has fewer blocks than that, or when the one stage of a ViT would be left empty.
    """
    numbers = [0] * (len(stages) - 1) + [drop] if isinstance(drop, int) else list(drop)
    if len(numbers) != len(stages):
        raise UserError(f"drop_blocks {tuple(numbers)} must be one number, or one for each of the {len(stages)} stages")
    for stage, number in zip(stages, numbers, strict=True):
        most = len(stage) if len(stages) > 1 else len(stage) - 1
        if not 0 <= number <= most:
            raise UserError(f"drop_blocks {drop}: a stage of {len(stage)} blocks can lose at most {most}")
        if number:
            del stage[len(stage) - number :]


@contextmanager
def tapped(encoder: Encoder, indices: Sequence[int]) -> Iterator[list[Tensor]]:
    """Within it, a forward pass of `encoder` leaves the outputs of the blocks `indices` in the list, each (N, tokens, C).

    Negative indices count from the last block. Class tokens are left in.
    """
    outputs: list[Tensor] = []
    blocks = encoder.blocks

    def keep(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        channels_last = output.ndim == 3 or getattr(encoder.backbone, "output_fmt", "NCHW") == "NHWC"
        outputs.append(output.flatten(1, -2) if channels_last else output.flatten(2).transpose(1, 2))

    handles = [blocks[index].register_forward_hook(keep) for index in indices]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def replace_tokens(tokens: Tensor, masked: Tensor, token: Tensor, channels_last: bool) -> Tensor:
    """First tokens with `token` (C,) where `masked` (N, h, w) is 1: (N, L, C) or (N, h, w, C) with channels last, else (N, C, h, w)."""
    token = token.to(tokens.dtype)
    if not channels_last:
        return torch.where(masked[:, None] > 0, token[:, None, None], tokens)
    where = masked.flatten(1) if tokens.ndim == 3 else masked
    return torch.where(where[..., None] > 0, token, tokens)

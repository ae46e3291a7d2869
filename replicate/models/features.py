"""What every backbone offers to masked image modelling: its tokens, its blocks, another resolution."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from replicate.errors import UserError
from replicate.models.resized import Resized, replace_data
from replicate.patches import grid_of, pair

Size = tuple[int, int]


class FeatureMap:
    """Mixed into a timm model: reads its last features and finds its parts by timm's common names."""

    stride: int
    decoded_prefix = 0
    """Class tokens that go through a decoder with the others."""

    def tokens(self, images: Tensor) -> Tensor:
        """(N, in_chans, H, W) -> (N, decoded_prefix + L, C) last tokens in raster order."""
        features = self.forward_features(images)
        if features.ndim == 4:
            return features.flatten(1, 2) if self._channels_last else features.flatten(2).transpose(1, 2)
        return features[:, getattr(self, "num_prefix_tokens", 0) - self.decoded_prefix :]

    def feature_map(self, images: Tensor) -> Tensor:
        """(N, in_chans, H, W) -> (N, C, H / stride, W / stride), after the last norm if there is one."""
        tokens = self.tokens(images)[:, self.decoded_prefix :]
        grid = (images.shape[-2] // self.stride, images.shape[-1] // self.stride)
        return tokens.transpose(1, 2).unflatten(2, grid)

    def stage_maps(self, images: Tensor) -> list[Tensor]:
        """(N, in_chans, H, W) -> the last map of each stage, (N, C_i, H_i, W_i), before the last norm.

        Raises UserError for a backbone whose stages cannot be read.
        """
        if not hasattr(self, "forward_intermediates"):
            raise UserError(f"backbone {type(self).__name__}: the maps of its stages cannot be read")
        return self.forward_intermediates(images, intermediates_only=True)

    @property
    def _channels_last(self) -> bool:
        return getattr(self, "output_fmt", "NCHW") == "NHWC"

    def stage_blocks(self) -> list[nn.ModuleList | nn.Sequential]:
        """The blocks of each stage; one list without stages. Raises UserError if they are not found."""
        stages = getattr(self, "layers", None) or getattr(self, "stages", None)
        if stages is not None and all(hasattr(stage, "blocks") for stage in stages):
            return [stage.blocks for stage in stages]
        blocks = getattr(self, "blocks", None)
        if not isinstance(blocks, nn.ModuleList | nn.Sequential) or not len(blocks):
            effect = "drop_blocks and mask_space 'patch' do not work"
            raise UserError(f"backbone {type(self).__name__}: its blocks are in no known list, so {effect}")
        nested = isinstance(blocks[0], nn.ModuleList | nn.Sequential)
        return list(blocks) if nested else [blocks]

    @property
    def first_tokens_channels_last(self) -> bool:
        """Whether `embedding` puts channels last, as Transformers do; convolutional stems put them first."""
        return not hasattr(self, "stem")

    def embedding(self) -> nn.Module:
        """The module that turns pixels into the first tokens. Raises UserError if it is not found."""
        for name in ("patch_embed", "stem"):
            if hasattr(self, name):
                return getattr(self, name)
        if not hasattr(self, "patch_embeds"):
            name = type(self).__name__
            raise UserError(f"backbone {name}: its first tokens are not known here; use mask_space 'image'")
        return self.patch_embeds[0]

    @property
    def first_patch(self) -> int:
        """Pixels between the first tokens: the stride, halved once for every stage but the first."""
        return self.stride // 2 ** (len(self.stage_blocks()) - 1)

    def set_input_size(self, img_size: int | Size) -> Resized:
        """Take images of another size from now on. Here no parameter depends on it."""
        return {}

    def fit_state(
        self, state: dict[str, Tensor], trained_at: Size | None = None, antialias: bool = True
    ) -> dict[str, Tensor]:
        """A checkpoint of another resolution, resampled to this model's. Here no parameter depends on it.

        trained_at  (height, width) of the checkpoint's images; None: this model's own, or square ones
        antialias   as timm and DailyMAE resample; MAE and FastMIM do not
        """
        return state


class StageTables(FeatureMap):
    """Mixed into a hierarchy whose `stages` each own one learned table of positions.

    table  the parameter's name in a stage, which also has `grid` and `resample(tensor, old_grid, antialias)`
    """

    table: str
    patch_size: int

    def set_input_size(self, img_size: int | Size) -> Resized:
        """Take images of another size; resample every stage's table in place."""
        grid_of(img_size, self.stride)
        resized: Resized = {}
        for index, stage in enumerate(self.stages):
            old_grid, stage.grid = stage.grid, grid_of(img_size, self.patch_size * 2**index)
            replace_data(getattr(stage, self.table), partial(stage.resample, old_grid=old_grid), resized)
        return resized

    def fit_state(
        self, state: dict[str, Tensor], trained_at: Size | None = None, antialias: bool = True
    ) -> dict[str, Tensor]:
        """The tables of another image size, resampled to this model's."""
        fitted = dict(state)
        for index, stage in enumerate(self.stages):
            key = f"stages.{index}.{self.table}"
            if key in state and state[key].ndim == 3:
                old_grid = trained_at and grid_of(trained_at, self.patch_size * 2**index)
                fitted[key] = stage.resample(state[key], old_grid, antialias)
        return fitted


class Encoder(nn.Module):
    """A backbone as masked image modelling sees it: images in, tokens or a feature map out.

    `num_features` channels, `stride` pixels between the map's positions, `image_size` (height, width), and
    `num_prefix_tokens` class tokens before the map's in `tokens`.
    """

    def __init__(
        self, backbone: nn.Module, image_size: int | Size, drop_blocks: int | Sequence[int] = 0
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.num_features: int = backbone.num_features
        self.stride: int = backbone.stride
        self.num_prefix_tokens: int = backbone.decoded_prefix
        self.image_size = pair(image_size)
        if drop_blocks:
            drop_last_blocks(backbone.stage_blocks(), drop_blocks)

    def forward(self, images: Tensor) -> Tensor:
        """(N, in_chans, H, W) -> (N, num_features, H / stride, W / stride)."""
        return self.backbone.feature_map(images)

    def tokens(self, images: Tensor) -> Tensor:
        """(N, in_chans, H, W) -> (N, num_prefix_tokens + L, num_features) in raster order."""
        return self.backbone.tokens(images)

    def set_image_size(self, image_size: int | Size) -> Resized:
        """Take images of another size from now on; every parameter stays the same object.

        Returns the parameters whose shape changed, for `replicate.models.resized.carry_optimizer_state`.
        """
        size = pair(image_size)
        if size == self.image_size:
            return {}
        self.image_size = size
        return self.backbone.set_input_size(size)


def drop_last_blocks(stages: list[nn.ModuleList | nn.Sequential], drop: int | Sequence[int]) -> None:
    """Remove the last blocks of an encoder (FastMIM Table 1c).

    drop: number of blocks to remove from the last stage, or one number a stage: (0, 0, 2, 0) leaves Swin-B's
    [2, 2, 16, 2]. Raises UserError when a stage has fewer blocks, or when a ViT would be left without any.
    """
    numbers = [0] * (len(stages) - 1) + [drop] if isinstance(drop, int) else list(drop)
    if len(numbers) != len(stages):
        wanted = f"one number, or one for each of the {len(stages)} stages"
        raise UserError(f"drop_blocks {tuple(numbers)} must be {wanted}")
    for stage, number in zip(stages, numbers, strict=True):
        most = len(stage) if len(stages) > 1 else len(stage) - 1
        if not 0 <= number <= most:
            raise UserError(f"drop_blocks {drop}: a stage of {len(stage)} blocks can lose at most {most}")
        if number:
            del stage[len(stage) - number :]


def replace_tokens(tokens: Tensor, masked: Tensor, token: Tensor, channels_last: bool) -> Tensor:
    """First tokens with `token` (C,) where `masked` (N, h, w) is 1.

    tokens: (N, L, C) or (N, h, w, C) with channels last, else (N, C, h, w).
    """
    token = token.to(tokens.dtype)
    if not channels_last:
        return torch.where(masked[:, None] > 0, token[:, None, None], tokens)
    where = masked.flatten(1) if tokens.ndim == 3 else masked
    return torch.where(where[..., None] > 0, token, tokens)


def xavier_linear(model: nn.Module) -> None:
    """Xavier-uniform weights and zero biases for every linear layer; a fused qkv counts as one matrix."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)

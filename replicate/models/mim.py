"""Masked image modelling with any backbone: the encoder sees a masked image (FastMIM, section 4.1).

The whole masked image goes through the encoder, as in supervised training. A light decoder of ViT blocks
without position embedding predicts the target of every patch. SimMIM and MaskFeat are settings of the same
model (`BASELINES`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from replicate.errors import UserError
from replicate.masking import expand_units, num_visible, sample_mask
from replicate.models.backbones import build_encoder
from replicate.models.features import Encoder, replace_tokens, xavier_linear
from replicate.models.prediction import MaskOptions, Prediction, check_choice, check_image_size
from replicate.models.resized import Resized
from replicate.patches import grid_of, pair

if TYPE_CHECKING:
    from replicate.config import PretrainRun

MASK_SPACES = ("image", "patch")
DECODER_HEAD_WIDTH = 32

BASELINES: dict[str, dict[str, Any]] = {
    "simmim": {"mask_unit": 32, "mask_ratio": 0.6, "mask_space": "patch", "decoder_depth": 0},
    "maskfeat": {"mask": "block", "mask_ratio": 0.4, "mask_space": "patch", "decoder_depth": 0},
}
"""The baselines of Table 3 as options of `MIM`, at full resolution with a linear decoder.

SimMIM (Xie et al., section 4.1) predicts raw pixels with an L1 loss, MaskFeat (Wei et al., section 4.1)
predicts HOG under block-wise masks.
"""


@dataclass(frozen=True)
class MIMOptions(MaskOptions):
    """`MaskOptions`, and what only image-space masking has.

    mask_unit   side of the squares that are masked together, in pixels; None: the encoder's stride (best in
                Table 10b)
    mask_space  "image": masked pixels become one learned RGB value; "patch": masked first tokens become one
                learned token (Table 10a)
    """

    mask_unit: int | None = None
    mask_space: str = "image"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("mask_space", self.mask_space, MASK_SPACES)
        if self.mask_unit is not None and (not isinstance(self.mask_unit, int) or self.mask_unit < 1):
            raise UserError(f"mask_unit {self.mask_unit!r} must be a whole number of pixels >= 1")


class MIM(nn.Module):
    """Encoder of the whole masked image, plus a light decoder.

    encoder            from `replicate.models.backbones.build_encoder`: a feature map at some stride
    target_dim         values predicted for a patch
    decoder_depth, decoder_embed_dim   "4b256d" is 4 and 256, heads of 32 channels (Table 16); depth 0: one
                                       linear layer
    options            fields of `MIMOptions`

    Predictions, masks and losses are per patch of `patch_size` = min(mask_unit, stride) pixels. A mask unit
    may span several of the encoder's tokens, and a token several mask units. Build the target with
    `patch_size`. Raises UserError for an unknown choice or sizes that do not fit together.
    """

    def __init__(
        self,
        encoder: Encoder,
        target_dim: int,
        decoder_depth: int = 1,
        decoder_embed_dim: int = 256,
        **options: Any,
    ) -> None:
        super().__init__()
        self.options = MIMOptions(**options)
        self.mask_unit = self.options.mask_unit or encoder.stride
        self.patch_size = min(self.mask_unit, encoder.stride)
        if self.mask_unit % self.patch_size or encoder.stride % self.patch_size:
            wanted = f"divide, or be a multiple of, the encoder's stride of {encoder.stride} pixels"
            raise UserError(f"mask_unit {self.mask_unit} must {wanted}")
        self.target_dim = target_dim
        self.encoder = encoder
        if self.options.mask_space == "patch":
            self._check_first_tokens()
        num_visible(self.num_patches, self.options.mask_ratio)  # refuses an impossible ratio

        # More than one dimension, so that weight decay covers it like MAE's tokens.
        shape = (1, 3, 1, 1) if self.options.mask_space == "image" else (1, 1, self._first_width())
        self.mask_token = nn.Parameter(torch.zeros(shape))
        self.options.init_mask_token(self.mask_token)
        if self.options.mask_space == "patch":
            encoder.backbone.embedding().register_forward_hook(self._mask_first_tokens)
        self._masked_units: Tensor | None = None

        patches_per_token = (encoder.stride // self.patch_size) ** 2
        self._build_decoder(decoder_depth, decoder_embed_dim, patches_per_token * target_dim)

    def _build_decoder(self, depth: int, width: int, out: int) -> None:
        if depth:
            self.decoder_embed = nn.Linear(self.encoder.num_features, width)
            self.decoder_norm = nn.LayerNorm(width, eps=1e-6)
        else:
            self.decoder_embed, self.decoder_norm, width = (
                nn.Identity(),
                nn.Identity(),
                self.encoder.num_features,
            )
        heads = max(1, width // DECODER_HEAD_WIDTH)
        if depth and width % heads:
            advice = f"use a multiple of {DECODER_HEAD_WIDTH}"
            raise UserError(f"decoder width {width} is not a multiple of its {heads} heads; {advice}")
        self.decoder_blocks = nn.ModuleList(Block(width, heads, qkv_bias=True) for _ in range(depth))
        self.decoder_pred = nn.Linear(width, out)
        for module in (self.decoder_embed, self.decoder_blocks, self.decoder_pred):
            xavier_linear(module)

    @property
    def embed_dim(self) -> int:
        """Channels of `Prediction.latent`."""
        return self.encoder.num_features

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of the images that the encoder is set for."""
        return self.encoder.image_size

    @property
    def mask_grid(self) -> tuple[int, int]:
        """(rows, columns) of mask units. Raises UserError when they do not tile the image."""
        return grid_of(self.image_size, self.mask_unit)

    @property
    def num_patches(self) -> int:
        """Mask units of an image: the length of the noise that draws one mask."""
        rows, columns = self.mask_grid
        return rows * columns

    def set_image_size(self, image_size: int | tuple[int, int]) -> Resized:
        """Take images of another size from now on (FastMIM-P, section 4.2); the same size changes nothing.

        Every parameter stays the same object, so an optimiser keeps those that it holds. Returns the learned
        tables whose shape changed: pass them to `replicate.models.resized.carry_optimizer_state`. Load a
        checkpoint after setting the size that it was saved at. Wrap the model for data-parallel training
        again if a table changed.
        """
        grid_of(pair(image_size), self.mask_unit)
        return self.encoder.set_image_size(image_size)

    def unmasked_features(self, images: Tensor) -> Tensor:
        """(N, C) mean of the encoder's last tokens of whole images, for an online probe."""
        return self.encoder(images).mean(dim=(2, 3))

    def forward(
        self, images: Tensor, noise: Tensor | None = None, mask_ratio: float | None = None
    ) -> Prediction:
        """Normalised images (N, 3, H, W) -> Prediction.

        `noise` (N, mask units), uniform on [0, 1), decides the mask; None draws it.
        """
        check_image_size(images, self.image_size)
        if noise is None:
            noise = torch.rand(len(images), self.num_patches, device=images.device)
        ratio = self.options.mask_ratio if mask_ratio is None else mask_ratio
        masked = sample_mask(self.options.mask, noise, ratio, self.mask_grid).mask
        tokens = self._encode(images, masked)
        mask = expand_units(masked, self.mask_grid, self.mask_unit // self.patch_size).flatten(1)
        grid = grid_of(self.image_size, self.patch_size)
        measured = self.options.with_difficulty
        difficulty = self.options.measure(mask, grid, self.patch_size) if measured else None
        latent = tokens[:, self.encoder.num_prefix_tokens :]
        return Prediction(self._decode(tokens), mask, self.options.scored(mask), latent, difficulty, grid)

    def masked_images(self, images: Tensor, masked: Tensor) -> Tensor:
        """Normalised images with the mask token in every masked unit; masked (N, mask units)."""
        pixels = expand_units(masked, self.mask_grid, self.mask_unit)[:, None]
        token = self.mask_token if self.options.mask_space == "image" else images.new_zeros(1, 3, 1, 1)
        return torch.where(pixels > 0, token, images)

    def _encode(self, images: Tensor, masked: Tensor) -> Tensor:
        """(N, prefix + h * w, C) last tokens of the masked images."""
        if self.options.mask_space == "image":
            return self.encoder.tokens(self.masked_images(images, masked))
        self._masked_units = masked
        try:
            return self.encoder.tokens(images)
        finally:
            self._masked_units = None

    def _decode(self, tokens: Tensor) -> Tensor:
        """(N, prefix + h * w, C) -> predictions (N, L, target_dim) of all patches in raster order.

        A ViT's class token goes through the decoder and is dropped last, as in FastMIM's code.
        """
        tokens = self.decoder_embed(tokens)
        for block in self.decoder_blocks:
            tokens = block(tokens)
        pred = self.decoder_pred(self.decoder_norm(tokens))[:, self.encoder.num_prefix_tokens :]
        side = self.encoder.stride // self.patch_size
        if side == 1:
            return pred
        rows, columns = grid_of(self.image_size, self.encoder.stride)
        tiles = pred.reshape(len(pred), rows, columns, side, side, self.target_dim)
        return tiles.transpose(2, 3).reshape(len(pred), -1, self.target_dim)

    def _mask_first_tokens(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> Any:
        """A hook behind the backbone's embedding; some return their grid beside the tokens."""
        if self._masked_units is None:
            return output
        tokens, *rest = output if isinstance(output, tuple) else (output,)
        backbone = self.encoder.backbone
        masked = expand_units(self._masked_units, self.mask_grid, self.mask_unit // backbone.first_patch)
        tokens = replace_tokens(
            tokens, masked, self.mask_token.flatten(), backbone.first_tokens_channels_last
        )
        return (tokens, *rest) if isinstance(output, tuple) else tokens

    def _check_first_tokens(self) -> None:
        """A mask unit must cover whole first tokens: no token can be masked in part."""
        self.encoder.backbone.embedding()  # refuses a backbone without one
        patch = self.encoder.backbone.first_patch
        if patch < 1 or self.mask_unit % patch:
            wanted = f"must be a multiple of the first tokens' {patch} pixels in mask_space 'patch'"
            raise UserError(f"mask_unit {self.mask_unit} {wanted}")

    def _first_width(self) -> int:
        modules = self.encoder.backbone.embedding().modules()
        projection = next((module for module in modules if isinstance(module, nn.Conv2d)), None)
        if projection is None:
            raise UserError(
                "mask_space 'patch' needs a convolution for the first tokens; use mask_space 'image'"
            )
        return projection.out_channels


def from_run(run: PretrainRun, target_dim: int, with_difficulty: bool) -> MIM:
    """The model of a resolved pre-training run."""
    encoder = build_encoder(run.backbone, run.image_size, drop_blocks=run.drop_blocks, **run.backbone_kwargs)
    options = MIMOptions.of(run, with_difficulty)
    return MIM(encoder, target_dim, run.decoder_depth, run.decoder_width, **options)

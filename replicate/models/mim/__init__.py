"""Masked image modelling that keeps all tokens: the image itself is masked, so any backbone can be pre-trained (FastMIM sec 4.1).

The masked image goes through the whole encoder, as in supervised training; a light decoder of ViT blocks without position embedding
predicts the target of every unit. SimMIM and MaskFeat are settings of the same model, `BASELINES`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import replicate.compat  # noqa: F401
from replicate.errors import UserError
from replicate.masking import expand_units, num_visible, sample_mask
from replicate.models.backbones import build_encoder
from replicate.models.backbones.features import Encoder, replace_tokens
from replicate.models.cpu import tune_for_cpu
from replicate.models.prediction import Prediction
from replicate.models.resized import Resized
from replicate.patches import grid_of, pair

from timm.models.vision_transformer import Block  # isort: skip  (after replicate.compat)

SPACES = ("image", "patch")
TOKENS = ("learned", "zero")
DECODER_HEAD_WIDTH = 32

BASELINES: dict[str, dict[str, Any]] = {
    "simmim": {"mask_unit": 32, "mask_ratio": 0.6, "mask_space": "patch", "decoder_depth": 0},
    "maskfeat": {"mask": "block", "mask_ratio": 0.4, "mask_space": "patch", "decoder_depth": 0},
}
"""The baselines of Table 3 as options of `MIM`, both at full resolution and with one linear layer for a decoder: SimMIM (Xie et al.,
sec 4.1) predicts raw pixels with an L1 loss, MaskFeat (Wei et al., sec 4.1) HOG with block-wise masks."""


class MIM(nn.Module):
    """Encoder of all tokens plus a light decoder.

    encoder        feature map (N, C, h, w) at some stride (`replicate.models.backbones.build_encoder`)
    target_dim     values predicted for a unit of `unit` pixels
    decoder_depth, decoder_width   "4b256d" is 4 and 256, heads of 32 channels (Table 16); depth 0 is one linear layer
    mask_unit      pixels a side of what is masked together; None is the encoder's stride, the best choice (Table 10b)
    mask, mask_ratio               how units are chosen ("random" | "block" | "grid"), and how many
    mask_space     "image": masked pixels become one learned RGB value; "patch": masked first tokens become one learned token (Table 10a)
    mask_token     "learned" or "zero" (Table 10a)
    with_p2dist    measure the units' difficulty (a weighting needs it)
    difficulty     what is measured: P2Dist, or another of `replicate.difficulty.METRICS`
    score_all      the loss covers visible units too

    Predictions, masks and losses are per unit of `unit` = min(mask_unit, stride) pixels: where a mask unit spans several of the encoder's
    tokens they are scored one by one, and where a token spans several mask units it predicts each. Build the target with `unit`.
    Raises UserError for options that do not exist or sizes that do not fit together.
    """

    def __init__(
        self,
        encoder: Encoder,
        target_dim: int,
        decoder_depth: int = 1,
        decoder_width: int = 256,
        mask_unit: int | None = None,
        mask: str = "random",
        mask_ratio: float = 0.75,
        mask_space: str = "image",
        mask_token: str = "learned",
        with_p2dist: bool = False,
        score_all: bool = False,
        difficulty: str = "p2dist",
    ) -> None:
        super().__init__()
        _check_choice("mask_space", mask_space, SPACES)
        _check_choice("mask_token", mask_token, TOKENS)
        self.mask_unit = encoder.stride if mask_unit is None else mask_unit
        if not isinstance(self.mask_unit, int) or self.mask_unit < 1:
            raise UserError(f"mask_unit {mask_unit!r} must be a whole number of pixels >= 1")
        self.unit = min(self.mask_unit, encoder.stride)
        if self.mask_unit % self.unit or encoder.stride % self.unit:
            raise UserError(f"mask_unit {self.mask_unit} must divide, or be a multiple of, the encoder's stride of {encoder.stride} pixels")
        self.mask, self.mask_ratio, self.mask_space = mask, mask_ratio, mask_space
        self.with_p2dist, self.score_all, self.target_dim, self.difficulty = with_p2dist, score_all, target_dim, difficulty
        self.encoder = encoder
        if mask_space == "patch":
            self._check_first_tokens()
        num_visible(self.num_patches, mask_ratio)  # refuses an impossible ratio here, not at the first step

        token = torch.zeros(3 if mask_space == "image" else self._first_width())
        self.mask_token = nn.Parameter(token, requires_grad=mask_token == "learned")
        if mask_token == "learned":
            nn.init.normal_(self.mask_token, std=0.02)
        if mask_space == "patch":
            encoder.backbone.embedding().register_forward_hook(self._mask_first_tokens)
        self._units_masked: Tensor | None = None

        units_per_token = (encoder.stride // self.unit) ** 2
        self._build_decoder(decoder_depth, decoder_width, units_per_token * target_dim)
        tune_for_cpu(self)

    def _check_first_tokens(self) -> None:
        """A mask unit must cover whole first tokens: a token that is masked in part has no name for what is left of it."""
        self.encoder.backbone.embedding()  # refuses a backbone without one
        patch = self.encoder.backbone.first_patch
        if patch < 1 or self.mask_unit % patch:
            raise UserError(f"mask_unit {self.mask_unit} must be a multiple of the first tokens' {patch} pixels in mask_space 'patch'")

    def _build_decoder(self, depth: int, width: int, out: int) -> None:
        if not depth:
            self.decoder_embed, self.decoder_norm, width = nn.Identity(), nn.Identity(), self.encoder.num_features
        else:
            self.decoder_embed, self.decoder_norm = nn.Linear(self.encoder.num_features, width), nn.LayerNorm(width, eps=1e-6)
        heads = max(1, width // DECODER_HEAD_WIDTH)
        if depth and width % heads:
            raise UserError(f"decoder_width {width} is not a multiple of its {heads} heads; use a multiple of {DECODER_HEAD_WIDTH}")
        self.decoder_blocks = nn.ModuleList(Block(width, heads, qkv_bias=True) for _ in range(depth))
        self.decoder_pred = nn.Linear(width, out)
        for module in [self.decoder_embed, *self.decoder_blocks.modules(), self.decoder_pred]:
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

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
        """(rows, columns) of mask units. UserError when they do not tile the image."""
        return grid_of(self.image_size, self.mask_unit)

    @property
    def num_patches(self) -> int:
        """Mask units of an image: how much noise one mask takes."""
        rows, columns = self.mask_grid
        return rows * columns

    def set_image_size(self, image_size: int | tuple[int, int]) -> Resized:
        """Take images of another size from now on (FastMIM-P, sec 4.2); the same size changes nothing.

        Every parameter stays the same object, so an optimiser goes on with those that it holds. Returned are the learned tables whose
        shape changed: `replicate.models.resized.carry_optimizer_state(optimizer, returned)` brings the optimiser's moments over. Load a checkpoint
        after setting the size that it was saved at; wrap for data-parallel training again when something is returned.
        """
        grid_of(pair(image_size), self.mask_unit)
        return self.encoder.set_image_size(image_size)

    def unmasked_features(self, images: Tensor) -> Tensor:
        """(N, C) mean of the encoder's last tokens of whole images: what an online probe classifies."""
        return self.encoder(images).mean(dim=(2, 3))

    def forward(self, images: Tensor, noise: Tensor | None = None, mask_ratio: float | None = None) -> Prediction:
        """Normalised images (N, 3, H, W) -> Prediction; `noise` (N, mask units), uniform on [0, 1), decides the mask, None draws it.

        Prediction.latent holds the encoder's tokens (N, h * w, C) in raster order.
        """
        if tuple(images.shape[-2:]) != self.image_size:
            given, wanted = "x".join(map(str, images.shape[-2:])), "x".join(map(str, self.image_size))
            raise UserError(f"images are {given} but the model is set for {wanted}: call set_image_size, or change image_size")
        masked = self._draw(images, noise, self.mask_ratio if mask_ratio is None else mask_ratio)
        latent = self._encode(images, masked).flatten(2).transpose(1, 2)
        mask = expand_units(masked, self.mask_grid, self.mask_unit // self.unit).flatten(1)
        grid = grid_of(self.image_size, self.unit)
        scored = torch.ones_like(mask) if self.score_all else mask
        return Prediction(self._decode(latent), mask, scored, latent, self._p2dist(mask, grid), grid)

    def _draw(self, images: Tensor, noise: Tensor | None, mask_ratio: float) -> Tensor:
        if noise is None:
            noise = torch.rand(len(images), self.num_patches, device=images.device)
        return sample_mask(self.mask, noise, mask_ratio, self.mask_grid).mask

    def masked_images(self, images: Tensor, masked: Tensor) -> Tensor:
        """Normalised images with the mask token in every masked unit; masked (N, mask units)."""
        pixels = expand_units(masked, self.mask_grid, self.mask_unit)[:, None]
        token = self.mask_token if self.mask_space == "image" else images.new_zeros(3)
        return torch.where(pixels > 0, token.view(3, 1, 1), images)

    def _encode(self, images: Tensor, masked: Tensor) -> Tensor:
        if self.mask_space == "image":
            return self.encoder(self.masked_images(images, masked))
        self._units_masked = masked
        try:
            return self.encoder(images)
        finally:
            self._units_masked = None

    def _mask_first_tokens(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> Any:
        """A hook behind the backbone's embedding; some return their grid beside the tokens."""
        if self._units_masked is None:
            return output
        tokens, *rest = output if isinstance(output, tuple) else (output,)
        backbone = self.encoder.backbone
        first_masked = expand_units(self._units_masked, self.mask_grid, self.mask_unit // backbone.first_patch)
        tokens = replace_tokens(tokens, first_masked, self.mask_token, backbone.first_tokens_channels_last)
        return (tokens, *rest) if isinstance(output, tuple) else tokens

    def _first_width(self) -> int:
        convolutions = (module for module in self.encoder.backbone.embedding().modules() if isinstance(module, nn.Conv2d))
        projection = next(convolutions, None)
        if projection is None:
            raise UserError("mask_space 'patch' needs a backbone whose first tokens come from a convolution; use mask_space 'image'")
        return projection.out_channels

    def _decode(self, latent: Tensor) -> Tensor:
        """(N, h * w, C) -> predictions (N, L, target_dim) of all units in raster order."""
        tokens = self.decoder_embed(latent)
        for block in self.decoder_blocks:
            tokens = block(tokens)
        pred = self.decoder_pred(self.decoder_norm(tokens))
        side = self.encoder.stride // self.unit
        if side == 1:
            return pred
        rows, columns = grid_of(self.image_size, self.encoder.stride)
        tiles = pred.reshape(len(pred), rows, columns, side, side, self.target_dim)
        return tiles.transpose(2, 3).reshape(len(pred), -1, self.target_dim)

    def _p2dist(self, mask: Tensor, grid: tuple[int, int]) -> Tensor | None:
        if not self.with_p2dist:
            return None
        from replicate.difficulty import difficulty  # imported by those runs alone that weigh something

        return difficulty(mask, grid, self.unit, self.difficulty)


def build(run, target_dim: int, with_p2dist: bool) -> MIM:
    """The model of a resolved pre-training run (`replicate.config.PretrainRun`)."""
    encoder = build_encoder(run.backbone, run.image_size, drop_blocks=run.drop_blocks, **run.backbone_kwargs)
    return MIM(
        encoder,
        target_dim,
        decoder_depth=run.decoder_depth,
        decoder_width=run.decoder_width,
        mask_unit=run.mask_unit,
        mask=run.mask,
        mask_ratio=run.mask_ratio,
        mask_space=run.mask_space,
        mask_token=run.mask_token,
        with_p2dist=with_p2dist,
        score_all=run.score_all,
        difficulty=run.difficulty,
    )


def _check_choice(key: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise UserError(f"{key} {value!r} is unknown: choose {' or '.join(choices)}")

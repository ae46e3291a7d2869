"""The masked autoencoder (MAE, section 3), with the papers' variations as options.

Names follow the reference implementation. So do the keys of the state dict: a released checkpoint loads
strictly.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from timm.layers import resample_abs_pos_embed
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from replicate.config.backbones import VIT_SIZES, vit_backbone
from replicate.errors import UserError
from replicate.masking import num_visible, sample_mask
from replicate.models.pos_embed import sincos_2d
from replicate.models.prediction import MaskOptions, Prediction, check_image_size
from replicate.models.ragged import Packing, pack, ragged_block
from replicate.patches import grid_of, pair

if TYPE_CHECKING:
    from replicate.config import PretrainRun


@dataclass(frozen=True)
class MAEOptions(MaskOptions):
    """`MaskOptions`, and what only MAE has.

    mask_tokens_in_encoder  masked patches enter the encoder as a learned token: the slow variant of MAE Table
                            1c
    decoder_beta            decoder masking (Efficient MAE, section 4.2): masked patches whose difficulty
                            exceeds this many pixels never enter the decoder
    """

    mask_tokens_in_encoder: bool = False
    decoder_beta: float | None = None


class PatchEmbed(nn.Module):
    """The reference's convolution `proj`, applied as a matrix to the patches that are needed."""

    def __init__(self, patch_size: int, embed_dim: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(3, embed_dim, patch_size, patch_size)

    def forward(self, images: Tensor, ids_keep: Tensor | None = None) -> Tensor:
        """(N, 3, H, W) -> (N, L, C), or (N, V, C) of the patches ids_keep (N, V) alone."""
        size = self.patch_size
        tiles = images.unflatten(3, (-1, size)).unflatten(2, (-1, size)).permute(0, 2, 4, 1, 3, 5)
        if ids_keep is None:
            patches = tiles.flatten(3).flatten(1, 2)
        else:
            columns = tiles.shape[2]
            image = torch.arange(len(images), device=images.device)[:, None]
            patches = tiles[image, ids_keep // columns, ids_keep % columns].flatten(2)
        return F.linear(patches, self.proj.weight.flatten(1), self.proj.bias)


class MAE(nn.Module):
    """Masked autoencoder with an asymmetric encoder and decoder.

    image_size, patch_size         pixels; image_size is one number or (height, width)
    embed_dim, depth, num_heads    the encoder; decoder_* likewise (8 blocks, 512 wide by default: Table 1)
    target_dim                     values predicted for a patch; None: its pixels, patch_size**2 * 3
    options                        fields of `MAEOptions`

    Raises UserError for an unknown choice or sizes that do not fit together.
    """

    def __init__(
        self,
        image_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        decoder_embed_dim: int = 512,
        decoder_depth: int = 8,
        decoder_num_heads: int = 16,
        mlp_ratio: float = 4.0,
        target_dim: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        self.options = MAEOptions(**options)
        self.mask_ratio = self.options.mask_ratio
        self.mask_tokens_in_encoder = self.options.mask_tokens_in_encoder
        _check_width("encoder", embed_dim, num_heads)
        _check_width("decoder", decoder_embed_dim, decoder_num_heads)
        self.patch_size, self.embed_dim, self.decoder_embed_dim = patch_size, embed_dim, decoder_embed_dim
        self.target_dim = patch_size**2 * 3 if target_dim is None else target_dim
        self.ragged_kernel = "auto"
        self._built_size = pair(image_size)
        self.grid = grid_of(image_size, patch_size)
        num_visible(self.num_patches, self.mask_ratio)  # refuses an impossible ratio before the first step
        block = partial(Block, mlp_ratio=mlp_ratio, qkv_bias=True, norm_layer=partial(nn.LayerNorm, eps=1e-6))

        # Encoder
        self.patch_embed = PatchEmbed(patch_size, embed_dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.pos_embed = nn.Parameter(sincos_2d(embed_dim, self.grid), requires_grad=False)
        self.blocks = nn.ModuleList(block(embed_dim, num_heads) for _ in range(depth))
        self.norm = nn.LayerNorm(embed_dim, eps=1e-6)

        # Decoder
        self.decoder_embed = nn.Linear(embed_dim, decoder_embed_dim)
        # With mask tokens in the encoder the decoder needs none: the one token has the encoder's width.
        mask_width = embed_dim if self.mask_tokens_in_encoder else decoder_embed_dim
        self.mask_token = nn.Parameter(torch.zeros(1, 1, mask_width))
        self.decoder_pos_embed = nn.Parameter(sincos_2d(decoder_embed_dim, self.grid), requires_grad=False)
        self.decoder_blocks = nn.ModuleList(
            block(decoder_embed_dim, decoder_num_heads) for _ in range(decoder_depth)
        )
        self.decoder_norm = nn.LayerNorm(decoder_embed_dim, eps=1e-6)
        self.decoder_pred = nn.Linear(decoder_embed_dim, self.target_dim)

        self.initialize_weights()

    def initialize_weights(self) -> None:
        """Xavier-uniform on every matrix (fused qkv and patch projection as one each), N(0, .02) on tokens.

        Appendix A.1, and the reference implementation for the tokens.
        """
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        projection = self.patch_embed.proj
        nn.init.xavier_uniform_(projection.weight.data.flatten(1))
        nn.init.zeros_(projection.bias)
        nn.init.normal_(self.cls_token, std=0.02)
        self.options.init_mask_token(self.mask_token)

    @property
    def num_patches(self) -> int:
        """Patches of an image at the current size."""
        return self.grid[0] * self.grid[1]

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) that the position embeddings are set for."""
        return self.grid[0] * self.patch_size, self.grid[1] * self.patch_size

    def set_image_size(self, image_size: int | tuple[int, int]) -> None:
        """Take images of another size from now on (a resolution stage).

        Resamples the tables of the size that the model was built for (bicubic, antialias, as DailyMAE does).
        So the path of sizes does not matter, and the first size always gives the first tables.
        """
        built = grid_of(self._built_size, self.patch_size)
        self.grid = grid_of(image_size, self.patch_size)
        for name, width in (("pos_embed", self.embed_dim), ("decoder_pos_embed", self.decoder_embed_dim)):
            table = resample_abs_pos_embed(sincos_2d(width, built), list(self.grid), list(built))
            setattr(self, name, nn.Parameter(table.to(getattr(self, name)), requires_grad=False))

    def embed_visible(
        self, images: Tensor, mask_ratio: float, noise: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The encoder's input: class token and visible patches with their positions.

        -> tokens (N, 1 + V, C), mask (N, L), ids_restore (N, L). With mask tokens in the encoder V = L, in
        raster order.
        """
        check_image_size(images, self.image_size)
        if noise is None:
            noise = torch.rand(len(images), self.num_patches, device=images.device)
        ids_keep, ids_restore, mask = sample_mask(self.options.mask, noise, mask_ratio, self.grid)
        if self.mask_tokens_in_encoder:
            tokens = torch.where(mask[..., None] > 0, self.mask_token, self.patch_embed(images))
            tokens = tokens + self.pos_embed[:, 1:]
        else:
            tokens = self.patch_embed(images, ids_keep) + self.pos_embed[0, 1:][ids_keep]
        cls_token = (self.cls_token + self.pos_embed[:, :1]).expand(len(images), -1, -1)
        return torch.cat([cls_token, tokens], 1), mask, ids_restore

    def forward_encoder(
        self, images: Tensor, mask_ratio: float, noise: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """-> latent (N, 1 + V, C), mask (N, L), ids_restore (N, L), as `embed_visible`."""
        tokens, mask, ids_restore = self.embed_visible(images, mask_ratio, noise)
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens), mask, ids_restore

    def forward_decoder(self, latent: Tensor, ids_restore: Tensor, kept: Tensor | None = None) -> Tensor:
        """-> prediction (N, L, target_dim) in raster order.

        With kept (N, L) bool only those tokens enter the decoder; the prediction of the others is zero.
        """
        if kept is not None:
            return self._forward_packed_decoder(latent, ids_restore, kept)
        tokens = self.decoder_embed(latent)
        if not self.mask_tokens_in_encoder:
            tokens = tokens.to(self.mask_token.dtype)  # under autocast, so that the mask token is not rounded
            place = self._places(ids_restore, latent.shape[1])[..., None].expand_as(tokens)
            tokens = self.mask_token.expand(len(tokens), 1 + self.num_patches, -1).scatter(1, place, tokens)
        tokens = tokens + self.decoder_pos_embed
        for block in self.decoder_blocks:
            tokens = block(tokens)
        return self.decoder_pred(self.decoder_norm(tokens))[:, 1:]

    def forward(
        self, images: Tensor, noise: Tensor | None = None, mask_ratio: float | None = None
    ) -> Prediction:
        """Normalised images (N, 3, H, W) -> Prediction.

        `noise` (N, L), uniform on [0, 1), decides the mask; None draws it.
        """
        ratio = self.mask_ratio if mask_ratio is None else mask_ratio
        latent, mask, ids_restore = self.forward_encoder(images, ratio, noise)
        scored, beta = self.options.scored(mask), self.options.decoder_beta
        difficulty = kept = None
        if beta is not None or self.options.with_difficulty:
            difficulty = self.options.measure(mask, self.grid, self.patch_size)
        if beta is not None:
            kept = (mask == 0) | (difficulty <= beta)
            scored = scored * kept
        pred = self.forward_decoder(latent, ids_restore, kept)
        return Prediction(pred, mask, scored, latent, difficulty, self.grid)

    def unmasked_features(self, images: Tensor) -> Tensor:
        """(N, C) mean patch token of whole images before the last norm, for DailyMAE's online probe."""
        tokens = torch.cat([self.cls_token.expand(len(images), -1, -1), self.patch_embed(images)], 1)
        tokens = tokens + self.pos_embed
        for block in self.blocks:
            tokens = block(tokens)
        return tokens[:, 1:].mean(1)

    def _forward_packed_decoder(self, latent: Tensor, ids_restore: Tensor, kept: Tensor) -> Tensor:
        packing = pack(F.pad(kept, (1, 0), value=True))
        tokens = self._packed_tokens(self.decoder_embed(latent), ids_restore, packing)
        for block in self.decoder_blocks:
            tokens = ragged_block(block, tokens, packing, self.ragged_kernel)
        pred = self.decoder_pred(self.decoder_norm(tokens))
        dense = pred.new_zeros(kept.shape[0] * (1 + self.num_patches), self.target_dim)
        return dense.index_put((packing.dense_index,), pred).unflatten(0, (len(kept), -1))[:, 1:]

    def _packed_tokens(self, tokens: Tensor, ids_restore: Tensor, packing: Packing) -> Tensor:
        length = 1 + self.num_patches
        position = self.decoder_pos_embed[0].index_select(0, packing.dense_index % length)
        if self.mask_tokens_in_encoder:
            return tokens.flatten(0, 1).index_select(0, packing.dense_index) + position
        start = torch.arange(len(tokens), device=tokens.device)[:, None] * length
        place = packing.packed_index[start + self._places(ids_restore, tokens.shape[1])]
        full = self.mask_token[0].expand(len(packing.dense_index), -1)
        return full.index_put((place.flatten(),), tokens.flatten(0, 1).to(full.dtype)) + position

    def _places(self, ids_restore: Tensor, encoded: int) -> Tensor:
        """(N, encoded) raster position of every encoded token in the full sequence, class token first."""
        ids_keep = torch.argsort(ids_restore, dim=1)[:, : encoded - 1]
        return F.pad(ids_keep + 1, (1, 0))


def mae_vit_base_patch16(**options: Any) -> MAE:
    """ViT-B/16 with the default decoder of 8 blocks, 512 wide; `options` as `MAE` takes them."""
    return MAE(**VIT_SIZES["base"] | {"patch_size": 16} | options)


def mae_vit_large_patch16(**options: Any) -> MAE:
    """ViT-L/16 with the default decoder."""
    return MAE(**VIT_SIZES["large"] | {"patch_size": 16} | options)


def mae_vit_huge_patch14(**options: Any) -> MAE:
    """ViT-H/14 with the default decoder."""
    return MAE(**VIT_SIZES["huge"] | {"patch_size": 14} | options)


def mae_vit_base_patch16_dec512d1b(**options: Any) -> MAE:
    """ViT-B/16 with the lightest decoder of MAE's Table 1a: one block, 512 wide."""
    return mae_vit_base_patch16(**{"decoder_depth": 1} | options)


def from_run(run: PretrainRun, target_dim: int, with_difficulty: bool) -> MAE:
    """The model of a resolved pre-training run. Decoder heads are 32 wide, as in the reference."""
    return MAE(**sizes_of_run(run, target_dim), **MAEOptions.of(run, with_difficulty))


def sizes_of_run(run: PretrainRun, target_dim: int) -> dict[str, Any]:
    """The sizes of a run's encoder and decoder, as `MAE` takes them."""
    return vit_backbone(run.backbone, **run.backbone_kwargs).kwargs | {
        "image_size": run.image_size,
        "decoder_embed_dim": run.decoder_width,
        "decoder_depth": run.decoder_depth,
        "decoder_num_heads": max(1, run.decoder_width // 32),
        "target_dim": target_dim,
    }


def _check_width(part: str, width: int, heads: int) -> None:
    if width % heads:
        raise UserError(f"{part} width {width} is not a multiple of its {heads} heads")
    if width % 4:
        raise UserError(f"{part} width {width} is not a multiple of 4, as sine-cosine positions need")

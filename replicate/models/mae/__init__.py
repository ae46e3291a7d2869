"""The masked autoencoder (MAE, section 3), with the papers' variations as options.

Names follow the reference implementation, and so do the keys of the state dict: a released checkpoint loads strictly.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import replicate.compat  # noqa: F401
from replicate.config.backbones import vit_backbone
from replicate.errors import UserError
from replicate.masking import num_visible, sample_mask
from replicate.models.cpu import linear, tune_for_cpu
from replicate.models.mae.ragged import Packing, pack, ragged_block
from replicate.models.pos_embed import resample_pos_embed, sincos_2d
from replicate.models.prediction import Prediction
from replicate.patches import grid_of, pair

from timm.models.vision_transformer import Block  # isort: skip  (after replicate.compat)

MASKS = ("random", "block", "grid")


class PatchEmbed(nn.Module):
    """The patch projection, kept as the reference's convolution `proj` but applied as a matrix to the patches that are
    needed.
    """

    def __init__(self, patch_size: int, embed_dim: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(3, embed_dim, patch_size, patch_size)

    def forward(self, images: Tensor, ids_keep: Tensor | None = None) -> Tensor:
        """(N, 3, H, W) -> (N, L, C), or (N, V, C) of the patches ids_keep (N, V): masked patches are never projected."""
        size = self.patch_size
        tiles = images.unflatten(3, (-1, size)).unflatten(2, (-1, size)).permute(0, 2, 4, 1, 3, 5)
        if ids_keep is None:
            patches = tiles.flatten(3).flatten(1, 2)
        else:
            columns = tiles.shape[2]
            image = torch.arange(len(images), device=images.device)[:, None]
            patches = tiles[image, ids_keep // columns, ids_keep % columns].flatten(2)
        return linear(patches, self.proj.weight.flatten(1), self.proj.bias)


class MAE(nn.Module):
    """Masked autoencoder with an asymmetric encoder and decoder.

    image_size, patch_size         pixels; image_size one number or (height, width)
    embed_dim, depth, num_heads    the encoder; decoder_* likewise (8 blocks, 512 wide by default: Table 1)
    target_dim                     numbers predicted for a patch; None means its pixels, patch_size**2 * 3
    mask, mask_ratio               "random" | "block" | "grid" (Table 1f)
    mask_tokens_in_encoder         the slow variant of Table 1c: masked patches enter the encoder as a learned token
    decoder_beta                   decoder masking (Efficient MAE, section 4.2): masked patches whose difficulty exceeds it
                                   (pixels of P2Dist), never enter the decoder
    with_p2dist                    measure the difficulty even without decoder masking (a weighting needs it)
    difficulty                     what is measured: exact P2Dist, its approximation, or a rival of Table 5
                                   (`replicate.difficulty.METRICS`)
    score_all                      the loss covers visible patches too (the ablation of section 3, footnote 1)
    mask_token                     "learned", or "zero" and fixed there (FastMIM, Table 10a)

    Raises UserError for sizes that do not fit together.
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
        mask: str = "random",
        mask_ratio: float = 0.75,
        mask_tokens_in_encoder: bool = False,
        decoder_beta: float | None = None,
        with_p2dist: bool = False,
        score_all: bool = False,
        difficulty: str = "p2dist",
        mask_token: str = "learned",
    ) -> None:
        super().__init__()
        _check_width("encoder", embed_dim, num_heads)
        _check_width("decoder", decoder_embed_dim, decoder_num_heads)
        if mask not in MASKS:
            raise UserError(f"mask {mask!r} is unknown: choose {', '.join(MASKS)}")
        self.patch_size, self.embed_dim, self.decoder_embed_dim = patch_size, embed_dim, decoder_embed_dim
        self.target_dim = patch_size**2 * 3 if target_dim is None else target_dim
        self.mask, self.mask_ratio, self.mask_tokens_in_encoder = mask, mask_ratio, mask_tokens_in_encoder
        self.decoder_beta, self.with_p2dist, self.score_all = decoder_beta, with_p2dist, score_all
        self.difficulty = difficulty
        self.ragged_kernel = "auto"
        self._built_size = pair(image_size)
        self.grid = grid_of(image_size, patch_size)
        num_visible(self.num_patches, mask_ratio)  # refuses an impossible ratio here, not at the first step

        blocks = partial(Block, mlp_ratio=mlp_ratio, qkv_bias=True, norm_layer=partial(nn.LayerNorm, eps=1e-6))
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.pos_embed = nn.Parameter(sincos_2d(embed_dim, self.grid), requires_grad=False)
        # With mask tokens in the encoder the decoder gets none: the one token there is takes the encoder's width.
        self.mask_token = nn.Parameter(torch.zeros(1, 1, embed_dim if mask_tokens_in_encoder else decoder_embed_dim))
        self.decoder_pos_embed = nn.Parameter(sincos_2d(decoder_embed_dim, self.grid), requires_grad=False)
        self.patch_embed = PatchEmbed(patch_size, embed_dim)
        self.blocks = nn.ModuleList(blocks(embed_dim, num_heads) for _ in range(depth))
        self.norm = nn.LayerNorm(embed_dim, eps=1e-6)
        self.decoder_embed = nn.Linear(embed_dim, decoder_embed_dim)
        self.decoder_blocks = nn.ModuleList(blocks(decoder_embed_dim, decoder_num_heads) for _ in range(decoder_depth))
        self.decoder_norm = nn.LayerNorm(decoder_embed_dim, eps=1e-6)
        self.decoder_pred = nn.Linear(decoder_embed_dim, self.target_dim)
        self.initialize_weights()
        if mask_token == "zero":
            nn.init.zeros_(self.mask_token.requires_grad_(False))
        tune_for_cpu(self)

    def initialize_weights(self) -> None:
        """Xavier-uniform on every matrix (the fused qkv and the patch projection each as one), N(0, .02) on the two
        tokens (appendix A.1).
        """
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        projection = self.patch_embed.proj
        nn.init.xavier_uniform_(projection.weight.data.flatten(1))
        nn.init.zeros_(projection.bias)
        nn.init.normal_(self.cls_token, std=0.02)
        nn.init.normal_(self.mask_token, std=0.02)

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

        The fixed tables of the size that the model was built for are resampled (bicubic, antialias, as DailyMAE does),
        so that the way to a size never matters, and coming back to the first size is the identity.
        """
        built = grid_of(self._built_size, self.patch_size)
        self.grid = grid_of(image_size, self.patch_size)
        for name, width in (("pos_embed", self.embed_dim), ("decoder_pos_embed", self.decoder_embed_dim)):
            old = getattr(self, name)
            table = resample_pos_embed(sincos_2d(width, built), built, self.grid)
            setattr(self, name, nn.Parameter(table.to(old), requires_grad=False))

    def forward(self, images: Tensor, noise: Tensor | None = None, mask_ratio: float | None = None) -> Prediction:
        """Normalised images (N, 3, H, W) -> Prediction. `noise` (N, L), uniform on [0, 1), decides the mask; None draws
        it.
        """
        latent, mask, ids_restore = self.forward_encoder(images, self.mask_ratio if mask_ratio is None else mask_ratio, noise)
        distance = self._p2dist(mask)
        scored = torch.ones_like(mask) if self.score_all else mask
        if self.decoder_beta is None:
            pred = self.forward_decoder(latent, ids_restore)
        else:
            kept = (mask == 0) | (distance <= self.decoder_beta)
            scored = scored * kept
            pred = self.forward_decoder(latent, ids_restore, kept)
        return Prediction(pred, mask, scored, latent, distance, self.grid)

    def forward_encoder(self, images: Tensor, mask_ratio: float, noise: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """-> latent (N, 1 + V, C), mask (N, L), ids_restore (N, L); with mask tokens in the encoder V = L, in raster
        order.
        """
        if tuple(images.shape[-2:]) != self.image_size:
            given, wanted = "x".join(map(str, images.shape[-2:])), "x".join(map(str, self.image_size))
            raise UserError(f"images are {given} but the model is set for {wanted}: call set_image_size, or change image_size")
        if noise is None:
            noise = torch.rand(len(images), self.num_patches, device=images.device)
        ids_keep, ids_restore, mask = sample_mask(self.mask, noise, mask_ratio, self.grid)
        if self.mask_tokens_in_encoder:
            tokens = torch.where(mask[..., None] > 0, self.mask_token, self.patch_embed(images)) + self.pos_embed[:, 1:]
        else:
            tokens = self.patch_embed(images, ids_keep) + self.pos_embed[0, 1:][ids_keep]
        cls_token = (self.cls_token + self.pos_embed[:, :1]).expand(len(images), -1, -1)
        tokens = torch.cat([cls_token, tokens], 1)
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens), mask, ids_restore

    def unmasked_features(self, images: Tensor) -> Tensor:
        """(N, C) mean patch token of whole images before the last norm: what DailyMAE's online probe classifies."""
        tokens = torch.cat([self.cls_token.expand(len(images), -1, -1), self.patch_embed(images)], 1) + self.pos_embed
        for block in self.blocks:
            tokens = block(tokens)
        return tokens[:, 1:].mean(1)

    def forward_decoder(self, latent: Tensor, ids_restore: Tensor, kept: Tensor | None = None) -> Tensor:
        """-> prediction (N, L, target_dim) in raster order. With kept (N, L) bool only those tokens enter; the others'
        prediction is zero.
        """
        if kept is not None:
            return self._decode_packed(latent, ids_restore, kept)
        tokens = self.decoder_embed(latent)
        if not self.mask_tokens_in_encoder:
            tokens = tokens.to(self.mask_token.dtype)  # under autocast, so that the mask token is not rounded
            place = self._places(ids_restore, latent.shape[1])[..., None].expand_as(tokens)
            tokens = self.mask_token.expand(len(tokens), 1 + self.num_patches, -1).scatter(1, place, tokens)
        tokens = tokens + self.decoder_pos_embed
        for block in self.decoder_blocks:
            tokens = block(tokens)
        return self.decoder_pred(self.decoder_norm(tokens))[:, 1:]

    def _decode_packed(self, latent: Tensor, ids_restore: Tensor, kept: Tensor) -> Tensor:
        packing = pack(F.pad(kept, (1, 0), value=True))
        tokens = self._packed_tokens(self.decoder_embed(latent), ids_restore, packing)
        for block in self.decoder_blocks:
            tokens = ragged_block(block, tokens, packing, self.ragged_kernel)
        pred = self.decoder_pred(self.decoder_norm(tokens))
        dense = pred.new_zeros(kept.shape[0] * (1 + self.num_patches), self.target_dim)
        return dense.index_put((packing.source,), pred).unflatten(0, (len(kept), -1))[:, 1:]

    def _packed_tokens(self, tokens: Tensor, ids_restore: Tensor, packing: Packing) -> Tensor:
        length = 1 + self.num_patches
        position = self.decoder_pos_embed[0].index_select(0, packing.source % length)
        if self.mask_tokens_in_encoder:
            return tokens.flatten(0, 1).index_select(0, packing.source) + position
        start = torch.arange(len(tokens), device=tokens.device)[:, None] * length
        place = packing.target[start + self._places(ids_restore, tokens.shape[1])]
        full = self.mask_token[0].expand(len(packing.source), -1)
        return full.index_put((place.flatten(),), tokens.flatten(0, 1).to(full.dtype)) + position

    def _places(self, ids_restore: Tensor, encoded: int) -> Tensor:
        """(N, encoded) raster position of every encoded token in the full sequence, class token first."""
        ids_keep = torch.argsort(ids_restore, dim=1)[:, : encoded - 1]
        return F.pad(ids_keep + 1, (1, 0))

    def _p2dist(self, mask: Tensor) -> Tensor | None:
        if self.decoder_beta is None and not self.with_p2dist:
            return None
        from replicate.difficulty import (
            difficulty,  # imported by those runs alone that weigh or drop something
        )

        return difficulty(mask, self.grid, self.patch_size, self.difficulty)


def build(run, target_dim: int, with_p2dist: bool) -> MAE:
    """The model of a resolved pre-training run (`replicate.config.PretrainRun`); decoder heads are 32 wide, as in MAE."""
    kwargs = vit_backbone(run.backbone, **run.backbone_kwargs).kwargs
    return MAE(
        image_size=run.image_size,
        **kwargs,
        decoder_embed_dim=run.decoder_width,
        decoder_depth=run.decoder_depth,
        decoder_num_heads=max(1, run.decoder_width // 32),
        target_dim=target_dim,
        mask=run.mask,
        mask_ratio=run.mask_ratio,
        mask_tokens_in_encoder=run.mask_tokens_in_encoder,
        decoder_beta=run.decoder_beta,
        with_p2dist=with_p2dist,
        score_all=run.score_all,
        difficulty=run.difficulty,
        mask_token=run.mask_token,
    )


def _check_width(part: str, width: int, heads: int) -> None:
    if width % heads:
        raise UserError(f"{part} width {width} is not a multiple of its {heads} heads")
    if width % 4:
        raise UserError(f"{part} width {width} is not a multiple of 4, as the 2-D sine-cosine position embedding needs")

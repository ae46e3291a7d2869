"""CrossMAE: a masked autoencoder whose decoder has cross-attention alone.

Fu et al., "Rethinking Patch Dependence for Masked Autoencoders" (TMLR 2025, arXiv:2401.14391). Mask tokens
query the encoder's tokens and never one another. So each patch is decoded on its own, and a share of the
masked patches is enough: the others are neither seen nor predicted.

The encoder is MAE's, and names follow the released models but for two, so that every part of the decoder
starts with "decoder" and `load_encoder` leaves it out: `dec_norms` is `decoder_map_norms` here, and the one
weight of `wfm` is `decoder_map_weights.weight`. With these renamed, load a released file with `strict=False`:
`norm`, which that loss does not reach, may be missing there.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from timm.layers import Mlp
from torch import Tensor, nn

from replicate.errors import UserError
from replicate.masking import num_visible
from replicate.models.features import xavier_linear
from replicate.models.mae import MAE, sizes_of_run
from replicate.models.prediction import MaskOptions, Prediction

if TYPE_CHECKING:
    from replicate.config import PretrainRun


def num_predicted(num_patches: int, mask_ratio: float, prediction_ratio: float | None) -> int:
    """Masked patches of an image, without the floor(L (mask_ratio - prediction_ratio)) skipped ones.

    None is skipped without a `prediction_ratio`, and at a mask ratio below it.
    """
    skipped = 0.0 if prediction_ratio is None else max(0.0, mask_ratio - prediction_ratio)
    masked = num_patches - num_visible(num_patches, mask_ratio)
    return masked - math.floor(round(num_patches * skipped, 9))


class CrossAttention(nn.Module):
    """Multi-head attention from one sequence to another of its own width."""

    def __init__(self, dim: int, encoder_dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(encoder_dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Queries from x (N, Q, dim), keys and values from y (N, T, encoder_dim) -> (N, Q, dim)."""
        query = self.q(x).unflatten(2, (self.num_heads, -1)).transpose(1, 2)
        key, value = self.kv(y).unflatten(2, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))


class CrossAttentionBlock(nn.Module):
    """A pre-norm block without self-attention."""

    def __init__(self, dim: int, encoder_dim: int, num_heads: int, mlp_ratio: float = 4.0) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.cross_attn = CrossAttention(dim, encoder_dim, num_heads)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        x = x + self.cross_attn(self.norm1(x), y)
        return x + self.mlp(self.norm2(x))


class CrossMAE(MAE):
    """MAE's encoder, and a decoder of cross-attention blocks.

    prediction_ratio    share of all patches that are predicted; None: every masked patch. A trained model may
                        predict another share: set the attribute of this name
    last_features_only  every decoder block attends to the encoder's output. By default each attends to its
                        own weighted sum of all feature maps (inter-block attention), as in the released
                        models
    mae                 as in `MAE`, with fields of `MaskOptions`

    With weighted sums the loss does not reach the encoder's last norm: it stays as initialised, and
    normalises `Prediction.latent` alone. Raises UserError for a decoder without blocks, for options that this
    decoder cannot have, and for a `prediction_ratio` outside (0, mask_ratio].
    """

    def __init__(
        self,
        image_size: int | tuple[int, int] = 224,
        *,
        decoder_embed_dim: int = 512,
        decoder_depth: int = 12,
        decoder_num_heads: int = 16,
        mlp_ratio: float = 4.0,
        prediction_ratio: float | None = None,
        last_features_only: bool = False,
        **mae: Any,
    ) -> None:
        heads = {"decoder_num_heads": decoder_num_heads, "mlp_ratio": mlp_ratio}
        super().__init__(image_size, decoder_embed_dim=decoder_embed_dim, decoder_depth=0, **heads, **mae)
        self.prediction_ratio, self.last_features_only = prediction_ratio, last_features_only
        self._check(decoder_depth)
        del self.decoder_embed  # keys and values take the encoder's width

        blocks = (decoder_embed_dim, self.embed_dim, decoder_num_heads, mlp_ratio)
        self.decoder_blocks = nn.ModuleList(CrossAttentionBlock(*blocks) for _ in range(decoder_depth))
        xavier_linear(self.decoder_blocks)
        if not last_features_only:
            maps = 1 + len(self.blocks)
            self.decoder_map_weights = nn.Linear(maps, decoder_depth, bias=False)
            nn.init.normal_(self.decoder_map_weights.weight, std=1 / math.sqrt(maps))
            self.decoder_map_norms = nn.ModuleList(
                nn.LayerNorm(self.embed_dim, eps=1e-6) for _ in range(decoder_depth)
            )
            self.norm.requires_grad_(False)

    def _check(self, decoder_depth: int) -> None:
        for option in ("score_all", "decoder_beta", "mask_tokens_in_encoder"):
            if getattr(self.options, option):
                raise UserError(f"{option} belongs to MAE, whose decoder sees every patch")
        if decoder_depth < 1:
            raise UserError("decoder_depth 0: CrossMAE needs at least one block of cross-attention")
        ratio = self.prediction_ratio
        if ratio is not None and not 0 < ratio <= self.mask_ratio:
            wanted = f"a share of all patches in (0, {self.mask_ratio}], as masked ones alone are predicted"
            raise UserError(f"prediction_ratio {ratio} must be {wanted}")

    def forward(
        self, images: Tensor, noise: Tensor | None = None, mask_ratio: float | None = None
    ) -> Prediction:
        """Normalised images (N, 3, H, W) -> Prediction, with zeros for patches that are not predicted.

        `noise` (N, L), uniform on [0, 1), decides what is visible, and which masked patches are predicted.
        """
        ratio = self.mask_ratio if mask_ratio is None else mask_ratio
        if noise is None:
            noise = torch.rand(len(images), self.num_patches, device=images.device)
        tokens, mask, _ = self.embed_visible(images, ratio, noise)
        feature_maps = [tokens]
        for block in self.blocks:
            feature_maps.append(block(feature_maps[-1]))
        latent = self.norm(feature_maps[-1])

        # Masked patches in the order of their noise: for random masks this is the shuffle's own order.
        ids_shuffle = torch.argsort(noise.masked_fill(mask == 0, -1.0), dim=1, stable=True)
        count = num_predicted(self.num_patches, ratio, self.prediction_ratio)
        ids_predict = ids_shuffle[:, self.num_patches - count :]
        pred = self.forward_decoder(self.decoder_inputs(feature_maps, latent), ids_predict)

        place = ids_predict[..., None].expand_as(pred)
        pred = pred.new_zeros(len(images), self.num_patches, self.target_dim).scatter(1, place, pred)
        scored = torch.zeros_like(mask).scatter(1, ids_predict, 1.0)
        measured = self.options.with_difficulty
        difficulty = self.options.measure(mask, self.grid, self.patch_size) if measured else None
        return Prediction(pred, mask, scored, latent, difficulty, self.grid)

    def decoder_inputs(self, feature_maps: list[Tensor], latent: Tensor) -> list[Tensor]:
        """What each decoder block attends to, (N, 1 + V, C) a block: its own mix of all maps, or the latent.

        The maps are the encoder's input and the output of every block, before the last norm.
        """
        if self.last_features_only:
            return [latent] * len(self.decoder_blocks)
        mixed = self.decoder_map_weights.weight @ torch.stack(feature_maps).flatten(1)
        mixed = mixed.unflatten(1, latent.shape)
        return [norm(one) for norm, one in zip(self.decoder_map_norms, mixed, strict=True)]

    def forward_decoder(self, inputs: list[Tensor], ids_predict: Tensor) -> Tensor:
        """-> predictions (N, P, target_dim) of the patches ids_predict (N, P), each decoded on its own."""
        tokens = self.mask_token + self.decoder_pos_embed[0, 1:][ids_predict]
        for block, features in zip(self.decoder_blocks, inputs, strict=True):
            tokens = block(tokens, features)
        return self.decoder_pred(self.decoder_norm(tokens))


def from_run(run: PretrainRun, target_dim: int, with_difficulty: bool) -> CrossMAE:
    """The model of a resolved pre-training run. Decoder heads are 32 wide, as in the released models."""
    return CrossMAE(
        **sizes_of_run(run, target_dim),
        prediction_ratio=run.prediction_ratio,
        last_features_only=run.last_features_only,
        **MaskOptions.of(run, with_difficulty),
    )

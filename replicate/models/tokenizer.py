"""A small discrete autoencoder of patches: the tokenizer behind the token target.

MAE (Table 1d) and BEiT take DALL-E's discrete VAE, trained on 250 million images. This one trains on the
training set at hand. It is a vector-quantised autoencoder (van den Oord et al. 2017) that looks codes up on
the unit sphere in few dimensions (Yu et al. 2022). That spreads the use of the vocabulary without moving
averages or revived codes, so it trains under data parallelism like any other model.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from replicate.errors import UserError
from replicate.models.dalle import from_state
from replicate.models.weights import load_safetensors, load_weights, save_weights
from replicate.patches import patchify, unpatchify

COMMITMENT = 0.25
"""Weight of the term that keeps the encoder near its codes (van den Oord et al.)."""


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions on the grid of patches: a token depends on its neighbours."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.GroupNorm(1, width), nn.GELU(), nn.Conv2d(width, width, 3, padding=1),
            nn.GroupNorm(1, width), nn.GELU(), nn.Conv2d(width, width, 3, padding=1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class Tokenizer(nn.Module):
    """Normalised images -> one of `vocabulary` tokens for each patch -> images."""

    def __init__(
        self, patch_size: int, vocabulary: int = 512, width: int = 128, depth: int = 2, code_width: int = 16
    ) -> None:
        super().__init__()
        sizes = {"patch_size": patch_size, "vocabulary": vocabulary, "width": width, "depth": depth}
        self.config = sizes | {"code_width": code_width}
        self.stride, self.vocabulary = patch_size, vocabulary
        values = patch_size**2 * 3
        self.encoder = _stack(values, width, depth, code_width)
        self.codes = nn.Parameter(functional.normalize(torch.randn(vocabulary, code_width), dim=1))
        self.decoder = _stack(code_width, width, depth, values)

    def forward(self, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """(N, 3, H, W) -> the loss, and {"reconstruction": squared error, "perplexity": codes in use}."""
        rebuilt, features, codes, ids = self.rebuilt(images)
        reconstruction = functional.mse_loss(rebuilt.float(), images.float())
        quantisation = functional.mse_loss(codes, features.detach())
        quantisation = quantisation + COMMITMENT * functional.mse_loss(features, codes.detach())
        used = torch.bincount(ids.flatten(), minlength=self.vocabulary).float() / ids.numel()
        perplexity = torch.special.entr(used).sum().exp()
        return reconstruction + quantisation, {
            "reconstruction": reconstruction.detach(),
            "perplexity": perplexity,
        }

    def rebuilt(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(N, 3, H, W) -> reconstructions, features and codes (N, code_width, h, w), ids (N, h, w).

        The gradient passes the ids by the straight-through estimator.
        """
        features = self._features(images)
        ids = self._nearest(features)
        codes = self._look_up(ids)
        return self._decode(features + (codes - features).detach()), features, codes, ids

    @torch.no_grad()
    def ids(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, L) int64 tokens in raster order."""
        return self._nearest(self._features(images)).flatten(1)

    @torch.no_grad()
    def reconstruct(self, ids: Tensor, grid: tuple[int, int]) -> Tensor:
        """Tokens (N, L) -> images (N, 3, H, W) in the normalised space."""
        return self._decode(self._look_up(ids.unflatten(1, grid)))

    def save(self, path: str | Path) -> None:
        """Write weights and sizes to a safetensors file."""
        save_weights(self.state_dict(), path, {"tokenizer": json.dumps(self.config)})

    def _features(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) -> unit vectors (N, code_width, rows, columns)."""
        rows, columns = images.shape[2] // self.stride, images.shape[3] // self.stride
        patches = patchify(images, self.stride).transpose(1, 2).unflatten(2, (rows, columns))
        return functional.normalize(self.encoder(patches).float(), dim=1)

    def _nearest(self, features: Tensor) -> Tensor:
        """Unit vectors (N, code_width, h, w) -> ids (N, h, w): the nearest code has the largest product."""
        codes = functional.normalize(self.codes.float(), dim=1)
        return torch.einsum("ncij,kc->nkij", features, codes).argmax(dim=1)

    def _look_up(self, ids: Tensor) -> Tensor:
        return functional.normalize(self.codes.float(), dim=1)[ids].permute(0, 3, 1, 2)

    def _decode(self, codes: Tensor) -> Tensor:
        return unpatchify(
            self.decoder(codes).flatten(2).transpose(1, 2), self.stride, tuple(codes.shape[-2:])
        )


def _stack(inputs: int, width: int, depth: int, outputs: int) -> nn.Sequential:
    blocks = (ResidualBlock(width) for _ in range(depth))
    return nn.Sequential(nn.Conv2d(inputs, width, 1), *blocks, nn.Conv2d(width, outputs, 1))


def load_tokenizer(path: str | Path) -> nn.Module:
    """A tokenizer from a file, in evaluation mode: the workbook's own, or DALL-E's discrete VAE.

    Of the latter it reads the encoder's state dict, as safetensors or a checkpoint of plain tensors, under
    the released names or those of the FLAVA codebook. It refuses the released pickle, which holds code.
    Raises UserError for anything else.
    """
    if Path(path).suffix == ".safetensors":
        state, metadata = load_safetensors(path)
        if "tokenizer" in metadata:
            tokenizer = Tokenizer(**json.loads(metadata["tokenizer"]))
            tokenizer.load_state_dict(state)
            return tokenizer.eval()
    else:
        state = load_weights(path)
    if not any(name.startswith("blocks.group_1.") for name in state):
        holds = "neither one of the workbook's own nor the encoder of DALL-E's discrete VAE"
        raise UserError(f"{path} is no tokenizer: it holds {holds}")
    return from_state(state, str(path)).eval()

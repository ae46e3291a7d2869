"""CrossMAE: what its decoder costs, and pictures of every masked patch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from replicate.config.backbones import vit_backbone
from replicate.report import figures
from replicate.report.computed import Answer, Cell
from replicate.report.ranges import Range
from replicate.report.style import PALETTE, Figure

if TYPE_CHECKING:
    from replicate.report.book import Book

ENCODERS = {
    "ViT-S": "small_patch16",
    "ViT-B": "base_patch16",
    "ViT-L": "large_patch16",
    "ViT-H": "huge_patch14",
}
DEPTH = 12


def decoder_macs(encoder: str, mae_depth: int | None = None, prediction_ratio: float | None = None) -> float:
    """Multiply-adds of decoding one image at mask ratio 0.75: CrossMAE's, or MAE's by `mae_depth` blocks.

    Decoders are 512 wide, and 256 with ViT-S, as the released ones.
    """
    from replicate.cost.crossmae import crossmae_macs
    from replicate.cost.macs import mae_macs

    sizes = vit_backbone(f"vit_{ENCODERS[encoder]}").kwargs
    sizes |= {"decoder_embed_dim": 256 if encoder == "ViT-S" else 512}
    if mae_depth is not None:
        return mae_macs(**sizes, decoder_depth=mae_depth).decoder
    return crossmae_macs(**sizes, decoder_depth=DEPTH, prediction_ratio=prediction_ratio).decoder


def decoding_compute_ratio(cell: Cell, mae_decoder_depth: int) -> Range:
    """Multiply-adds of MAE's decoder over those of CrossMAE's, for ViT-B at a prediction ratio of 0.25."""
    return Range.exact(decoder_macs("ViT-B", mae_decoder_depth) / decoder_macs("ViT-B", None, 0.25))


def crossmae_decoding_compute(least: float = 2.5, most: float = 3.7) -> Answer:
    """Whether ViT-B decodes `least` times cheaper than MAE's 8 blocks, and `most` times than 12."""
    ours = decoder_macs("ViT-B", None, 0.25)
    eight, twelve = (decoder_macs("ViT-B", depth) / ours for depth in (8, DEPTH))
    note = f"{eight:.2f} times fewer multiply-adds than 8 blocks, {twelve:.2f} than {DEPTH}"
    margin = min(eight - least, twelve - most)
    return Answer(margin >= 0, eight, note, margin, "x", f"bounds of {least:g} and {most:g} x")


FUNCTIONS = DERIVED = (decoding_compute_ratio,)
ANSWERS = (crossmae_decoding_compute,)


def decoding_costs() -> pd.DataFrame:
    """Billions of multiply-adds that decoding one image takes: a line an encoder, a column a decoder."""
    decoders = {
        "MAE, 8 blocks": {"mae_depth": 8},
        "MAE, 12 blocks": {"mae_depth": DEPTH},
        "CrossMAE, 75 % predicted": {"prediction_ratio": 0.75},
        "CrossMAE, 25 % predicted": {"prediction_ratio": 0.25},
    }
    lines = {
        encoder: {label: decoder_macs(encoder, **options) / 1e9 for label, options in decoders.items()}
        for encoder in ENCODERS
    }
    return pd.DataFrame.from_dict(lines, orient="index")


def cost_bars(costs: pd.DataFrame) -> Figure:
    """Grouped bars of `decoding_costs`."""
    figure, axes = figures.new()
    width = 0.8 / len(costs.columns)
    for index, (label, column) in enumerate(costs.items()):
        places = np.arange(len(costs)) + (index - (len(costs.columns) - 1) / 2) * width
        axes[0, 0].bar(places, column, width, color=PALETTE[index], label=label)
    axes[0, 0].set_xticks(range(len(costs)), costs.index)
    axes[0, 0].set(ylabel="decoding an image (G multiply-adds)")
    axes[0, 0].legend()
    return figure


def reconstructions(book: Book, name: str, images: int = 4) -> Figure | None:
    """Validation images with every masked patch predicted, also those that training skipped.

    Each patch is decoded on its own, so the others stay as they are. None without weights.
    """
    from replicate.report import reconstruct

    if not book.has_weights(name):
        return None
    run = book.params.resolve(name, book.results.budget)
    model, target = reconstruct.load_model(run, book.weights(name))
    model.prediction_ratio = None
    batch = reconstruct.sample_images(book.images(run.dataset), run.image_size, images)
    noise = reconstruct.mask_noise(model, len(batch))
    return figures.reconstructions(reconstruct.views(model, target, run, batch, noise, run.mask_ratio)[0])

"""Scoring a classifier on recompressed validation images (DailyMAE sec 4.3, Tables 5 and 6)."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from replicate.errors import UserError
from replicate.loaders.base import as_batch
from replicate.loaders.crop_decode import Decoding, decode_crop_resize
from replicate.loaders.crops import center_boxes
from replicate.loaders.decode import decode_image, resize_crop
from replicate.loaders.folder import source_behind
from replicate.loaders.pixels import normalise
from replicate.loaders.writer import encode_jpeg, shrink
from replicate.models.cpu import tune_for_cpu
from replicate.models.weights import load_weights
from replicate.trainers.accuracy import TopK
from replicate.trainers.builders import build_classifier
from replicate.trainers.checkpoints import Checkpoints
from replicate.trainers.context import RunContext
from replicate.trainers.images import EVALUATION_BATCH
from replicate.trainers.session import seed_everything

if TYPE_CHECKING:
    from replicate.config.datasets import Encoding
    from replicate.config.runs import ScoreRun
    from replicate.loaders.sources import Source


def train_seed(context: RunContext, seed: int, checkpoints: Checkpoints) -> dict[str, Any]:
    """Top-1 and top-5 accuracy in percent of one seed's classifier, and the mean bytes of an image."""
    seed_everything(seed)
    model = build_classifier(context)
    model.load_state_dict(load_weights(context.upstream_weights(seed)))
    return {
        "results": _accuracy(tune_for_cpu(model.to(context.session.device)).eval(), context),
        "history": [],
    }


@torch.no_grad()
def _accuracy(model: nn.Module, context: RunContext) -> dict[str, float]:
    source, session = source_behind(context.data_folder / "val.beton"), context.session
    found, stored = TopK(), 0
    mine = np.arange(session.rank, len(source), session.world_size)
    for start in range(0, len(mine), EVALUATION_BATCH):
        crops = {
            int(i): read
            for i in mine[start : start + EVALUATION_BATCH]
            if (read := _read(source, i, context))
        }
        if crops:
            pixels, sizes = zip(*crops.values(), strict=True)
            batch = as_batch(
                np.stack(pixels), source.labels[list(crops)], np.array(list(crops)), planar=False
            )
            with session.autocast():
                found.add(model(normalise(batch.images.to(session.device))), batch.labels)
            stored += sum(sizes)
    stored, count = session.all_reduce_sum(stored, found.count)
    if not count:
        raise UserError(f"run {context.name}: none of the {len(source)} validation images can be read")
    return found.percent(session) | {"bytes_per_image": stored / count}


def _read(source: Source, index: int, context: RunContext) -> tuple[np.ndarray, int] | None:
    """`crop` of one image. None for a damaged one, if the data set's settings say `on_error: skip`."""
    try:
        return crop(source.read(index), source.names[index], context.run)
    except UserError:
        if context.on_error == "raise":
            raise
        return None


def crop(stored: bytes | np.ndarray, name: str, run: ScoreRun) -> tuple[np.ndarray, int]:
    """The centre crop (S, S, 3) that the classifier sees of an image, and the bytes that the image took."""
    pixels = decode_image(stored, name) if isinstance(stored, bytes) else stored
    if run.encoding is None:
        return _centre(pixels, run), len(stored) if isinstance(stored, bytes) else stored.size
    jpeg = recompressed(pixels, run.encoding, run.codec)
    if run.codec == "pillow":
        return _centre(decode_image(jpeg, name), run), len(jpeg)
    small = shrink(pixels, run.encoding.resolution).shape[:2]
    box = center_boxes(np.array([small]))[0]
    decoding = Decoding(dct=run.dct or "fast", interpolation=run.interpolation)
    return decode_crop_resize(jpeg, box, False, run.image_size, decoding, name=name), len(jpeg)


def recompressed(pixels: np.ndarray, encoding: Encoding, codec: str) -> bytes:
    """uint8 (H, W, 3) -> the JPEG of an image folder ("pillow": bicubic resize) or FFCV ("turbo": area)."""
    if codec == "turbo":
        return encode_jpeg(shrink(pixels, encoding.resolution), encoding.quality)
    image, longest = Image.fromarray(np.ascontiguousarray(pixels)), max(pixels.shape[:2])
    if encoding.resolution and longest > encoding.resolution:
        share = encoding.resolution / longest
        image = image.resize(
            tuple(max(1, int(side * share)) for side in image.size), Image.Resampling.BICUBIC
        )
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=encoding.quality)
    return buffer.getvalue()


def _centre(pixels: np.ndarray, run: ScoreRun) -> np.ndarray:
    box = center_boxes(np.array([pixels.shape[:2]]))[0]
    return resize_crop(pixels, box, False, run.image_size, run.interpolation)

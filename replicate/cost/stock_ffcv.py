"""FFCV's own pipeline for comparison: whole image, crop, area resize, RandomHorizontalFlip."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

AHEAD = 3
"""Batches prepared in advance, FFCV's default. An epoch allocates buffers for `AHEAD + 2` batches."""
WARM = 2 * (AHEAD + 2)
"""Batches after which every buffer has been filled twice, so that few of its pages are still untouched."""


def has_ffcv() -> bool:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import ffcv.loader  # noqa: F401
    except ImportError:
        return False
    return True


def stock_ffcv(
    path: Path,
    boxes: np.ndarray | None,
    size: int,
    batch_size: int,
    threads: int,
    order: np.ndarray | None = None,
) -> Iterable[object]:
    """The batches of a .beton, its samples in `order`; None: as stored.

    boxes: (N, 4) top, left, height, width of every sample, instead of the crops that FFCV draws.
    """
    warnings.simplefilter("ignore")
    from ffcv.fields.rgb_image import RandomResizedCropRGBImageDecoder
    from ffcv.libffcv import imdecode, resize_crop
    from ffcv.loader import Loader, OrderOption
    from ffcv.pipeline.compiler import Compiler
    from ffcv.transforms import RandomHorizontalFlip

    given = None if boxes is None else boxes.astype(np.int64)

    class GivenCrops(RandomResizedCropRGBImageDecoder):
        """The stock decoder with given boxes."""

        def generate_code(self) -> Callable[..., np.ndarray]:
            read, spread = self.memory_read, Compiler.get_iterator()
            decode_image, resize = Compiler.compile(imdecode), Compiler.compile(resize_crop)

            def decode(batch_indices, memory, metadata, storage_state):
                images, whole = memory
                for i in spread(len(batch_indices)):
                    field = metadata[batch_indices[i]]
                    height, width = np.uint32(field["height"]), np.uint32(field["width"])
                    pixels = whole[i]
                    decode_image(
                        read(field["data_ptr"], storage_state),
                        pixels,
                        height,
                        width,
                        height,
                        width,
                        0,
                        0,
                        1,
                        1,
                        False,
                        False,
                    )
                    pixels = pixels.reshape(-1)[: 3 * height * width].reshape(height, width, 3)
                    top, left, tall, wide = given[batch_indices[i]]
                    resize(pixels, top, top + tall, left, left + wide, images[i])
                return images[: len(batch_indices)]

            decode.is_parallel = True
            return decode

    decoder = (RandomResizedCropRGBImageDecoder if boxes is None else GivenCrops)((size, size))
    return Loader(
        str(path),
        batch_size=batch_size,
        num_workers=threads,
        order=OrderOption.SEQUENTIAL,
        indices=None if order is None else order.astype(np.uint64),
        batches_ahead=AHEAD,
        drop_last=False,
        pipelines={"image": [decoder, RandomHorizontalFlip()], "label": None},
    )

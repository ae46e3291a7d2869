"""Colour augmentation of 8-bit images: RandAugment, DeiT III's 3-Augment and colour jitter.

Each choice depends on (seed, epoch, sample index) alone. 3-Aug is DeiT III's, as in DailyMAE (section 3.3,
Table 7): one of greyscale, solarise at 128, and Gaussian blur with radius .1 to 2. 3-Aug+ adds colour jitter
.3. The loaders crop and flip before; mixup, cutmix and random erasing belong to the trainer.
"""

import random
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from replicate.loaders import crops
from replicate.loaders.batch import Augmentation

SOLARISE_THRESHOLD = 128
BLUR_RADIUS = (0.1, 2.0)
THREE_AUGMENT_PLUS_JITTER = 0.3
# Colour of what rotations and shears uncover: ImageNet's mean, as the papers' recipes set it in timm.
FILL = (124, 116, 104)


class _ThreadsRandom(threading.local):
    """Replaces the module `random` in timm by a thread's own generator while it decides an augmentation.

    The training thread seeds the process-wide generator and draws from it without a lock, so neither thread
    may take the other's numbers.
    """

    rng: random.Random | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(random if self.rng is None else self.rng, name)

    @contextmanager
    def drawing_from(self, rng: random.Random) -> Iterator[None]:
        self.rng = rng
        try:
            yield
        finally:
            self.rng = None


_timms_random = _ThreadsRandom()


def _greyscale(image: Image.Image, _: random.Random) -> Image.Image:
    return image.convert("L").convert("RGB")


def _solarise(image: Image.Image, _: random.Random) -> Image.Image:
    return ImageOps.solarize(image, SOLARISE_THRESHOLD)


def _blur(image: Image.Image, rng: random.Random) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(rng.uniform(*BLUR_RADIUS)))


THREE_AUGMENT = (_greyscale, _solarise, _blur)


def three_augment(image: Image.Image, rng: random.Random) -> Image.Image:
    """One of the three with equal probability (DeiT III, section 3.3)."""
    return rng.choice(THREE_AUGMENT)(image, rng)


def color_jitter(image: Image.Image, strength: float, rng: random.Random) -> Image.Image:
    """torchvision's ColorJitter: brightness, contrast and saturation in random order, by 1 +- strength."""
    enhancers = [ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color]
    rng.shuffle(enhancers)
    for enhancer in enhancers:
        image = enhancer(image).enhance(rng.uniform(max(0.0, 1 - strength), 1 + strength))
    return image


@cache
def _rand_augment_policy(config: str) -> tuple[Sequence, int]:
    """timm's operations for `config`, and the number of them that an image gets."""
    import replicate.compat  # noqa: F401

    from timm.data import auto_augment  # isort: skip  (after replicate.compat)

    auto_augment.random = _timms_random
    hparams = {"img_mean": FILL, "interpolation": Image.Resampling.BICUBIC}
    policy = auto_augment.rand_augment_transform(config, hparams)
    return policy.ops, policy.num_layers


def _decide(config: str, key: int) -> list[tuple[Callable[..., Image.Image], tuple, dict]]:
    """The operations and arguments of timm's RandAugment with both of its generators seeded with `key`.

    Draws all random numbers, so that applying the operations draws none.
    """
    ops, count = _rand_augment_policy(config)
    chosen, rng, decided = np.random.RandomState(key).choice(len(ops), count), random.Random(key), []
    with _timms_random.drawing_from(rng):
        for op in (ops[i] for i in chosen):
            if op.prob < 1.0 and rng.random() > op.prob:
                continue
            magnitude = rng.gauss(op.magnitude, op.magnitude_std) if op.magnitude_std > 0 else op.magnitude
            magnitude = max(0.0, min(magnitude, op.magnitude_max or 10.0))
            decided.append((op.aug_fn, op.level_fn(magnitude, op.hparams) if op.level_fn else (), op.kwargs))
    return decided


def _apply(image: Image.Image, operation: Callable, arguments: tuple, options: dict) -> Image.Image:
    if operation.__name__ == "posterize" and arguments[0] < 1:
        # timm asks for 0 bits at full magnitude, which is black up to Pillow 12 and an error since Pillow 13.
        return Image.new("RGB", image.size)
    return operation(image, *arguments, **options)


def rand_augment(image: Image.Image, config: str, key: int) -> Image.Image:
    """timm's RandAugment `config` ("rand-m9-mstd0.5-inc1"), seeded by `key` < 2**32. Safe in threads."""
    for operation, arguments, options in _decide(config, key):
        image = _apply(image, operation, arguments, options)
    return image


def augment_image(pixels: np.ndarray, augmentation: Augmentation, key: int) -> np.ndarray:
    """Augment the colours of uint8 (H, W, 3) RGB. `key` is a 64-bit number of the image's own."""
    image, rng = Image.fromarray(pixels), random.Random(key)
    jitter = augmentation.color_jitter
    if augmentation.auto in ("three_augment", "three_augment_plus"):
        image = three_augment(image, rng)
        if augmentation.auto == "three_augment_plus":
            jitter = max(jitter, THREE_AUGMENT_PLUS_JITTER)
    elif augmentation.auto is not None:
        image = rand_augment(image, augmentation.auto, key & 0xFFFFFFFF)
    return np.asarray(color_jitter(image, jitter, rng) if jitter > 0 else image)


def augment_batch(
    images: np.ndarray, index: np.ndarray, augmentation: Augmentation, *, seed: int, epoch: int
) -> np.ndarray:
    """Augment uint8 (n, H, W, 3) of the samples numbered `index` (n,) in place, and return it."""
    keys = crops.hashes(seed, epoch, crops.AUGMENT, index).tolist()
    for row, key in enumerate(keys):
        images[row] = augment_image(images[row], augmentation, key)
    return images

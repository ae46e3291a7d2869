"""Colour augmentation of 8-bit images: RandAugment, DeiT III's 3-Augment, colour jitter. Every choice is keyed by (seed, epoch,
sample index).

3-Aug is DeiT III's, as DailyMAE uses it (section 3.3, Table 7): one of greyscale, solarise at 128, Gaussian blur of radius
.1-2; 3-Aug+ adds colour jitter .3. Crop and flip have happened before; mixup, cutmix and random erasing belong to the trainer.
"""

import random
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from replicate.loaders import Augmentation, crops

SOLARISE_THRESHOLD = 128
BLUR_RADIUS = (0.1, 2.0)
THREE_AUGMENT_PLUS_JITTER = 0.3
# What rotations and shears uncover: ImageNet's mean colour, as the papers' recipes set it in timm.
FILL = (124, 116, 104)


class _ThreadsRandom(threading.local):
    """Stands in for the module `random` in timm: a thread's own generator while it decides an augmentation, else `random` itself.

    The process-wide generator is the step's, which is seeded and drawn from in the training thread without any lock: neither may
    see the other's numbers.
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


THREE_AUGMENT: tuple[Callable[[Image.Image, random.Random], Image.Image], ...] = (_greyscale, _solarise, _blur)


def three_augment(image: Image.Image, rng: random.Random) -> Image.Image:
    """One of the three, each as likely as the others (DeiT III, section 3.3)."""
    return rng.choice(THREE_AUGMENT)(image, rng)


def color_jitter(image: Image.Image, strength: float, rng: random.Random) -> Image.Image:
    """Brightness, contrast and saturation, in random order, each by a factor uniform in 1 -+ strength (torchvision's
    ColorJitter).
    """
    enhancers = [ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color]
    rng.shuffle(enhancers)
    for enhancer in enhancers:
        image = enhancer(image).enhance(rng.uniform(max(0.0, 1 - strength), 1 + strength))
    return image


@cache
def _rand_augment_policy(config: str) -> tuple[Sequence, int]:
    """timm's operations for `config`, and how many of them an image gets."""
    import replicate.compat  # noqa: F401

    from timm.data import auto_augment  # isort: skip  (after replicate.compat)

    auto_augment.random = _timms_random
    policy = auto_augment.rand_augment_transform(config, {"img_mean": FILL, "interpolation": Image.Resampling.BICUBIC})
    return policy.ops, policy.num_layers


def _decide(config: str, key: int) -> list[tuple[Callable[..., Image.Image], tuple, dict]]:
    """The operations that timm's RandAugment would apply after seeding both of its generators with `key`, with their arguments.

    All of RandAugment's numbers are drawn here, none while pixels change.
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


def _apply(image: Image.Image, operation: Callable[..., Image.Image], arguments: tuple, options: dict) -> Image.Image:
    if operation.__name__ == "posterize" and arguments[0] < 1:
        # timm asks for 0 bits at full magnitude: black in the Pillow of the papers' time, an error since Pillow 13.
        return Image.new("RGB", image.size)
    return operation(image, *arguments, **options)


def rand_augment(image: Image.Image, config: str, key: int) -> Image.Image:
    """timm's RandAugment `config` ("rand-m9-mstd0.5-inc1"), decided by `key` (below 2**32) and safe in threads."""
    for operation, arguments, options in _decide(config, key):
        image = _apply(image, operation, arguments, options)
    return image


def augment_image(pixels: np.ndarray, augmentation: Augmentation, key: int) -> np.ndarray:
    """uint8 (H, W, 3) RGB -> the same shape, by what `augmentation` asks for; `key` is the image's own 64-bit number."""
    image, rng = Image.fromarray(pixels), random.Random(key)
    jitter = augmentation.color_jitter
    if augmentation.auto in ("three_augment", "three_augment_plus"):
        image = three_augment(image, rng)
        jitter = max(jitter, THREE_AUGMENT_PLUS_JITTER) if augmentation.auto == "three_augment_plus" else jitter
    elif augmentation.auto is not None:
        image = rand_augment(image, augmentation.auto, key & 0xFFFFFFFF)
    return np.asarray(color_jitter(image, jitter, rng) if jitter > 0 else image)


def augment_batch(images: np.ndarray, index: np.ndarray, augmentation: Augmentation, *, seed: int, epoch: int) -> np.ndarray:
    """uint8 (n, H, W, 3) of the samples numbered `index` (n,), changed in place and returned."""
    keys = crops.hashes(seed, epoch, crops.AUGMENT, index).tolist()
    for row, key in enumerate(keys):
        images[row] = augment_image(images[row], augmentation, key)
    return images

"""Colour augmentation against timm and torchvision, and its independence of threads and global state."""

import random
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image, ImageOps

import replicate.compat  # noqa: F401
from replicate.errors import UserError
from replicate.loaders import Augmentation, augment, crops

RAND = "rand-m9-mstd0.5-inc1"


def _images(count: int, side: int = 24) -> np.ndarray:
    coarse = np.random.default_rng(0).integers(0, 256, (count, 4, 4, 3), np.uint8)
    return np.stack(
        [np.asarray(Image.fromarray(c).resize((side, side), Image.Resampling.BICUBIC)) for c in coarse]
    )


def test_rand_augment_is_timms_own(monkeypatch: pytest.MonkeyPatch) -> None:
    from timm.data.auto_augment import rand_augment_transform

    posterize = ImageOps.posterize
    monkeypatch.setattr(
        ImageOps,
        "posterize",
        lambda image, bits: posterize(image, bits) if bits else image.point(lambda _: 0),
    )
    theirs = rand_augment_transform(
        RAND, {"img_mean": augment.FILL, "interpolation": Image.Resampling.BICUBIC}
    )
    changed = 0
    for key, pixels in enumerate(_images(200)):
        image = Image.fromarray(pixels)
        random.seed(key)
        np.random.seed(key)
        expected = np.asarray(theirs(image))
        assert np.array_equal(np.asarray(augment.rand_augment(image, RAND, key)), expected)
        changed += not np.array_equal(expected, pixels)
    assert 100 < changed < 200


@pytest.mark.parametrize("name", ["three_augment", "three_augment_plus", RAND])
def test_augmentation_depends_on_the_sample_alone(name: str) -> None:
    images, augmentation = _images(64), Augmentation(auto=name, color_jitter=0.4)

    def run(order: np.ndarray) -> dict[int, np.ndarray]:
        done = augment.augment_batch(images[order].copy(), order, augmentation, seed=1, epoch=2)
        return dict(zip(order.tolist(), done, strict=True))

    whole = run(np.arange(64))
    with ThreadPoolExecutor(8) as pool:
        parts = {
            k: v
            for part in pool.map(run, np.split(np.random.default_rng(0).permutation(64), 16))
            for k, v in part.items()
        }
    assert all(np.array_equal(whole[i], parts[i]) for i in range(64))
    other = augment.augment_batch(images.copy(), np.arange(64), augmentation, seed=1, epoch=3)
    assert not np.array_equal(other, np.stack([whole[i] for i in range(64)]))


def test_posterising_to_no_bits_is_black_as_it_was_when_the_papers_ran() -> None:
    from timm.data.auto_augment import posterize

    image = Image.fromarray(_images(1)[0])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(augment, "_decide", lambda config, key: [(posterize, (0,), {})])
        assert not np.asarray(augment.rand_augment(image, RAND, 0)).any()


def test_global_generators_are_left_as_they_were() -> None:
    random.seed(5)
    np.random.seed(5)
    augment.augment_batch(_images(8), np.arange(8), Augmentation(auto=RAND), seed=0, epoch=0)
    assert random.random() == random.Random(5).random()
    assert np.random.random() == np.random.RandomState(5).random()


def test_a_step_that_seeds_and_draws_amid_a_decision_neither_changes_it_nor_is_undone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    image, key, steps = Image.fromarray(_images(1)[0]), 1, []
    expected = np.asarray(augment.rand_augment(image, RAND, key))

    def step() -> None:
        random.seed(7)
        steps.append(random.random())

    def interrupted(level: Callable[..., tuple]) -> Callable[..., tuple]:
        def decided(*arguments: object) -> tuple:
            beside = threading.Thread(target=step)
            beside.start()
            beside.join()
            return level(*arguments)

        return decided

    for op in augment._rand_augment_policy(RAND)[0]:
        if op.level_fn:
            monkeypatch.setattr(op, "level_fn", interrupted(op.level_fn))
    assert np.array_equal(np.asarray(augment.rand_augment(image, RAND, key)), expected)
    seeded = random.Random(7)
    assert set(steps) == {seeded.random()} and random.random() == seeded.random()


@pytest.fixture
def restless_threads() -> Iterator[None]:
    """Threads take turns as often as Python can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("restless_threads")
def test_augmenting_threads_and_the_step_beside_them_draw_their_own_numbers() -> None:
    images, index, augmentation = _images(64, side=4), np.arange(64), Augmentation(auto=RAND)
    seeded = random.Random(7)
    alone, steps_own = (
        augment.augment_batch(images.copy(), index, augmentation, seed=0, epoch=0),
        [seeded.random() for _ in range(100)],
    )

    def others() -> int:
        batches = (
            augment.augment_batch(images.copy(), index, augmentation, seed=0, epoch=0) for _ in range(12)
        )
        return sum(not np.array_equal(batch, alone) for batch in batches)

    disturbed = 0
    with ThreadPoolExecutor(2) as pool:
        running = [pool.submit(others) for _ in range(2)]
        while not all(future.done() for future in running):
            random.seed(7)
            disturbed += [random.random() for _ in range(100)] != steps_own
    assert (disturbed, *(future.result() for future in running)) == (0, 0, 0)


def test_three_augment_picks_each_of_three_equally() -> None:
    image = _images(1)[0]
    kinds = {"grey": 0, "solarised": 0, "blurred": 0}
    solarised = np.where(image < 128, image, 255 - image)
    for key in range(900):
        out = augment.augment_image(image, Augmentation(auto="three_augment"), key)
        if np.array_equal(out, solarised):
            kinds["solarised"] += 1
        elif (out[..., 0] == out[..., 1]).all() and (out[..., 1] == out[..., 2]).all():
            kinds["grey"] += 1
        else:
            kinds["blurred"] += 1
    assert all(250 < count < 350 for count in kinds.values())


def test_greyscale_and_jitter_are_torchvisions() -> None:
    from torchvision.transforms import functional

    image = Image.fromarray(_images(1)[0])
    assert np.array_equal(
        augment.THREE_AUGMENT[0](image, random.Random(0)), functional.rgb_to_grayscale(image, 3)
    )

    class Fixed(random.Random):
        def shuffle(self, x: list) -> None: ...

        def uniform(self, a: float, b: float) -> float:
            return b

    expected = functional.adjust_saturation(
        functional.adjust_contrast(functional.adjust_brightness(image, 1.3), 1.3), 1.3
    )
    assert np.array_equal(augment.color_jitter(image, 0.3, Fixed()), expected)


def test_jitter_factors_fill_their_range() -> None:
    grey = np.full((4, 4, 3), 100, np.uint8)
    values = [
        augment.augment_image(
            grey, Augmentation(color_jitter=0.3), int(crops.hashes(0, 0, 3, np.asarray(i)))
        ).mean()
        for i in range(400)
    ]
    assert 68 < min(values) < 73 and 127 < max(values) < 132 and abs(np.mean(values) - 100) < 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crop": "five"}, "crop: 'five'"),
        ({"auto": "autoaugment"}, "auto: 'autoaugment'"),
        ({"scale": (0.5, 0.2)}, "scale"),
        ({"scale": (0.0, 1.0)}, "scale"),
        ({"color_jitter": -1.0}, "color_jitter"),
        ({"interpolation": "nearest"}, "interpolation"),
    ],
)
def test_an_impossible_augmentation_names_the_key(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Augmentation(**options)

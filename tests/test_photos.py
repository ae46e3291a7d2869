"""The offline data set: reproducible to the bit, balanced, hard for histograms and linear templates."""

import time

import cv2
import numpy as np
import pytest

from replicate.errors import UserError
from replicate.loaders import photos
from replicate.loaders.photos import LAYOUTS, Draws, PhotosSource, draw_mask

CLASSES = len(LAYOUTS)
FIRST_MEANS = [111.1, 135.6, 134.0]


def _load(split: str, count: int, image_size: int = 32) -> tuple[np.ndarray, np.ndarray]:
    source = PhotosSource(split, num_images=count, image_size=image_size)
    return np.stack([source.read(i) for i in range(count)]), source.labels


@pytest.fixture(scope="module")
def sets() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    return *_load("train", 2400), *_load("val", 1200)


def _ridge_accuracy(train: np.ndarray, labels: np.ndarray, val: np.ndarray, val_labels: np.ndarray) -> float:
    """Best validation accuracy of ridge regression onto the classes over a range of penalties: a linear
    classifier at its best.
    """
    mean, deviation = train.mean(0), train.std(0) + 1e-6
    a, b = ((x - mean) / deviation for x in (train.astype(np.float64), val.astype(np.float64)))
    targets = np.eye(CLASSES)[labels] - 1 / CLASSES
    gram, cross = a @ a.T, b @ a.T
    penalties = (a.shape[1] * 10.0**power for power in (-3, -1, 0, 1, 2))
    scores = (cross @ np.linalg.solve(gram + penalty * np.eye(len(a)), targets) for penalty in penalties)
    return max(float((score.argmax(1) == val_labels).mean()) for score in scores)


def test_an_image_is_a_function_of_seed_split_and_index() -> None:
    first, again = (PhotosSource("train", num_images=48, image_size=32, seed=3) for _ in range(2))
    backwards = [again.read(i) for i in reversed(range(48))][::-1]
    assert all(np.array_equal(first.read(i), image) for i, image in enumerate(backwards))
    longer = PhotosSource("train", num_images=96, image_size=32, seed=3)
    assert np.array_equal(longer.read(7), first.read(7))
    for other in (
        PhotosSource("train", num_images=48, image_size=32, seed=4),
        PhotosSource("val", num_images=48, image_size=32, seed=3),
    ):
        assert not np.array_equal(other.read(7), first.read(7))


def test_the_first_pictures_never_change() -> None:
    """A changed picture would change every result on this data set."""
    source = PhotosSource("train", num_images=24, image_size=64)
    means = [round(float(source.read(i).mean()), 1) for i in range(3)]
    assert means == pytest.approx(FIRST_MEANS, abs=0.5)


def test_a_picture_is_the_same_at_any_resolution() -> None:
    small, large = (PhotosSource("train", num_images=24, image_size=size) for size in (64, 256))
    for i in range(24):
        shrunk = cv2.resize(large.read(i), (64, 64), interpolation=cv2.INTER_AREA).astype(float)
        assert np.corrcoef(shrunk.ravel(), small.read(i).astype(float).ravel())[0, 1] > 0.95


def test_classes_are_balanced_and_shared_by_both_splits(sets: tuple[np.ndarray, ...]) -> None:
    _, labels, _, val_labels = sets
    assert (
        np.bincount(labels).tolist() == [200] * CLASSES
        and np.bincount(val_labels).tolist() == [100] * CLASSES
    )
    assert CLASSES >= 10


def test_a_linear_classifier_of_pixels_fails(sets: tuple[np.ndarray, ...]) -> None:
    train, labels, val, val_labels = sets
    assert _ridge_accuracy(train.reshape(2400, -1), labels, val.reshape(1200, -1), val_labels) < 0.28


def test_colour_histograms_say_nothing(sets: tuple[np.ndarray, ...]) -> None:
    train, labels, val, val_labels = sets

    def histograms(images: np.ndarray) -> np.ndarray:
        return np.stack(
            [
                np.concatenate([np.bincount(i[..., c].ravel() // 16, minlength=16) for c in range(3)])
                for i in images
            ]
        )

    assert _ridge_accuracy(histograms(train), labels, histograms(val), val_labels) < 0.15


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_layout_covers_about_half_and_varies(layout: str) -> None:
    masks = np.stack([draw_mask(layout, 32, Draws(0, "train", i)) for i in range(60)])
    assert masks.min() >= 0 and masks.max() <= 1
    assert 0.2 < masks.mean() < 0.7
    assert masks.std(0).mean() > 0.25


def test_the_tape_of_draws_is_long_enough_for_every_layout() -> None:
    for label in range(CLASSES):
        for index in range(label, 20 * CLASSES, CLASSES):
            photos.draw_image(list(LAYOUTS)[label], 16, "val", Draws(1, "val", index))


def test_a_picture_takes_milliseconds() -> None:
    source = PhotosSource("train", num_images=240, image_size=64)
    source.read(0)
    started = time.process_time()
    for i in range(240):
        source.read(i)
    assert (time.process_time() - started) / 240 < 0.01


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "test", "num_images": 24, "image_size": 32}, "split: 'test'"),
        ({"split": "val", "num_images": 3, "image_size": 32}, "images: 3"),
        ({"split": "val", "num_images": 24, "image_size": 4}, "image_size: 4"),
        ({"split": "val", "num_images": 24, "image_size": 32, "num_classes": 13}, "classes: 13"),
    ],
)
def test_an_impossible_set_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        PhotosSource(**options)


def test_missing_photographs_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(photos, "PHOTOGRAPHS", ("nowhere.png",))
    photos._photographs.cache_clear()
    try:
        with pytest.raises(UserError, match=r"nowhere.png is missing from this scikit-image"):
            photos._photographs()
    finally:
        photos._photographs.cache_clear()

"""Crops, flips and orders that depend on nothing but (seed, epoch, sample index).

With a stateful generator, the crop of an image changes with the number of workers, the batch size and the
loader. Here each random number is a hash of its own coordinates, so all kinds of loader get the same crops.
Boxes are int32 (N, 4) = top, left, height, width, in pixels of the stored image.
"""

import numpy as np

# Share of the shorter side that "resize to 256, crop 224" keeps.
CROP_SHARE = 224 / 256
ATTEMPTS = 10

CROP, FLIP, ORDER, AUGMENT = range(4)
SUBSET = 14

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MULTIPLIERS = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
_SHIFTS = (np.uint64(30), np.uint64(27), np.uint64(31))


def _mix(z: np.ndarray) -> np.ndarray:
    """Finaliser of splitmix64 (Steele, Lea, Flood 2014): each input bit changes each output bit."""
    z = (z ^ (z >> _SHIFTS[0])) * _MULTIPLIERS[0]
    z = (z ^ (z >> _SHIFTS[1])) * _MULTIPLIERS[1]
    return z ^ (z >> _SHIFTS[2])


def hashes(seed: int, epoch: int, stream: int, index: np.ndarray, draw: np.ndarray | int = 0) -> np.ndarray:
    """uint64 hashes of (seed, epoch, stream, index, draw); `index` and `draw` broadcast."""
    with np.errstate(over="ignore"):
        key = np.zeros((), np.uint64)
        for part in (seed, epoch, stream):
            key = _mix((key ^ np.uint64(part & 0xFFFFFFFFFFFFFFFF)) + _GOLDEN)
        key = _mix((key ^ np.asarray(index).astype(np.uint64)) + _GOLDEN)
        return _mix((key ^ np.asarray(draw).astype(np.uint64)) + _GOLDEN)


def uniforms(seed: int, epoch: int, stream: int, index: np.ndarray, draw: np.ndarray | int = 0) -> np.ndarray:
    """Uniform float64 in [0, 1) with 53 random bits, one for each (index, draw)."""
    return (hashes(seed, epoch, stream, index, draw) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def random_resized_crop_boxes(
    sizes: np.ndarray,
    index: np.ndarray,
    *,
    seed: int,
    epoch: int,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> np.ndarray:
    """torchvision's RandomResizedCrop: area uniform in `scale`, aspect ratio log-uniform in `ratio`.

    After 10 misses the box is the largest central one. `sizes` (N, 2) holds height and width of the images
    numbered `index` (N,). Returns boxes (N, 4).
    """
    height, width = np.asarray(sizes, np.float64).T
    draws = uniforms(seed, epoch, CROP, np.asarray(index)[:, None], np.arange(2 * ATTEMPTS + 2))
    area = (height * width)[:, None] * (scale[0] + (scale[1] - scale[0]) * draws[:, 0 : 2 * ATTEMPTS : 2])
    log_low, log_high = np.log(ratio[0]), np.log(ratio[1])
    aspect = np.exp(log_low + (log_high - log_low) * draws[:, 1 : 2 * ATTEMPTS : 2])
    tall, wide = np.rint(np.sqrt(area / aspect)), np.rint(np.sqrt(area * aspect))
    fits = (tall > 0) & (tall <= height[:, None]) & (wide > 0) & (wide <= width[:, None])
    first, rows = fits.argmax(1), np.arange(len(height))
    tall, wide, fits = tall[rows, first], wide[rows, first], fits[rows, first]
    top = np.floor(draws[:, -2] * (height - tall + 1))
    left = np.floor(draws[:, -1] * (width - wide + 1))
    boxes, fallback = np.stack([top, left, tall, wide], 1), _central_box(height, width, ratio)
    return np.where(fits[:, None], boxes, fallback).astype(np.int32)


def _central_box(height: np.ndarray, width: np.ndarray, ratio: tuple[float, float]) -> np.ndarray:
    """The largest central box with an aspect ratio in `ratio`, torchvision's fallback."""
    shape = width / height
    tall = np.where(shape < ratio[0], np.rint(width / ratio[0]), height)
    wide = np.where(shape > ratio[1], np.rint(height * ratio[1]), width)
    return np.stack([(height - tall) // 2, (width - wide) // 2, tall, wide], 1)


def _square_sides(sizes: np.ndarray, share: float) -> np.ndarray:
    return np.maximum((np.asarray(sizes).min(1) * share).astype(np.int64), 1)


def fixed_size_boxes(
    sizes: np.ndarray, index: np.ndarray, *, seed: int, epoch: int, share: float = CROP_SHARE
) -> np.ndarray:
    """Squares with `share` of the shorter side at a random place: "crop, fixed size" in MAE's Table 1e."""
    sides = _square_sides(sizes, share)
    room = np.asarray(sizes) - sides[:, None] + 1
    corner = np.floor(uniforms(seed, epoch, CROP, np.asarray(index)[:, None], np.arange(2)) * room)
    return np.stack([corner[:, 0], corner[:, 1], sides, sides], 1).astype(np.int32)


def center_boxes(sizes: np.ndarray, share: float = CROP_SHARE) -> np.ndarray:
    """Central squares with `share` of the shorter side, the evaluation crop of all five papers."""
    sides = _square_sides(sizes, share)
    corner = (np.asarray(sizes) - sides[:, None]) // 2
    return np.stack([corner[:, 0], corner[:, 1], sides, sides], 1).astype(np.int32)


def whole_boxes(sizes: np.ndarray) -> np.ndarray:
    """Boxes of whole images, which are then only resized."""
    sizes = np.asarray(sizes)
    return np.concatenate([np.zeros_like(sizes), sizes], 1).astype(np.int32)


def flips(index: np.ndarray, *, seed: int, epoch: int) -> np.ndarray:
    """Whether to mirror each image left to right, (N,) bool, True for half of them."""
    return uniforms(seed, epoch, FLIP, np.asarray(index)) < 0.5


def epoch_order(num_images: int, *, seed: int, epoch: int) -> np.ndarray:
    """A permutation of 0..num_images-1 (int64), another one in each epoch."""
    return np.argsort(hashes(seed, epoch, ORDER, np.arange(num_images)), kind="stable")


def first_of_each_class(labels: np.ndarray, count: int, *, seed: int) -> np.ndarray:
    """Sorted sample numbers (int64) of the first `count` images of each shuffled class, or all that it has.

    The shuffle depends on `seed` and the class alone, so that 10 images a class are part of 20.
    """
    chosen = []
    for label in np.unique(labels):
        group = np.flatnonzero(labels == label)
        order = np.argsort(hashes(seed, int(label), SUBSET, np.arange(len(group))), kind="stable")
        chosen.append(group[order[:count]])
    return np.sort(np.concatenate(chosen))


def training_batches(
    order: np.ndarray, batch_size: int, *, rank: int = 0, world_size: int = 1, drop_last: bool = True
) -> list[np.ndarray]:
    """This rank's batches. A step of all ranks has the samples that one process with the global batch gets.

    All ranks get equally many batches, and no sample twice. drop_last=False splits an incomplete global
    batch evenly (sizes differ by at most one). If it has fewer samples than there are ranks, the epoch's
    first samples fill it up, because a rank without a batch would leave the others waiting.
    """
    world_batch = batch_size * world_size
    whole = len(order) // world_batch * world_batch
    starts = range(rank * batch_size, whole, world_batch)
    batches = [order[start : start + batch_size] for start in starts]
    rest = order[whole:]
    if drop_last or len(rest) == 0:
        return batches
    if len(rest) < world_size:
        rest = np.concatenate([rest, np.resize(order, world_size - len(rest))])
    return [*batches, np.array_split(rest, world_size)[rank]]


def evaluation_batches(
    num_images: int, batch_size: int, *, rank: int = 0, world_size: int = 1
) -> list[np.ndarray]:
    """This rank's batches in storage order. All ranks together have each image exactly once."""
    share = np.array_split(np.arange(num_images), world_size)[rank]
    return [share[start : start + batch_size] for start in range(0, len(share), batch_size)]

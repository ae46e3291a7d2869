"""Mixup, CutMix and random erasing of MAE's fine-tuning (Table 8), the same for every split of a batch."""

from __future__ import annotations

import random

import torch
from timm.data.mixup import Mixup, mixup_target
from timm.data.random_erasing import RandomErasing
from torch import Tensor

import replicate.compat  # noqa: F401
from replicate.loaders.crops import hashes, uniforms

ERASE_STREAM = 17  # keeps erasing's random numbers apart from those of crops, flips, order and masks


class Mixing:
    """timm's Mixup and CutMix on pairs of neighbours, which stay together however an even batch is split.

    The last image of an odd number has no partner and stays as it is.
    """

    def __init__(self, mixup: float, cutmix: float, label_smoothing: float, num_classes: int) -> None:
        self.mixup = Mixup(mixup, cutmix, label_smoothing=label_smoothing, num_classes=num_classes)

    def __call__(self, pixels: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """pixels (n, 3, S, S), labels (n,) -> mixed pixels, soft targets (n, classes)."""
        even = len(pixels) - len(pixels) % 2
        alone = mixup_target(labels[even:], self.mixup.num_classes, smoothing=self.mixup.label_smoothing)
        if not even:
            return pixels, alone
        # timm mixes each image with its mirror image in the batch.
        order = torch.cat([torch.arange(0, even, 2), torch.arange(1, even, 2).flip(0)]).to(pixels.device)
        mixed, targets = self.mixup(pixels[order], labels[order])
        back = order.argsort()
        return torch.cat([mixed[back], pixels[even:]]), torch.cat([targets[back], alone])


class Erasing:
    """Random erasing with noise (timm) that depends on (seed, epoch, sample number) alone."""

    def __init__(self, probability: float, seed: int, device: torch.device) -> None:
        self.probability, self.seed = probability, seed
        self.erase = RandomErasing(1.0, mode="pixel", device=device)

    def __call__(self, pixels: Tensor, index: Tensor, epoch: int) -> Tensor:
        """pixels (n, 3, S, S), changed in place; index (n,) sample numbers. Generators end as they began."""
        samples = index.cpu().numpy()
        chosen = uniforms(self.seed, epoch, ERASE_STREAM, samples) < self.probability
        keys = hashes(self.seed, epoch, ERASE_STREAM, samples, 1) >> 1
        with torch.random.fork_rng([pixels.device] if pixels.device.type == "cuda" else []):
            for row in chosen.nonzero()[0]:
                random.seed(int(keys[row]))
                torch.manual_seed(int(keys[row]))
                self.erase(pixels[row])
        return pixels

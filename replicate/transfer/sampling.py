"""Sampling of anchors and regions that a global batch shares, so that splitting it changes no result.

torchvision draws from one stream, image after image, and averages over what one forward pass sampled. Here
each image has its own stream by its place in the global batch, and the losses are means over the whole batch.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from replicate.trainers.batches import Place
from replicate.transfer import operators  # noqa: F401  (before torchvision's detection)

from torchvision.models.detection._utils import BalancedPositiveNegativeSampler  # isort: skip


class PlacedSampler(BalancedPositiveNegativeSampler):
    """torchvision's sampler with a stream an image; remembers how many it took of this process's images.

    positives, taken   of the last call, over its images
    """

    positives = taken = 0

    def __call__(self, matched_idxs: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """For each image: labels or matches (n,), 0 background, < 0 ignored -> masks of what was sampled."""
        first = Place.current.start if Place.current else 0
        seed = int(torch.randint(2**62, ()))  # of the step: the same in every process
        masks: tuple[list[Tensor], list[Tensor]] = ([], [])
        for number, matched in enumerate(matched_idxs, first):
            stream = torch.Generator(matched.device).manual_seed(seed + number)
            most = int(self.batch_size_per_image * self.positive_fraction)
            for kind, candidates in enumerate((matched >= 1, matched == 0)):
                places = torch.nonzero(candidates)[:, 0]
                order = torch.randperm(len(places), generator=stream, device=matched.device)[:most]
                masks[kind].append(torch.zeros_like(matched, dtype=torch.uint8))
                masks[kind][-1][places[order]] = 1
                most = self.batch_size_per_image - len(order)
        self.positives, negatives = (int(sum(mask.sum() for mask in kind)) for kind in masks)
        self.taken = self.positives + negatives
        return masks


def averaged(
    losses: dict[str, Tensor], held: Tensor, whole: Tensor | None = None, parts: int = 1
) -> dict[str, Tensor]:
    """Losses, weighted so that the shares of a global batch average to the means over all of its samples.

    A share is a process's micro-batch. `held` (len(losses),) are the samples behind each loss here; `whole`
    those of all `parts` micro-batches of this process, None where there is one.
    """
    processes = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
    if processes == parts == 1:
        return losses
    total = (held if whole is None else whole).clone()
    if processes > 1:
        dist.all_reduce(total)
    weights = held * processes * parts / total.clamp(min=1)
    return {name: loss * weight for (name, loss), weight in zip(losses.items(), weights, strict=True)}

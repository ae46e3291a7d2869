"""Models and images of the explore notebooks, each loaded once."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import torch

from replicate.explore import images
from replicate.explore.pretrained import Pretrained, load_model, random_model
from replicate.explore.runs import Choice, parameters
from replicate.report.reconstruct import sample_images
from replicate.report.root import repository

SAMPLES = 12
"""Images of a run's own validation set that a list offers."""


def choices() -> list[tuple[str, str | int]]:
    """(label, value) of the images: numbers of validation images, names of photographs."""
    own = [(f"validation image {number + 1}", number) for number in range(SAMPLES)]
    return [*own, *((name, name) for name in images.PHOTOGRAPHS)]


@lru_cache(maxsize=8)
def model_of(chosen: Choice, root: Path) -> Pretrained:
    """The model of a choice of `runs.finished`."""
    if chosen.trained:
        return load_model(chosen.run, budget=chosen.budget or None, root=root)
    return random_model(parameters(root).resolve(chosen.run, chosen.budget))


def image_for(chosen: Choice, image: str | int) -> torch.Tensor:
    """An image at the size of a run's model, uint8 (3, S, S). Numbers count the run's own validation set, or
    pictures of `photos` where it has not been written.
    """
    root = repository()
    size = model_of(chosen, root).run.image_size
    if isinstance(image, str):
        return images.square(image, size)
    stored = _validation(chosen, root)
    return images.picture(image, size) if stored is None else stored[min(image, len(stored) - 1)]


@lru_cache(maxsize=4)
def _validation(chosen: Choice, root: Path) -> torch.Tensor | None:
    params = parameters(root)
    if chosen.run not in params.runs:
        return None
    run = params.resolve(chosen.run, chosen.budget)
    folder = root / params.data_folder(run.dataset, chosen.budget)
    written = (folder / "val.beton").exists()
    return sample_images(folder, run.image_size, SAMPLES) if written else None

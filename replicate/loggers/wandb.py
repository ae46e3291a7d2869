"""Weights & Biases: online after `wandb login`, or files in .replicate/logs/wandb with WANDB_MODE=offline."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from replicate.loggers import FOLDER, Place

PROJECT = "replicate"
"""Unless WANDB_PROJECT names another."""


class WeightsAndBiases:
    """The run's key is its id, so that a resumed run continues the same curves, which count optimiser
    steps.
    """

    def __init__(self, place: Place, wandb: Any) -> None:
        import os

        folder = FOLDER / "wandb"
        folder.mkdir(parents=True, exist_ok=True)
        self.wandb = wandb
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            id=place.key,
            name=f"{place.run} seed {place.seed}",
            group=place.run,
            dir=str(folder),
            config=dict(place.settings),
            resume="allow",
        )
        self.run.define_metric("*", step_metric="step")

    def log(self, values: Mapping[str, float], step: int) -> None:
        self.run.log({**values, "step": step})

    def image(self, name: str, pixels: np.ndarray, step: int) -> None:
        self.run.log({name: self.wandb.Image(pixels), "step": step})

    def close(self) -> None:
        self.run.finish()


def start(place: Place) -> WeightsAndBiases:
    """Raises ModuleNotFoundError without wandb."""
    import wandb

    return WeightsAndBiases(place, wandb)

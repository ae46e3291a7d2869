"""TensorBoard: `tensorboard --logdir .replicate/logs/tensorboard`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from replicate.loggers import Place


class TensorBoard:
    """Event files in the seed's folder. What a killed run logged after its last checkpoint is hidden."""

    def __init__(self, place: Place, writer: Any) -> None:
        repeated = place.step + 1 if place.step else None
        self.writer = writer(str(place.folder("tensorboard")), purge_step=repeated)

    def log(self, values: Mapping[str, float], step: int) -> None:
        for key, value in values.items():
            self.writer.add_scalar(key, value, step)

    def image(self, name: str, pixels: np.ndarray, step: int) -> None:
        self.writer.add_image(name, pixels, step, dataformats="HWC")

    def close(self) -> None:
        self.writer.close()


def start(place: Place) -> TensorBoard:
    """Raises ModuleNotFoundError without tensorboard."""
    import tensorboard  # noqa: F401  torch's own message names no package
    from torch.utils.tensorboard import SummaryWriter

    return TensorBoard(place, SummaryWriter)

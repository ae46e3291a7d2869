"""DVCLive: live plots in DVC's extension and Studio, files in .replicate/logs/dvclive."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from replicate.loggers import Place


class DVCLive:
    """Plots and a dvc.yaml of their own in the seed's folder. Saves no experiment: the pipeline does."""

    def __init__(self, place: Place, live: Any) -> None:
        folder = place.folder("dvclive")
        options = {"save_dvc_exp": False, "report": None, "monitor_system": False}
        self.live = live(str(folder), resume=place.step > 0, dvcyaml=str(folder / "dvc.yaml"), **options)

    def log(self, values: Mapping[str, float], step: int) -> None:
        self.live.step = step
        for key, value in values.items():
            self.live.log_metric(key, value)
        self.live.make_summary()

    def image(self, name: str, pixels: np.ndarray, step: int) -> None:
        self.live.log_image(f"{name}/{step}.png", pixels)

    def close(self) -> None:
        self.live.end()


def start(place: Place) -> DVCLive:
    """Raises ModuleNotFoundError without dvclive."""
    from dvclive import Live

    return DVCLive(place, Live)

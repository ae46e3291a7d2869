"""MLflow: the server that MLFLOW_TRACKING_URI names, or files in .replicate/logs/mlflow."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from replicate.loggers import FOLDER, Place

EXPERIMENT = "replicate"
"""Unless MLFLOW_EXPERIMENT_NAME names another."""
KEY = "replicate.key"
LONGEST = 500
"""Characters that MLflow keeps of a setting."""


class MLflow:
    """A run with the key as a tag: a resumed run is found by it and goes on."""

    def __init__(self, place: Place, mlflow: Any) -> None:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT)
        self.client = mlflow.MlflowClient()
        found = self.client.get_experiment_by_name(name)
        experiment = found.experiment_id if found else self.client.create_experiment(name)
        runs = self.client.search_runs([experiment], f"tags.`{KEY}` = '{place.key}'", max_results=1)
        self.id = runs[0].info.run_id if runs else self._create(experiment, place)

    def _create(self, experiment: str, place: Place) -> str:
        title = f"{place.run} seed {place.seed}"
        run = self.client.create_run(experiment, tags={KEY: place.key}, run_name=title).info.run_id
        for key, value in place.settings.items():
            self.client.log_param(run, key, str(value)[:LONGEST])
        return run

    def log(self, values: Mapping[str, float], step: int) -> None:
        for key, value in values.items():
            self.client.log_metric(self.id, key, value, step=step)

    def image(self, name: str, pixels: np.ndarray, step: int) -> None:
        self.client.log_image(self.id, pixels, f"{name}/{step}.png")

    def close(self) -> None:
        self.client.set_terminated(self.id)


def start(place: Place) -> MLflow:
    """Raises ModuleNotFoundError without mlflow."""
    import mlflow

    if "MLFLOW_TRACKING_URI" not in os.environ:
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        mlflow.set_tracking_uri((FOLDER / "mlflow").absolute().as_uri())
    return MLflow(place, mlflow)

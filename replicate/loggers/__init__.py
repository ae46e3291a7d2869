"""Where a run's curves and pictures go besides its own files: a module a library, imported when it is chosen.

What is logged decides no result: a run has the same numbers and the same key with any choice.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from replicate.errors import UserError

FOLDER = Path(".replicate/logs")
OWN = "csv"
"""What is always written: log.jsonl while a seed trains, and history.csv at the end."""
PACKAGES = {"tensorboard": "tensorboard", "dvclive": "dvclive", "wandb": "wandb", "mlflow": "mlflow"}


@dataclass(frozen=True)
class Place:
    """What a sink knows of the run and seed.

    key     of the resumable run: the same for a resumed run, another for one with other settings
    step    optimiser steps that a checkpoint brought back; 0 for a new run
    """

    run: str
    seed: int
    key: str
    step: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)

    def folder(self, library: str) -> Path:
        """Where a library that writes files writes this seed's."""
        return FOLDER / library / self.run / f"seed{self.seed}-{self.key[:8]}"


class Sink(Protocol):
    """One library. `step` counts optimiser steps from the start of the run, and rises."""

    def log(self, values: Mapping[str, float], step: int) -> None: ...
    def image(self, name: str, pixels: np.ndarray, step: int) -> None:
        """pixels: uint8 (H, W, 3)."""

    def close(self) -> None: ...


class Sinks:
    """All chosen sinks. One that fails is left out from then on, with a line that says so: training goes
    on.
    """

    def __init__(self, sinks: Mapping[str, Sink]) -> None:
        self._sinks = dict(sinks)

    def __bool__(self) -> bool:
        return bool(self._sinks)

    def log(self, values: Mapping[str, float], step: int) -> None:
        numbers = {key: float(value) for key, value in values.items()}
        self._each("log", numbers, step)

    def image(self, name: str, pixels: np.ndarray, step: int) -> None:
        self._each("image", name, pixels, step)

    def close(self) -> None:
        self._each("close")

    def _each(self, method: str, *arguments: Any) -> None:
        for name, sink in list(self._sinks.items()):
            try:
                getattr(sink, method)(*arguments)
            except Exception as error:
                del self._sinks[name]
                _say_left_out(name, error)


def _say_left_out(name: str, error: Exception) -> None:
    reason = " ".join(str(error).split()) or type(error).__name__
    print(f"logger {name} failed and is left out: {reason}", file=sys.stderr, flush=True)


@contextmanager
def open_sinks(names: Sequence[str], place: Place) -> Iterator[Sinks]:
    """The sinks of `machine.loggers`, closed at the end. Raises UserError for one whose package is
    missing.
    """
    opened: dict[str, Sink] = {}
    for name in dict.fromkeys(names):
        if name == OWN:
            continue
        try:
            opened[name] = importlib.import_module(f"replicate.loggers.{name}").start(place)
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] != PACKAGES[name]:
                raise
            wanted = f'pip install "replicate[{name}]", or leave it out of machine.loggers'
            raise UserError(f"logger {name} needs a package: {wanted}") from None
        except Exception as error:
            _say_left_out(name, error)
    sinks = Sinks(opened)
    try:
        yield sinks
    finally:
        sinks.close()

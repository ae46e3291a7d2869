"""What the machine at hand decides."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from replicate.config.schema import Count, Strict


class Machine(Strict):
    """Settings that make a run faster or smaller on the machine at hand; none of them changes a result.

    loggers      where curves go besides the run's own files (csv), which are always written
    log_images   epochs between two reconstructions for the loggers; None: no pictures
    """

    device: str = "auto"
    workers: Annotated[int, Field(ge=0)] = 2
    micro_batch: Count | None = None
    compile: bool = False
    seed_processes: Count | None = None
    shard: bool = False
    channels_last: bool = False
    deterministic: bool = False
    checkpoint_every: Count | None = None
    keep_checkpoints: Annotated[int, Field(ge=0)] = 0
    keep_best: bool = False
    loggers: tuple[Literal["csv", "dvclive", "tensorboard", "wandb", "mlflow"], ...] = ("csv",)
    log_images: Count | None = None

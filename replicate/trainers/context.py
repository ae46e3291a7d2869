"""Everything that a trainer knows about its run."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from replicate.errors import UserError
from replicate.loaders.manifest import FILE_NAME, Manifest

if TYPE_CHECKING:
    from replicate.config import Dataset, Run
    from replicate.config.box import Box
    from replicate.trainers.session import Session


def weights_path(folder: Path, seed: int) -> Path:
    """The weights of one seed in a run's results folder."""
    return folder / "weights" / f"seed{seed}.safetensors"


@dataclass(frozen=True)
class RunContext:
    """A run at a budget, and the files that it starts from.

    stated, run    the run in its paper's numbers, and through the budget
    upstream       results folder of the run whose weights this one needs
    upstream_run   the pre-training that those weights come from
    teacher_run    the fine-tuning behind a teacher or a scored classifier
    upstream_seeds  how many seeds those weights have; an evaluation's seeds take them in turn
    box            the trained weights that stand for the run, with what made them
    tokenizer      file of the tokenizer that the run needs
    code           digests of the code that decides the run's result
    """

    name: str
    stated: Run
    run: Run
    seeds: int
    session: Session
    dataset: Dataset
    data_folder: Path
    results_folder: Path
    code: dict[str, str] = field(default_factory=dict)
    upstream: Path | None = None
    upstream_run: Run | None = None
    upstream_seeds: int | None = None
    box: Box | None = None
    tokenizer: Path | None = None
    teacher_run: Run | None = None

    @cached_property
    def manifest(self) -> Manifest:
        """What the run's data set holds.

        Raises UserError, with the command that writes it, when it is missing or differs from what is stated.
        """
        manifest = Manifest.read(self.data_folder / FILE_NAME)
        manifest.refuse_other(self.data_folder, self.dataset)
        return manifest

    @property
    def on_error(self) -> str:
        return self.dataset.on_error

    @property
    def manifest_sha256(self) -> str:
        return hashlib.sha256(json.dumps(asdict(self.manifest), sort_keys=True).encode()).hexdigest()

    @property
    def num_classes(self) -> int:
        return len(self.manifest.class_names)

    def upstream_weights(self, seed: int) -> Path:
        """The weights that this seed starts from. Raises UserError with the command that makes them."""
        path = weights_path(self.upstream, seed % self.upstream_seeds if self.upstream_seeds else seed)
        if not path.exists():
            command = (
                f"python -m replicate {'evaluate' if self.teacher_run else 'pretrain'} {self.upstream.name}"
            )
            raise UserError(f"run {self.name} starts from {path}, which is missing; run `{command}`")
        return path

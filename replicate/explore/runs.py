"""Which pre-trainings an explore notebook offers: finished ones, the best first, and an untrained one."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from replicate.config import Params, PretrainRun, box, load
from replicate.report.root import repository

DRAWN = ("pixel", "hog")
"""Targets that a picture can show."""
UNTRAINED = ("light_75", "smoke")
_shown_too: list[str] = []


class Choice(NamedTuple):
    """A run at a budget, trained or not; released weights have no budget."""

    run: str
    budget: str
    trained: bool

    @property
    def label(self) -> str:
        if not self.budget:
            return self.run
        return f"{'' if self.trained else 'random weights, '}{self.run} ({self.budget})"


@lru_cache(maxsize=1)
def parameters(root: Path) -> Params:
    """The configuration of a repository, read once."""
    return load(root / "params.yaml")


def trained_weights(
    params: Params, name: str, budget: str | None = None, seed: int = 0, root: Path = Path()
) -> Path | None:
    """Weights of a pre-training: trained here, or of seed 0 in the box that comes with the project."""
    trained = root / params.results_folder(name, budget) / "weights" / f"seed{seed}.safetensors"
    if trained.exists() or seed:
        return trained if trained.exists() else None
    run = params.resolve(name, budget)
    boxed = box.find(root / box.BOX, budget or params.budget, name, run, params.dataset(run.dataset, budget))
    return boxed and boxed.weights


def show_too(name: str) -> None:
    """Add released weights to the choices: "hf:facebook/vit-mae-base", an address, or a file."""
    if name not in _shown_too:
        _shown_too.append(name)


def finished(root: Path | None = None) -> list[Choice]:
    """Every finished pre-training whose target can be drawn, the best first; last an untrained model.

    A run without epochs, from which training from scratch starts, is no pre-training. The best has had the
    most steps of the largest model on pixels, at the mask ratio nearest to MAE's 0.75.
    """
    root = root or repository()
    params = parameters(root)
    drawn = [name for name, run in params.pretrain_runs.items() if run.target in DRAWN and run.epochs]
    trained = [
        Choice(name, budget, True)
        for budget in params.budgets
        for name in drawn
        if trained_weights(params, name, budget, root=root)
    ]
    released = (Choice(name, "", True) for name in _shown_too)
    return [*released, *sorted(trained, key=lambda found: _rank(params, found)), Choice(*UNTRAINED, False)]


def _rank(params: Params, found: Choice) -> tuple[float, ...]:
    """Lower is better."""
    run = params.resolve(found.run, found.budget)
    assert isinstance(run, PretrainRun)
    work = run.epochs * params.budgets[found.budget].data.get("train_images", 0)
    return run.target != "pixel", -run.image_size, -work, abs(run.mask_ratio - 0.75)

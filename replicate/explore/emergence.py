"""A reconstruction that emerges: one run untrained, at each checkpoint kept of it, and at its end.

Training keeps as many checkpoints as `machine.keep_checkpoints` of params.yaml says.
"""

from __future__ import annotations

import re
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import ipywidgets as widgets

from replicate.errors import UserError
from replicate.explore.loaded import choices, image_for, model_of
from replicate.explore.panel import PHOTOGRAPH, choice, real, whole
from replicate.explore.pretrained import Pretrained, Reconstruction, load_model, random_model, reconstruct
from replicate.explore.runs import Choice, finished, parameters
from replicate.pipeline.launch import context_of
from replicate.pipeline.store import store_of
from replicate.report.root import repository
from replicate.report.style import Figure
from replicate.trainers.session import open_session

HOW = (
    "no checkpoint of a finished run is here: set `keep_checkpoints: 20` and `checkpoint_every: 1` under "
    "`machine` in params.yaml, then train a run"
)


def folder_of(chosen: Choice, root: Path) -> Path:
    """Where a run's first seed keeps checkpoints. Raises UserError where its data has not been written."""
    params = parameters(root).model_copy(update={"budget": chosen.budget})
    budget = params.budget_named()
    with open_session(params.machine, budget.precision, budget.loader) as session:
        context = context_of(params, chosen.run, session)
        return root / store_of(replace(context, data_folder=root / context.data_folder), 0).folder


@lru_cache(maxsize=16)
def kept(chosen: Choice, root: Path) -> dict[int, Path]:
    """Epochs done -> the checkpoint kept then."""
    try:
        files = sorted(folder_of(chosen, root).glob("epoch*.pt"))
    except UserError:
        return {}
    return {int(re.search(r"\d+", path.stem)[0]): path for path in files}


def with_checkpoints(root: Path) -> list[Choice]:
    """The finished runs of which checkpoints are kept, the best first. Raises UserError for none."""
    found = [chosen for chosen in finished(root) if chosen.trained and kept(chosen, root)]
    if not found:
        raise UserError(HOW)
    return found


def controls() -> dict[str, widgets.Widget]:
    root = repository()
    runs = with_checkpoints(root)
    most = max(len(kept(run, root)) for run in runs) + 1
    return {
        "run": choice([(found.label, found) for found in runs], runs[0], "run"),
        "number": whole(0, most, most, "checkpoint"),
        "mask_ratio": real(0.05, 0.95, 0.05, 0.75, "mask ratio"),
        "image": choice(choices(), 0, PHOTOGRAPH),
        "seed": whole(0, 20, 0, "mask number"),
    }


def epochs_at(run: Choice, number: int, root: Path) -> int | None:
    """Epochs done at a place of the slider; 0 is the untrained model, None the finished run."""
    places = [0, *kept(run, root)]
    return places[number] if number < len(places) else None


@lru_cache(maxsize=32)
def model_at(run: Choice, epochs: int | None, root: Path) -> Pretrained:
    if epochs is None:
        return model_of(run, root)
    if epochs == 0:
        return random_model(parameters(root).resolve(run.run, run.budget))
    return load_model(run.run, kept(run, root)[epochs], budget=run.budget, root=root)


@lru_cache(maxsize=32)
def reconstructed(run: Choice, number: int, mask_ratio: float, image: str | int, seed: int) -> Reconstruction:
    root = repository()
    model = model_at(run, epochs_at(run, number, root), root)
    return reconstruct(model, image_for(run, image), mask_ratio, seed)


def draw(run: Choice, number: int, mask_ratio: float, image: str | int, seed: int) -> Figure:
    return reconstructed(run, number, mask_ratio, image, seed).figure()


def caption(run: Choice, number: int, mask_ratio: float, image: str | int, seed: int) -> str:
    """Epochs done and what they bring."""
    epochs, summary = (
        epochs_at(run, number, repository()),
        reconstructed(run, number, mask_ratio, image, seed).summary,
    )
    when = {None: "at its end", 0: "before training"}.get(epochs, f"after {epochs} epochs")
    return f"{run.label} {when}: {summary}"

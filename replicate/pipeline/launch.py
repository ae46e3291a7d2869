"""From a run's name to a trained run: resolve it, open the session, hand both to the trainer."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from replicate.config import DenseRun, EvaluateRun, PretrainRun, TokenizerRun
from replicate.config.datasets import is_public, source_path
from replicate.errors import UserError
from replicate.pipeline.box import pack
from replicate.pipeline.digests import code_of
from replicate.pipeline.parallel import end_with_parent, seed_processes, train_seeds_in_processes
from replicate.pipeline.seeds import TrainSeed, all_finished, made_here, train_one_seed, train_seeds
from replicate.trainers.context import RunContext, weights_path
from replicate.trainers.session import Session, open_session

if TYPE_CHECKING:
    from replicate.config import Params, Run

STORED = {
    "transcoded": "kept their coefficients, with restart markers",
    "raw": "are stored as pixels",
    "resized": "were made smaller",
}
DENSE = {
    "detect": "detect",
    "segment": "segmentation",
    "dense_knn": "dense_probe",
    "dense_linear": "dense_probe",
}
"""The module of `replicate.transfer` that trains a run of a protocol."""
STEPS_WORTH_A_PROCESS = 60
"""A run of fewer steps ends before another process has imported torch."""


def launch(params: Params, name: str, command: Sequence[str], seed: int | None = None) -> None:
    """Train every seed of one run at the active budget, or one seed into the store of resumable runs.

    `command` holds this command's arguments, to start one process a seed with. Raises UserError for a seed
    that the budget does not have.
    """
    budget = params.budget_named()
    with open_session(params.machine, budget.precision, budget.loader) as session:
        context = context_of(params, name, session)
        refuse_one_class(context)
        if seed is None:
            _train_all(context, params.machine.seed_processes, command)
        elif 0 <= seed < context.seeds:
            end_with_parent()
            train_one_seed(context, seed, trainer_of(context.run))
        else:
            raise UserError(f"--seed {seed}: budget {params.budget} has the seeds 0 to {context.seeds - 1}")


def _train_all(context: RunContext, at_once: int | None, command: Sequence[str]) -> None:
    """Train seeds that need many steps in processes of their own; then write the run's folder."""
    processes = seed_processes(at_once, context.seeds, context.session)
    if processes > 1 and _steps(context) >= STEPS_WORTH_A_PROCESS and not all_finished(context):
        train_seeds_in_processes(command, context.seeds, processes)
    train_seeds(context, trainer_of(context.run))


def fill_box(params: Params, names: Iterable[str]) -> None:
    """Train seed 0 of pre-trainings at the active budget and put its weights into `weights/<budget>/`.

    Raises UserError when the budget takes nothing from a box, or a run is no pre-training.
    """
    budget = params.budget_named()
    if not budget.boxed:
        raise UserError(f"budget {params.budget} has no box; state `boxed: true` in budgets.yaml first")
    with open_session(params.machine, budget.precision, budget.loader) as session:
        for name in names:
            if not isinstance(params.run(name), PretrainRun):
                raise UserError(f"run {name} is no pre-training; only those go into the box")
            context = replace(context_of(params, name, session), box=None)
            outcome = train_one_seed(context, 0, trainer_of(context.run))
            print(pack(context, outcome, made_here(context, [0], [outcome]), params.budget))


def write_dataset(params: Params, name: str) -> None:
    """Write a data set's .beton files and manifest and print what became of its images.

    A public set that is not here is fetched first, after its size has been said. Scenes are made, and a
    folder of COCO or ADE20K is recorded where it lies.
    """
    from replicate.loaders.data import write

    folder, source = params.data_folder(name), params.dataset(name).source
    if params.dataset(name).layout != "classes":
        _write_dense(params, name)
        return
    if is_public(source) and not source_path(source).is_dir():
        from replicate.fetch import datasets

        datasets.announce(source)
        datasets.fetch(source)
    manifest = write(params.dataset(name), folder, workers=params.machine.workers)
    for split in manifest.splits.values():
        print(f"{folder / split['file']}: {what_was_done(split['images'], split['counts'])}")


def _write_dense(params: Params, name: str) -> None:
    from replicate.transfer import data

    for record in data.describe(data.write(params.dataset(name), params.data_folder(name))):
        print(f"{record['image_folder']}: {record['images']} images of {record['classes']} classes")


def what_was_done(images: int, counts: Mapping[str, int]) -> str:
    """How a split's images were stored, in a line."""
    parts = [f"{counts['kept']} kept their bytes", f"{counts['encoded']} were encoded by the writer"]
    parts += [f"{counts[how]} {words}" for how, words in STORED.items() if counts[how]]
    return f"{images} images: {', '.join(parts)}"


def launch_all(params: Params, papers: list[str]) -> None:
    """Train every run, headline and grid, in one process: data first, and each run after its upstream."""
    runs = {name: run for name, run in params.runs.items() if not papers or run.paper in papers}
    names = with_upstream(params, runs)
    for dataset in dict.fromkeys(params.runs[name].dataset for name in names):
        write_dataset(params, dataset)
    budget = params.budget_named()
    with open_session(params.machine, budget.precision, budget.loader) as session:
        for name in names:
            context = context_of(params, name, session)
            refuse_one_class(context)
            train_seeds(context, trainer_of(context.run))


def refuse_one_class(context: RunContext) -> None:
    """Raise UserError when a run learns or scores classes and its data set has one: any model would score 100
    %.
    """
    run = context.run
    if isinstance(run, PretrainRun):
        labelled = run.objective == "supmae" or run.online_probe
    else:
        labelled = isinstance(run, EvaluateRun) and run.protocol not in ("invariance", "detect")
    if labelled and context.num_classes < 2:
        [name] = context.manifest.class_names
        only = f"data set {run.dataset} has one class, {name!r}"
        raise UserError(f"run {context.name}: {only}; classifying needs at least two")


def with_upstream(params: Params, names: Iterable[str]) -> list[str]:
    """The runs and all that they start from, each after its own upstream."""
    ordered: dict[str, None] = {}
    for name in names:
        upstream = params.upstream_of(name)
        ordered |= dict.fromkeys([*(with_upstream(params, [upstream]) if upstream else []), name])
    return list(ordered)


def _steps(context: RunContext) -> int:
    images = context.manifest.splits["train"]["images"]
    if isinstance(context.run, DenseRun):
        return context.run.total_steps(images)
    if labels := getattr(context.run, "labels_per_class", None):
        images = min(images, labels * context.num_classes)
    return context.run.epochs * (images // context.run.batch_size)


def trainer_of(run: Run) -> TrainSeed:
    """`train_seed` of the module of `replicate.trainers` or `replicate.transfer` that trains a run."""
    if isinstance(run, DenseRun):
        return importlib.import_module(f"replicate.transfer.{DENSE[run.protocol]}").train_seed
    module = "tokenizer" if isinstance(run, TokenizerRun) else getattr(run, "protocol", "pretrain")
    return importlib.import_module(f"replicate.trainers.{module}").train_seed


def context_of(params: Params, name: str, session: Session) -> RunContext:
    """Everything a trainer needs to know of the run called `name` at the active budget."""
    run = params.resolve(name)
    behind = getattr(run, "teacher", None) or getattr(run, "classifier", None)
    upstream = behind or getattr(run, "pretrain", None)
    source = params.upstream_of(behind) if behind else upstream
    return RunContext(
        name=name,
        stated=params.run(name),
        run=run,
        seeds=params.seeds(name),
        session=session,
        dataset=params.dataset(run.dataset),
        data_folder=params.data_folder(run.dataset),
        results_folder=params.results_folder(name),
        code=code_of(run, source and params.resolve(source)),
        upstream=upstream and params.results_folder(upstream),
        upstream_run=source and params.resolve(source),
        upstream_seeds=upstream and params.seeds(upstream),
        box=params.box(name),
        teacher_run=behind and params.resolve(behind),
        tokenizer=_tokenizer(params, name, run),
    )


def _tokenizer(params: Params, name: str, run: Run) -> Path | None:
    """The file of the tokenizer that a run needs: a released one, or the one whose tokens it predicts."""
    if isinstance(run, TokenizerRun) and run.file:
        path, hint = Path(run.file), "name a file that exists, or leave `file` out to train a tokenizer"
    elif isinstance(run, PretrainRun) and run.tokenizer:
        path = weights_path(params.results_folder(run.tokenizer), 0)
        hint = f"run `python -m replicate tokenizer {run.tokenizer}`"
    else:
        return None
    if not path.exists():
        raise UserError(f"run {name} needs the tokenizer {path}, which is missing; {hint}")
    return path

"""From a run's name to a trained run: resolves it through the budget, opens the session, hands both to its trainer."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from replicate.errors import UserError
from replicate.params import DistilledRun, EvaluateRun, PretrainRun, ScoreRun, TokenizerRun
from replicate.sources import evaluate_entries, pretrain_entries, tokenizer_entries
from replicate.trainers.parallel import end_with_parent, seed_processes, train_seeds_in_processes
from replicate.trainers.seeds import RunContext, TrainSeed, train_one_seed, train_seeds, weights_path
from replicate.trainers.session import Session, open_session

if TYPE_CHECKING:
    from replicate.params import Params


STORED = {"transcoded": "kept their coefficients, with restart markers", "raw": "are stored as pixels", "resized": "were made smaller"}
STEPS_WORTH_A_PROCESS = 60
"""A run of fewer steps is over before another process has imported torch."""


def launch(params: Params, name: str, command: Sequence[str]) -> None:
    """Train every seed of one run at the active budget; `command` are the arguments that brought us here, for one process a seed."""
    budget = params.budget_named()
    with open_session(params.machine, budget.precision, budget.loader) as session:
        context = context_of(params, name, session)
        refuse_one_class(context)
        seeds = context.seeds
        processes = seed_processes(params.machine.seed_processes, seeds, session)
        if processes > 1 and _steps(context) >= STEPS_WORTH_A_PROCESS and not all(context.store(s).finished() for s in range(seeds)):
            train_seeds_in_processes(command, seeds, processes)
        train_seeds(context, trainer_of(params, name))


def launch_seed(params: Params, name: str, seed: int) -> None:
    """Train one seed into the store of resumable runs; the run's folder is written when its other seeds are there too."""
    end_with_parent()
    budget = params.budget_named()
    with open_session(params.machine, budget.precision, budget.loader) as session:
        context = context_of(params, name, session)
        refuse_one_class(context)
        train_one_seed(context, seed, trainer_of(params, name))


def show_log(params: Params, name: str) -> None:
    """Print what the run's seeds have logged so far: a line an epoch, and one every half minute within it.

    Raises UserError when nothing has been logged at the active budget with this code and data.
    """
    budget = params.budget_named()
    with open_session(params.machine, budget.precision, budget.loader) as session:
        context = context_of(params, name, session)
        logs = [(seed, context.store(seed).log_path) for seed in range(budget.seeds)]
    if not any(path.exists() for _, path in logs):
        raise UserError(f"run {name} has no log at budget {params.budget}: it has not been started with this code and data")
    for seed, path in logs:
        for line in path.read_text().splitlines() if path.exists() else ():
            print(f"seed {seed}", *(f"{key} {value:.5g}" for key, value in json.loads(line).items()), sep="  ")


def write_dataset(params: Params, name: str) -> None:
    """Write a data set's .beton files and manifest as the active budget sees it, and say of each split what became of its images."""
    from replicate.loaders.data import write

    folder = params.data_folder(name)
    manifest = write(params.dataset(name), folder, workers=params.machine.workers)
    for split in manifest.splits.values():
        print(f"{folder / split['file']}: {what_was_done(split['images'], split['counts'])}")


def what_was_done(images: int, counts: Mapping[str, int]) -> str:
    """A split's images by how they were stored: bytes kept or encoded, always, and what else there is."""
    parts = [f"{counts['kept']} kept their bytes", f"{counts['encoded']} were encoded by the writer"]
    parts += [f"{counts[how]} {words}" for how, words in STORED.items() if counts[how]]
    return f"{images} images: {', '.join(parts)}"


def launch_all(params: Params, papers: list[str]) -> None:
    """Train every run, headline and grids, in one process: data first, and each run after those that it starts from."""
    runs = {name: run for name, run in params.runs.items() if not papers or run.paper in papers}
    for dataset in dict.fromkeys(run.dataset for run in runs.values()):
        write_dataset(params, dataset)
    budget = params.budget_named()
    with open_session(params.machine, budget.precision, budget.loader) as session:
        for name in with_upstream(params, runs):
            context = context_of(params, name, session)
            refuse_one_class(context)
            train_seeds(context, trainer_of(params, name))


def refuse_one_class(context: RunContext) -> None:
    """Raise UserError when the run learns or scores classes and its data set has only one: any model would score 100 %."""
    run = context.run
    if isinstance(run, PretrainRun):
        labelled = run.objective == "supmae" or run.online_probe
    else:
        labelled = isinstance(run, EvaluateRun) and run.protocol != "invariance"
    if labelled and context.num_classes < 2:
        [name] = context.manifest.class_names
        only = f"data set {context.run.dataset} has one class, {name!r}"
        raise UserError(f"run {context.name}: {only}; classifying needs at least two")


def with_upstream(params: Params, names: Iterable[str]) -> list[str]:
    """The runs and all that they start from, each after its own upstream."""
    ordered: dict[str, None] = {}
    for name in names:
        upstream = params.upstream_of(name)
        ordered |= dict.fromkeys([*(with_upstream(params, [upstream]) if upstream else []), name])
    return list(ordered)


def _steps(context: RunContext) -> int:
    return context.run.epochs * (context.manifest.splits["train"]["images"] // context.run.batch_size)


def trainer_of(params: Params, name: str) -> TrainSeed:
    run = params.run(name)
    module = run.protocol if isinstance(run, EvaluateRun) else "tokenizer" if isinstance(run, TokenizerRun) else "pretrain"
    return importlib.import_module(f"replicate.trainers.{module}").train_seed


def context_of(params: Params, name: str, session: Session) -> RunContext:
    """Everything a trainer needs to know of the run called `name` at the active budget."""
    stated, run = params.run(name), params.resolve(name)
    learns = isinstance(run, DistilledRun | ScoreRun)  # from a classifier, which has an upstream of its own
    upstream = params.upstream_of(name) if learns or isinstance(run, EvaluateRun) else None
    source = params.upstream_of(upstream) if learns else upstream
    return RunContext(
        name=name,
        stated=stated,
        run=run,
        seeds=1 if isinstance(run, TokenizerRun) else params.budget_named().seeds,
        session=session,
        dataset=params.dataset(run.dataset),
        data_folder=params.data_folder(run.dataset),
        results_folder=params.results_folder(name),
        entries=_entries(run),
        upstream=upstream and params.results_folder(upstream),
        upstream_run=source and params.resolve(source),
        teacher_run=params.resolve(upstream) if learns else None,
        tokenizer=_tokenizer(params, name),
    )


def _entries(run) -> tuple[str, ...]:
    if isinstance(run, TokenizerRun):
        return tokenizer_entries(run)
    return pretrain_entries(run) if isinstance(run, PretrainRun) else evaluate_entries(run)


def _tokenizer(params: Params, name: str) -> Path | None:
    """The file of the tokenizer that a run needs: the released one that it reads, or the one whose tokens it predicts."""
    run = params.run(name)
    if isinstance(run, TokenizerRun):
        path, hint = run.file and Path(run.file), "name a file that is, or leave `file` out to train a tokenizer"
    elif isinstance(run, PretrainRun) and run.tokenizer:
        tokenizer = run.tokenizer.rpartition("/")[2]
        path, hint = weights_path(params.results_folder(tokenizer), 0), f"run `python -m replicate tokenizer {tokenizer}`"
    else:
        return None
    if path and not path.exists():
        raise UserError(f"run {name} needs the tokenizer {path}, which is not there; {hint}")
    return path or None

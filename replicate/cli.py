"""The command line: `python -m replicate COMMAND`. Heavy modules are imported by the command that needs them."""

from __future__ import annotations

import argparse
import os
import select
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from replicate.errors import UserError
from replicate.pipeline import interruption

if TYPE_CHECKING:
    from replicate.config import Params

RESUMES = "interrupted; what had finished is kept, and the same command continues"
CLOSED_PIPE = 141
"""As a shell reports a program that SIGPIPE ended."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status (2 for a user's mistake, 130 when interrupted, 141 when nobody reads what it prints any more)."""
    interruption.watch()
    try:
        options = _parser().parse_args(arguments)
        interruption.would_say(options.interrupted)
        options.handler(options)
        # Here rather than as Python ends, where a closed pipe could no longer be caught.
        sys.stdout.flush()
        return 0
    except BaseException as error:
        interrupted = interruption.begun() or isinstance(error, KeyboardInterrupt)
        if not interrupted and isinstance(error, BrokenPipeError) and _nobody_reads(sys.stdout):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return CLOSED_PIPE
        if not interrupted and not isinstance(error, UserError):
            raise
        line = f"error: {error}"
    # Out here the error's frames are gone, and with them a progress bar that would stand in the line's way.
    if interrupted:
        interruption.tell()
        return interruption.STATUS
    print(line, file=sys.stderr)
    return 2


def _nobody_reads(stream: TextIO) -> bool:
    """Whether it is a pipe whose reader, such as `head`, has left."""
    poll = select.poll()
    poll.register(stream.fileno(), 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="replicate", description="Five papers on efficient masked image modelling, in one harness.")
    parser.add_argument("--params", default="params.yaml", help="file with runs and budgets (default: %(default)s)")
    parser.set_defaults(interrupted="interrupted")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    for name, handler, what in (
        ("pretrain", _pretrain, "pre-train a run of params.yaml, every seed of the budget"),
        ("evaluate", _evaluate, "fine-tune or probe a run's pre-trained weights, every seed"),
        ("tokenizer", _tokenizer, "train a tokenizer of params.yaml, or read a released one; there is one for all seeds"),
    ):
        command = commands.add_parser(name, help=what, description=what)
        command.add_argument("run", help="the run's name in params.yaml")
        command.add_argument("--seed", type=int, help="train this seed only, into the store of resumable runs")
        command.set_defaults(handler=handler, interrupted=RESUMES)

    command = commands.add_parser("log", help="what a run has logged so far, also while it trains")
    command.add_argument("run", help="its name in params.yaml")
    command.set_defaults(handler=_log)

    command = commands.add_parser("data", help="write, check or describe a data set's .beton files")
    actions = command.add_subparsers(metavar="ACTION", required=True)
    for name, handler, what in (
        ("write", _data_write, "write train.beton, val.beton and manifest.json of a data set of params.yaml"),
        ("check", _data_check, "check a data set's files against their manifest"),
        ("info", _data_info, "describe a data set's files"),
    ):
        action = actions.add_parser(name, help=what, description=what)
        action.add_argument("dataset", nargs="?", default="full", help="its name in params.yaml (default: %(default)s)")
        action.set_defaults(handler=handler)
    actions.choices["write"].set_defaults(interrupted="interrupted; the same command writes the data set anew")

    command = commands.add_parser("budget", help="show or choose the lens through which runs are seen")
    command.add_argument("name", nargs="?", help="smoke, laptop, brief, tiny, evening, gpu, paper or one of your own")
    command.set_defaults(handler=_budget)

    command = commands.add_parser("plan", help="what runs will cost, before anything is spent")
    command.add_argument("runs", nargs="*", metavar="RUN", help="their names in params.yaml (default: all of them)")
    command.add_argument("--budget", help="the lens to plan for (default: the active one)")
    command.add_argument("--device", default="here", help="h200, h100, a100, cpu, or here: this machine, measured (default: %(default)s)")
    command.add_argument("--devices", type=int, default=1, help="how many of them share a run (default: %(default)s)")
    command.add_argument("--efficiency", type=float, help="share of the device's peak that training reaches, such as the MFU that you measured")
    command.add_argument("--csv", type=Path, help="write the table there as well")
    command.add_argument("--readme", action="store_true", help="renew the README's table of the paper budget instead")
    command.set_defaults(handler=_plan)

    command = commands.add_parser("grid", help="every run of params.yaml (or of one paper) in this one process, without DVC")
    command.add_argument("paper", nargs="*", help="papers to run (default: all)")
    command.set_defaults(handler=_grid, interrupted=RESUMES)

    command = commands.add_parser("search", help="search a recipe's number on a subset of the images, and apply it to the full set")
    actions = command.add_subparsers(metavar="WHAT", required=True)
    action = actions.add_parser("llrd", help="layer-wise lr decay: fine-tune at several values, recommend one with its interval")
    action.add_argument("search", help="its name under `searches` in params.yaml")
    action.add_argument("--apply", action="store_true", help="fine-tune on the full set at the value that was recommended")
    action.add_argument("--seed", type=int, help="train this seed only, into the store of resumable runs")
    action.set_defaults(handler=_search, interrupted=RESUMES)

    command = commands.add_parser("strip", help="write a notebook without its outputs, for the pipeline to depend on")
    command.add_argument("notebook", type=Path)
    command.add_argument("destination", type=Path)
    command.set_defaults(handler=_strip)

    command = commands.add_parser("stages", help="regenerate stages.yaml, the list of runs that dvc.yaml reads")
    command.set_defaults(handler=_stages)

    command = commands.add_parser("inputs", help="check params.yaml and write what each stage of the pipeline depends on, a file a stage")
    command.add_argument("folder", type=Path)
    command.set_defaults(handler=_inputs)

    command = commands.add_parser("notebook", help="execute a paper's notebook; writes its tables, figures and HTML page")
    command.add_argument("paper")
    command.add_argument("--full", action="store_true", help="with the runs of the full grid")
    command.set_defaults(handler=_notebook)

    command = commands.add_parser("bench", help="measure this machine on your own images")
    actions = command.add_subparsers(metavar="WHAT", required=True)
    action = actions.add_parser("loader", help="an image folder, stock FFCV and our reader; compression, augmentation, and step by step")
    action.add_argument("--images", type=Path, help="folder of JPEG or PNG files, any depth (default: photographs that scikit-image carries)")
    action.add_argument("--repeat", type=int, default=8, help="take the images so many times, so that epochs are long (default: %(default)s)")
    action.add_argument("--rounds", type=int, default=5, help="how often every case takes its turn (default: %(default)s)")
    action.add_argument("--threads", type=int, default=1, help="threads of every loader (default: %(default)s)")
    action.add_argument("--size", type=int, default=224, help="pixels a side of a crop (default: %(default)s)")
    action.add_argument(
        "--out",
        type=Path,
        default=Path("results/bench"),
        help="folder of loader_1_thread.json, ... (default: %(default)s, which the notebook shows before git's own in benchmarks/results)",
    )
    action.set_defaults(handler=_bench_loader, interrupted="interrupted; nothing was written")

    command = commands.add_parser("scoreboard", help="every published number with its status, every claim with its verdict")
    command.set_defaults(handler=_scoreboard)

    command = commands.add_parser("site", help="all executed notebooks, scoreboard, methods, data and provenance as one static site")
    mixed = "docs/site and the README's totals instead: each paper at the budget that `findings` of params.yaml names"
    command.add_argument("--findings", action="store_true", help=mixed)
    command.set_defaults(handler=_site)

    command = commands.add_parser("keep", help="copy finished runs' numbers into measured/, which git holds, so that other checkouts show them")
    command.add_argument("runs", nargs="+", metavar="RUN", help="their names in params.yaml")
    command.add_argument("--no-times", action="store_true", help="without how long they took: the machine did other work meanwhile")
    command.set_defaults(handler=_keep)

    command = commands.add_parser("weights", help="exchange weights with the papers' released checkpoints")
    actions = command.add_subparsers(metavar="ACTION", required=True)
    for name, handler, what in (
        ("import", _weights_import, "read a released checkpoint (.pth, .safetensors) into our format"),
        ("export", _weights_export, "write our weights as .safetensors, or as .pth in the reference's format"),
    ):
        action = actions.add_parser(name, help=what, description=what)
        action.add_argument("source", type=Path)
        action.add_argument("destination", type=Path)
        action.add_argument("--decoder", action="store_true", help="refuse a checkpoint that holds no decoder")
        action.set_defaults(handler=handler)
    return parser


def _pretrain(options: argparse.Namespace) -> None:
    _run(options, options.run, "pretrain")


def _evaluate(options: argparse.Namespace) -> None:
    _run(options, options.run, "evaluate")


def _tokenizer(options: argparse.Namespace) -> None:
    _run(options, options.run, "tokenizer")


def _run(options: argparse.Namespace, name: str, command: str) -> None:
    from replicate import config as params_module

    params = params_module.load(options.params)
    kinds = {params_module.PretrainRun: "pretrain", params_module.TokenizerRun: "tokenizer"}
    kind = kinds.get(type(params.run(name)), "evaluate")
    if kind != command:
        raise UserError(f"{command} is not the command for the run {name}: use `python -m replicate {kind} {name}`")
    from replicate.pipeline import launch

    if options.seed is not None:
        launch.launch_seed(params, name, options.seed)
    else:
        launch.launch(params, name, ("--params", options.params, command, name))


def _log(options: argparse.Namespace) -> None:
    from replicate.config import load
    from replicate.pipeline.launch import show_log

    params = load(options.params)
    params.run(options.run)
    show_log(params, options.run)


def _data_write(options: argparse.Namespace) -> None:
    from replicate.config import load
    from replicate.pipeline.launch import write_dataset

    write_dataset(load(options.params), options.dataset)


def _data_check(options: argparse.Namespace) -> None:
    from replicate.config import load
    from replicate.loaders.data import check

    for file in check(_data_folder(load(options.params), options.dataset)):
        print(f"{file}: whole")


def _data_info(options: argparse.Namespace) -> None:
    from replicate.config import load
    from replicate.loaders.data import info

    info(_data_folder(load(options.params), options.dataset))


def _data_folder(params: Params, name: str) -> Path:
    """Raises UserError for a name that `params.yaml` does not hold."""
    params.dataset(name)
    return params.data_folder(name)


def _budget(options: argparse.Namespace) -> None:
    from replicate.config import load, switch_budget

    if options.name:
        switch_budget(options.params, options.name)
    params = load(options.params)
    print(f"budget {params.budget}; defined are {', '.join(params.budgets)}")


def _plan(options: argparse.Namespace) -> None:
    from replicate.config import load
    from replicate.cost import plan
    from replicate.cost.data_size import data_size
    from replicate.cost.rates import rates_of

    params = load(options.params)
    if options.readme:
        from replicate.report.plan_table import update_readme

        update_readme(Path("README.md"), params)
        return
    if options.devices < 1:
        raise UserError(f"--devices {options.devices}: at least one device trains")
    budget = options.budget or params.budget
    params.budget_named(budget)
    lines = plan.plan(params, options.runs, budget, rates_of(options.device, options.efficiency), options.devices)
    if options.csv:
        lines.to_csv(options.csv)
    print(f"budget {budget}, {options.devices} x {options.device}")
    print(plan.render(lines))
    print(plan.render(plan.totals(lines)))
    for name in params.datasets:
        size = data_size(params, name, budget)
        note = "; its source is not here, so ImageNet-1k is assumed" if size.assumed else ""
        print(f"data {name}: {size.train} + {size.val} images of {size.classes} classes, about {size.bytes / 1e9:.2g} GB of .beton{note}")


def _grid(options: argparse.Namespace) -> None:
    from replicate.config import load
    from replicate.pipeline.launch import launch_all

    launch_all(load(options.params), options.paper)


def _search(options: argparse.Namespace) -> None:
    from replicate.config import load
    from replicate.pipeline import search

    params = load(options.params)
    if options.seed is not None:
        search.search_seed(params, options.search, options.seed)
    elif options.apply:
        found = search.apply(params, options.search)
        print(f"{found['dataset']}: layer_decay {found['layer_decay']:g} gives {found['top1']:.1f} % top-1")
    else:
        print(search.described(search.search(params, options.search, ("--params", options.params, "search", "llrd", options.search))))


def _strip(options: argparse.Namespace) -> None:
    from replicate.report.notebook import strip

    strip(options.notebook, options.destination)


def _stages(options: argparse.Namespace) -> None:
    from replicate.pipeline.stages import STAGES, write

    print(f"{STAGES}: {'written' if write(options.params) else 'up to date'}")


def _inputs(options: argparse.Namespace) -> None:
    from replicate.pipeline.inputs import write_inputs

    write_inputs(options.params, options.folder)


def _notebook(options: argparse.Namespace) -> None:
    from replicate.config import load
    from replicate.report.notebook import execute

    params = load(options.params)
    if options.paper not in params.papers:
        raise UserError(f"there is no paper '{options.paper}'; papers/ holds {', '.join(params.papers)}")
    execute(options.paper, params.budget, "full" if options.full else "headline")


def _bench_loader(options: argparse.Namespace) -> None:
    from replicate.cost.loader_bench import bench

    numbers = {key: getattr(options, key) for key in ("repeat", "rounds", "threads", "size")}
    print(f"written to {bench(options.images, **numbers, out=options.out)}; `python -m replicate notebook dailymae` shows it")


def _scoreboard(options: argparse.Namespace) -> None:
    from replicate.config import load
    from replicate.report.scoreboard import write

    params = load(options.params)
    write(params.budget, shown=params.findings)


def _keep(options: argparse.Namespace) -> None:
    from replicate.config import load
    from replicate.report.results import keep

    params = load(options.params)
    for name in options.runs:
        params.run(name)
        print(f"kept in {keep(params.results_folder(name, params.budget), not options.no_times)}")


def _site(options: argparse.Namespace) -> None:
    from replicate.config import load
    from replicate.report.scoreboard import update_readme
    from replicate.report.site import of_budget, of_findings

    params = load(options.params)
    site = of_findings(params) if options.findings else of_budget(params, params.budget)
    print(site.write()[0])
    if options.findings:
        update_readme("README.md", site.board)


def _weights_import(options: argparse.Namespace) -> None:
    from replicate.models.weights import import_weights

    import_weights(options.source, options.destination, need_decoder=options.decoder)


def _weights_export(options: argparse.Namespace) -> None:
    from replicate.models.weights import export_weights

    export_weights(options.source, options.destination, need_decoder=options.decoder)


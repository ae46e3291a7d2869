"""The command line: `python -m replicate COMMAND`. Each command imports what it needs, so that `--help` is
quick.
"""

from __future__ import annotations

import argparse
import os
import re
import select
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TextIO

from replicate.errors import UserError
from replicate.pipeline import interruption

if TYPE_CHECKING:
    from replicate.config import Params

GROUPS = {
    "run": ("repro", "pretrain", "evaluate", "tokenizer", "grid", "search", "campaign"),
    "look": ("list", "show", "log", "scoreboard", "site"),
    "data": ("data", "bench"),
    "plan": ("budget", "plan"),
    "share": ("keep", "weights", "paper"),
}
"""The commands that people type, as `--help` shows them."""
INTERNAL = ("stages", "inputs", "strip", "notebook", "box")
"""What the pipeline and `make` call; `--help-all` shows them too."""
COLUMNS = 100
RESUMES = "interrupted; what had finished is kept, and the same command continues"
CLOSED_PIPE = 141
"""The status that a shell reports for a program that SIGPIPE ended."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status.

    2 for a user's mistake, 130 when interrupted, 141 when the reader of the output has left.
    """
    interruption.watch()
    try:
        options = _parser().parse_args(arguments)
        interruption.would_say(options.interrupted)
        options.handler(options)
        # Flush here: a pipe that closes while Python ends can no longer be caught.
        sys.stdout.flush()
        return 0
    except BaseException as error:
        interrupted = interruption.begun() or isinstance(error, KeyboardInterrupt)
        if not interrupted and isinstance(error, BrokenPipeError) and _reader_left(sys.stdout):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return CLOSED_PIPE
        if not interrupted and not isinstance(error, UserError):
            raise
        line = f"error: {error}"
    # Print outside the handler, where the error's frames, and their progress bar, are gone.
    if interrupted:
        interruption.tell()
        return interruption.STATUS
    print(line, file=sys.stderr)
    return 2


def _reader_left(stream: TextIO) -> bool:
    """Whether the stream is a pipe whose reader, such as `head`, has left."""
    poll = select.poll()
    poll.register(stream.fileno(), 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


class _Format(argparse.RawDescriptionHelpFormatter):
    """Help of at most COLUMNS columns, examples as they are written."""

    def __init__(self, prog: str) -> None:
        width = shutil.get_terminal_size((COLUMNS, 24)).columns
        super().__init__(prog, max_help_position=28, width=min(COLUMNS, width))


class _Parser(argparse.ArgumentParser):
    """Tells a mistake in one line, a wrong name with the closest ones."""

    def error(self, message: str) -> NoReturn:
        if found := re.match(r"argument (\S+): invalid choice: '(.*?)' \(choose from (.*)\)", message):
            from replicate.names import closest

            what, given, known = found.groups()
            near = closest(given, re.findall(r"[\w-]+", known))
            message = f"{what} '{given}' does not exist{near}"
        self.exit(2, f"error: {message} (`{self.prog} --help` lists what there is)\n")


class _HelpAll(argparse.Action):
    """`--help-all`: the help with what the pipeline calls."""

    def __call__(self, parser, *_) -> None:
        parser.epilog = _listing(parser.get_default("commands"), GROUPS | {"internal": INTERNAL})
        parser.print_help()
        parser.exit()


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="replicate",
        usage="replicate [-h | --help-all] [--params FILE] COMMAND ...",
        description="Papers on efficient masked image modelling, in one harness.",
        formatter_class=_Format,
    )
    parser.add_argument(
        "--params", default="params.yaml", metavar="FILE", help="settings file (default: %(default)s)"
    )
    parser.add_argument("--help-all", action=_HelpAll, nargs=0, help="also show what the pipeline calls")
    commands = parser.add_subparsers(
        prog="replicate", metavar="COMMAND", required=True, help=argparse.SUPPRESS
    )
    for add in (_add_runs, _add_data, _add_plan, _add_bench, _add_pages, _add_papers, _add_pipeline):
        add(commands)
    parser.set_defaults(interrupted="interrupted", commands=commands.choices)
    parser.epilog = _listing(commands.choices, GROUPS)
    return parser


def _listing(commands: Mapping[str, argparse.ArgumentParser], groups: Mapping[str, Sequence[str]]) -> str:
    """The commands by group, a line each, and how to learn more."""
    lines = []
    for group, names in groups.items():
        lines += [f"{group}:", *(f"  {name:<12}{commands[name].description}" for name in names), ""]
    return "\n".join([*lines, "`replicate COMMAND --help` shows a command's options and an example."])


def _command(commands, name: str, text: str, example: str) -> argparse.ArgumentParser:
    shown = f"example:\n  python -m replicate {example}"
    return commands.add_parser(name, help=text, description=text, epilog=shown, formatter_class=_Format)


def _add(
    commands, name: str, handler: Callable, text: str, example: str, interrupted: str = "interrupted"
) -> argparse.ArgumentParser:
    command = _command(commands, name, text, example)
    command.set_defaults(handler=handler, interrupted=interrupted)
    return command


def _group(commands, name: str, text: str, example: str, metavar: str = "ACTION"):
    return _command(commands, name, text, example).add_subparsers(metavar=metavar, required=True)


def _add_runs(commands) -> None:
    for name, text, example in (
        ("pretrain", "pre-train a run, every seed of the budget", "light_75"),
        ("evaluate", "fine-tune, probe or score a run's weights, every seed", "light_75_llrd_80"),
        ("tokenizer", "train a tokenizer, or read a released one; all seeds share it", "mae_tokens"),
    ):
        command = _add(commands, name, _train, text, f"{name} {example}", RESUMES)
        command.add_argument("run", help="name of a run in papers/*/runs.yaml")
        _add_settings(command)
        command.add_argument(
            "--seed", type=int, help="train this seed only, into the store of resumable runs"
        )
        command.set_defaults(command=name)
    text = "train every run, or those of some papers, in this process, without DVC"
    command = _add(commands, "grid", _grid, text, "grid fastmim", RESUMES)
    command.add_argument("paper", nargs="*", help="papers to run (default: all)")
    text = "search a recipe's number on a subset of the images"
    action = _add(
        _group(commands, "search", text, "search llrd light_90_images", "WHAT"),
        "llrd",
        _search,
        "search layer-wise lr decay: fine-tune at several values and recommend one with its interval",
        "search llrd light_90_images --apply",
        RESUMES,
    )
    action.add_argument("search", help="name of a search in papers/*/runs.yaml")
    action.add_argument(
        "--apply", action="store_true", help="fine-tune on the full set at the recommended value"
    )
    action.add_argument("--seed", type=int, help="train this seed only, into the store of resumable runs")
    text = "list the runs, with where each is published and whether it has run"
    command = _add(commands, "list", _list, text, "list light_75")
    command.add_argument("word", nargs="?", default="", help="part of a name, paper, table or state")
    text = "show a run: its recipe, its result, and the published numbers beside it"
    command = _add(commands, "show", _show, text, "show light_75_llrd_80")
    command.add_argument("run", help="name of a run in papers/*/runs.yaml")
    text = "show what a run has logged so far, also while it trains"
    command = _add(commands, "log", _log, text, "log light_75_llrd_80")
    command.add_argument("run")
    _add_settings(command)
    text = "copy the numbers of finished runs into measured/, which git tracks"
    command = _add(commands, "keep", _keep, text, "keep light_75_llrd_80 scratch_llrd_80")
    command.add_argument("runs", nargs="+", metavar="RUN")
    command.add_argument(
        "--no-times", action="store_true", help="leave out speeds, for runs that shared their machine"
    )
    text = "train the runs that claims lack, those first that decide most for their cost"
    command = _add(commands, "campaign", _campaign, text, "campaign --hours 8 --keep")
    command.add_argument("--hours", type=float, default=0.0, help="stop after so long (default: list only)")
    command.add_argument("--keep", action="store_true", help="copy each run's numbers into measured/")
    command.add_argument("--skip", nargs="*", default=[], metavar="PAPER", help="papers to leave out")
    text = "train pre-trainings and put their weights into weights/, which git tracks"
    command = _add(commands, "box", _box, text, "box light_75")
    command.add_argument("runs", nargs="+", metavar="RUN")
    released = "weights import mae_pretrain_vit_base.pth mae_base.safetensors"
    actions = _group(commands, "weights", "exchange weights with the papers' released checkpoints", released)
    for name, handler, text, example in (
        (
            "import",
            _weights_import,
            "read a released checkpoint (.pth, .safetensors) into this project's format",
            released,
        ),
        (
            "export",
            _weights_export,
            "write weights as .safetensors, or as .pth in the reference's format",
            "weights export mae_base.safetensors mae_hf --format hf",
        ),
    ):
        action = _add(actions, name, handler, text, example)
        action.add_argument("source", type=Path)
        action.add_argument("destination", type=Path)
        action.add_argument("--decoder", action="store_true", help="refuse a checkpoint without a decoder")
    formats = "reference: .pth or .safetensors; hf: a folder for ViTMAEForPreTraining.from_pretrained"
    action.add_argument("--format", choices=("reference", "hf"), default="reference", help=formats)
    for name, handler, text, target, example in (
        (
            "card",
            _weights_card,
            "write a run's weights and a model card to a folder; nothing leaves the machine",
            "folder to write",
            "weights card light_75 card/",
        ),
        (
            "push",
            _weights_push,
            "the same, uploaded to the Hugging Face hub, after it has said what and where to",
            "repository on the hub: OWNER/NAME",
            "weights push light_75 OWNER/light-mae --private",
        ),
    ):
        action = _add(actions, name, handler, text, example)
        action.add_argument("run", help="a finished run of the active budget")
        action.add_argument("target", help=target)
        action.add_argument(
            "--licence", help="of the weights (default: apache-2.0, unless they start from others')"
        )
        action.add_argument("--seed", type=int, default=0, help="the seed to publish (default: %(default)s)")
    action.add_argument("--private", action="store_true", help="make the repository a private one")


def _add_settings(command: argparse.ArgumentParser) -> None:
    text = "settings that this run changes, such as mask_ratio=0.6; it then trains into .replicate/scratch/"
    command.add_argument("settings", nargs="*", metavar="KEY=VALUE", help=text)


def _add_data(commands) -> None:
    text = "write, check, describe or download a data set"
    actions = _group(commands, "data", text, "data write")
    again = "interrupted; the same command writes the data set again"
    for name, handler, text, interrupted in (
        ("write", _data_write, "write train.beton, val.beton and manifest.json of a data set", again),
        ("check", _data_check, "check a data set's files against their manifest", "interrupted"),
        ("info", _data_info, "describe a data set's files", "interrupted"),
    ):
        action = _add(actions, name, handler, text, f"data {name} full", interrupted)
        action.add_argument(
            "dataset", nargs="?", default="full", help="name of a data set (default: %(default)s)"
        )
    text = "download a public data set, check it, and lay out its class folders in data/"
    example = "data fetch tiny-imagenet"
    action = _add(actions, "fetch", _data_fetch, text, example, "interrupted; the same command continues")
    action.add_argument("name", nargs="?", help="a public set (default: list them)")
    given = "folder that has the set's files, or for imagenet-100 the ImageNet; nothing is downloaded"
    action.add_argument("--from", dest="given", type=Path, metavar="FOLDER", help=given)


def _add_plan(commands) -> None:
    text = "show or choose the budget through which runs are seen"
    command = _add(commands, "budget", _budget, text, "budget smoke")
    command.add_argument("name", nargs="?", help="a budget of budgets.yaml")
    text = "show what runs will cost before anything is spent"
    example = "plan full_75 --budget paper --device a100 --devices 8"
    command = _add(commands, "plan", _plan, text, example)
    command.add_argument("runs", nargs="*", metavar="RUN", help="names of runs (default: all)")
    command.add_argument("--budget", help="the budget to plan for (default: the active one)")
    command.add_argument(
        "--device", default="here", help="h200, h100, a100, cpu, or here: measure this machine (default)"
    )
    command.add_argument(
        "--devices", type=int, default=1, help="devices that share a run (default: %(default)s)"
    )
    command.add_argument(
        "--efficiency",
        type=float,
        help="share of the device's peak that training reaches, such as a measured MFU",
    )
    command.add_argument("--csv", type=Path, help="write the table to this file as well")
    command.add_argument(
        "--page", action="store_true", help="update docs/costs.md, the table of the paper budget, instead"
    )


def _add_bench(commands) -> None:
    text = "compare an image folder, stock FFCV and this project's reader on your own images"
    example = "bench loader --images FOLDER"
    action = _add(
        _group(commands, "bench", "measure this machine's loaders", example, "WHAT"),
        "loader",
        _bench_loader,
        text,
        example,
        "interrupted; nothing was written",
    )
    action.add_argument(
        "--images", type=Path, help="folder of JPEG or PNG files (default: scikit-image's photographs)"
    )
    action.add_argument(
        "--repeat", type=int, default=8, help="copies of each image, for long epochs (default: %(default)s)"
    )
    action.add_argument(
        "--rounds", type=int, default=5, help="times that every case is measured (default: %(default)s)"
    )
    action.add_argument(
        "--threads", type=int, default=1, help="threads of every loader (default: %(default)s)"
    )
    action.add_argument(
        "--size", type=int, default=224, help="pixels a side of a crop (default: %(default)s)"
    )
    action.add_argument(
        "--out",
        type=Path,
        default=Path("results/bench"),
        help="folder for the results (default: %(default)s)",
    )


def _add_pages(commands) -> None:
    text = "execute a paper's notebook; writes its tables and figures"
    command = _add(commands, "notebook", _notebook, text, "notebook efficient_learners")
    command.add_argument("paper")
    command.add_argument("--full", action="store_true", help="with the runs of the full grid")
    text = "write every published number with its status, every claim with its verdict"
    _add(commands, "scoreboard", _scoreboard, text, "scoreboard")
    text = "build the site: findings, executed notebooks, documentation"
    command = _add(commands, "site", _site, text, "site --findings")
    text = "build site/ and the totals in docs/results.md, each paper at the budget that `findings` names"
    command.add_argument("--findings", action="store_true", help=text)


def _add_papers(commands) -> None:
    example = "paper new crossmae --title CrossMAE"
    actions = _group(commands, "paper", "add a paper to the workbook", example)
    text = "make the folder, the notebook and the module of a new paper"
    action = _add(actions, "new", _paper_new, text, example)
    action.add_argument("key", help="short name, such as crossmae")
    action.add_argument("--title", help="the paper's title (default: the key)")


def _add_pipeline(commands) -> None:
    text = "run what changed in the pipeline, with a line a stage"
    command = _add(commands, "repro", _repro, text, "repro notebook@efficient_learners")
    command.add_argument("targets", nargs="*", metavar="STAGE", help="stages such as notebook@mae")
    text = "regenerate stages.yaml, the list of runs that dvc.yaml reads"
    _add(commands, "stages", _stages, text, "stages")
    text = "check the configuration and write what each stage depends on"
    command = _add(commands, "inputs", _inputs, text, "inputs executed/inputs")
    command.add_argument("folder", type=Path)
    text, example = "copy a notebook without its outputs", "strip notebooks/mae.ipynb executed/mae.ipynb"
    command = _add(commands, "strip", _strip, text, example)
    command.add_argument("notebook", type=Path)
    command.add_argument("destination", type=Path)


def _load(options: argparse.Namespace) -> Params:
    from replicate.config import load

    return load(options.params)


def _changed(options: argparse.Namespace) -> Params:
    """The configuration, with what the command line changes of its run."""
    if not options.settings:
        return _load(options)
    from replicate.pipeline.scratch import changed

    return changed(options.params, options.run, options.settings)


def _train(options: argparse.Namespace) -> None:
    from replicate.config import PretrainRun, TokenizerRun

    params, name = _changed(options), options.run
    kinds = {PretrainRun: "pretrain", TokenizerRun: "tokenizer"}
    kind = kinds.get(type(params.run(name)), "evaluate")
    if kind != options.command:
        raise UserError(f"{options.command} cannot train {name}: use `python -m replicate {kind} {name}`")
    from replicate.pipeline.launch import launch

    command = ("--params", options.params, options.command, name, *options.settings)
    launch(params, name, command, options.seed)
    if options.settings and options.seed is None and os.environ.get("RANK", "0") == "0":
        from replicate.pipeline.scratch import outcome

        print(outcome(params, name))


def _grid(options: argparse.Namespace) -> None:
    from replicate.pipeline.launch import launch_all

    launch_all(_load(options), options.paper)


def _search(options: argparse.Namespace) -> None:
    from replicate.pipeline import search

    params, name = _load(options), options.search
    if options.seed is not None:
        search.search_seed(params, name, options.seed)
    elif options.apply:
        found = search.apply(params, name)
        print(f"{found['dataset']}: layer_decay {found['layer_decay']:g} gives {found['top1']:.1f} % top-1")
    else:
        print(
            search.described(
                search.search(params, name, ("--params", options.params, "search", "llrd", name))
            )
        )


def _list(options: argparse.Namespace) -> None:
    from replicate.report.run_list import listed

    print(listed(_load(options), options.word))


def _show(options: argparse.Namespace) -> None:
    from replicate.report.run_list import described

    print(described(_load(options), options.run))


def _log(options: argparse.Namespace) -> None:
    params = _changed(options)
    params.run(options.run)
    from replicate.report import log

    print(log.render(log.log_of(params, options.run)))


def _keep(options: argparse.Namespace) -> None:
    from replicate.report.results import keep

    params = _load(options)
    for name in options.runs:
        print(f"kept in {keep(params.results_folder(name), not options.no_times)}")


def _campaign(options: argparse.Namespace) -> None:
    import subprocess

    from replicate.pipeline.stages import group_of
    from replicate.report import campaign, results

    params = _load(options)
    finished = results.load(params.budget, params=params).runs
    here = {name for name in finished if (params.results_folder(name) / "metrics.json").exists()}
    cost_of = campaign.costs(params, params.budget)
    steps = campaign.queue(params, finished, cost_of, here, options.skip)
    total = 0.0
    for step in steps:
        total += step.cost
        print(f"{total * 1e6:8.1f} Tmac  {step.claim}: {' '.join(step.runs)}")

    def run(name: str) -> None:
        group = group_of(params, name).partition("_")[0]
        kind = group if group in ("tokenizer", "pretrain") else "evaluate"
        command = [sys.executable, "-m", "replicate", "--params", str(options.params), kind, name]
        if subprocess.run(command).returncode:
            raise UserError(f"campaign: {kind} {name} failed; its message is above")
        if options.keep:
            print(f"kept in {results.keep(params.results_folder(name))}", flush=True)

    print(f"trained {len(campaign.train(steps, run, options.hours))} runs")


def _box(options: argparse.Namespace) -> None:
    params = _load(options)
    from replicate.pipeline.launch import fill_box

    fill_box(params, options.runs)


def _weights_import(options: argparse.Namespace) -> None:
    from replicate.models.weights import import_weights

    import_weights(options.source, options.destination, need_decoder=options.decoder)


def _weights_export(options: argparse.Namespace) -> None:
    from replicate.models.weights import export_weights

    export_weights(options.source, options.destination, options.decoder, options.format)


def _weights_card(options: argparse.Namespace) -> None:
    from replicate.report.card import write

    print(write(_load(options), options.run, Path(options.target), options.licence, options.seed))


def _weights_push(options: argparse.Namespace) -> None:
    import tempfile

    from replicate.fetch.hub import publish
    from replicate.report.card import write

    with tempfile.TemporaryDirectory() as folder:
        written = write(_load(options), options.run, Path(folder), options.licence, options.seed)
        sizes = ", ".join(
            f"{path.name} ({path.stat().st_size:,} bytes)" for path in sorted(written.iterdir())
        )
        print(f"uploading {sizes} to {options.target}")
        print(publish(written, options.target, options.private))


def _data_write(options: argparse.Namespace) -> None:
    from replicate.pipeline.launch import write_dataset

    write_dataset(_load(options), options.dataset)


def _data_fetch(options: argparse.Namespace) -> None:
    from replicate.fetch import datasets

    if options.name is None:
        print(datasets.listing())
        return
    print(datasets.fetch(options.name, options.given))


def _data_check(options: argparse.Namespace) -> None:
    from replicate.loaders.data import check

    if _show_dense(options):
        return
    for file in check(_data_folder(options)):
        print(f"{file}: whole")


def _data_info(options: argparse.Namespace) -> None:
    from replicate.loaders.data import info

    if _show_dense(options):
        return
    info(_data_folder(options))


def _show_dense(options: argparse.Namespace) -> bool:
    """Print what a data set of boxes or masks holds; False for one of classes."""
    params = _load(options)
    if params.dataset(options.dataset).layout == "classes":
        return False
    from replicate.loaders.manifest import FILE_NAME, Manifest
    from replicate.transfer.data import describe

    for record in describe(Manifest.read(_data_folder(options) / FILE_NAME)):
        print(", ".join(f"{key} {value}" for key, value in record.items() if value != {}))
    return True


def _data_folder(options: argparse.Namespace) -> Path:
    params = _load(options)
    params.dataset(options.dataset)
    return params.data_folder(options.dataset)


def _budget(options: argparse.Namespace) -> None:
    from replicate.config import switch_budget

    if options.name:
        switch_budget(options.params, options.name)
    params = _load(options)
    print(f"budget {params.budget}; budgets.yaml has {', '.join(params.budgets)}")


def _plan(options: argparse.Namespace) -> None:
    from replicate.cost import plan
    from replicate.cost.data_size import data_size
    from replicate.cost.rates import rates_of

    params = _load(options)
    if options.page:
        from replicate.report.plan_table import update_page

        update_page(Path(), params)
        return
    if options.devices < 1:
        raise UserError(f"--devices {options.devices}: at least one device must train")
    budget = options.budget or params.budget
    params.budget_named(budget)
    for name in options.runs:
        params.run(name)
    lines = plan.plan(
        params, options.runs, budget, rates_of(options.device, options.efficiency), options.devices
    )
    if options.csv:
        lines.to_csv(options.csv)
    print(f"budget {budget}, {options.devices} x {options.device}")
    print(plan.render(plan.totals(lines)))
    if options.runs:
        print(plan.render(lines[list(plan.SHOWN)]))
    else:
        print("name runs for a line each, or `--csv FILE` for all of them")
    for name in dict.fromkeys(params.run(name).dataset for name in lines.index):
        size = data_size(params, name, budget)
        note = "; its source is missing, so ImageNet-1k is assumed" if size.assumed else ""
        images = f"{size.train} + {size.val} images of {size.classes} classes"
        print(f"data {name}: {images}, about {size.bytes / 1e9:.2g} GB of .beton{note}")


def _bench_loader(options: argparse.Namespace) -> None:
    from replicate.cost.loader_bench import bench

    numbers = {key: getattr(options, key) for key in ("repeat", "rounds", "threads", "size")}
    written = bench(options.images, **numbers, out=options.out)
    print(f"written to {written}; `python -m replicate notebook dailymae` shows it")


def _notebook(options: argparse.Namespace) -> None:
    from replicate.report.notebook import execute

    params = _load(options)
    if options.paper not in params.papers:
        raise UserError(f"there is no paper '{options.paper}'; papers/ holds {', '.join(params.papers)}")
    execute(options.paper, params.budget, "full" if options.full else "headline")


def _scoreboard(options: argparse.Namespace) -> None:
    from replicate.report.scoreboard import write

    params = _load(options)
    write(params.budget, shown=params.findings)


def _site(options: argparse.Namespace) -> None:
    from replicate.report.scoreboard import update_pages
    from replicate.report.site import FINDINGS, of_budget, of_findings, write

    params = _load(options)
    shown = of_findings(params) if options.findings else of_budget(params, params.budget)
    folder = FINDINGS if options.findings else Path("executed") / params.budget / "site"
    print(write(shown, folder)[0])
    if options.findings:
        update_pages(Path(), shown.board)


def _paper_new(options: argparse.Namespace) -> None:
    from replicate.pipeline.new_paper import make

    for path in make(options.key, options.title or options.key):
        print(path)


def _repro(options: argparse.Namespace) -> None:
    from replicate.pipeline.progress import repro

    params = _load(options)
    if status := repro(params, options.targets):
        raise SystemExit(status)
    if not options.targets:
        from replicate.report.ending import lines

        print(*lines(params), sep="\n")
        print(f"Open: executed/{params.budget}/site/index.html\nThen: make lab")


def _stages(options: argparse.Namespace) -> None:
    from replicate.pipeline.stages import STAGES, write

    print(f"{STAGES}: {'written' if write(options.params) else 'up to date'}")


def _inputs(options: argparse.Namespace) -> None:
    from replicate.pipeline.inputs import write_inputs

    write_inputs(options.params, options.folder)


def _strip(options: argparse.Namespace) -> None:
    from replicate.report.notebook import strip

    strip(options.notebook, options.destination)

"""The only reader of `params.yaml`, `budgets.yaml` and the papers' rooms: strict, typed, frozen.

Runs stand in their paper's own numbers; `Params.resolve` shows them through a budget
(`replicate.config.lens`). A number that affects a result lives in a run, a data set or a budget: changing it
retrains. `Machine` holds what makes a run faster or smaller: changing it retrains nothing.
"""

from __future__ import annotations

import re
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import ValidationError, field_validator, model_validator

from replicate.config import box, lens
from replicate.config.datasets import OF_SOURCE, Dataset
from replicate.config.dense import DenseRun, model_of
from replicate.config.lens import Budget
from replicate.config.machine import Machine
from replicate.config.rooms import ROOMS, Entry, Room, entries, read_rooms
from replicate.config.runs import EvaluateRun, PretrainRun, Run, ScoreRun, Search, TokenizerRun, upstream_of
from replicate.config.schema import NAME, Strict, first_fault, validated
from replicate.config.starts import with_starts
from replicate.config.yaml_file import frozen, read_yaml
from replicate.errors import UserError
from replicate.names import closest

MODELS = {
    "datasets": Dataset,
    "tokenizers": TokenizerRun,
    "pretrain": PretrainRun,
    "evaluate": EvaluateRun,
    "searches": Search,
}


LAYOUTS = {
    "detect": ("coco",),
    "segment": ("ade20k", "panoptic"),
    "dense_knn": ("ade20k", "panoptic"),
    "dense_linear": ("ade20k", "panoptic"),
}
"""The layouts of data that a dense protocol reads; every other run reads folders of classes."""


Budgets = str | tuple[str, ...]
"""A budget's name, or several."""


class Settings(Strict):
    """`params.yaml`: what a user changes.

    findings   the budgets whose results are shown, best first: for all papers, or for each paper with a
               `default`
    runs       changes to single runs, by name
    """

    budget: str
    machine: Machine = Machine()
    datasets: dict[str, Dataset]
    findings: Budgets | dict[str, Budgets] = {}
    runs: dict[str, dict[str, Any]] = {}

    @field_validator("findings", mode="before")
    @classmethod
    def _check_findings(cls, value: Any) -> Any:
        if not isinstance(value, str | list | tuple | dict):
            raise ValueError("findings names a budget, a list of budgets, or budgets for each paper")
        return value


class Params(Strict):
    """Everything that the configuration files state, checked against one another.

    papers            key -> title
    datasets, runs, searches   by name, with those of the grid
    grid              names of the runs that `dvc repro` leaves to the grid pipeline
    grid_datasets     names of the data sets that the grid alone uses
    findings          paper -> the budgets whose runs README and site show, best first
    """

    budget: str
    machine: Machine = Machine()
    budgets: dict[str, Budget]
    papers: dict[str, str]
    datasets: dict[str, Dataset]
    runs: dict[str, Any]
    searches: dict[str, Search] = {}
    grid: frozenset[str] = frozenset()
    grid_datasets: frozenset[str] = frozenset()
    findings: dict[str, tuple[str, ...]] = {}

    @model_validator(mode="after")
    def _check_names(self):
        if self.budget not in self.budgets:
            raise ValueError(f"budget is '{self.budget}'; budgets.yaml has {', '.join(self.budgets)}")
        for name in (*self.runs, *self.budgets, *self.datasets, *self.searches):
            if not NAME.fullmatch(name):
                rule = "use letters, digits, _, . and -, and start with a letter or a digit"
                raise ValueError(f"'{name}' cannot be a name; {rule}")
        for name, run in (self.runs | self.searches).items():
            self._check_datasets(name, run)
            if isinstance(run, EvaluateRun) and run.pretrain not in self.pretrain_runs:
                near = closest(run.pretrain, self.pretrain_runs)
                raise ValueError(
                    f"run '{name}' starts from '{run.pretrain}', which is not a pretrain run{near}"
                )
        for name, run in self.runs.items():
            self._check_upstream(name, run)
        for paper, budget in ((paper, one) for paper, named in self.findings.items() for one in named):
            if paper not in self.papers:
                raise ValueError(f"findings names paper '{paper}'; papers are {', '.join(self.papers)}")
            everywhere = all(budget in named for named in self.findings.values())
            where = "findings" if everywhere else f"findings of {paper}"
            if budget not in self.budgets:
                raise ValueError(f"{where} names budget '{budget}'; defined are {', '.join(self.budgets)}")
            if all(self.dataset(name, budget).is_synthetic for name in self.datasets):
                raise ValueError(
                    f"{where} names budget '{budget}', whose images are synthetic: "
                    "they give no verdict on a paper; name a budget with real images"
                )
        absent = [paper for paper in self.papers if self.findings and not self.findings.get(paper)]
        if absent:
            raise ValueError(
                f"findings names no budget for {', '.join(absent)}; name one for every paper, or none"
            )
        return self

    def _check_datasets(self, name: str, run: Run) -> None:
        for dataset in (run.dataset, run.full) if isinstance(run, Search) else (run.dataset,):
            if dataset not in self.datasets:
                raise ValueError(
                    f"run '{name}' uses dataset '{dataset}'; defined are {', '.join(self.datasets)}"
                )
            layouts = LAYOUTS[getattr(run, "protocol", "")] if isinstance(run, DenseRun) else ("classes",)
            if self.datasets[dataset].layout not in layouts:
                raise ValueError(
                    f"run '{name}' uses dataset '{dataset}' of layout {self.datasets[dataset].layout}; "
                    f"it reads {' or '.join(layouts)}"
                )
            if dataset in self.grid_datasets and name not in self.grid:
                raise ValueError(
                    f"run '{name}' uses dataset '{dataset}', which only the grid writes; define it outside"
                )

    def _check_upstream(self, name: str, run: Run) -> None:
        """A token target needs a tokenizer run; distillation and scoring need a fine-tuning that keeps its
        weights.
        """
        kept = {key: one for key, one in self.evaluate_runs.items() if one.keep_weights}
        if isinstance(run, PretrainRun) and run.tokenizer and run.tokenizer not in self.tokenizer_runs:
            near = closest(run.tokenizer, self.tokenizer_runs)
            raise ValueError(
                f"run '{name}' predicts tokens of '{run.tokenizer}', which is not a tokenizer{near}"
            )
        for key in ("teacher", "classifier"):
            wanted = getattr(run, key, None)
            if wanted and wanted not in kept:
                raise ValueError(
                    f"run '{name}' has {key} '{wanted}', which keeps no weights{closest(wanted, kept)}"
                )
        classifier = getattr(run, "classifier", None)
        if classifier and run.pretrain != kept[classifier].pretrain:
            raise ValueError(
                f"run '{name}' has pretrain {run.pretrain!r}, but '{classifier}' starts from another run"
            )

    @cached_property
    def headline(self) -> dict[str, Run]:
        """The runs of the default `dvc repro`, as written."""
        return {name: run for name, run in self.runs.items() if name not in self.grid}

    @cached_property
    def pretrain_runs(self) -> dict[str, PretrainRun]:
        """Every pre-training, as written."""
        return {name: run for name, run in self.runs.items() if isinstance(run, PretrainRun)}

    @cached_property
    def evaluate_runs(self) -> dict[str, EvaluateRun]:
        """Every evaluation, as written."""
        return {name: run for name, run in self.runs.items() if isinstance(run, EvaluateRun)}

    @cached_property
    def tokenizer_runs(self) -> dict[str, TokenizerRun]:
        """Every tokenizer, as written."""
        return {name: run for name, run in self.runs.items() if isinstance(run, TokenizerRun)}

    def run(self, name: str) -> Run:
        """A run as its paper states it. Raises UserError for an unknown name."""
        if name not in self.runs:
            raise UserError(f"there is no run '{name}'{closest(name, self.runs)}")
        return self.runs[name]

    def upstream_of(self, name: str) -> str | None:
        """The run whose weights a run needs: a pre-training, a classifier, a teacher, a tokenizer."""
        return upstream_of(self.run(name))

    def search(self, name: str) -> Search:
        """A search as written. Raises UserError for an unknown name."""
        if name not in self.searches:
            raise UserError(f"there is no search '{name}'{closest(name, self.searches)}")
        return self.searches[name]

    def resolve(self, name: str, budget: str | None = None) -> Run:
        """A run through a budget's lens, the active one unless named."""
        return self.resolve_run(self.run(name), budget)

    def resolve_run(self, run: Run, budget: str | None = None) -> Run:
        """A run that need not be in the files through a budget's lens."""
        source = self.pretrain_runs[run.pretrain] if isinstance(run, EvaluateRun) else None
        return lens.resolve(run, source, self.budget_named(budget))

    def budget_named(self, name: str | None = None) -> Budget:
        """A budget, the active one unless named. Raises UserError for an unknown name."""
        name = name or self.budget
        if name not in self.budgets:
            raise UserError(f"there is no budget '{name}'; budgets.yaml has {', '.join(self.budgets)}")
        return self.budgets[name]

    def dataset(self, name: str, budget: str | None = None) -> Dataset:
        """A data set with the budget's settings below its own. Raises UserError for an unknown name.

        `data` counts images and classes of its own source, so a set of another source takes none of that.
        """
        if name not in self.datasets:
            raise UserError(f"there is no dataset '{name}'{closest(name, self.datasets)}")
        budget = self.budget_named(budget)
        own = lens.scaled_dataset(self.datasets[name], budget).model_dump(exclude_unset=True)
        stated = budget.datasets.get(name, {}) | own
        moved = stated.get("source", budget.data.get("source")) != budget.data.get("source")
        shared = {key: value for key, value in budget.data.items() if not (moved and key in OF_SOURCE)}
        stated = shared | stated
        return validated(Dataset, stated, f"datasets.{name}: ")

    def box(self, name: str | None, budget: str | None = None) -> box.Box | None:
        """The trained weights that stand for a pre-training at a budget, or None where it is trained."""
        run = name and self.run(name)
        if not self.budget_named(budget).boxed or not isinstance(run, PretrainRun):
            return None
        dataset = self.dataset(run.dataset, budget)
        return box.find(box.BOX, budget or self.budget, name, self.resolve(name, budget), dataset)

    def seeds(self, name: str, budget: str | None = None) -> int:
        """How many seeds of a run a budget asks for; a tokenizer and a boxed pre-training have one."""
        alone = isinstance(self.run(name), TokenizerRun) or self.box(name, budget)
        return 1 if alone else self.budget_named(budget).seeds

    def results_folder(self, name: str, budget: str | None = None) -> Path:
        """`results/<budget>/<paper>/<run>`; the grid's runs lie in `results/<budget>/grid/<paper>/<run>`."""
        return self._folder(name, self.run(name).paper, name in self.grid, budget)

    def search_folder(self, name: str, budget: str | None = None) -> Path:
        """Where a search writes what it found: beside the runs of its paper's grid."""
        return self._folder(name, self.search(name).paper, True, budget)

    def _folder(self, name: str, paper: str, in_grid: bool, budget: str | None) -> Path:
        return Path("results", budget or self.budget, *(["grid"] if in_grid else []), paper, name)

    def data_folder(self, dataset: str, budget: str | None = None) -> Path:
        return Path("data") / (budget or self.budget) / dataset


def load(path: str | Path = "params.yaml") -> Params:
    """Read and check `params.yaml`, `budgets.yaml` beside it, and every paper's room.

    Raises UserError in one line, with file, key and value, for a missing or broken file, an unknown key, a
    wrong type, an impossible value, or an image size that a run's patch does not divide, as stated or at the
    active budget.
    """
    settings, budgets, rooms = read_files(path)
    return assemble(settings, budgets, rooms, str(path))


def read_files(path: str | Path) -> tuple[Settings, dict[str, Budget], dict[str, Room]]:
    """What the configuration files state, each checked by itself.

    Budgets and rooms are those beside `path`, or the repository's own where there are none.
    """
    settings = validated(Settings, _mapping(path), f"{path}: ")
    beside = Path(path).with_name
    budgets_path = (
        beside("budgets.yaml") if beside("budgets.yaml").exists() else ROOMS.with_name("budgets.yaml")
    )
    content = _mapping(budgets_path)
    budgets = {
        name: validated(Budget, one or {}, f"{budgets_path.name}: {name}.") for name, one in content.items()
    }
    return settings, budgets, read_rooms(beside(ROOMS.name) if beside(ROOMS.name).is_dir() else ROOMS)


def assemble(
    settings: Settings, budgets: dict[str, Budget], rooms: dict[str, Room], where: str = "params.yaml"
) -> Params:
    """The parts as one Params. Raises UserError where they do not fit together."""
    found = with_starts(list(entries(rooms)), settings.runs)
    runs, datasets, searches = _by_name(found, settings.runs, where)
    stated = settings.findings if isinstance(settings.findings, dict) else {"default": settings.findings}
    findings = {paper: (one,) if isinstance(one, str) else tuple(one) for paper, one in stated.items()}
    fallback = findings.pop("default", None)
    content = {
        "budget": settings.budget,
        "machine": settings.machine,
        "budgets": budgets,
        "papers": {key: room.title for key, room in rooms.items()},
        "datasets": settings.datasets | datasets,
        "runs": runs,
        "searches": searches,
        "grid": frozenset(entry.name for entry in found if entry.in_grid),
        "grid_datasets": frozenset(e.name for e in found if e.section == "datasets" and e.in_grid),
        "findings": ({} if fallback is None else dict.fromkeys(rooms, fallback)) | findings,
    }
    try:
        params = Params.model_validate(content)
    except ValidationError as error:
        raise UserError(f"{where}: {first_fault(error)}") from None
    check_geometry(params)
    return params


def _by_name(found: list[Entry], changes: dict[str, dict[str, Any]], where: str) -> tuple[dict, dict, dict]:
    """(runs, data sets, searches); tokenizers first, then pre-trainings, as runs need them."""
    groups: dict[str, dict[str, Any]] = {section: {} for section in MODELS}
    places: dict[str, str] = {}
    for entry in found:
        kind = "dataset" if entry.section == "datasets" else "run"
        if other := places.get(f"{kind} {entry.name}"):
            raise UserError(f"{entry.where}: {other} has that name too; a {kind}'s name must be its own")
        places[f"{kind} {entry.name}"] = entry.where
        stated = entry.stated | {k: v for k, v in changes.get(entry.name, {}).items() if k != "pretrain"}
        model = MODELS[entry.section]
        if entry.section != "datasets":
            stated = {"paper": entry.paper} | stated
        if model is EvaluateRun:
            model = model_of(stated) or (ScoreRun if stated.get("protocol") == "score" else EvaluateRun)
        place = f"{where}: runs.{entry.name}." if entry.name in changes else f"{entry.where}."
        groups[entry.section][entry.name] = validated(model, stated, place)
    runs = groups["tokenizers"] | groups["pretrain"] | groups["evaluate"]
    for name in changes:
        if name not in runs | groups["searches"]:
            raise UserError(f"{where}: runs.{name}: there is no such run{closest(name, runs)}")
    return runs, groups["datasets"], groups["searches"]


def check_geometry(params: Params) -> None:
    """Raise UserError for a run whose patch does not divide its image size, as stated or at the active
    budget.
    """
    checked = set()
    for name, run in (params.pretrain_runs | params.evaluate_runs).items():
        owner = run.pretrain if isinstance(run, EvaluateRun) else name
        source = params.pretrain_runs[owner]
        model = (source.method, source.backbone, source.backbone_kwargs, source.mask_unit)
        geometry = str((owner == name, model, run.image_size, run.stages))
        if geometry not in checked:
            checked.add(geometry)
            lens.check_sizes(name, run, source)
            lens.check_sizes(name, params.resolve(name), params.resolve(owner))


def _mapping(path: str | Path) -> dict[str, Any]:
    content = read_yaml(path)
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds {type(content).__name__}, not keys with values")
    return frozen(content)


def switch_budget(path: str | Path, name: str) -> None:
    """Make `name` the active budget by changing one line of `params.yaml`. Raises UserError for an unknown
    budget.
    """
    load(path).budget_named(name)
    text = Path(path).read_text(encoding="utf-8")
    Path(path).write_text(
        re.sub(r"(?m)^(budget:\s*)[^\s#]+", rf"\g<1>{name}", text, count=1), encoding="utf-8"
    )

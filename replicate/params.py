"""The only reader of `params.yaml`: strict, typed, frozen.

Runs are written in their paper's own numbers. `Params.resolve` hands them out as seen through a budget
(see `replicate.budget`); at the `paper` budget that view is the identity.

A result-affecting number lives in a run, a dataset or a budget, and changing it retrains. `Machine` holds what only makes a run faster or
smaller on the machine at hand, and changing it retrains nothing.
"""

from __future__ import annotations

import importlib
import re
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from replicate.errors import UserError
from replicate.loaders import AUTOS
from replicate.models.vit import is_plain_vit, vit_backbone
from replicate.names import closest
from replicate.schedules.stages import expand

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Ratio = Annotated[float, Field(ge=0.0, lt=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
NonNegative = Annotated[float, Field(ge=0.0)]
Count = Annotated[int, Field(ge=1)]
Betas = tuple[Ratio, Ratio]
NAME = re.compile(r"[A-Za-z0-9_][\w.-]*", re.ASCII)
"""Names of runs, budgets, data sets and papers: they become parts of paths, and of commands that DVC hands to a shell."""
Difficulty = Literal["p2dist", "p2dist_approx", "neighbours_3x3", "inverse_distance_5x5", "nearest_patch"]
BuiltBy = Literal["vit.py", "backbones"]


def _rising(scale: tuple[float, float]) -> tuple[float, float]:
    if scale[0] > scale[1]:
        raise ValueError(f"{list(scale)}: the smaller share of the image comes first")
    return scale


def _known_augmentation(name: str) -> str:
    if name not in AUTOS:
        raise ValueError(f"{name!r} is none of null, {', '.join(filter(None, AUTOS))}")
    return name


CropScale = Annotated[tuple[Positive, Annotated[float, Field(gt=0.0, le=1.0)]], AfterValidator(_rising)]
AutoAugment = Annotated[str, AfterValidator(_known_augmentation)]


class Strict(BaseModel):
    """Frozen, and refuses keys and types it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Stage(Strict):
    """One stretch of a run at its own resolution, mask ratio or batch (FastMIM-P; DailyMAE Tables 8 and 10).

    `until` is the fraction of the run's epochs at which the stage ends, so that a budget can shorten the run and keep the proportions.
    """

    until: Annotated[float, Field(gt=0.0, le=1.0)]
    image_size: Count | None = None
    mask_ratio: Ratio | None = None
    batch_size: Count | None = None
    crop_scale: CropScale | None = None
    auto_augment: AutoAugment | None = None


class Optimisation(Strict):
    """What every training run states: optimiser, schedule, batch and the view of the images.

    `loader` is what its training images come through where the run is about that; None leaves it to the budget. `stages` are listed one by
    one, or a named schedule (`replicate.schedules.stages.expand`).
    """

    paper: str
    dataset: str = "full"
    image_size: Count = 224
    epochs: Annotated[int, Field(ge=0)]
    warmup_epochs: NonNegative
    batch_size: Count
    base_lr: Positive
    min_lr: NonNegative = 0.0
    weight_decay: NonNegative
    betas: Betas
    clip_grad: Positive | None = None
    crop: Literal["random_resized", "fixed", "center", "none"] = "random_resized"
    crop_scale: CropScale
    color_jitter: NonNegative = 0.0
    interpolation: Literal["area", "bicubic"] = "area"
    loader: Literal["ffcv", "beton", "folder"] | None = None
    stages: tuple[Stage, ...] = ()

    @field_validator("stages", mode="before")
    @classmethod
    def _a_schedule_by_name(cls, stated: Any) -> Any:
        return expand(stated) if isinstance(stated, dict) else stated

    @model_validator(mode="after")
    def _stages_cover_the_run(self):
        ends = [stage.until for stage in self.stages]
        if ends and (ends != sorted(set(ends)) or ends[-1] != 1.0):
            raise ValueError(f"stages must end at rising fractions of the run, the last at 1.0; they end at {ends}")
        if self.warmup_epochs > self.epochs > 0:
            raise ValueError(f"warmup_epochs {self.warmup_epochs} is longer than the run's {self.epochs} epochs")
        return self

    @property
    def peak_lr(self) -> float:
        """Linear scaling rule: base_lr * batch / 256 (MAE, appendix A.1)."""
        return self.base_lr * self.batch_size / 256


class PretrainRun(Optimisation):
    """One pre-training: mask x target x weighting x objective x decoder x backbone x schedule.

    `built_by` is what in replicate/models builds the encoder, on which the run's pipeline stage depends: the plain ViT, or any backbone.
    `online_probe` trains a linear classifier beside it, on features that it cannot change.
    """

    method: Literal["mae", "mim"] = "mae"
    built_by: BuiltBy = "vit.py"
    backbone: str
    backbone_kwargs: dict[str, Any] = {}
    drop_blocks: Annotated[int, Field(ge=0)] | tuple[Annotated[int, Field(ge=0)], ...] = 0
    mask: Literal["random", "block", "grid"] = "random"
    mask_ratio: Ratio
    mask_unit: Count | None = None
    mask_space: Literal["image", "patch"] = "image"
    mask_token: Literal["learned", "zero"] = "learned"
    mask_tokens_in_encoder: bool = False
    decoder_depth: Annotated[int, Field(ge=0, le=32)]
    decoder_width: Count
    decoder_beta: Positive | None = None
    difficulty: Difficulty = "p2dist"
    target: str = "pixel"
    target_options: dict[str, Any] = {}
    tokenizer: str | None = None
    loss_norm: Literal["mse", "l1", "l2"] = "mse"
    score_all: bool = False
    weighting: str = "uniform"
    weighting_options: dict[str, Any] = {}
    objective: Literal["reconstruction", "supmae", "distillation"] = "reconstruction"
    flip: bool = True
    online_probe: bool = False

    @model_validator(mode="after")
    def _difficulty_is_read(self):
        if self.decoder_beta and self.method != "mae":
            raise ValueError(f"decoder_beta drops tokens of MAE's decoder; method {self.method} decodes all of them")
        if self.difficulty != "p2dist" and self.weighting == "uniform" and not self.decoder_beta:
            raise ValueError(f"difficulty {self.difficulty} is read by nothing; state decoder_beta, or a weighting other than uniform")
        return self

    @model_validator(mode="after")
    def _options_belong_to_the_method(self):
        wanted = "vit.py" if self.method == "mae" else "backbones"
        if self.built_by != wanted:
            raise ValueError(f"built_by is {self.built_by!r}, but method {self.method} builds its encoder by {wanted}")
        if self.method == "mae" and (self.drop_blocks or self.mask_unit or self.mask_space != "image"):
            raise ValueError("drop_blocks, mask_unit and mask_space belong to method mim")
        if self.method == "mim" and self.mask_tokens_in_encoder:
            raise ValueError("mask_tokens_in_encoder belongs to method mae; mim's encoder sees the masked image")
        return self

    @model_validator(mode="after")
    def _distillation_has_a_teacher(self):
        if (self.objective == "distillation") != isinstance(self, DistilledRun):
            raise ValueError(f"objective {self.objective}: runs that learn from a teacher, and no others, stand under grid.distill with distillation")
        return self

    @property
    def stride(self) -> int | None:
        """Pixels between the encoder's last tokens; None for a timm model that says so only once it is built."""
        if is_plain_vit(self.backbone, self.backbone_kwargs):
            return vit_backbone(self.backbone, **self.backbone_kwargs).kwargs["patch_size"]
        return importlib.import_module("replicate.models.backbones").stride_of(self.backbone, **self.backbone_kwargs)

    @property
    def patch_size(self) -> int:
        """Pixels a side of what is predicted and scored together: a patch, or the smaller of mask unit and last token."""
        sizes = [size for size in (self.stride, self.mask_unit) if size]
        if not sizes:
            raise UserError(f"backbone {self.backbone!r}: say mask_unit, the pixels a side of what is masked together")
        return min(sizes)


class DistilledRun(PretrainRun):
    """A pre-training that also learns from a larger, fine-tuned sibling (FastMIM Table 9): `teacher` is a run of grid.teach."""

    teacher: str


class TokenizerRun(Optimisation):
    """One tokenizer, whose tokens the target `token` predicts (MAE, Table 1d): trained here, or a released one read from `file`.

    There is one for all seeds of the runs that predict its tokens, as the papers share DALL-E's.
    """

    patch_size: Count = 16
    vocabulary: Annotated[int, Field(ge=2)]
    width: Count
    depth: Annotated[int, Field(ge=0)]
    code_width: Count
    flip: bool = True
    file: str | None = None


class EvaluateRun(Optimisation):
    """One evaluation of a pre-training's weights: end-to-end or partial fine-tuning, linear probe, or k-NN.

    `keep_view`: the run is about crops and colours, which no budget then makes milder.
    """

    pretrain: str
    protocol: Literal["finetune", "linear", "knn", "invariance", "score"] = "finetune"
    built_by: BuiltBy = "vit.py"
    tuned_blocks: NonNegative | None = None
    head_std: Positive = 2.0e-5
    layer_decay: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    drop_path: Ratio = 0.0
    label_smoothing: Ratio = 0.0
    mixup: NonNegative = 0.0
    cutmix: NonNegative = 0.0
    auto_augment: AutoAugment | None = None
    random_erasing: Fraction = 0.0
    ema: Ratio | None = None
    flip: bool = True
    keep_view: bool = False

    @model_validator(mode="after")
    def _options_belong_to_the_protocol(self):
        tuned = {"tuned_blocks": None, "layer_decay": 1.0, "drop_path": 0.0}
        stated = [name for name, off in tuned.items() if getattr(self, name) != off]
        if self.protocol == "linear" and stated:
            raise ValueError(f"{', '.join(stated)}: a linear probe tunes no block of the encoder; protocol finetune does")
        return self

    @property
    def pretrain_name(self) -> str:
        return self.pretrain.rpartition("/")[2]


class TeacherRun(EvaluateRun):
    """A fine-tuning whose weights are kept, for others to learn from."""


class Encoding(Strict):
    """How images are stored in a `.beton`: longest-side cap in pixels (None: as they come) and JPEG quality.

    The other fields are those of `replicate.loaders.writer.WriteSettings`: `mode` jpg, raw or proportion (a share of JPEGs), whether a JPEG
    that meets the settings keeps its bytes, and the two ways to let a crop's decoder skip.
    """

    resolution: Count | None = None
    quality: Annotated[int, Field(ge=1, le=100)] = 95
    mode: Literal["jpg", "raw", "proportion"] = "jpg"
    proportion: Fraction = 0.5
    keep: bool = True
    restart: Annotated[int, Field(ge=0, le=65535)] = 0
    seek: Annotated[int, Field(ge=0, le=65535)] = 0


class ScoreRun(EvaluateRun):
    """A fine-tuned classifier on recompressed validation images (DailyMAE Tables 5 and 6); nothing is trained.

    `classifier` is a run of grid.teach. Each validation image is capped at `encoding.resolution`, encoded and decoded again before the
    centre crop; None scores the images as they came. `codec` "turbo" is FFCV's way (OpenCV's area resize, libjpeg's fast DCT), "pillow"
    an image folder's (bicubic resize, accurate DCT). `dct` decodes what "turbo" encoded by another DCT than FFCV's.
    """

    classifier: str
    encoding: Encoding | None = None
    codec: Literal["pillow", "turbo"] = "pillow"
    dct: Literal["fast", "accurate"] | None = None

    @model_validator(mode="after")
    def _a_dct_to_choose(self):
        if self.dct and (self.codec != "turbo" or self.encoding is None):
            raise ValueError("dct is a choice of codec turbo's decoder; Pillow's is the accurate one, and without an encoding nothing is decoded")
        return self


class Search(EvaluateRun):
    """A search for the best layer-wise lr decay: one fine-tuning per value of `layer_decays` on a subset, the best one applied to `full`."""

    layer_decays: tuple[Annotated[float, Field(gt=0.0, le=1.0)], ...]
    full: str = "full"

    @model_validator(mode="after")
    def _is_a_search(self):
        if len(self.layer_decays) < 3 or list(self.layer_decays) != sorted(set(self.layer_decays)):
            raise ValueError(f"layer_decays must be three or more rising values; they are {list(self.layer_decays)}")
        if self.dataset == self.full:
            raise ValueError(f"dataset is the full set '{self.full}' itself; name a smaller one to search on")
        return self

    def point(self, layer_decay: float, dataset: str) -> EvaluateRun:
        """The fine-tuning at one value on one set: equal to a run of params.yaml that says the same."""
        stated = self.model_dump(exclude={"layer_decays", "full"})
        return EvaluateRun(**stated | {"layer_decay": layer_decay, "dataset": dataset})


class Dataset(Strict):
    """A source of images and the part of it that is used; the papers' proxies are class subsets and image fractions.

    A data set that states `image_size` states it, and its caps, in the paper's pixels: a budget scales both. The others take the budget's.
    """

    source: str = "photos"
    image_size: Count = 224
    classes: Annotated[int, Field(ge=2)] | None = None
    class_fraction: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    fraction: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    train_images: Count | None = None
    val_images: Count | None = None
    seed: int = 0
    on_error: Literal["raise", "skip"] = "raise"
    train: Encoding = Encoding(resolution=500, quality=95)
    val: Encoding = Encoding(resolution=500, quality=100)


class Budget(Strict):
    """A lens from the papers' numbers to what a machine affords; see `replicate.budget` for what each number does."""

    seeds: Count = 1
    precision: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    loader: Literal["auto", "ffcv", "beton", "folder"] = "auto"
    image_scale: Positive = 1.0
    patch_scale: Positive = 1.0
    backbones: dict[str, dict[str, Any]] = {}
    decoder_width_scale: Positive = 1.0
    max_depth: Count | None = None
    hierarchy_width: Positive = 1.0
    hierarchy_depth: tuple[Count, Count, Count, Count] | None = None
    pretrain_epochs: Positive = 1.0
    pretrain_epochs_power: Annotated[float, Field(gt=0, le=1)] = 1.0
    evaluate_epochs: Positive = 1.0
    batch_scale: Positive = 1.0
    max_batch: Count | None = None
    pretrain_lr: Positive = 1.0
    evaluate_lr: Positive = 1.0
    head_std: Positive | None = None
    probe_epochs: Positive | None = None
    probe_lr: Positive | None = None
    scratch_lr: Positive | None = None
    ema: Ratio | None = None
    regularisation: Literal["paper", "light"] = "paper"
    data: dict[str, Any] = {}

    @field_validator("data")
    @classmethod
    def _settings_of_data_sets(cls, stated: dict[str, Any]) -> dict[str, Any]:
        try:
            Dataset.model_validate(stated)
        except ValidationError as error:
            raise ValueError(_first_fault(error)) from None
        return stated


class Machine(Strict):
    """What the machine at hand decides; none of it is meant to change a result.

    One exception: mixup and cutmix pair the images that a process holds at once, so with them `micro_batch` decides the pairs.
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


class Paper(Strict):
    title: str
    notebook: Annotated[str, Field(pattern=r"^notebooks/\w[\w.-]*\.ipynb$")]


class Grid(Strict):
    """The papers' full ablation grids: a pipeline file of their own, `grids/dvc.yaml`, run by name.

    `pretrain_tokens` are pre-trainings that predict a tokenizer's tokens: their stages depend on its weights. `teach` holds fine-tunings
    whose weights are kept, `distill` the pre-trainings that learn from them, `score` their accuracy on recompressed images, `analyse` what is
    computed from images without training. `datasets` are those that the grid's runs alone use.
    """

    datasets: dict[str, Dataset] = {}
    tokenizers: dict[str, TokenizerRun] = {}
    pretrain: dict[str, PretrainRun] = {}
    pretrain_tokens: dict[str, PretrainRun] = {}
    evaluate: dict[str, EvaluateRun] = {}
    teach: dict[str, TeacherRun] = {}
    distill: dict[str, DistilledRun] = {}
    score: dict[str, ScoreRun] = {}
    analyse: dict[str, EvaluateRun] = {}

    def __contains__(self, name: str) -> bool:
        """Whether a run, by its name, is one of the grid's."""
        return any(name in getattr(self, group) for group in type(self).model_fields if group != "datasets")


class Params(Strict):
    """`params.yaml` as a whole."""

    budget: str
    recipes: dict[str, Any] = {}
    machine: Machine = Machine()
    budgets: dict[str, Budget]
    datasets: dict[str, Dataset]
    papers: dict[str, Paper]
    pretrain: dict[str, PretrainRun]
    evaluate: dict[str, EvaluateRun]
    grid: Grid = Grid()
    searches: dict[str, Search] = {}
    findings: dict[str, str] = {}

    @model_validator(mode="after")
    def _names_fit_together(self):
        if self.budget not in self.budgets:
            raise ValueError(f"budget is '{self.budget}'; defined are {', '.join(self.budgets)}")
        for name in (*self.runs, *self.budgets, *self.all_datasets, *self.papers, *self.searches):
            if not NAME.fullmatch(name):
                raise ValueError(f"'{name}' is no name: letters, digits, _, . and - make one, and the first is a letter or a digit")
        owners = {str(self._place(name, run.paper)) for name, run in self.pretrain_runs.items()}
        for name, run in (self.runs | self.searches).items():
            if run.paper not in self.papers:
                raise ValueError(f"'{name}' belongs to paper '{run.paper}'; papers are {', '.join(self.papers)}")
        for name, run in self.runs.items():
            if run.dataset not in self.all_datasets:
                raise ValueError(f"run '{name}' uses dataset '{run.dataset}'; defined are {', '.join(self.all_datasets)}")
            if run.dataset not in self.datasets and name not in self.grid:
                raise ValueError(f"run '{name}' uses dataset '{run.dataset}', which the grid alone writes; move it to `datasets`")
        for name, run in self.evaluate_runs.items():
            if run.pretrain not in owners:
                raise ValueError(f"evaluate run '{name}' starts from '{run.pretrain}', which is no pretrain run{closest(run.pretrain, owners)}")
            source = self.pretrain_runs[run.pretrain_name]
            if run.built_by != source.built_by:
                raise ValueError(f"evaluate run '{name}' has built_by {run.built_by!r}, but '{run.pretrain}' has {source.built_by!r}")
        teachers = {str(self._place(name, run.paper)) for name, run in self.grid.teach.items()}
        for name, run in self.grid.distill.items():
            if run.teacher not in teachers:
                raise ValueError(f"run '{name}' learns from '{run.teacher}', which is no run of grid.teach{closest(run.teacher, teachers)}")
        for name, run in self.grid.score.items():
            if run.classifier not in teachers:
                raise ValueError(f"run '{name}' scores '{run.classifier}', which is no run of grid.teach{closest(run.classifier, teachers)}")
            if run.pretrain != self.grid.teach[run.classifier.rpartition("/")[2]].pretrain:
                raise ValueError(f"run '{name}' says pretrain {run.pretrain!r}, from which '{run.classifier}' does not start")
        self._tokens_fit_together()
        self._searches_fit_together(owners)
        self._findings_fit_together()
        return self

    def _findings_fit_together(self) -> None:
        for paper, budget in self.findings.items():
            if paper not in self.papers:
                raise ValueError(f"findings names paper '{paper}'; papers are {', '.join(self.papers)}")
            if budget not in self.budgets:
                raise ValueError(f"findings of {paper} are of the budget '{budget}'; defined are {', '.join(self.budgets)}")
        absent = [paper for paper in self.papers if self.findings and paper not in self.findings]
        if absent:
            raise ValueError(f"findings names no budget for {', '.join(absent)}; name one for every paper, or none at all")

    def _searches_fit_together(self, owners: set[str]) -> None:
        for name, search in self.searches.items():
            for dataset in (search.dataset, search.full):
                if dataset not in self.datasets:
                    raise ValueError(f"search '{name}' uses dataset '{dataset}'; defined are {', '.join(self.datasets)}")
            if search.pretrain not in owners:
                raise ValueError(f"search '{name}' starts from '{search.pretrain}', which is no pretrain run{closest(search.pretrain, owners)}")
            if name in self.runs:
                raise ValueError(f"search '{name}' has the name of a run; a search needs its own")

    def _tokens_fit_together(self) -> None:
        tokenizers = {str(self._place(name, run.paper)) for name, run in self.grid.tokenizers.items()}
        for name, run in self.pretrain_runs.items():
            if (run.target == "token") != (name in self.grid.pretrain_tokens):
                raise ValueError(f"run '{name}' has the target {run.target}: runs with the target token, and no others, stand under pretrain_tokens")
            if run.tokenizer and run.target != "token":
                raise ValueError(f"run '{name}' has tokenizer '{run.tokenizer}', which is read by nothing: its target is {run.target}, not token")
            if name in self.grid.pretrain_tokens and run.tokenizer not in tokenizers:
                raise ValueError(f"run '{name}' predicts tokens of '{run.tokenizer}', which is no tokenizer{closest(str(run.tokenizer), tokenizers)}")

    @cached_property
    def pretrain_runs(self) -> dict[str, PretrainRun]:
        """Every pre-training, headline and grid, as written."""
        return _merged(self.pretrain, self.grid.pretrain, self.grid.pretrain_tokens, self.grid.distill)

    @cached_property
    def evaluate_runs(self) -> dict[str, EvaluateRun]:
        """Every evaluation, headline and grid, as written."""
        return _merged(self.evaluate, self.grid.evaluate, self.grid.teach, self.grid.score, self.grid.analyse)

    @cached_property
    def all_datasets(self) -> dict[str, Dataset]:
        """The data sets of the headline runs and those of the grid alone, as written."""
        return _merged(self.datasets, self.grid.datasets)

    def upstream_of(self, name: str) -> str | None:
        """The run whose weights the run called `name` needs: what an evaluation starts from or scores, a tokenizer, the teacher of a
        distillation.
        """
        run = self.run(name)
        place = next((getattr(run, key) for key in ("classifier", "pretrain", "teacher", "tokenizer") if getattr(run, key, None)), None)
        return place and place.rpartition("/")[2]

    @cached_property
    def runs(self) -> dict[str, PretrainRun | EvaluateRun | TokenizerRun]:
        """Every run, tokenizers first, as written."""
        return _merged(self.grid.tokenizers, self.pretrain_runs, self.evaluate_runs)

    def run(self, name: str) -> PretrainRun | EvaluateRun | TokenizerRun:
        """A run as its paper states it. Raises UserError for a name that `params.yaml` does not hold."""
        runs = self.runs
        if name not in runs:
            raise UserError(f"params.yaml has no run '{name}'{closest(name, runs)}")
        return runs[name]

    def search_named(self, name: str) -> Search:
        """A search as written. Raises UserError for a name that `searches` does not hold."""
        if name not in self.searches:
            raise UserError(f"params.yaml has no search '{name}'; `searches` holds {', '.join(self.searches) or 'none'}")
        return self.searches[name]

    def search_folder(self, name: str, budget: str | None = None) -> Path:
        """Where a search writes what it found, beside the runs of its paper's grid."""
        return Path("results") / (budget or self.budget) / "grid" / self.search_named(name).paper / name

    def resolve(self, name: str, budget: str | None = None) -> PretrainRun | EvaluateRun | TokenizerRun:
        """A run through the budget's lens (the active budget unless one is named)."""
        from replicate.budget import resolve

        return resolve(self, name, self.budget_named(budget))

    def budget_named(self, name: str | None = None) -> Budget:
        name = name or self.budget
        if name not in self.budgets:
            raise UserError(f"there is no budget '{name}'; params.yaml defines {', '.join(self.budgets)}")
        return self.budgets[name]

    def dataset(self, name: str, budget: str | None = None) -> Dataset:
        """A dataset with the budget's overrides laid over it. Raises UserError for a name that `params.yaml` does not hold."""
        from replicate.budget import scaled_dataset

        if name not in self.all_datasets:
            raise UserError(f"params.yaml has no dataset '{name}'{closest(name, self.all_datasets)}")
        lens = self.budget_named(budget)
        base = scaled_dataset(self.all_datasets[name], lens).model_dump(exclude_unset=True)
        return _validated(Dataset, lens.data | base, f"datasets.{name}")

    def results_folder(self, name: str, budget: str | None = None) -> Path:
        """Where a run's results lie: results/<budget>/<paper>/<run>, or results/<budget>/grid/<paper>/<run> for a run of the full grid."""
        return Path("results") / (budget or self.budget) / self._place(name, self.run(name).paper)

    def _place(self, name: str, paper: str) -> Path:
        return Path("grid", paper, name) if name in self.grid else Path(paper, name)

    def data_folder(self, dataset: str, budget: str | None = None) -> Path:
        return Path("data") / (budget or self.budget) / dataset


def load(path: str | Path = "params.yaml") -> Params:
    """Read and check `params.yaml`.

    Raises UserError, in one line with the key, the value and what is allowed, for a missing or unreadable file, an unknown key, a wrong type,
    an impossible value, or an image size that a run's patch does not divide at its paper's own numbers or at the active budget.
    """
    params = _validated(Params, _read(Path(path)), str(path))
    from replicate.budget import check_geometry

    check_geometry(params)
    return params


def stated(path: str | Path = "params.yaml") -> dict[str, Any]:
    """What the file states, anchors resolved, neither checked nor completed by defaults. Raises UserError for a missing or unreadable file."""
    return _read(Path(path))


def _read(path: Path) -> dict[str, Any]:
    try:
        content = yaml.load(path.read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run this from the repository's root, where params.yaml lies") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds {type(content).__name__}, not the keys budget, budgets, datasets, pretrain, evaluate")
    return _numbers_as_floats(content)


def _numbers_as_floats(value: Any) -> Any:
    """YAML 1.1 reads `1e-3` as a string; people who write learning rates mean a number. Sequences become the tuples that frozen models hold."""
    if isinstance(value, dict):
        return {key: _numbers_as_floats(item) for key, item in value.items()}
    if isinstance(value, list):
        return tuple(_numbers_as_floats(item) for item in value)
    if isinstance(value, str) and value[:1].isdigit() and "e" in value.lower():
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _validated(model: type[Strict], content: Any, where: str):
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise UserError(f"{where}: {_first_fault(error)}") from None


def _first_fault(error: ValidationError) -> str:
    faults = error.errors(include_url=False, include_context=True)
    fault = faults[0]
    key = ".".join(str(part) for part in fault["loc"])
    more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    if fault["type"] == "extra_forbidden":
        return f"unknown key {key}{_close_key(error, fault)}{more}"
    if fault["type"] == "value_error":
        return f"{key + ': ' if key else ''}{fault['ctx']['error']}{more}"
    if fault["type"] == "missing":
        return f"{key} is missing{more}"
    return f"{key} = {fault['input']!r}: {fault['msg'][0].lower() + fault['msg'][1:]}{more}"


def _close_key(error: ValidationError, fault: dict) -> str:
    from difflib import get_close_matches

    models = (Params, Grid, Budget, Dataset, DistilledRun, ScoreRun, TokenizerRun, Stage, Machine, Encoding)
    known = {name for model in models for name in model.model_fields}
    match = get_close_matches(str(fault["loc"][-1]), known, n=1)
    return f"; did you mean '{match[0]}'?" if match else ""


def _merged(*groups: dict[str, Any]) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for group in groups:
        for name, run in group.items():
            if name in merged:
                raise ValueError(f"two runs are called '{name}'; a run's name must be its own")
            merged[name] = run
    return merged


def switch_budget(path: str | Path, name: str) -> None:
    """Make `name` the active budget by changing that one line of `params.yaml`. Raises UserError for a budget that is not defined."""
    params = load(path)
    params.budget_named(name)
    lines = Path(path).read_text().splitlines(keepends=True)
    changed = [line.replace(params.budget, name, 1) if line.startswith("budget:") else line for line in lines]
    Path(path).write_text("".join(changed))

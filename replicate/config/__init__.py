"""What the configuration files state: runs, data sets, budgets, machine. Imports nothing heavy."""

from replicate.config.datasets import Dataset, Encoding
from replicate.config.dense import DenseRun, DetectRun, SegmentRun
from replicate.config.lens import Budget
from replicate.config.loading import Params, load, switch_budget
from replicate.config.machine import Machine
from replicate.config.rooms import ROOMS
from replicate.config.runs import (
    EvaluateRun,
    Optimisation,
    PretrainRun,
    Run,
    ScoreRun,
    Search,
    Stage,
    TokenizerRun,
)

__all__ = [
    "ROOMS",
    "Budget",
    "Dataset",
    "DenseRun",
    "DetectRun",
    "Encoding",
    "EvaluateRun",
    "Machine",
    "Optimisation",
    "Params",
    "PretrainRun",
    "Run",
    "ScoreRun",
    "Search",
    "SegmentRun",
    "Stage",
    "TokenizerRun",
    "load",
    "switch_budget",
]

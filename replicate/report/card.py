"""A run's weights for others: safetensors with a model card made from its results, provenance and
scoreboard.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from replicate.config import Params, PretrainRun
from replicate.errors import UserError
from replicate.files import atomic_write
from replicate.report import results, scoreboard
from replicate.report.root import repository

OURS = "apache-2.0"
WEIGHTS, CARD, SETTINGS = "model.safetensors", "README.md", "run.json"
_LONG = 60
"""Characters a setting may have in the card; run.json holds all of them."""


def write(params: Params, name: str, folder: Path, licence: str | None = None, seed: int = 0) -> Path:
    """Weights, card and settings of a run's seed in `folder`, which `publish` uploads as it is.

    Raises UserError where the run has not finished at the active budget, keeps no weights, or starts from
    weights of others and no licence is named.
    """
    root, place = repository(), params.results_folder(name)
    run = _finished(root / place, name)
    weights = root / place / "weights" / f"seed{seed}.safetensors"
    if not weights.exists():
        raise UserError(f"{weights}: not there; run {name} kept no weights of seed {seed}")
    foreign = _released_start(params, name)
    if foreign and licence is None:
        raise UserError(f"run {name} starts from {foreign}: name the licence of those weights with --licence")
    text = card(params, run, seed, licence or OURS, _board(params.budget, root))
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write(folder / WEIGHTS, lambda part: shutil.copyfile(weights, part))
    atomic_write(folder / CARD, lambda part: part.write_text(text, encoding="utf-8"))
    settings = {"run": run.run, "resolved": run.resolved, "provenance": run.provenance}
    atomic_write(folder / SETTINGS, lambda part: part.write_text(json.dumps(settings, indent=1) + "\n"))
    return folder


def card(
    params: Params, run: results.Run, seed: int, licence: str, board: scoreboard.Scoreboard | None
) -> str:
    """The model card, with the hub's YAML block at its top."""
    parts = [
        _front_matter(run, licence),
        _about(params, run, seed),
        _use(params, run),
        f"## Results\n\nMeans over seeds {', '.join(map(str, run.seeds))}.\n\n{_table(_means(run))}",
        _of_board(run, board),
        _training(params, run),
        f"## Licence\n\n{licence}. The images that the weights were trained on have terms of their own.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _about(params: Params, run: results.Run, seed: int) -> str:
    return (
        f"# {run.name}\n\nSeed {seed} of the {_command(params, run)[1]} `{run.name}` of "
        f"*{params.papers[run.paper]}*, replicated at the budget `{params.budget}`.\n\n"
        "A budget scales the paper's numbers down. These weights say as much about the paper as the table of "
        "claims below, and no more."
    )


def _use(params: Params, run: results.Run) -> str:
    if not isinstance(params.run(run.name), PretrainRun):
        return (
            f"## Use\n\n`replicate.models.weights.load_weights('{WEIGHTS}')` reads the classifier's tensors."
        )
    arguments = f'"{run.name}", "{WEIGHTS}", budget="{params.budget}"'
    lines = ("from replicate import load_model, reconstruct", "", f"model = load_model({arguments})")
    return "\n".join(("## Use", "", "```python", *lines, "```"))


def _training(params: Params, run: results.Run) -> str:
    revision = run.provenance.get("git", {})
    changed = " with changes that were not committed" if revision.get("dirty") else ""
    commands = (f"python -m replicate budget {params.budget}", _command(params, run)[0])
    return (
        "\n".join(("## How it was trained", "", "```bash", *commands, "```", "", ""))
        + f"Code: revision `{revision.get('revision', 'unknown')}`{changed}. "
        + f"Device: {run.device or 'unknown'}. Data: manifest `{run.provenance.get('manifest_sha256')}`. "
        + f"Settings as resolved by the budget:\n\n{_table(_settings(run))}"
    )


def _command(params: Params, run: results.Run) -> tuple[str, str]:
    """The command that trains a run, and what kind of run it is."""
    pretrained = isinstance(params.run(run.name), PretrainRun)
    verb, kind = ("pretrain", "pre-training") if pretrained else ("evaluate", "evaluation")
    return f"python -m replicate {verb} {run.name}", kind


def _front_matter(run: results.Run, licence: str) -> str:
    tags = ["masked-image-modeling", "self-supervised-learning", "replication", run.paper]
    lines = [f"license: {licence}", "library_name: replicate", "tags:", *(f"- {tag}" for tag in tags)]
    return "\n".join(["---", *lines, "---"])


def _finished(folder: Path, name: str) -> results.Run:
    path = folder / "metrics.json"
    if not path.exists():
        raise UserError(f"{path}: not there; run {name} has not finished at this budget")
    return results.read(path)


def _released_start(params: Params, name: str | None) -> str | None:
    """The weights of others at the beginning of a run's chain."""
    while name is not None:
        if weights := getattr(params.run(name), "weights", None):
            return weights
        name = params.upstream_of(name)
    return None


def _board(budget: str, root: Path) -> scoreboard.Scoreboard | None:
    try:
        return scoreboard.read(budget, root)
    except UserError:
        return None  # a card before the first scoreboard has no claims to show


def _means(run: results.Run) -> dict[str, str]:
    shared = [key for key in run.per_seed[0] if all(key in one for one in run.per_seed)]
    means = {key: sum(run.values(key).values()) / len(run.seeds) for key in shared}
    return {key: f"{value:.6g}" for key, value in means.items()}


def _settings(run: results.Run) -> dict[str, str]:
    """What the budget made of the run, without what it leaves off."""
    stated = {key: value for key, value in run.resolved.items() if value not in (None, False, [], {}, "")}
    texts = {
        key: json.dumps(value) if isinstance(value, dict | list) else str(value)
        for key, value in stated.items()
    }
    return {key: text for key, text in texts.items() if len(text) <= _LONG}


def _of_board(run: results.Run, board: scoreboard.Scoreboard | None) -> str:
    """Published numbers that stand beside this run, and the verdicts of claims whose checks name it."""
    if board is None:
        return "## Claims\n\nNo scoreboard has been written at this budget."
    numbers = board.numbers[board.numbers["run"] == run.name]
    named = board.claims["check"].str.contains(rf"(?<![\w]){run.name}(?![\w])", regex=True)
    claims = board.claims[named]
    parts = []
    if len(numbers):
        shown = numbers[["table", "row", "column", "published", "ours", "ours_low", "ours_high", "status"]]
        parts.append(f"## Beside the paper\n\n{_frame(shown)}")
    if len(claims):
        shown = claims[["statement", "verdict", "effect", "low", "high", "note"]]
        parts.append(f"## Claims that this run bears on\n\n{_frame(shown)}")
    return "\n\n".join(parts) or "## Claims\n\nNo claim of the paper names this run."


def _frame(frame: pd.DataFrame) -> str:
    return frame.to_markdown(index=False, floatfmt=".4g")


def _table(rows: Mapping[str, Any]) -> str:
    return pd.DataFrame({"": list(rows), "value": list(rows.values())}).to_markdown(
        index=False, disable_numparse=True
    )

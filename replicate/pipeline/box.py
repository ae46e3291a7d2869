"""Pack a finished pre-training into the box, and unpack it in place of training (`replicate.config.box`)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from replicate.config import box
from replicate.files import atomic_write
from replicate.loaders.manifest import sha256
from replicate.pipeline.store import store_of
from replicate.trainers.context import RunContext

TIMES = ("seconds", "seconds_per_epoch", "images_s", "wall_seconds", "images_per_second")
"""A box states no times: who unpacks it did not measure them."""


def pack(context: RunContext, outcome: dict[str, Any], provenance: dict[str, Any], budget: str) -> Path:
    """Write the box of a run from its finished seed 0: weights in bfloat16, and a description beside them."""
    import torch

    from replicate.models.weights import load_weights, save_weights

    weights, description = box.paths(box.BOX, budget, context.name)
    state = load_weights(store_of(context, 0).weights_path)
    rounded = {
        name: tensor.to(torch.bfloat16) if tensor.is_floating_point() else tensor
        for name, tensor in state.items()
    }
    weights.parent.mkdir(parents=True, exist_ok=True)
    save_weights(rounded, weights, {"run": f"{context.name}, seed 0", "budget": budget})
    content = box.recipe(context.run, context.dataset) | {
        "sha256": sha256(weights),
        "results": _without_times(outcome["results"]),
        "history": [_without_times(row) for row in outcome["history"]],
        "provenance": _without_times(provenance),
    }
    text = json.dumps(content, indent=1) + "\n"
    atomic_write(description, lambda path: path.write_text(text, encoding="utf-8"))
    return weights


def boxed_outcome(found: box.Box) -> dict[str, Any]:
    """What training returned when the box was filled, without times."""
    return {"results": found.content["results"], "history": found.content["history"]}


def unpack(found: box.Box, path: Path) -> None:
    """Write a box's weights in float32, as training leaves them. Raises UserError for a damaged file."""
    from replicate.models.weights import load_weights, save_weights

    state = load_weights(found.weights)
    full = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    save_weights(full, path, {"run": f"{found.weights.stem}, seed 0"})


def _without_times(numbers: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in numbers.items() if key not in TIMES}

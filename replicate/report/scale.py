"""At what scale a claim was tested: data, image, model and schedule of the runs that it rests on, in one sentence."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from replicate.report import loader_runs
from replicate.report.results import Run

if TYPE_CHECKING:
    from replicate.config import Params


def scale_of(runs: Sequence[Run], params: Params, budget: str) -> str:
    """ "data/tiny-imagenet, 10 classes; 56 px, patch 8; ViT 128 wide, 6 blocks; pre-trained 9 or 12 epochs, evaluated after 3; 3 seeds,
    cpu", each part with all values that occur; nothing for no runs.
    """
    if not runs:
        return ""
    if all(run.paper == loader_runs.PAPER for run in runs):
        return f"{_either(run.run['images'] for run in runs)} images on {_devices(runs)}"
    upstream = dict.fromkeys(str(run.resolved.get("pretrain", "")).rpartition("/")[2] for run in runs)
    resolved = [run.resolved for run in runs if run.resolved]
    resolved += [params.resolve(name, budget).model_dump(mode="json") for name in upstream if name in params.runs]
    pretrained, evaluated = ([one for one in resolved if ("protocol" in one) == asked] for asked in (False, True))
    parts = [
        _either(_data(one["dataset"], params, budget) for one in resolved if "dataset" in one),
        f"{_either(one['image_size'] for one in resolved if 'image_size' in one)} px",
        _either(text for one in resolved if (text := _model(one))),
        f"pre-trained {_either(one['epochs'] for one in pretrained)} epochs" if any(one.get("epochs") for one in pretrained) else "",
        f"evaluated after {_either(one['epochs'] for one in evaluated)}" if any(one.get("epochs") for one in evaluated) else "",
        f"{_either(len(run.seeds) for run in runs)} seeds",
        _devices(runs),
    ]
    return "; ".join(part for part in parts if part)


def _data(name: str, params: Params, budget: str) -> str:
    dataset = params.dataset(name, budget)
    return dataset.source + (f", {dataset.classes} classes" if dataset.classes else "")


def _model(resolved: dict[str, Any]) -> str:
    """Width and depth of a Vision Transformer, the name of any other backbone; nothing for an evaluation, which has its pre-training's."""
    if "backbone" not in resolved:
        return ""
    from replicate.config.backbones import is_plain_vit, vit_backbone

    kwargs = resolved.get("backbone_kwargs", {})
    if not is_plain_vit(resolved["backbone"], kwargs):
        return resolved["backbone"]
    sizes = vit_backbone(resolved["backbone"], **kwargs).kwargs
    return f"ViT {sizes['embed_dim']} wide, {sizes['depth']} blocks, patch {sizes['patch_size']}"


def _devices(runs: Sequence[Run]) -> str:
    return _either(str(run.provenance.get("device", "")) for run in runs)


def _either(values: Iterable[Any]) -> str:
    """All values that occur, each once, numbers in their order."""
    found = dict.fromkeys(values)
    ordered = sorted(found) if all(isinstance(value, int | float) for value in found) else list(found)
    return " or ".join(f"{value:g}" if isinstance(value, float) else str(value) for value in ordered if value != "")

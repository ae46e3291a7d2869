"""Make torchvision importable beside a torch build that its compiled operators do not match.

A CUDA build of torchvision fails beside a CPU build of torch ("operator torchvision::nms does not exist"),
and timm imports torchvision. This package needs only the operators' schemas. So this module declares them,
but only when the real operators cannot be loaded. Packages that import timm import this module first.
"""

import importlib.util
from pathlib import Path

import torch

_SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
_library = None


def _operators_load() -> bool:
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return True
    for extension in Path(spec.origin).parent.glob("_C*.so"):
        try:
            torch.ops.load_library(str(extension))
        except OSError:
            return False
    return True


def compiled_operators_missing() -> bool:
    """Whether torchvision's compiled operators cannot be loaded here, so that this module declared them."""
    return _library is not None


def _declare_missing_schemas() -> None:
    global _library
    if _library is not None or _operators_load():
        return
    _library = torch.library.Library("torchvision", "FRAGMENT")
    for schema in _SCHEMAS.values():
        _library.define(schema)


_declare_missing_schemas()

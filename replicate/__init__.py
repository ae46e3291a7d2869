"""Replication workbook for papers on efficient masked image modelling.

    from replicate import load_model, reconstruct

    model = load_model("light_75")  # or a released checkpoint: load_model("mae_vit_base.pth")
    picture = reconstruct(model, "astronaut", mask_ratio=0.75)
    print(f"loss {picture.loss:.3f}")
    picture.show()

Importing the package is cheap: these names load torch on first use.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"
__all__ = ["load_model", "p2dist", "reconstruct"]

_HOMES = {
    "load_model": "replicate.explore.pretrained",
    "p2dist": "replicate.difficulty",
    "reconstruct": "replicate.explore.pretrained",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])

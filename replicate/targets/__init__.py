"""What a masked unit predicts. A file of this folder with a class `Target` is a target of the file's name.

Every `Target` is a module without trainable parameters: `dim` values per unit, `loss` ("mse" or
"cross_entropy"), and `forward(images) -> (N, L, dim)`, or (N, L) integers for a discrete target. Images are
uint8 pixels, or floats in the normalised (ImageNet mean and standard deviation) space. Units are in raster
order.
"""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any

from replicate.errors import UserError

if TYPE_CHECKING:
    from torch.nn import Module

_SOURCES = {path.stem: path.read_text("utf-8") for path in Path(__file__).parent.glob("*.py")}
TARGETS = tuple(sorted(name for name, source in _SOURCES.items() if "\nclass Target(" in source))


def build(name: str, patch_size: int, **options: Any) -> Module:
    """The target called `name` for square units of `patch_size` pixels.

    Raises UserError for an unknown name or option.
    """
    if name not in TARGETS:
        raise UserError(f"target: {name!r} does not exist; choose one of {', '.join(TARGETS)}")
    target = importlib.import_module(f"replicate.targets.{name}").Target
    try:
        inspect.signature(target).bind(patch_size, **options)
    except TypeError as error:
        raise UserError(f"target {name}: {error}; it takes {inspect.signature(target)}") from None
    return target(patch_size, **options)

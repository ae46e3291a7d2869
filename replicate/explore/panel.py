"""Widgets beside a picture that follows them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import ModuleType
from typing import Any

import ipywidgets as widgets
from IPython.display import display

from replicate.errors import UserError

WIDE = {"style": {"description_width": "8rem"}, "layout": widgets.Layout(width="26rem")}
LONG_LIST = 5
"""Tests try the first and the last choice of a longer list."""


def real(
    low: float, high: float, step: float, value: float, name: str, digits: int = 2
) -> widgets.FloatSlider:
    """A slider over real numbers. It reports its value on release, because drawing takes a moment."""
    options = {"readout_format": f".{digits}f", "continuous_update": False, **WIDE}
    return widgets.FloatSlider(value=value, min=low, max=high, step=step, description=name, **options)


def whole(low: int, high: int, value: int, name: str, step: int = 1) -> widgets.IntSlider:
    """A slider over whole numbers."""
    options = {"description": name, "continuous_update": False, **WIDE}
    return widgets.IntSlider(value=value, min=low, max=high, step=step, **options)


def choice(options: list[Any], value: Any, name: str) -> widgets.Dropdown:
    """One of several; options may be (label, value) pairs."""
    return widgets.Dropdown(options=options, value=value, description=name, **WIDE)


def panel(module: ModuleType) -> widgets.VBox:
    """A module's controls above its picture."""
    controls = module.controls()
    output = widgets.interactive_output(shown(module.draw), controls)
    row = widgets.Layout(flex_flow="row wrap")
    return widgets.VBox([widgets.HBox(list(controls.values()), layout=row), output])


def shown(draw: Callable[..., Any]) -> Callable[..., None]:
    """`draw` with its picture displayed; a UserError prints as one line."""

    def show(**values: Any) -> None:
        try:
            display(draw(**values))
        except UserError as error:
            print(error)

    return show


def extremes(controls: Mapping[str, widgets.Widget]) -> Iterator[dict[str, Any]]:
    """Values at the ends of all controls: all lowest, all highest, then mixtures with every end of every
    control.
    """
    ends = {name: _ends(control) for name, control in controls.items()}
    yield {name: found[0] for name, found in ends.items()}
    yield {name: found[-1] for name, found in ends.items()}
    for turn in range(max(map(len, ends.values()))):
        yield {name: found[(turn + place) % len(found)] for place, (name, found) in enumerate(ends.items())}


def _ends(control: widgets.Widget) -> list[Any]:
    if hasattr(control, "options"):
        found = [option[1] if isinstance(option, tuple) else option for option in control.options]
        return found if len(found) <= LONG_LIST else [found[0], found[-1]]
    return [control.min, control.max]

"""Widgets beside a picture that follows them."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import ipywidgets as widgets
from IPython.display import display

from replicate.errors import UserError

WIDE = {"style": {"description_width": "8rem"}, "layout": widgets.Layout(width="26rem")}


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

"""Widgets above a picture and a caption that follow them while they are dragged."""

from __future__ import annotations

import base64
import html
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import ipywidgets as widgets

from replicate.errors import UserError
from replicate.explore import images
from replicate.report.style import SCREEN_DPI, Figure

WIDE = {"style": {"description_width": "8rem"}, "layout": widgets.Layout(width="26rem")}
PHOTOGRAPH = "photograph"
"""The control's name that an upload adds choices to."""


class Idea(Protocol):
    """What a panel shows. The values of `controls` are the arguments of `draw` and `caption`."""

    controls: Callable[[], dict[str, widgets.Widget]]
    draw: Callable[..., Figure]
    caption: Callable[..., str]


def real(
    low: float, high: float, step: float, value: float, name: str, digits: int = 2, live: bool = True
) -> widgets.FloatSlider:
    """A slider over real numbers. `live`: it reports while it is dragged, else on release."""
    options = {"readout_format": f".{digits}f", "continuous_update": live, **WIDE}
    return widgets.FloatSlider(value=value, min=low, max=high, step=step, description=name, **options)


def whole(low: int, high: int, value: int, name: str, step: int = 1, live: bool = True) -> widgets.IntSlider:
    """A slider over whole numbers."""
    options = {"description": name, "continuous_update": live, **WIDE}
    return widgets.IntSlider(value=value, min=low, max=high, step=step, **options)


def choice(options: list[Any], value: Any, name: str) -> widgets.Dropdown:
    """One of several; options may be (label, value) pairs."""
    return widgets.Dropdown(options=options, value=value, description=name, **WIDE)


class Panel(widgets.VBox):
    """Controls, and below them a picture with its caption. Jupyter reports the last place of a dragged slider
    only, so a slow picture skips places and never lags behind.
    """

    def __init__(self, idea: Idea) -> None:
        self.idea, self.named = idea, idea.controls()
        self.shown, self._places = widgets.HTML(), None
        row = widgets.Layout(flex_flow="row wrap")
        uploads = [uploader(one) for one in self.named.values() if one.description == PHOTOGRAPH]
        super().__init__([widgets.HBox([*self.named.values(), *uploads], layout=row), self.shown])
        for control in self.named.values():
            control.observe(self._follow, "value")
        self._follow()

    @property
    def values(self) -> dict[str, Any]:
        """The controls' values by name."""
        return {name: control.value for name, control in self.named.items()}

    def _follow(self, _: Mapping[str, Any] | None = None) -> None:
        try:
            self.shown.value = self._figure(**self.values)
        except UserError as error:
            self.shown.value = _alert(error)

    def _figure(self, **values: Any) -> str:
        figure, caption = self.idea.draw(**values), html.escape(self.idea.caption(**values))
        png = base64.b64encode(figure.quick_png(self._places)).decode()
        self._places = [axes.get_position() for axes in figure.axes]
        width = round(figure.get_figwidth() * SCREEN_DPI)
        picture = (
            f"<img width='{width}' style='max-width:100%' alt='{caption}' src='data:image/png;base64,{png}'>"
        )
        return f"<figure style='margin:0'>{picture}<figcaption>{caption}</figcaption></figure>"


def panel(idea: Idea) -> widgets.Widget:
    """A module's controls above its picture; where there is nothing to show, a line that says why."""
    try:
        return Panel(idea)
    except UserError as error:
        return widgets.HTML(_alert(error))


def _alert(error: UserError) -> str:
    return f"<p role='alert'>{html.escape(str(error))}</p>"


def uploader(photographs: widgets.Dropdown) -> widgets.FileUpload:
    """A button that adds an image of one's own to a list of photographs and chooses it."""
    button = widgets.FileUpload(accept="image/*", description="your image")

    def uploaded(change: Mapping[str, Any]) -> None:
        for file in change["new"]:
            try:
                name = images.add(file["name"], bytes(file["content"]))
            except UserError as error:
                button.description, button.button_style = str(error)[:80], "warning"
                continue
            button.description, button.button_style = "your image", ""
            photographs.options = [*photographs.options, name]
            photographs.value = name

    button.observe(uploaded, "value")
    return button

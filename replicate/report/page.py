"""Rendered pages: one HTML file each that needs nothing else, light and dark, without script."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from markupsafe import Markup

from replicate.config.yaml_file import read_yaml
from replicate.report.tables import markdown
from replicate.report.wording import effect_text

TEMPLATES = Path(__file__).with_name("templates")


@functools.cache
def _environment() -> jinja2.Environment:
    found = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=lambda name: name.endswith(".html"),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    found.filters |= {"table": table, "markdown": markdown, "effect": lambda one: effect_text(vars(one))}
    return found


@functools.cache
def words() -> dict[str, dict[str, str]]:
    """The fixed texts of pages: "statuses", "notices", "glossary"."""
    return read_yaml(Path(__file__).with_name("words.yaml"))


def render(template: str, **values: Any) -> Markup:
    """A template of `templates/`; values are escaped in HTML. The filter `table` renders a DataFrame."""
    return Markup(_environment().get_template(template).render(values))


def page(title: str, body: Markup | str, navigation: Markup | str = "") -> str:
    """A whole page around a body of HTML."""
    body, navigation = Markup(body), Markup(navigation)
    return render("page.html", title=title, body=body, navigation=navigation, highlighting=_highlighting())


def table(frame: pd.DataFrame) -> Markup:
    """A table of texts that scrolls by itself on a narrow screen."""
    return render("table.html", frame=frame)


@functools.cache
def _highlighting() -> Markup:
    """Colours for code, light and dark."""
    from pygments.formatters import HtmlFormatter

    light, dark = (
        HtmlFormatter(style=name).get_style_defs(".highlight") for name in ("default", "github-dark")
    )
    own = ".highlight { background: var(--soft) !important; }"
    return Markup(f"{light}\n@media (prefers-color-scheme: dark) {{\n{dark}\n}}\n{own}")

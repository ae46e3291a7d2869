"""Pages in Markdown, from the templates of `templates/`."""

from __future__ import annotations

import functools
import html
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from replicate.config.yaml_file import read_yaml
from replicate.report.tables import markdown
from replicate.report.wording import effect_text

TEMPLATES = Path(__file__).with_name("templates")


@functools.cache
def _environment() -> jinja2.Environment:
    found = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        undefined=jinja2.Undefined,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters |= {"table": table, "markdown": markdown, "text": text, "effect": effect_text}
    return found


@functools.cache
def words() -> dict[str, dict[str, str]]:
    """The fixed texts of pages: "statuses", "notices", "glossary"."""
    return read_yaml(Path(__file__).with_name("words.yaml"))


def render(template: str, **values: Any) -> str:
    """A template of `templates/`. The filter `text` escapes data, `table` renders a DataFrame."""
    return _environment().get_template(template).render(values)


def table(frame: pd.DataFrame) -> str:
    """A table of data in Markdown."""
    return markdown(frame.map(text))


def text(data: object) -> str:
    """Data as literal text in Markdown."""
    escaped = html.escape(str(data), quote=False)
    return "".join(f"\\{letter}" if letter in "*[]`~$" else letter for letter in escaped)

"""The frame of every rendered page: one HTML file that needs nothing else, light and dark, readable on a phone, no script."""

from __future__ import annotations

import functools
import html

import pandas as pd

# nbconvert's basic template, with code folded away behind its first line: a reader of results wants the prose and the pictures.
CODE_CELLS = """
{%- extends 'basic/index.html.j2' -%}
{%- block input_group -%}
<details class="code"><summary>code</summary>{{ super() }}</details>
{%- endblock input_group -%}
"""

STYLE = """
:root {
  color-scheme: light dark;
  --ink: #1b1b1b; --paper: #ffffff; --soft: #f3f4f6; --line: #d4d7dc; --faint: #5b6068; --link: #0060a0;
}
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e6e6; --paper: #14161a; --soft: #1f2329; --line: #3a4049; --faint: #a2a9b4; --link: #7cc0ff; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 system-ui, -apple-system, "Segoe UI", sans-serif; }
main { max-width: 60rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.25; } h2 { font-size: 1.25rem; margin-top: 2.4rem; } h3 { font-size: 1.05rem; }
a { color: var(--link); } a.anchor-link { display: none; }
p, li { max-width: 46rem; overflow-wrap: anywhere; }
pre, code { font: .86rem/1.45 ui-monospace, SFMono-Regular, Menlo, monospace; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; margin: 0; }
details.code { margin: .6rem 0; border-left: 3px solid var(--line); padding-left: .8rem; }
details.code summary { cursor: pointer; color: var(--faint); font-size: .8rem; }
.highlight { background: var(--soft); padding: .6rem .8rem; border-radius: 4px; }
.output_area, .scroll { overflow-x: auto; margin: .6rem 0; }
.output_area img, .output_area svg { max-width: 100%; height: auto; background: #ffffff; border-radius: 4px; }
/* A shadow at the edge where a wide table goes on. */
.scroll, .output_area {
  background:
    linear-gradient(to right, var(--paper) 30%, transparent) left / 40px 100%,
    linear-gradient(to left, var(--paper) 30%, transparent) right / 40px 100%,
    linear-gradient(to right, #8888, transparent) left / 10px 100%,
    linear-gradient(to left, #8888, transparent) right / 10px 100%;
  background-repeat: no-repeat; background-attachment: local, local, scroll, scroll;
}
.prompt { display: none; }
table { border-collapse: collapse; font-size: .86rem; font-variant-numeric: tabular-nums; }
th, td {
  padding: .28rem .6rem; border: 0 solid var(--line); border-bottom-width: 1px; text-align: left !important; vertical-align: top !important;
  min-width: 3.5rem; overflow-wrap: normal;
}
td:first-child { min-width: 9rem; }
thead th { border-bottom-width: 2px; }
th { font-weight: 600; }
table.dataframe { border: 0; }
footer { color: var(--faint); font-size: .85rem; margin-top: 3rem; border-top: 1px solid var(--line); padding-top: .8rem; }
nav { margin-bottom: 1.2rem; font-size: .9rem; }
nav a, nav b { margin-right: .9rem; display: inline-block; }
p.contents a { margin-right: .9rem; }
.notice { border-left: 4px solid #d55e00; padding-left: .8rem; }
.claim { border-top: 1px solid var(--line); }
.claim dl { display: grid; grid-template-columns: 7rem minmax(0, 1fr); gap: .2rem .8rem; margin: .4rem 0 1rem; font-size: .93rem; }
.claim dt { color: var(--faint); } .claim dd { margin: 0; overflow-wrap: anywhere; }
.verdict { border: 1px solid var(--line); border-radius: 4px; padding: 0 .4rem; font-weight: 600; white-space: nowrap; }
.verdict.holds { background: #0072b2; border-color: #0072b2; color: #ffffff; }
.verdict.fails { background: #b34a00; border-color: #b34a00; color: #ffffff; }
ul.claims { list-style: none; padding: 0; font-size: .93rem; } ul.claims li { max-width: none; margin: .35rem 0; }
ul.claims .found { color: var(--faint); }
img.front { max-width: 100%; height: auto; background: #ffffff; border-radius: 4px; }
.notebook h1 { font-size: 1.35rem; } .notebook h2 { font-size: 1.15rem; }
span.scroll { display: block; } img.samples { background: none; }
@media (max-width: 40rem) {
  .claim dl { grid-template-columns: minmax(0, 1fr); } .claim dt { margin-top: .3rem; }
  main { padding: 1rem .8rem 3rem; } h1 { font-size: 1.4rem; } table { font-size: .8rem; } }
"""


@functools.cache
def highlighting() -> str:
    """Colours for code, light and dark."""
    from pygments.formatters import HtmlFormatter

    light, dark = (HtmlFormatter(style=name).get_style_defs(".highlight") for name in ("default", "github-dark"))
    clean = "\n".join(line for line in (light + "\n@media (prefers-color-scheme: dark) {\n" + dark + "\n}").splitlines())
    return clean + "\n.highlight { background: var(--soft) !important; }"


def page(title: str, body: str, navigation: str = "", language: str = "en") -> str:
    """A whole page around a body of HTML."""
    return (
        f'<!doctype html>\n<html lang="{language}">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<title>{html.escape(title)}</title>\n<link rel="icon" href="data:,">\n'
        f"<style>{STYLE}\n{highlighting()}</style>\n</head>\n<body>\n<main>\n{navigation}\n{body}\n</main>\n</body>\n</html>\n"
    )


def table(frame: pd.DataFrame) -> str:
    """A table of texts that scrolls by itself on a narrow screen."""
    head = "".join(f'<th scope="col">{html.escape(str(name))}</th>' for name in frame.columns)
    lines = ("".join(f"<td>{html.escape(str(text))}</td>" for text in line) for line in frame.itertuples(index=False))
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'

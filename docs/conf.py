"""Sphinx's settings for the site; `python -m replicate site` gathers the pages and calls Sphinx."""

from functools import partial

from docutils.nodes import SkipNode
from docutils.utils.math import latex2mathml

project = html_title = "replicate"
extensions = ["myst_nb", "sphinx_design"]
exclude_patterns = ["docs/_static", "papers/*/**", "README.md", "tables", "benchmarks"]
suppress_warnings = [
    "myst.header",
    "mystnb.unknown_mime_type",
    "toc.not_included",
    "misc.highlighting_failure",
]

nb_execution_mode = "off"
nb_render_markdown_format = "gfm"
myst_enable_extensions = ["amsmath", "attrs_inline", "colon_fence", "dollarmath"]
myst_heading_anchors = 3

html_theme = "sphinx_book_theme"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_js_files = ["site.js"]
html_show_sphinx = html_show_copyright = html_copy_source = html_show_sourcelink = False
html_theme_options = {
    "home_page_in_toc": True,
    "navbar_persistent": [],
    "footer_content_items": [],
    "use_download_button": False,
    "use_fullscreen_button": False,
    "pygments_light_style": "a11y-light",
    "pygments_dark_style": "a11y-dark",
}
html_math_renderer = "mathml"


def _render(writer, node, block):
    """A formula as MathML, which browsers draw: a folder of pages has no network to fetch MathJax."""
    text = node.astext()
    if block and "\\\\" in text and "\\begin" not in text:
        text = f"\\begin{{aligned}}{text}\\end{{aligned}}"
    writer.body.append(latex2mathml.tex2mathml(text, as_block=block))
    raise SkipNode


def setup(app):
    inline, block = (partial(_render, block=one) for one in (False, True))
    app.add_html_math_renderer("mathml", (inline, None), (block, None))

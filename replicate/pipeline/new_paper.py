"""A new paper's room, notebook and module: `python -m replicate paper new KEY` (docs/add-a-paper.md)."""

from __future__ import annotations

from pathlib import Path

from replicate.config import ROOMS, published
from replicate.config.schema import NAME
from replicate.errors import UserError
from replicate.files import atomic_write

README = """# {title}

Authors, venue and link.

## The paper

Its question, its method, what its main table varies, what it finds.

## What is found here

<!-- scoreboard -->
<!-- /scoreboard -->

## Commands

    dvc repro notebook@{key}                    # the headline runs, the tables, the figures
    make grid TARGET=notebook@{key}             # every cell of the paper's tables
    python -m replicate plan {key}_base         # the cost of a run, before anything is spent
"""
RUNS = """# The runs of "{title}", in the paper's own numbers.
title: {title}

# Recipes as printed; runs borrow them and state what their table varies.
recipes:
  {key}_pretrain: {{base: mae_pretrain, epochs: 800}}

# Headline runs: the default `dvc repro`.
pretrain:
  {key}_base: {{base: {key}_pretrain, evaluate: {{ft: mae_finetune}}}}
"""
CLAIMS = """# Each claim with the checks that decide it; papers/README.md explains the keys.
claims: []
"""
MAPPING = """# Maps each printed number to one of our runs. The first rule that fits a number counts.
- match: {{table: table_1, column: ft_top1}}
  ours: {key}_base_ft
"""
RECIPE = "# Every hyper-parameter that the paper prints, by recipe with its source. null: not stated.\n{{}}\n"
COMPUTED = "# Numbers that need no training, and the function that recomputes each.\n[]\n"
ERRATA = "# What to send to the authors: grade, place, printed, found, note, numbers.\n[]\n"
RELEASED = "# Where the released code differs from the paper's text: setting, paper, code, file, ours.\n[]\n"
MODULE = '''"""What only {title} needs: figures of its notebook, and numbers that need no training.

`FUNCTIONS` recompute printed numbers (computed.yaml), `ANSWERS` decide claims (claims.yaml).
"""

FUNCTIONS = ()
ANSWERS = ()
'''
CELLS = (
    ("markdown", "# {title}\n\n*Claim: the paper's thesis in a sentence.*"),
    ("parameters", 'budget = None\npaper = "{key}"\nscope = "headline"'),
    ("code", "from replicate.report.book import Book\n\nbook = Book(paper, budget, scope)\nbook"),
    ("markdown", "## How the recipes are scaled down\n\n*paper -> this budget*, else blank."),
    ("code", 'book.lens(["{key}_base", "{key}_base_ft"])'),
    ("markdown", "## The paper beside ours"),
    ("code", 'book.save_tables()\nbook.table("table_1")'),
    ("markdown", "## Verdicts"),
    ("code", "book.verdicts()"),
)


def make(key: str, title: str, root: Path = ROOMS.parent) -> list[Path]:
    """Write the files of a new paper below `root` and return them.

    Raises UserError for a key that cannot be a name, or for a file that exists.
    """
    if not NAME.fullmatch(key) or not key.isidentifier():
        raise UserError(
            f"'{key}' cannot be a paper's key: use letters, digits and _, and start with a letter"
        )
    names = {"key": key, "title": title}
    room = root / "papers" / key
    texts = {
        room / "README.md": README,
        room / "runs.yaml": RUNS,
        room / "claims.yaml": CLAIMS,
        room / "mapping.yaml": MAPPING,
        room / "recipe.yaml": RECIPE,
        room / "computed.yaml": COMPUTED,
        room / "errata.yaml": ERRATA,
        room / "released.yaml": RELEASED,
        root / "replicate" / "papers" / f"{key}.py": MODULE,
    }
    files = {path: text.format(**names) for path, text in texts.items()}
    files[room / "values.csv"] = ",".join(published.COLUMNS) + "\n"
    files[root / "notebooks" / f"{key}.ipynb"] = _notebook(names)
    if existing := [path for path in files if path.exists()]:
        raise UserError(f"{existing[0]} exists; choose another key")
    for path, text in files.items():
        atomic_write(path, lambda temporary, text=text: temporary.write_text(text, encoding="utf-8"))
    return list(files)


def _notebook(names: dict[str, str]) -> str:
    import nbformat

    notebook = nbformat.v4.new_notebook()
    for number, (kind, source) in enumerate(CELLS):
        new = nbformat.v4.new_markdown_cell if kind == "markdown" else nbformat.v4.new_code_cell
        cell = new(source.format(**names), id=f"cell-{number}")
        cell.metadata.update({"tags": ["parameters"]} if kind == "parameters" else {})
        notebook.cells.append(cell)
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook.metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    return nbformat.writes(notebook) + "\n"

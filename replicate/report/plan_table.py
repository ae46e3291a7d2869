"""What the papers' own budget costs, for docs/costs.md: `python -m replicate plan --page`."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from replicate.config import published
from replicate.cost.data_size import data_size
from replicate.cost.plan import plan, totals
from replicate.cost.rates import DEVICES, rates_of
from replicate.errors import UserError
from replicate.report.tables import fill

if TYPE_CHECKING:
    from replicate.config import Params

MACHINES = {"8 x A100": ("a100", 8), "1 x H200": ("h200", 1)}
START, END = "<!-- plan -->", "<!-- /plan -->"
PAGE = Path("docs/costs.md")
PRICES = Path("benchmarks/results/plan_paper.csv")
"""Every run's cost at the papers' own scale, for the scoreboard: planning all runs takes half a minute."""


def update_page(root: Path, params: Params) -> None:
    """Write the plan of the `paper` budget between the markers of PAGE, and PRICES, both below `root`.

    Raises UserError when a marker is missing.
    """
    path = root / PAGE
    text = path.read_text(encoding="utf-8")
    if START not in text or END not in text:
        raise UserError(f"{path}: lacks the markers {START} and {END}; the plan goes between them")
    before, after = text[: text.index(START) + len(START)], text[text.index(END) :]
    plans = {
        name: plan(params, [], "paper", rates_of(device), count) for name, (device, count) in MACHINES.items()
    }
    path.write_text(f"{before}\n{page_block(params, plans)}\n{after}", encoding="utf-8")
    write_prices(params, root / PRICES, plans["8 x A100"])


def page_block(params: Params, plans: dict[str, pd.DataFrame]) -> str:
    """Two Markdown tables of the plans by machine: totals per paper, printed hours beside planned ones."""
    sums = {name: totals(lines) for name, lines in plans.items()}
    first = next(iter(sums.values()))
    table = pd.DataFrame({"runs": first["runs"], "10^18 multiply-adds": first["exa_macs"].map(rounded)})
    for name, frame in sums.items():
        table[f"GPU-hours, {name}"] = frame["device_hours"].map(rounded)
        table[f"days, {name}"] = (frame["hours"] / 24).map(rounded)
    printed = published_hours(params, plans).drop_duplicates(["paper", "run", "printed"])
    units = printed["printed"].str.rsplit(" ", n=1).str[-1]
    for name in plans:
        printed[name] = [
            f"{rounded(value, 2)} {unit}" for value, unit in zip(printed[name], units, strict=True)
        ]
    devices = (DEVICES[device] for device, _ in MACHINES.values())
    shares = ", ".join(f"{device.efficiency * 100:g} % of the {device.name}'s peak" for device in devices)
    gigabytes = data_size(params, "full", "paper").bytes / 1e9
    return f"""\
Every run of `papers/*/runs.yaml` at the `paper` budget, at an assumed {shares}. Give your own share by
`--efficiency`. The `.beton` files take {gigabytes:.0f} GB. Made by `python -m replicate plan --page`.

{_markdown(table.rename_axis("paper").reset_index())}

<details><summary>Hours that the papers print, each on its own machine, beside the plan's</summary>

{_markdown(printed)}

</details>"""


def published_hours(params: Params, plans: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """The papers' printed hours beside each plan's, for every printed time that a run of ours stands for.

    Hours are GPU-hours where the paper prints those, else hours on all devices. `hardware` is the paper's.
    """
    rows = []
    for paper in published.papers():
        for cell in published.select({"paper": paper}).to_dict("records"):
            run = _timed_run(paper, cell, params)
            if run is not None:
                gpu_hours = cell["unit"] == "gpu_hours"
                column = "device_hours" if gpu_hours else "hours"
                row = {
                    "paper": paper,
                    "where": cell["table"].replace("_", " "),
                    "run": run,
                    "printed": f"{_grouped(cell['printed'])} {'GPU-hours' if gpu_hours else 'h'}",
                    "hardware": _machine(published.setting(cell["row"]).get("hardware", "")),
                }
                rows.append(
                    row | {name: lines.at[run, column] for name, lines in plans.items() if run in lines.index}
                )
    return pd.DataFrame(rows)


def write_prices(params: Params, path: Path, lines: pd.DataFrame) -> None:
    """Write A100-hours and 10^18 multiply-adds of every run of a plan, alone and with what it starts from."""
    rows = []
    for name in lines.index:
        needed, upstream = [name], params.upstream_of(name)
        while upstream:
            needed, upstream = [*needed, upstream], params.upstream_of(upstream)
        row = {"run": name}
        for column, unit in (("device_hours", "a100_hours"), ("exa_macs", "exa_macs")):
            row[unit] = f"{lines.at[name, column]:.3g}"
            row[f"{unit}_in_all"] = f"{lines.loc[needed, column].sum():.3g}"
        rows.append(row)
    path.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).to_csv(path, index=False, lineterminator="\n")


def rounded(value: float, digits: int = 3) -> str:
    """So many significant digits, with thousands separators: a plan that assumes its efficiency has few."""
    if not value:
        return "0"
    value = float(f"{value:.{digits - 1}e}")
    return f"{value:,.{max(digits - 1 - math.floor(math.log10(abs(value))), 0)}f}"


def _grouped(printed: str) -> str:
    """A printed number with thousands separators: "2069" -> "2,069"; 102:35 hours stay."""
    return f"{int(printed):,}" if printed.isdigit() else printed


def _machine(hardware: str) -> str:
    """As MACHINES are written: "8xA100" -> "8 x A100"."""
    return re.sub(r"^(\d+)x", r"\1 x ", hardware).replace("_", " ")


def _timed_run(paper: str, cell: dict[str, Any], params: Params) -> str | None:
    """The run whose training time stands for a printed time."""
    if not cell["unit"].endswith("hours"):
        return None
    rules = (rule for rule in published.mapping(paper) if published.matches(cell, rule.get("match", {})))
    rule = next(rules, None)
    quantity = rule and fill(rule.get("ours"), published.setting(cell["row"]))
    if not isinstance(quantity, str) or not quantity.endswith("/train_hours"):
        return None
    run = quantity.partition("/")[0]
    return run if run in params.pretrain_runs or run in params.evaluate_runs else None


def _is_number(column: Iterable[Any]) -> bool:
    """Whether every entry starts with a digit and none is a machine."""
    return all(str(one)[:1].isdigit() and " x " not in str(one) for one in column)


def _markdown(frame: pd.DataFrame) -> str:
    """A table without the padding of pandas' own, so that a changed number changes one line."""
    lines = [
        map(str, frame.columns),
        ["---:" if _is_number(column) else "---" for column in frame.T.to_numpy()],
        *(map(str, row) for row in frame.to_numpy()),
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)

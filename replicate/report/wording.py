"""Checks, effects and verdicts in words, for tables and pages."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from replicate.config import published
from replicate.report.quantities import DEFAULT_METRIC

_SIGNS = {"above": ">", "not_below": "≥", "equal": "=", "ratio_above": "/", "ratio_below": "/"}
FACTORS = {"MB": 1e-6}
"""What the numbers of a unit are multiplied by, where a metric has another unit."""

UNITS = {
    "images_per_second": "images/s",
    "file_bytes": "MB",
    "train_hours": "hours",
    "seconds_per_epoch": "s an epoch",
    "activation_gb": "GB",
    "saving_percent": "%",
    "mean_abs_error": "of 255 grey levels",
}
"""Metric -> unit of a difference; accuracies are in points, and what is not here is named by its metric."""


def effect_text(line: Mapping[str, Any]) -> str:
    """An oriented effect with interval and unit, "+2.3 [-0.8, 5.3] points"; nothing when it was not run.

    Where 0 is a bound, it is named: "+0.26 [0.20, 0.32] x against a bound of 1.5 x".
    """
    text = measured_text(line)
    return f"{text}, against {line['against']}" if text and line.get("against") else text


def found_text(line: Mapping[str, Any]) -> str:
    """A claim's statement and its oriented effect: positive agrees with the claim."""
    return f"{line['statement']} Effect: {effect_text(line)}"


def measured_text(line: Mapping[str, Any]) -> str:
    """The effect with interval and unit alone."""
    if not math.isfinite(line["effect"]):
        return ""
    bounded = math.isfinite(line["low"]) and line["low"] != line["high"]
    ends = (line["low"], line["high"]) if bounded else ()
    digits = decimals(line["effect"], *ends)
    while digits < 6 and any(end and not float(f"{end:.{digits}f}") for end in ends):
        digits += 1  # an end that shows as 0 would not say on which side of 0 it lies
    value, low, high = (_rounded(line[name], digits) for name in ("effect", "low", "high"))
    interval = f" [{low}, {high}]" if bounded else ""
    sign = "+" if float(value.replace(",", "")) > 0 else ""
    return f"{sign}{value}{interval} {line['unit']}".rstrip()


def rests_on(line: Mapping[str, Any]) -> str:
    """What an interval rests on: "df 86, noise of 48 runs; own seeds [0.5, 2.0]"; nothing without one."""
    if not math.isfinite(line["low"]) or not math.isfinite(line.get("df", math.nan)):
        return ""
    text = f"df {line['df']:.3g}"
    if not line["pooled"]:
        return text
    digits = decimals(line["effect"], line["low"], line["high"])
    own = ", ".join(_rounded(line[name], digits) for name in ("own_low", "own_high"))
    return f"{text}, noise of {line['pooled']} runs; own seeds [{own}]"


def verdict_text(line: Mapping[str, Any]) -> str:
    """A claim's verdict; one that opposes the paper never without the regime that it holds for."""
    opposes = line["verdict"].startswith(("opposite at proxy", "opposite on synthetic"))
    return f"{line['verdict']} ({line['regime']})" if opposes and line.get("regime") else line["verdict"]


def decimals(value: float, low: float = math.nan, high: float = math.nan) -> int:
    """Decimals that an interval carries: two digits of its half-width; of a value alone, three digits."""
    width = (high - low) / 2
    known = math.isfinite(width) and width > 0
    size, digits = (width, 2) if known else (abs(value), 3)
    return min(max(digits - 1 - math.floor(math.log10(size)), 0), 6) if size else 0


def _rounded(value: float, digits: int) -> str:
    text = f"{value:,.{digits}f}"
    return text.lstrip("-") if not float(text.replace(",", "")) else text


def short(value: float) -> str:
    """Three significant digits, and whole numbers from 1,000 on."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def bound(value: float) -> str:
    """What a ratio's effect of 0 stands for; nothing where that is equality."""
    return "" if value == 1 else f"a bound of {value:g} x"


def margin(value: float) -> str:
    return f"a margin of {value:g}" if value else ""


def tolerance(value: float) -> str:
    return f"a tolerance of {value:g}"


def describe(spec: dict[str, Any]) -> str:
    """A check in one line: "best of light_llrd > light_90_llrd_65"."""
    kind, limit = spec["kind"], spec.get("bound")
    if "left" in spec:
        return _comparison(spec)
    if kind == "computed":
        return f"by computation: {spec['function'].replace('_', ' ')}"
    if kind == "benchmark":
        return f"benchmark {spec['file']}, {spec['case']}, {spec['line']}: ratio > {limit:g}"
    if kind == "rank_correlation":
        return f"rank correlation of {spec['bins']}* in {spec['run']} > {limit:g}"
    subject = _words(spec["sweep"]) if "sweep" in spec else ", ".join(spec["runs"])
    if kind == "peak_between":
        return f"peak of {subject} between {spec['low']:g} and {spec['high']:g}"
    if "than" in spec:
        relation = "below" if kind == "peak_below" else f"within {spec['step']:g} of"
        return f"peak of {subject} {relation} that of {_words(spec['than'])}"
    return f"range of {subject} < {limit:g}" if kind == "range_below" else f"{subject} {_trend(spec)}"


def _trend(spec: Mapping[str, Any]) -> str:
    if spec["kind"] == "ordered":
        return f"in falling order of {spec.get('metric', DEFAULT_METRIC)}"
    return spec["kind"] + " at every step" * bool(spec.get("strict"))


def _comparison(spec: dict[str, Any]) -> str:
    kind, limit = spec["kind"], spec.get("bound")
    allowed = spec.get("margin", 0.0) or spec.get("tolerance", 0.0)
    joint = {"above": "+", "not_below": "-", "equal": "±"}.get(kind)
    ending = f" {joint} {allowed:g}" if allowed and joint else ""
    end = f" {'>' if kind == 'ratio_above' else '<'} {limit:g}" if limit is not None else ""
    return f"{_words(spec['left'])} {_SIGNS[kind]} {_words(spec['right'])}{ending}{end}"


def contrast(spec: Mapping[str, Any]) -> str:
    """What a check compares: "light_90_llrd_80 - light_90_llrd_65", or left / right where it is a ratio."""
    joint = "/" if unit(spec) == "x" else "-"
    return f"{_words(spec['left'])} {joint} {_words(spec['right'])}"


def unit(spec: Mapping[str, Any]) -> str:
    """Unit of a check's effect: "points" of accuracy, "x" for a ratio, "in loss" for what has no unit.

    `axis` names what a sweep varies, for checks on the place of a peak.
    """
    kind = spec["kind"]
    if kind == "computed":
        return ""
    if kind.startswith("peak"):
        return f"in {spec.get('axis', 'place of the peak')}"
    if kind == "rank_correlation":
        return "in rank correlation"
    if kind == "benchmark" or kind.startswith("ratio") or any("over" in part for part in _expressions(spec)):
        return "x"
    named = published.texts(
        {key: part for key, part in spec.items() if key not in ("kind", "metric", "axis")}
    )
    metrics = {text.partition("/")[2] for text in named} - {""} or {spec.get("metric", DEFAULT_METRIC)}
    if all("top1" in metric or metric.startswith(("ap", "miou")) for metric in metrics):
        return "points"
    if all(metric.startswith("psnr") for metric in metrics):
        return "dB"
    name = min(metrics).partition("_")[0] if len(metrics) > 1 else min(metrics)
    return UNITS.get(name, f"in {name.replace('_', ' ').removeprefix('val ')}")


def _expressions(value: Any) -> Iterator[Mapping[str, Any]]:
    """Every expression within a quantity, itself included."""
    if isinstance(value, Mapping):
        yield value
    if isinstance(value, Mapping | list):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _expressions(part)


def _words(quantity: Any) -> str:
    if not isinstance(quantity, dict):
        return quantity if isinstance(quantity, str) else ", ".join(map(_words, quantity))
    kind, argument = next(iter(quantity.items()))
    if kind in ("best", "worst", "peak"):
        return f"{kind} of {_words(argument)}"
    if kind == "times":
        return f"{argument[0]:g} x {_words(argument[1])}"
    if kind in ("minus", "over"):
        return f"({_words(argument[0])} {'-' if kind == 'minus' else '/'} {_words(argument[1])})"
    return ", ".join(map(str, quantity.values()))

"""Checks and their effects in words, for tables and pages."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from replicate.config import published
from replicate.report.quantities import DEFAULT_METRIC

_SIGNS = {"above": ">", "not_below": "≥", "equal": "=", "ratio_above": "/", "ratio_below": "/"}


def effect_text(line: Mapping[str, Any]) -> str:
    """An effect with its interval and unit; nothing when it was not run.

    "1.23 [0.5, 2] points (df 2)", or with pooled noise "1.23 [0.9, 1.6] points (df 86, 48 runs; own seeds
    [0.5, 2])".
    """
    if not math.isfinite(line["effect"]):
        return ""
    bounded = math.isfinite(line["low"]) and line["low"] != line["high"]
    interval = f" [{short(line['low'])}, {short(line['high'])}]" if bounded else ""
    text = f"{short(line['effect'])}{interval} {line['unit']}".rstrip()
    if not (bounded and math.isfinite(line.get("df", math.nan))):
        return text
    own = f"; own seeds [{short(line['own_low'])}, {short(line['own_high'])}]" if line["pooled"] else ""
    return f"{text} (df {line['df']:.3g}" + f", {line['pooled']} runs{own}" * bool(own) + ")"


def short(value: float) -> str:
    """Three significant digits, and whole numbers from 1,000 on."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def describe(spec: dict[str, Any]) -> str:
    """A check in one line: "best of light_llrd > light_90_llrd_65"."""
    kind, bound = spec["kind"], spec.get("bound")
    if "left" in spec:
        return _comparison(spec)
    if kind == "computed":
        return f"by computation: {spec['function'].replace('_', ' ')}"
    if kind == "benchmark":
        return f"benchmark {spec['file']}, {spec['case']}, {spec['line']}: ratio > {bound:g}"
    if kind == "rank_correlation":
        return f"rank correlation of {spec['bins']}* in {spec['run']} > {bound:g}"
    subject = _words(spec["sweep"]) if "sweep" in spec else ", ".join(spec["runs"])
    if kind == "peak_between":
        return f"peak of {subject} between {spec['low']:g} and {spec['high']:g}"
    if "than" in spec:
        relation = "no higher than" if kind == "peak_not_above" else f"within {spec['step']:g} of"
        return f"peak of {subject} {relation} that of {_words(spec['than'])}"
    return (
        f"range of {subject} ≤ {bound:g}" if kind == "range_below" else f"{subject} {kind}, last minus first"
    )


def _comparison(spec: dict[str, Any]) -> str:
    kind, bound = spec["kind"], spec.get("bound")
    margin = spec.get("margin", 0.0) or spec.get("tolerance", 0.0)
    joint = {"above": "+", "not_below": "-", "equal": "±"}.get(kind)
    ending = f" {joint} {margin:g}" if margin and joint else ""
    limit = f" {'>' if kind == 'ratio_above' else '<'} {bound:g}" if bound is not None else ""
    return f"{_words(spec['left'])} {_SIGNS[kind]} {_words(spec['right'])}{ending}{limit}"


def unit(spec: Mapping[str, Any]) -> str:
    """Unit of a check's effect: "points" of accuracy, "times" for a ratio; none for losses."""
    kind = spec["kind"]
    if kind == "computed":
        return ""
    if kind.startswith("peak"):
        return "(place of the peak)" if kind == "peak_between" else "(distance of the peaks)"
    if kind == "rank_correlation":
        return "(correlation)"
    if kind == "benchmark" or kind.startswith("ratio") or any("over" in part for part in _expressions(spec)):
        return "times"
    named = published.texts({key: part for key, part in spec.items() if key not in ("kind", "metric")})
    metrics = {text.partition("/")[2] for text in named} - {""} or {spec.get("metric", DEFAULT_METRIC)}
    if all("top1" in metric for metric in metrics):
        return "points"
    if all(metric.startswith("psnr") for metric in metrics):
        return "dB"
    units = {"images_per_second": "images/s", "file_bytes": "bytes"}
    return units.get(metrics.pop(), "") if len(metrics) == 1 else ""


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
        return f"{argument[0]:g} ({_words(argument[1])})"
    if kind in ("minus", "over"):
        return f"({_words(argument[0])} {'-' if kind == 'minus' else '/'} {_words(argument[1])})"
    return ", ".join(map(str, quantity.values()))

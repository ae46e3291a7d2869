"""Several sweeps on one pair of axes, each point a mean over seeds with its interval."""

from __future__ import annotations

from collections.abc import Mapping

from replicate.report.figures import ACCURACY, curve, new
from replicate.report.quantities import NotRun, Reader
from replicate.report.style import Figure


def sweep_curves(reader: Reader, sweeps: Mapping[str, str], xlabel: str, logarithmic: bool = False) -> Figure | None:
    """Accuracy along each of the sweeps; `sweeps` maps a legend to a sweep of published/claims.yaml.

    A sweep of which too few points have finished is named in the title as not run; None where that is so for all.
    """
    figure, axes = new()
    missing = []
    for index, (label, sweep) in enumerate(sweeps.items()):
        try:
            curve(axes[0, 0], reader.curve(sweep), label, index)
        except NotRun:
            missing.append(label)
    if len(missing) == len(sweeps):
        return None
    axes[0, 0].set(xlabel=xlabel, ylabel=ACCURACY, title="ours" + f" (not run: {', '.join(missing)})" * bool(missing))
    if logarithmic:
        axes[0, 0].set_xscale("log")
    axes[0, 0].legend()
    return figure

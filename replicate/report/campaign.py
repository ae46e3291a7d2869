"""The campaign: which runs to train next, so that each CPU-hour decides most claims.

Greedy: the open claim that needs the cheapest missing runs comes first; what it trains is free for the next.
A run's cost is its multiply-adds at the budget, all seeds, pre-training included where that is missing too.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

from replicate.config import published
from replicate.pipeline.launch import with_upstream
from replicate.report.evidence import runs_of

if TYPE_CHECKING:
    from replicate.config import Params


@dataclass(frozen=True)
class Step:
    """A claim, the runs that it still needs, in order of training, and their cost in 10^18 multiply-adds."""

    claim: str
    runs: tuple[str, ...]
    cost: float


def queue(
    params: Params,
    finished: Collection[str],
    cost_of: Callable[[str], float],
    here: Collection[str] | None = None,
    skip: Collection[str] = (),
) -> list[Step]:
    """Every claim that lacks runs, cheapest first, each with the runs that no earlier claim trains.

    here  finished runs whose weights are on this machine, all of them unless named
    skip  papers to leave out
    """
    claims = {
        name: runs_of(claim, params.runs)
        for name, claim in published.claims().items()
        if name.partition(".")[0] not in skip
    }
    there, weights, steps = set(finished), set(finished if here is None else here), []
    while True:
        missing = {
            name: with_upstream(params, [run for run in runs if run not in there])
            for name, runs in claims.items()
        }
        missing = {name: [run for run in runs if run not in weights] for name, runs in missing.items()}
        missing = {name: runs for name, runs in missing.items() if runs}
        if not missing:
            return steps
        costs = {name: sum(map(cost_of, runs)) for name, runs in missing.items()}
        cheapest = min(costs, key=costs.__getitem__)
        steps.append(Step(cheapest, tuple(missing[cheapest]), costs[cheapest]))
        there |= set(missing[cheapest])
        weights |= set(missing[cheapest])


def costs(params: Params, budget: str) -> Callable[[str], float]:
    """The planner's multiply-adds of a run at a budget, each run planned once."""
    from replicate.cost.plan import plan
    from replicate.cost.rates import Rates

    names = {run for step in queue(params, (), lambda _: 1.0) for run in step.runs}
    lines = plan(params, sorted(names), budget, Rates(mac=1.0))
    return lines["exa_macs"].to_dict().__getitem__


def train(
    steps: list[Step], run: Callable[[str], None], hours: float, clock: Callable[[], float] = time.monotonic
) -> list[str]:
    """Train the queue's runs until the time is up; a run that has begun ends. Returns what was trained."""
    until, done = clock() + 3600 * hours, []
    for name in (name for step in steps for name in step.runs):
        if clock() >= until:
            break
        run(name)
        done.append(name)
    return done

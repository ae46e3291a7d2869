"""The campaign trains what decides most claims for its cost, and stops in time."""

import itertools

import pytest
from project import ROOT

from replicate.config import load
from replicate.report.campaign import Step, costs, queue, train

COST = {"pretrain": 10.0, "evaluate": 1.0}


@pytest.fixture(scope="module")
def params():
    return load(ROOT / "params.yaml")


def by_kind(params):
    return lambda name: COST["pretrain" if name in params.pretrain_runs else "evaluate"]


def test_each_run_stands_once_and_after_its_upstream(params):
    runs = [run for step in queue(params, (), by_kind(params)) for run in step.runs]
    assert len(set(runs)) == len(runs)
    for name in runs:
        upstream = params.upstream_of(name)
        assert upstream is None or runs.index(upstream) < runs.index(name)


def test_the_first_claim_is_the_cheapest_and_later_ones_pay_only_what_is_new(params):
    steps = queue(params, (), by_kind(params))
    assert steps[0] == Step(
        "efficient_mae.loss_grows_with_p2dist", ("emae_plain_85",), 10.0
    )  # one pre-training alone
    sweep = [f"light_90_llrd_{decay}" for decay in (65, 75, 80, 85, 90)]
    [peak] = [step for step in steps if step.claim == "efficient_learners.llrd_peak"]
    assert set(peak.runs) <= {"light_90", *sweep}
    finished = queue(params, {"light_90", *sweep}, by_kind(params))
    assert "efficient_learners.llrd_peak" not in {step.claim for step in finished}


def test_costs_grow_with_what_is_trained(params):
    cost = costs(params, "smoke")
    assert cost("full_75") > cost("light_75") > 0


def test_training_stops_when_the_time_is_up():
    steps = [Step("a", ("one", "two"), 1.0), Step("b", ("three", "four"), 1.0)]
    said = []
    clock = itertools.count(0, 1800).__next__  # half an hour passes with every look at it
    assert train(steps, said.append, hours=2.0, clock=clock) == said == ["one", "two", "three"]


def test_a_run_that_was_measured_elsewhere_is_trained_again_for_its_weights(params):
    """Numbers in measured/ have no weights, so a run that starts from such a run needs it trained here."""
    measured = {"light_90"}
    steps = queue(params, measured, by_kind(params), here=())
    [peak] = [step for step in steps if step.claim == "efficient_learners.llrd_peak"]
    before = [run for step in steps[: steps.index(peak)] for run in step.runs]
    assert "light_90" in [*before, *peak.runs]
    steps = queue(params, (), by_kind(params), skip=["mae"])
    assert not [step for step in steps if step.claim.startswith("mae.")]

"""A plan with [release]: how it travels, and that a plan without it is the plan it always was."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from federation.errors import Malformed, PlanRefused
from federation.plan import TrainingPlan
from federation.release import Release, ReleaseLevel
from federation.v1 import plan_pb2
from federation.wire import serialize

Make = Callable[..., TrainingPlan]


@pytest.mark.parametrize("level", list(ReleaseLevel))
def test_a_release_level_travels_unchanged_and_makes_another_plan(make_plan: Make, level: ReleaseLevel) -> None:
    plan = replace(make_plan(), release=Release(level))
    assert TrainingPlan.from_bytes(plan.to_bytes()) == plan
    assert plan.digest != make_plan().digest


def test_a_plan_without_a_release_level_has_no_byte_of_one(make_plan: Make) -> None:
    plan = make_plan()
    assert not plan_pb2.Plan.FromString(plan.to_bytes()).HasField("release")
    assert TrainingPlan.from_bytes(plan.to_bytes()).release is None


@pytest.mark.parametrize("number", [0, 9])
def test_a_level_that_this_version_does_not_know_is_refused(make_plan: Make, number: int) -> None:
    message = plan_pb2.Plan.FromString(make_plan().to_bytes())
    message.release.level = number  # type: ignore[assignment]  # what another version may send
    message.release.SetInParent()
    with pytest.raises((PlanRefused, Malformed), match=r"(?i)release\.level"):
        TrainingPlan.from_bytes(serialize(message))

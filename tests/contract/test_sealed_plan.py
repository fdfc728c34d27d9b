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


CVM = Release(ReleaseLevel.CVM, "ab" * 32, ("00" * 48, "cd" * 48), 1, 0, 8, 255, packing=True)


@pytest.mark.parametrize("release", [Release(), CVM], ids=["none", "cvm"])
def test_a_release_level_travels_unchanged_and_makes_another_plan(make_plan: Make, release: Release) -> None:
    plan = replace(make_plan(), release=release)
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


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("root", ""),
        ("root", "AB" * 32),
        ("root", "ab" * 31),
        ("measurements", ()),
        ("measurements", ("cd" * 47,)),
        ("measurements", ("cd" * 48, "00" * 48)),
        ("measurements", ("cd" * 48, "cd" * 48)),
        ("measurements", tuple(f"{number:096x}" for number in range(9))),
        ("snp_min", 256),
        ("tee_min", -1),
    ],
)
def test_a_value_of_an_attested_release_outside_its_bounds_is_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(PlanRefused, match=rf"release\.{field}"):
        replace(CVM, **{field: value})  # type: ignore[arg-type]  # as a file may have it


@pytest.mark.parametrize("field", ["root", "measurements", "boot_loader_min", "microcode_min", "packing"])
def test_the_level_none_has_no_other_key(field: str) -> None:
    with pytest.raises(PlanRefused, match=r"release\.level"):
        replace(Release(), **{field: getattr(CVM, field)})


def test_packing_needs_a_permission_at_the_level_cvm_only() -> None:
    assert Release().permits_packing
    assert CVM.permits_packing
    assert not replace(CVM, packing=False).permits_packing

"""federation.gate: the bounds, the words, the verdict, and how much one site can do to it."""

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
from federation.encoding import HEADER_WORDS, HISTOGRAM_SHAPE, Layout, SiteHeader, coarse_header
from federation.encoding.header import read_header, write_header
from federation.errors import EncodingRefused, PlanRefused
from federation.gate import NO_COMPARISON, Comparison, Gate, Verdict, judge
from federation.plan import TrainingPlan
from federation.v1 import plan_pb2
from federation.vocabulary import Metric
from federation.wire import serialize
from hypothesis import given
from hypothesis import strategies as st

Make = Callable[..., TrainingPlan]
GATE = Gate()


def compared(differences: list[float], gate: Gate = GATE) -> Comparison:
    """The exact comparison of one site."""
    clipped = np.clip(differences, -gate.clip, gate.clip)
    return Comparison(float(clipped.sum()), float(clipped @ clipped), len(differences), min(len(differences), 1))


def total(comparisons: list[Comparison]) -> Comparison:
    columns = zip(*([getattr(one, field.name) for field in fields(Comparison)] for one in comparisons), strict=True)
    return Comparison(*(sum(column) for column in columns))


def header_of(comparison: Comparison) -> SiteHeader:
    return SiteHeader(40, 0.0, 0, False, np.zeros(HISTOGRAM_SHAPE, np.int64), comparison)


@pytest.fixture
def layout(make_plan: Make) -> Layout:
    return Layout.of(make_plan(gate=GATE), 0)


@pytest.mark.parametrize(
    "changes",
    [
        {"clip": 1e-4},
        {"clip": 10.1},
        {"margin": -0.1},
        {"margin": 0.1},
        {"deviations": -1.0},
        {"deviations": 10.1},
        {"deviations": float("nan")},
        {"patients_max": 3},
        {"patients_max": 10_001},
    ],
)
def test_a_gate_out_of_its_bounds_is_refused_by_name_in_python_and_on_the_wire(
    make_plan: Make, changes: dict[str, Any]
) -> None:
    ((name, value),) = changes.items()
    with pytest.raises(PlanRefused) as refused:
        Gate(**changes)
    assert refused.value.field == f"gate.{name}"
    message = plan_pb2.Plan.FromString(make_plan(gate=GATE).to_bytes())
    if value >= 0 or name != "patients_max":
        setattr(message.gate, name, value)
        with pytest.raises(PlanRefused):
            TrainingPlan.from_bytes(serialize(message))


def test_a_gate_travels_and_a_plan_without_one_keeps_its_bytes(make_plan: Make) -> None:
    gated = make_plan(gate=replace(GATE, margin=0.02, patients_max=64))
    assert TrainingPlan.from_bytes(gated.to_bytes()) == gated
    assert TrainingPlan.from_bytes(make_plan().to_bytes()).gate is None
    message = plan_pb2.Plan.FromString(gated.to_bytes())
    message.ClearField("gate")
    assert serialize(message) == make_plan().to_bytes()


def test_a_gate_needs_histograms_and_no_private_plan(make_plan: Make, make_private_plan: Make) -> None:
    with pytest.raises(PlanRefused, match="gate"):
        make_plan(gate=GATE, metrics=(Metric.LOSS,))
    with pytest.raises(PlanRefused, match="gate"):
        replace(make_private_plan(), gate=GATE)


def test_four_words_follow_the_histograms_and_add_up_over_the_members(layout: Layout) -> None:
    sites = [compared([0.05, -0.02, 0.3, 0.1]), compared([-0.25] * 8), NO_COMPARISON]
    words = [write_header(layout, header_of(site)) for site in sites]
    assert all(part.shape == (HEADER_WORDS + 4,) for part in words)
    assert not words[2][HEADER_WORDS:].any()
    summed = read_header(layout, np.sum(words, axis=0, dtype=np.uint64), 3).comparison
    expected = total(sites)
    assert (summed.patients, summed.sites) == (expected.patients, expected.sites) == (12, 2)
    assert summed.difference_sum == pytest.approx(expected.difference_sum, abs=3e-6)
    assert summed.square_sum == pytest.approx(expected.square_sum, abs=3e-6)


@pytest.mark.parametrize("place", range(4))
@pytest.mark.parametrize("value", [2**40, 2**63, 2**64 - 1])
def test_a_comparison_that_no_honest_cohort_can_have_made_is_refused(layout: Layout, place: int, value: int) -> None:
    words = 3 * write_header(layout, header_of(compared([0.05] * 8)))
    words[HEADER_WORDS + place] = value
    with pytest.raises(EncodingRefused, match="out of range"):
        read_header(layout, words, 3)


@pytest.mark.parametrize(
    "comparison",
    [Comparison(0.9, 0.05, 8, 1), Comparison(0.1, 0.9, 8, 1), Comparison(0, 0, 17, 1), Comparison(0, 0, 8, 0)],
)
def test_a_site_does_not_encode_a_comparison_out_of_the_plans_bounds(layout: Layout, comparison: Comparison) -> None:
    with pytest.raises(EncodingRefused):
        write_header(layout, header_of(comparison))


@given(differences=st.lists(st.floats(-1, 1), max_size=70))
def test_a_size_class_of_patients_leaves_with_the_means_of_all(make_plan: Make, differences: list[float]) -> None:
    layout = Layout.of(make_plan(gate=GATE), 0)
    exact = compared(differences)
    coarse = coarse_header(layout, header_of(exact)).comparison
    assert coarse.patients in (0, 4, 8, 16)
    assert (coarse.patients > 0) == (len(differences) >= 4)
    if coarse.patients:
        assert coarse.difference_sum / coarse.patients == pytest.approx(exact.difference_sum / exact.patients)
    write_header(layout, header_of(coarse))


def test_a_candidate_is_refused_when_it_is_worse_at_several_sites_beyond_chance() -> None:
    worse, same = compared([0.08] * 16), compared([0.01, -0.01] * 8)
    assert judge(GATE, total([worse] * 4), 3).verdict is Verdict.REFUSED
    assert judge(GATE, total([compared([0.1] * 16)] * 3 + [compared([-0.1] * 16)]), 3).verdict is Verdict.REFUSED
    assert judge(GATE, total([same] * 4), 3).verdict is Verdict.ACCEPTED
    assert judge(GATE, total([compared([-0.08] * 16)] * 4), 3).verdict is Verdict.ACCEPTED
    # Worse by chance alone: the same mean with a spread that its interval has to count.
    spread = compared([0.1, -0.1, 0.1, -0.02] * 2)
    assert judge(replace(GATE, margin=0.0), total([spread] * 3), 3).verdict is Verdict.ACCEPTED


def test_nothing_compared_or_too_few_sites_accept_a_candidate() -> None:
    assert judge(GATE, NO_COMPARISON, 3).verdict is Verdict.ACCEPTED
    assert judge(GATE, total([compared([0.1] * 16)] * 2), 3).verdict is Verdict.ACCEPTED


@given(
    one=st.lists(st.floats(-1, 1), min_size=4, max_size=16),
    others=st.lists(st.lists(st.floats(-0.1, 0.01), min_size=4, max_size=16), min_size=2, max_size=8),
)
def test_no_site_refuses_alone_what_does_not_harm_the_others(one: list[float], others: list[list[float]]) -> None:
    """Whatever its patients say: the others' differences are at most the margin, so the candidate passes."""
    comparisons = [compared(one), *(compared(other) for other in others)]
    assert judge(GATE, total(comparisons), 3).verdict is Verdict.ACCEPTED


def test_a_member_that_fakes_its_words_can_refuse_and_docs_say_so(layout: Layout) -> None:
    """Masks hide who wrote what: words within the range of the whole cohort pass. docs/SECURITY.md says so."""
    honest = [compared([0.0] * 8) for _ in range(3)]
    faked = Comparison(0.1 * 40, 0.01 * 40, 40, 1)
    assert judge(GATE, total([*honest, faked]), 3).verdict is Verdict.REFUSED
    # The encoder of this software does not write such words.
    with pytest.raises(EncodingRefused):
        write_header(layout, header_of(faked))

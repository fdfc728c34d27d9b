"""federation.gate: the bounds, the words, the verdict, and how much one site can do to it."""

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
from federation.encoding import HEADER_WORDS, HISTOGRAM_SHAPE, Layout, SiteHeader, coarse_header
from federation.encoding.header import read_header, write_header
from federation.errors import EncodingRefused, PlanRefused
from federation.forecast import objections
from federation.gate import (
    AUC_CLIP,
    NO_COMPARISON,
    NO_COMPARISONS,
    POSITIVES_MAX,
    Comparison,
    Comparisons,
    Gate,
    Verdict,
    judge,
)
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


def verdict_of(comparisons: list[Comparison], gate: Gate = GATE) -> Verdict:
    return judge(gate, Comparisons(total(comparisons)), 3).verdict


def header_of(loss: Comparison, *labels: Comparison) -> SiteHeader:
    comparisons = Comparisons(loss, (*labels, *[NO_COMPARISON] * (6 - len(labels))))
    return SiteHeader(40, 0.0, 0, False, np.zeros(HISTOGRAM_SHAPE, np.int64), comparisons)


def lost(auc: float, positives: int = POSITIVES_MAX) -> Comparison:
    """A label's loss at one site, in a size class."""
    return Comparison(auc * positives, auc * auc * positives, positives, 1)


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
        {"auc_margin": -0.01},
        {"auc_margin": AUC_CLIP},
        {"positives_min": 0},
        {"positives_min": 1_000_001},
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
    if value >= 0 or isinstance(value, float):
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


def test_four_words_of_losses_and_of_each_label_follow_the_histograms_and_add_up(layout: Layout) -> None:
    sites = [compared([0.05, -0.02, 0.3, 0.1]), compared([-0.25] * 8), NO_COMPARISON]
    labels = [[lost(0.02, 4 * site), NO_COMPARISON, lost(-0.05, 32)] for site in range(3)]
    labels[0][0] = NO_COMPARISON
    words = [write_header(layout, header_of(site, *label)) for site, label in zip(sites, labels, strict=True)]
    assert all(part.shape == (HEADER_WORDS + 4 * 7,) for part in words)
    assert not words[2][HEADER_WORDS : HEADER_WORDS + 4].any()
    summed = read_header(layout, np.sum(words, axis=0, dtype=np.uint64), 3).comparisons
    expected = [total(sites), *(total(list(label)) for label in zip(*labels, strict=True)), *[NO_COMPARISON] * 3]
    for found, wanted in zip((summed.loss, *summed.labels), expected, strict=True):
        assert (found.cases, found.sites) == (wanted.cases, wanted.sites)
        assert found.difference_sum == pytest.approx(wanted.difference_sum, abs=3e-6)
        assert found.square_sum == pytest.approx(wanted.square_sum, abs=3e-6)
    assert (summed.loss.cases, summed.loss.sites, summed.labels[0].cases) == (12, 2, 12)


@pytest.mark.parametrize("place", range(4 * 7))
@pytest.mark.parametrize("value", [2**40, 2**63, 2**64 - 1])
def test_a_comparison_that_no_honest_cohort_can_have_made_is_refused(layout: Layout, place: int, value: int) -> None:
    words = 3 * write_header(layout, header_of(compared([0.05] * 8), *[lost(0.02, 8)] * 6))
    words[HEADER_WORDS + place] = value
    with pytest.raises(EncodingRefused, match="out of range"):
        read_header(layout, words, 3)


@pytest.mark.parametrize(
    "comparison",
    [
        Comparison(0.9, 0.05, 8, 1),
        Comparison(0.1, 0.9, 8, 1),
        Comparison(0, 0, 17, 1),
        Comparison(0, 0, 8, 0),
        Comparison(0, 0, 3, 1),
    ],
)
def test_a_site_does_not_encode_a_comparison_out_of_the_plans_bounds(layout: Layout, comparison: Comparison) -> None:
    with pytest.raises(EncodingRefused):
        write_header(layout, header_of(comparison))


@pytest.mark.parametrize(
    "label",
    [Comparison(1.7, 0.07, 32, 1), Comparison(0.1, 0.09, 32, 1), Comparison(0, 0, 33, 1), Comparison(0, 0, 8, 0)],
)
def test_a_site_does_not_encode_a_loss_of_auc_out_of_its_bounds(layout: Layout, label: Comparison) -> None:
    with pytest.raises(EncodingRefused):
        write_header(layout, header_of(NO_COMPARISON, label))


@given(differences=st.lists(st.floats(-1, 1), max_size=70))
def test_a_size_class_of_patients_leaves_with_the_means_of_all(make_plan: Make, differences: list[float]) -> None:
    layout = Layout.of(make_plan(gate=GATE), 0)
    exact = compared(differences)
    coarse = coarse_header(layout, header_of(exact)).comparisons.loss
    assert coarse.cases in (0, 4, 8, 16)
    assert (coarse.cases > 0) == (len(differences) >= 4)
    if coarse.cases:
        assert coarse.difference_sum / coarse.cases == pytest.approx(exact.difference_sum / exact.cases)
    write_header(layout, header_of(coarse))


def test_a_candidate_is_refused_when_it_is_worse_at_several_sites_beyond_chance() -> None:
    worse, same = compared([0.08] * 16), compared([0.01, -0.01] * 8)
    assert verdict_of([worse] * 4) is Verdict.REFUSED
    assert verdict_of([compared([0.1] * 16)] * 3 + [compared([-0.1] * 16)]) is Verdict.REFUSED
    assert verdict_of([same] * 4) is Verdict.ACCEPTED
    assert verdict_of([compared([-0.08] * 16)] * 4) is Verdict.ACCEPTED
    # Worse by chance alone: the same mean with a spread that its interval has to count.
    spread = compared([0.1, -0.1, 0.1, -0.02] * 2)
    assert verdict_of([spread] * 3, replace(GATE, margin=0.0)) is Verdict.ACCEPTED


def test_nothing_compared_or_too_few_sites_accept_a_candidate() -> None:
    assert judge(GATE, NO_COMPARISONS, 3).verdict is Verdict.ACCEPTED
    assert verdict_of([compared([0.1] * 16)] * 2) is Verdict.ACCEPTED


@given(
    one=st.lists(st.floats(-1, 1), min_size=4, max_size=16),
    others=st.lists(st.lists(st.floats(-0.1, 0.01), min_size=4, max_size=16), min_size=2, max_size=8),
)
def test_no_site_refuses_alone_what_does_not_harm_the_others(one: list[float], others: list[list[float]]) -> None:
    """Whatever its patients say: the others' differences are at most the margin, so the candidate passes."""
    comparisons = [compared(one), *(compared(other) for other in others)]
    assert verdict_of(comparisons) is Verdict.ACCEPTED


def test_a_member_that_fakes_its_words_can_refuse_and_docs_say_so(layout: Layout) -> None:
    """Masks hide who wrote what: words within the range of the whole cohort pass. docs/SECURITY.md says so."""
    honest = [compared([0.0] * 8) for _ in range(3)]
    faked = Comparison(0.1 * 40, 0.01 * 40, 40, 1)
    assert verdict_of([*honest, faked]) is Verdict.REFUSED
    # The encoder of this software does not write such words.
    with pytest.raises(EncodingRefused):
        write_header(layout, header_of(faked))


def test_few_patients_at_each_site_refuse_what_harms_all_of_them() -> None:
    """A site can have added no more than all cases but the smallest class of each other one."""
    assert verdict_of([compared([0.09] * 4)] * 3) is Verdict.REFUSED
    assert verdict_of([compared([0.1] * 4), compared([0.0] * 4), compared([0.0] * 4)]) is Verdict.ACCEPTED


def label_verdict(losses: list[Comparison], gate: Gate = GATE) -> Verdict:
    """Of a candidate whose losses are those of its predecessor, and of which one label has changed."""
    same = total([compared([0.0] * 16)] * 4)
    return judge(gate, Comparisons(same, (NO_COMPARISON, total(losses), *[NO_COMPARISON] * 4)), 3).verdict


def test_a_label_that_loses_auc_at_several_sites_refuses_a_candidate_of_equal_losses() -> None:
    assert label_verdict([lost(0.04)] * 4) is Verdict.REFUSED
    assert label_verdict([lost(0.05), lost(0.05), lost(0.05), lost(0.02)]) is Verdict.REFUSED
    assert label_verdict([lost(0.009)] * 10) is Verdict.ACCEPTED
    assert label_verdict([lost(-0.05)] * 4) is Verdict.ACCEPTED
    # By chance: as much is won as lost, but for a little.
    assert label_verdict([lost(0.05), lost(-0.05)] * 8 + [lost(0.05)] * 5) is Verdict.ACCEPTED


def test_a_label_speaks_with_fifty_positives_of_as_many_sites_as_a_cohort_needs() -> None:
    assert label_verdict([lost(0.05, 16)] * 3) is Verdict.ACCEPTED
    assert label_verdict([lost(0.05, 16)] * 4) is Verdict.REFUSED
    assert label_verdict([lost(0.05, 16)] * 3, replace(GATE, positives_min=48)) is Verdict.REFUSED
    assert label_verdict([lost(0.05)] * 2) is Verdict.ACCEPTED


@given(
    one=st.floats(-AUC_CLIP, AUC_CLIP),
    others=st.lists(st.tuples(st.floats(-AUC_CLIP, 0.01), st.sampled_from((4, 8, 16, 32))), min_size=2, max_size=8),
)
def test_no_site_s_auc_alone_refuses_what_does_not_harm_the_others(one: float, others: list[tuple[float, int]]) -> None:
    assert label_verdict([lost(one), *(lost(auc, positives) for auc, positives in others)]) is Verdict.ACCEPTED


@pytest.mark.parametrize(
    ("gate", "named"),
    [(GATE, []), (replace(GATE, margin=0.067), ["margin"]), (replace(GATE, auc_margin=0.04), ["auc_margin"])],
)
def test_a_margin_that_no_three_sites_can_pass_is_objected_to(make_plan: Make, gate: Gate, named: list[str]) -> None:
    plan = make_plan(gate=gate)
    assert plan.cohort.minimum == 3
    objected = [sentence for sentence in objections(plan) if sentence.startswith("gate.")]
    assert [sentence.split(" of ")[0].removeprefix("gate.") for sentence in objected] == named
    assert (verdict_of([compared([0.1] * 16)] * 3, gate) is Verdict.ACCEPTED) == ("margin" in named)
    assert (label_verdict([lost(AUC_CLIP)] * 3, gate) is Verdict.ACCEPTED) == ("auc_margin" in named)

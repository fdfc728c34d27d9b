"""Who is chosen after a sum was refused, and how the member that spoils sums is found."""

import random

import pytest
from federation.plan import CohortBounds
from hypothesis import given, settings
from hypothesis import strategies as st

from aggregator.rounds.regrouping import (
    CASE_CLOSED_AFTER,
    RecoveredSum,
    SumHistory,
    choose_cohort,
    spoiler_after,
    suspects_after,
)

BOUNDS = CohortBounds(minimum=3, target=3, maximum=500)
Sites = list[str]


def sites_of(count: int) -> Sites:
    return [f"site-{index:02}" for index in range(count)]


def carry_on(sites: Sites, crook: str, seed: int, spoils: float, rounds: int) -> list[tuple[int, RecoveredSum]]:
    """Rounds with one member that spoils sums with this probability: each with the number of its base model."""
    draw, base = random.Random(seed), 0  # no secret
    log: list[tuple[int, RecoveredSum]] = []
    for _ in range(rounds):
        here = [recovered for model, recovered in log if model == base]
        history = SumHistory(here, suspects_after([recovered for _, recovered in log]))
        ranked = draw.sample(sites, len(sites))
        members = choose_cohort(ranked, BOUNDS, history)
        if members is None:
            return log
        refused = crook in members and draw.random() < spoils
        log.append((base, RecoveredSum(frozenset(members), refused)))
        base += not refused
        if len(suspects_after([recovered for _, recovered in log])) == 1 and refused:
            return log
    return log


@given(st.integers(6, 40), st.integers(0, 2**32))
@settings(max_examples=200, deadline=None)
def test_a_member_that_spoils_every_sum_is_named_and_nobody_else(count: int, seed: int) -> None:
    sites = sites_of(count)
    log = carry_on(sites, sites[seed % count], seed, spoils=1.0, rounds=60)
    assert suspects_after([recovered for _, recovered in log]) == {sites[seed % count]}


@given(st.integers(6, 40), st.integers(0, 2**32), st.floats(0.1, 1))
@settings(max_examples=200, deadline=None)
def test_two_sums_on_one_model_differ_by_the_minimum_and_nobody_honest_is_named(
    count: int, seed: int, spoils: float
) -> None:
    sites = sites_of(count)
    crook = sites[seed % count]
    log = carry_on(sites, crook, seed, spoils, rounds=40)
    for model, recovered in log:
        others = [other for number, other in log if number == model and other is not recovered]
        assert all(len(recovered.members ^ other.members) >= BOUNDS.minimum for other in others)
    suspects = suspects_after([recovered for _, recovered in log])
    assert not suspects or crook in suspects


@given(st.integers(6, 40), st.integers(0, 2**32))
@settings(max_examples=100, deadline=None)
def test_the_honest_publish_in_spite_of_one_that_spoils_every_sum(count: int, seed: int) -> None:
    sites = sites_of(count)
    log = carry_on(sites, sites[seed % count], seed, spoils=1.0, rounds=60)
    in_a_row = 0
    for _, recovered in log:
        in_a_row = in_a_row + 1 if recovered.refused else 0
        assert in_a_row <= 2


def named_by(sites: Sites, crooks: set[str], seed: int, rounds: int = 80) -> set[str]:
    """Whom the aggregator names while each of the crooks spoils every sum that it is in."""
    draw, base = random.Random(seed), 0  # no secret
    log: list[tuple[int, RecoveredSum]] = []
    named: set[str] = set()
    for _ in range(rounds):
        sums = [recovered for _, recovered in log]
        history = SumHistory([recovered for model, recovered in log if model == base], suspects_after(sums))
        members = choose_cohort(draw.sample(sites, len(sites)), BOUNDS, history)
        if members is None:
            break
        refused = bool(crooks & set(members))
        log.append((base, RecoveredSum(frozenset(members), refused)))
        base += not refused
        spoiler = spoiler_after([recovered for _, recovered in log])
        named |= {spoiler} - {None}  # type: ignore[arg-type]  # what is left are names
    return named


@given(st.integers(6, 40), st.integers(0, 2**32))
@settings(max_examples=100, deadline=None)
def test_the_one_that_spoils_every_sum_is_named_once_the_others_have_published(count: int, seed: int) -> None:
    sites = sites_of(count)
    assert named_by(sites, {sites[seed % count]}, seed) == {sites[seed % count]}


@given(st.integers(6, 40), st.integers(2, 4), st.integers(0, 2**32))
@settings(max_examples=200, deadline=None)
def test_several_that_spoil_every_sum_make_no_honest_member_the_named_one(count: int, several: int, seed: int) -> None:
    sites = sites_of(count)
    crooks = set(random.Random(seed).sample(sites, several))
    assert named_by(sites, crooks, seed) <= crooks


def test_the_one_suspect_is_named_by_no_sum_that_it_is_in_and_not_before_all_others_published() -> None:
    refused = [RecoveredSum(frozenset("abcd"), refused=True), RecoveredSum(frozenset("aefg"), refused=True)]
    assert suspects_after(refused) == {"a"}
    assert spoiler_after(refused) is None
    with_it = RecoveredSum(frozenset("abcdefg"), refused=False)
    few, others = RecoveredSum(frozenset("bcde"), refused=False), RecoveredSum(frozenset("bfg"), refused=False)
    assert spoiler_after([*refused, with_it, few]) is None
    assert spoiler_after([*refused, few, others]) == "a"
    assert choose_cohort(list("abcd"), BOUNDS, SumHistory((), frozenset("a"))) == ("b", "c", "d")


def test_a_dealer_that_vanished_from_every_refused_sum_is_the_suspect_and_no_member_of_them() -> None:
    refused = [
        RecoveredSum(frozenset("bcdefg"), refused=True, vanished=frozenset("a")),
        RecoveredSum(frozenset("bcf"), refused=True, vanished=frozenset("a")),
        RecoveredSum(frozenset("bdeg"), refused=True, vanished=frozenset("a")),
    ]
    assert suspects_after(refused) == frozenset("ab")
    assert suspects_after([*refused, RecoveredSum(frozenset("cde"), refused=True, vanished=frozenset("a"))]) == {"a"}
    without = RecoveredSum(frozenset("cdefg"), refused=False)
    assert spoiler_after([*refused, without]) is None


def test_too_few_to_form_another_cohort_choose_none() -> None:
    members = frozenset(sites_of(5))
    assert choose_cohort(sorted(members), BOUNDS, SumHistory([RecoveredSum(members, refused=True)], members)) is None


def test_the_case_is_closed_after_enough_published_sums() -> None:
    everybody = frozenset(sites_of(6))
    quiet = [RecoveredSum(everybody, refused=False)] * CASE_CLOSED_AFTER
    assert suspects_after([RecoveredSum(everybody, refused=True), *quiet[1:]]) == everybody
    assert suspects_after([RecoveredSum(everybody, refused=True), *quiet]) == frozenset()


@pytest.mark.parametrize("count", [3, 4, 16, 500])
def test_without_a_history_everybody_who_is_ready_takes_part(count: int) -> None:
    assert choose_cohort(sites_of(count), BOUNDS, SumHistory()) == tuple(sorted(sites_of(count)))


def test_a_hospital_with_a_new_name_does_not_make_a_difference_larger() -> None:
    earlier = [RecoveredSum(frozenset("acde"), refused=False)]
    # `b` is ready, `f` too, `e` is not: whether `b` is what was `a`, only the hospital can know.
    assert choose_cohort(list("bcdf"), BOUNDS, SumHistory(earlier)) == ("b", "c", "d", "f")
    # Without `c`: were `b` and `a` one, the two sums would still differ by `c`, `e` and `f`.
    assert choose_cohort(list("bcdf"), BOUNDS, SumHistory(earlier, gone=frozenset("a"))) == ("b", "d", "f")
    assert choose_cohort(list("bcdfg"), BOUNDS, SumHistory(earlier, gone=frozenset("a"))) == tuple("bcdfg")

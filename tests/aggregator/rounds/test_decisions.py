"""What is due for a round, row by row: no store, no driver."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from federation.plan import CohortBounds

from aggregator.rounds.decisions import (
    ATTEMPTS_MAX,
    Abandon,
    Advance,
    Aggregate,
    Freeze,
    Retry,
    RoundSnapshot,
    Wait,
    decide,
)
from aggregator.rounds.regrouping import RecoveredSum, SumHistory
from aggregator.states import MASKING_PHASES, PHASE_SEATS, RoundState, SeatState

NOW = datetime(2026, 11, 23, 9, 0, tzinfo=UTC)
SITES = ["a", "b", "c", "d", "e"]
BOUNDS = CohortBounds(minimum=3, target=4, maximum=4)


def view(state: RoundState, *seats: SeatState, late: bool = False, **changes: Any) -> RoundSnapshot:
    """A round whose sites a, b, c ... hold these seats."""
    fields: dict[str, Any] = {
        "name": "round:00/1",
        "state": state,
        "attempt": 1,
        "deadline": NOW - timedelta(seconds=1) if late else NOW + timedelta(seconds=1),
        "reveal_until": NOW + timedelta(seconds=1),
        "seats": dict(zip(SITES, seats, strict=False)),
        "advertised": len(seats),
        "guilty": (),
        "accused": (),
        "recoverable": True,
        "eligible": SITES,
        "silent": (),
        "bounds": BOUNDS,
        "history": SumHistory(),
    }
    return RoundSnapshot(**(fields | changes))


READY, OFFERED, DECLINED, MISSED = SeatState.READY, SeatState.OFFERED, SeatState.DECLINED, SeatState.MISSED


def test_masking_begins_as_soon_as_the_target_is_ready() -> None:
    assert decide(view(RoundState.TRAINING, READY, READY, READY, OFFERED, OFFERED), NOW) == Wait()
    frozen = decide(view(RoundState.TRAINING, READY, READY, READY, READY, OFFERED), NOW)
    assert frozen == Freeze(("a", "b", "c", "d"), ("e",))


def test_masking_begins_with_the_minimum_when_nobody_else_can_come_or_time_is_up() -> None:
    assert isinstance(decide(view(RoundState.TRAINING, READY, READY, READY, DECLINED), NOW), Freeze)
    assert isinstance(decide(view(RoundState.TRAINING, READY, READY, READY, OFFERED, late=True), NOW), Freeze)
    assert isinstance(decide(view(RoundState.TRAINING, READY, READY, OFFERED, late=True), NOW), Abandon)


def test_a_site_that_left_the_roster_is_neither_taken_nor_awaited() -> None:
    seats = (READY, READY, READY, READY, OFFERED)
    assert decide(view(RoundState.TRAINING, *seats, eligible=["b", "c", "d"]), NOW) == Freeze(
        ("b", "c", "d"), ("a", "e")
    )


def test_no_cohort_is_larger_than_the_plan_allows_and_a_surplus_is_left_out() -> None:
    frozen = decide(view(RoundState.TRAINING, *[READY] * 5), NOW)
    assert isinstance(frozen, Freeze)
    assert len(frozen.members) == 4
    assert {*frozen.members, *frozen.left_out} == set(SITES)


def test_nobody_is_waited_for_who_cannot_make_up_the_minimum() -> None:
    assert isinstance(decide(view(RoundState.TRAINING, READY, OFFERED, DECLINED, DECLINED), NOW), Abandon)
    assert decide(view(RoundState.TRAINING, READY, OFFERED, MISSED, DECLINED), NOW) == Wait()


@pytest.mark.parametrize("phase", MASKING_PHASES)
def test_a_phase_ends_when_all_have_answered_and_at_the_deadline_when_enough_have(phase: RoundState) -> None:
    before, after = PHASE_SEATS[phase]
    assert decide(view(phase, after, after, after, after, before), NOW) == Wait()
    assert decide(view(phase, *[after] * 5), NOW) == Advance(())
    assert decide(view(phase, after, after, after, after, before, late=True), NOW) == Advance(("e",))


@pytest.mark.parametrize("phase", MASKING_PHASES)
def test_below_the_threshold_nothing_goes_on(phase: RoundState) -> None:
    before, after = PHASE_SEATS[phase]
    few = view(phase, after, after, before, before, before, late=True)
    decision = decide(few, NOW)
    if phase is RoundState.REVEAL:  # shares may be out: no update may enter a second sum
        assert decision == Wait()
        over = replace(few, reveal_until=NOW)
        assert isinstance(abandoned := decide(over, NOW), Abandon)
        assert abandoned.pauses_run
    else:
        assert isinstance(decision, Retry)
        assert decision.missed == ("c", "d", "e")


def test_the_threshold_counts_who_advertised_and_not_who_is_left() -> None:
    shared = (SeatState.SHARED, SeatState.SHARED, SeatState.SHARED)
    assert decide(view(RoundState.SHARES, *shared), NOW) == Advance(())
    assert isinstance(decide(view(RoundState.SHARES, *shared, advertised=5), NOW), Retry)


def test_a_cohort_that_keeps_failing_is_asked_to_train_again() -> None:
    seats = (SeatState.KEYED, SeatState.KEYED, SeatState.JOINED)
    assert isinstance(decide(view(RoundState.KEYS, *seats, late=True, attempt=ATTEMPTS_MAX - 1), NOW), Retry)
    assert isinstance(decide(view(RoundState.KEYS, *seats, late=True, attempt=ATTEMPTS_MAX), NOW), Abandon)


def test_a_sum_is_opened_until_it_is_too_late() -> None:
    assert decide(view(RoundState.AGGREGATING), NOW) == Aggregate()
    assert isinstance(decide(view(RoundState.AGGREGATING, late=True), NOW), Abandon)


def test_no_cohort_differs_from_an_earlier_one_on_the_same_model_by_fewer_than_the_minimum() -> None:
    earlier = SumHistory([RecoveredSum(frozenset("abcd"), refused=False)])
    same = decide(view(RoundState.TRAINING, READY, READY, READY, READY, DECLINED, history=earlier), NOW)
    assert same == Freeze(("a", "b", "c", "d"), ())
    without_a = view(RoundState.TRAINING, DECLINED, READY, READY, READY, OFFERED, history=earlier)
    assert decide(without_a, NOW) == Wait()  # `e` may still come
    late = decide(replace(without_a, deadline=NOW), NOW)
    assert isinstance(late, Abandon)
    assert late.pauses_run


def test_a_round_that_needs_the_members_of_an_earlier_sum_waits_for_them_and_names_the_absent() -> None:
    """That sum led to a model that was refused, so the round begins from the same model once more."""
    earlier = SumHistory([RecoveredSum(frozenset("abcd"), refused=False, led_on=True)])
    without_d = view(RoundState.TRAINING, READY, READY, READY, OFFERED, READY, history=earlier)
    assert decide(without_d, NOW) == Wait()
    late = decide(replace(without_d, deadline=NOW), NOW)
    assert isinstance(late, Abandon)
    assert late.pauses_run
    assert "its members confirm on it only all together; d is not ready: resume the run when" in late.reason
    all_there = view(RoundState.TRAINING, READY, READY, READY, READY, READY, history=earlier)
    assert decide(all_there, NOW) == Freeze(("a", "b", "c", "d"), ("e",))


def test_the_very_members_of_a_refused_sum_are_not_asked_again_on_that_model() -> None:
    earlier = SumHistory([RecoveredSum(frozenset("abcd"), refused=True)], frozenset("abcd"))
    again = view(RoundState.TRAINING, READY, READY, READY, READY, DECLINED, history=earlier)
    assert isinstance(decide(again, NOW), Abandon)


@pytest.mark.parametrize("phase", [RoundState.UPLOAD, RoundState.CONFIRM])
def test_no_round_goes_on_without_a_dealer_that_has_not_opened_what_was_complained_about(phase: RoundState) -> None:
    before, after = PHASE_SEATS[phase]
    seats = (after, after, after, after, before)
    assert decide(view(phase, *seats, late=True, accused=["a"]), NOW) == Advance(("e",))
    retried = decide(view(phase, *seats, late=True, accused=["e"]), NOW)
    assert retried == Retry(("e",), "e did not open the shares that members complained about", ("e",))
    assert decide(view(phase, *seats, accused=["e"]), NOW) == Wait()


def test_a_reveal_that_no_member_answers_ends_the_round_and_leaves_the_run_to_go_on() -> None:
    """So it is after a restore: members have long revealed, and to the aggregator before."""
    before, _after = PHASE_SEATS[RoundState.REVEAL]
    silent = view(RoundState.REVEAL, *[before] * 5, late=True)
    assert decide(silent, NOW) == Wait()
    assert isinstance(abandoned := decide(replace(silent, reveal_until=NOW), NOW), Abandon)
    assert not abandoned.pauses_run


def test_a_reveal_waits_while_too_few_hold_a_share_about_each_member() -> None:
    """A member that complained holds none about that dealer, so enough answers may be too few shares."""
    answered = (SeatState.REVEALED, SeatState.REVEALED, SeatState.REVEALED, SeatState.CONFIRMED)
    short = view(RoundState.REVEAL, *answered, late=True, recoverable=False)
    assert decide(short, NOW) == Wait()
    assert isinstance(decide(replace(short, reveal_until=NOW), NOW), Abandon)
    assert decide(replace(short, recoverable=True), NOW) == Advance(("d",))

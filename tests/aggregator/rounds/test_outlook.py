"""What happens next, in one sentence: row by row, and never another thing than a driver does."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from federation.plan import CohortBounds
from hypothesis import given
from hypothesis import strategies as st

from aggregator.rounds.decisions import Advance, Freeze, RoundSnapshot, Wait, decide
from aggregator.rounds.outlook import moment, outlook
from aggregator.rounds.regrouping import RecoveredSum, SumHistory
from aggregator.states import MASKING_PHASES, PHASE_SEATS, RoundState, SeatState

NOW = datetime(2026, 11, 30, 21, 3, tzinfo=UTC)  # a Monday
TOMORROW, SOON = NOW + timedelta(hours=6), NOW + timedelta(seconds=20)
T, K, U, R = RoundState.TRAINING, RoundState.KEYS, RoundState.UPLOAD, RoundState.REVEAL
READY, OFFERED, DECLINED = SeatState.READY, SeatState.OFFERED, SeatState.DECLINED
JOINED, KEYED, SHARED, UPLOADED = SeatState.JOINED, SeatState.KEYED, SeatState.SHARED, SeatState.UPLOADED
CONFIRMED, REVEALED = SeatState.CONFIRMED, SeatState.REVEALED


def view(state: RoundState, *seats: SeatState, deadline: datetime = TOMORROW, **changes: Any) -> RoundSnapshot:
    """A round whose sites a, b, c ... hold these seats, of a plan that wants 10 sites and takes 3."""
    sites = [chr(ord("a") + index) for index in range(len(seats))]
    fields: dict[str, Any] = {
        "name": "round:00/1",
        "state": state,
        "attempt": 1,
        "deadline": deadline,
        "reveal_until": NOW + timedelta(days=2),
        "seats": dict(zip(sites, seats, strict=True)),
        "advertised": len(seats),
        "guilty": (),
        "accused": (),
        "recoverable": True,
        "eligible": sites,
        "silent": (),
        "bounds": CohortBounds(minimum=3, target=10, maximum=10),
        "history": SumHistory(),
    }
    return RoundSnapshot(**(fields | changes))


SMALL = CohortBounds(minimum=3, target=4, maximum=4)
TOO_LIKE = SumHistory((RecoveredSum(frozenset("abcdx"), refused=False),))


@pytest.mark.parametrize(
    ("snapshot", "sentence"),
    [
        (
            view(T, *[READY] * 4, *[OFFERED] * 8),
            "4 of 10 wanted are ready; masking starts at 10, or on Tue 03:03 UTC with at least 3, "
            "and earlier if no other site can come.",
        ),
        (
            view(T, READY, *[OFFERED] * 11),
            "1 of 10 wanted is ready; masking starts at 10, or on Tue 03:03 UTC with at least 3; "
            "with fewer the round is abandoned.",
        ),
        (
            view(T, *[READY] * 2, *[OFFERED] * 3, *[DECLINED] * 2),
            "2 of 10 wanted are ready; masking starts when all 5 that can come are ready, or on Tue 03:03 UTC with at "
            "least 3; with fewer the round is abandoned.",
        ),
        (
            view(T, READY, OFFERED),
            "1 of 10 wanted is ready and 1 more can come; the plan's minimum is 3: the round is abandoned "
            "on Tue 03:03 UTC, unless another site joins.",
        ),
        (view(T, *[READY] * 4, OFFERED, bounds=SMALL), "4 sites are ready; masking starts now."),
        (view(T, *[READY] * 3, OFFERED, silent="d"), "3 sites are ready; masking starts now."),
        (
            view(T, READY, OFFERED, OFFERED, deadline=NOW),
            "The round is abandoned now: at the deadline 1 sites were ready, the plan's minimum is 3.",
        ),
        (
            view(T, READY, READY, seats={"a": READY, "b": READY}, eligible=["a", "b", "c"]),
            "2 of 10 wanted are ready; masking starts when all 3 that can come are ready, or on Tue 03:03 UTC with at "
            "least 3; with fewer the round is abandoned.",
        ),
        (
            view(T, *[READY] * 3, OFFERED, history=TOO_LIKE),
            "3 of 10 wanted are ready and 1 more can come; no cohort of them is admitted beside earlier sums on this "
            "model: the round is abandoned on Tue 03:03 UTC, unless another site joins.",
        ),
        (
            view(K, KEYED, KEYED, JOINED, JOINED, deadline=SOON),
            "2 of 4 members have sent keys; the members share their secrets when all have, or at 21:03:20 UTC with at "
            "least 3; otherwise masking starts over with fresh keys, attempt 2 of 5.",
        ),
        (
            view(U, *[UPLOADED] * 4, SHARED, deadline=SOON),
            "4 of 5 members have uploaded; the members confirm the uploads when all have, or at 21:03:20 UTC with at "
            "least 4.",
        ),
        (
            view(U, UPLOADED, *[SHARED] * 4, deadline=SOON, attempt=5),
            "1 of 5 members have uploaded; the members confirm the uploads when all have, or at 21:03:20 UTC with at "
            "least 4; otherwise the round is abandoned.",
        ),
        (
            view(U, *[UPLOADED] * 3, SHARED, SHARED, deadline=SOON, guilty=["a"]),
            "Masking starts over with fresh keys, attempt 2 of 5, now: a dealt no shares to members that say so, more "
            "than may be corrupt.",
        ),
        (
            view(RoundState.CONFIRM, *[CONFIRMED] * 4, UPLOADED, deadline=SOON, accused=["e"]),
            "4 of 5 members have confirmed; the members reveal the shares that unmask the sum when all have; e must "
            "answer in any case; otherwise at 21:03:20 UTC masking starts over with fresh keys, attempt 2 of 5.",
        ),
        (
            view(U, *[UPLOADED] * 5, deadline=SOON),
            "5 of 5 members have uploaded; now the members confirm the uploads.",
        ),
        (
            view(R, REVEALED, *[CONFIRMED] * 4, deadline=SOON),
            "1 of 5 members have revealed shares; the aggregator decodes the sum when all have, or at 21:03:20 UTC "
            "with at least 4; the round waits for them, and is abandoned on Wed 21:03 UTC.",
        ),
        (
            view(RoundState.AGGREGATING, *[REVEALED] * 3),
            "The aggregator recovers the masks and computes the next model; if that is not done on Tue 03:03 UTC, the "
            "round is abandoned, and the run pauses.",
        ),
    ],
)
def test_the_sentence_names_what_starts_the_next_step_and_when(snapshot: RoundSnapshot, sentence: str) -> None:
    assert outlook(snapshot, NOW).sentence == sentence


@given(
    seats=st.lists(st.sampled_from([READY, OFFERED, DECLINED, SeatState.MISSED]), max_size=9),
    minimum=st.integers(3, 5),
    above=st.integers(0, 4),
    silent=st.integers(0, 2),
)
def test_masking_starts_at_the_number_that_is_said_and_at_no_smaller_one(
    seats: list[SeatState], minimum: int, above: int, silent: int
) -> None:
    """Sites become ready one after the other; the driver is asked after each."""
    bounds = CohortBounds(minimum, minimum + above, minimum + above)
    now = view(T, *seats, bounds=bounds, silent="abcdefghi"[:silent])
    said = outlook(now, NOW)
    for site in [None, *said.awaited]:
        if site is not None:
            now = replace(now, seats={**now.seats, site: READY}, silent=set(now.silent) - {site})
        ready = list(now.seats.values()).count(READY)
        starts = isinstance(decide(now, NOW), Freeze)
        assert starts == (said.enough is not None and ready >= said.enough)
        at_deadline = isinstance(decide(now, TOMORROW), Freeze)
        if said.enough is not None and not isinstance(decide(view(T, *seats, bounds=bounds), NOW), Freeze):
            assert said.enough_at_deadline is None or at_deadline == (ready >= said.enough_at_deadline)
        if starts:
            return


@given(phase=st.sampled_from(MASKING_PHASES), done=st.integers(0, 7), missing=st.integers(0, 7))
def test_a_phase_ends_at_the_number_that_is_said(phase: RoundState, done: int, missing: int) -> None:
    before, after = PHASE_SEATS[phase]
    now = view(phase, *[after] * done, *[before] * missing, deadline=SOON)
    said = outlook(now, NOW)
    if not isinstance(decide(now, NOW), Wait):
        return
    for count in range(done, done + missing + 1):
        snapshot = view(phase, *[after] * count, *[before] * (done + missing - count), deadline=SOON)
        assert isinstance(decide(snapshot, NOW), Advance) == (said.enough is not None and count >= said.enough)
        late = isinstance(decide(snapshot, SOON), Advance)
        assert late == (said.enough_at_deadline is not None and count >= said.enough_at_deadline)


@pytest.mark.parametrize(
    ("ahead", "words"),
    [
        (timedelta(seconds=20), "at 21:03:20 UTC"),
        (timedelta(hours=2), "at 23:03 UTC"),
        (timedelta(hours=6), "on Tue 03:03 UTC"),
        (timedelta(days=24), "on 2026-12-24 21:03 UTC"),
        (timedelta(days=-2), "on Sat 21:03 UTC"),
    ],
)
def test_a_moment_is_written_as_people_say_it(ahead: timedelta, words: str) -> None:
    assert moment(NOW + ahead, NOW) == words

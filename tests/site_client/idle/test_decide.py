"""The gate on simulated days: what it promises, whatever the machine does."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from federation.vocabulary import StateReason
from hypothesis import given, settings
from hypothesis import strategies as st

from site_client.config import IdleSettings
from site_client.trainer.idle.decide import UNKNOWN_GRACE_S, GateState, IdleDecision, Mode, decide
from site_client.trainer.idle.readings import NEVER_S, GpuUse, Moment, OperatorPause, Signals, Unknown

POLICY = IdleSettings(calm_s=600, start_delay_s=60, release_s=120)
STEP_S = 10.0
START = datetime(2026, 11, 23, 6, 0, tzinfo=UTC)
GONE = Unknown("the probe failed")
CALM = Signals(0.0, 0.0, 0.0, 8.0, GpuUse(0, 0), NEVER_S, NEVER_S, False, False, 40.0, 100.0, frozenset())
BUSY: dict[str, tuple[Any, str]] = {
    "foreign_cpu": (0.9, "FOREIGN_CPU"),
    "memory_pressure": (0.5, "MEMORY"),
    "io_pressure": (0.9, "IO"),
    "gpu": (GpuUse(1, 0), "GPU_BUSY"),
    "user_idle_s": (0.0, "USER_ACTIVE"),
    "remote_idle_s": (3.0, "REMOTE_SESSION"),
    "on_battery": (True, "BATTERY"),
    "on_ups": (True, "UPS"),
    "temperature_c": (99.0, "THERMAL"),
    "disk_free_gib": (0.1, "DISK"),
    "programs": (frozenset({"viewer"}), "EXCLUSIVE_APP"),
}
NEEDED = ("foreign_cpu", "on_battery")


def calm_but(name: str, value: Any) -> Signals:
    return replace(CALM, **{name: value})


steps = st.one_of(
    st.just(CALM),
    st.sampled_from(sorted(BUSY)).map(lambda name: calm_but(name, BUSY[name][0])),
    st.sampled_from(sorted(BUSY)).map(lambda name: calm_but(name, GONE)),
    st.just(replace(CALM, operator=OperatorPause(None))),
)
days = st.lists(st.tuples(steps, st.integers(1, 120)), min_size=1, max_size=25)


def live(day: list[tuple[Signals, int]]) -> list[tuple[Signals, IdleDecision]]:
    """Every sample of a day with its decision."""
    gate, elapsed_s, seen = GateState(), 0.0, []
    for signals, samples in day:
        for _ in range(samples):
            decision = decide(signals, POLICY, gate, Moment(START + timedelta(seconds=elapsed_s), elapsed_s))
            seen.append((signals, decision))
            gate, elapsed_s = decision.gate, elapsed_s + STEP_S
    return seen


def is_busy(signals: Signals) -> bool:
    return any(getattr(signals, name) == value for name, (value, _) in BUSY.items())


@settings(max_examples=12, deadline=None)
@given(days)
def test_a_busy_sample_pauses_at_once_and_only_sustained_calm_ends_it(day: list[tuple[Signals, int]]) -> None:
    last_busy_s = None
    for index, (signals, decision) in enumerate(live(day)):
        if is_busy(signals):
            last_busy_s = index * STEP_S
            assert decision.mode is not Mode.RUN
        if decision.mode is Mode.RUN and last_busy_s is not None:
            assert index * STEP_S - last_busy_s >= POLICY.calm_s
        if signals.operator is not None:
            assert decision.mode is not Mode.RUN


# A whole day, as a list of what changes and when; between two changes nothing does.

DAY_S = 86_400
changes = st.lists(
    st.tuples(st.integers(0, DAY_S), st.sampled_from(sorted(BUSY)), st.sampled_from(["busy", "calm", "gone"])),
    max_size=40,
)


def whole_day(
    events: list[tuple[int, str, str]], look_s: float
) -> Iterator[tuple[float, dict[str, str], IdleDecision]]:
    """Elapsed seconds, what each signal is, and the decision, of every look of a day."""
    gate, state, signals = GateState(), dict.fromkeys(BUSY, "calm"), CALM
    due = sorted(events, key=lambda event: event[0])
    for look in range(int(DAY_S / look_s)):
        elapsed_s = look * look_s
        while due and due[0][0] <= elapsed_s:
            _, name, what = due.pop(0)
            state = {**state, name: what}
            value = {"busy": BUSY[name][0], "calm": getattr(CALM, name), "gone": GONE}[what]
            signals = replace(signals, **{name: value})
        decision = decide(signals, POLICY, gate, Moment(START + timedelta(seconds=elapsed_s), elapsed_s))
        yield elapsed_s, state, decision
        gate = decision.gate


@pytest.mark.parametrize("look_s", [10.0, pytest.param(0.25, marks=[pytest.mark.slow, pytest.mark.timeout(900)])])
@settings(max_examples=6, deadline=None)
@given(events=changes)
def test_on_a_whole_day_no_look_that_found_somebody_trains_and_none_sooner_than_calm_after_it(
    look_s: float, events: list[tuple[int, str, str]]
) -> None:
    busy_at_s, known_s = -math.inf, dict.fromkeys(NEEDED, -math.inf)
    for elapsed_s, state, decision in whole_day(events, look_s):
        for name in NEEDED:
            known_s[name] = elapsed_s if state[name] != "gone" else known_s[name]
        if "busy" in state.values():
            busy_at_s = elapsed_s
        if decision.mode is Mode.RUN:
            assert elapsed_s - busy_at_s >= POLICY.calm_s
            assert all(elapsed_s - seen_s <= UNKNOWN_GRACE_S for seen_s in known_s.values())
            assert elapsed_s >= POLICY.start_delay_s


@settings(max_examples=12, deadline=None)
@given(days)
def test_a_pause_has_reasons_that_the_protocol_knows_and_running_has_none(day: list[tuple[Signals, int]]) -> None:
    for _, decision in live(day):
        assert (decision.mode is Mode.RUN) == (decision.reasons == ())
        assert set(decision.reasons) <= set(StateReason)


@settings(max_examples=12, deadline=None)
@given(days)
def test_memory_given_back_stays_given_back_until_training_goes_on(day: list[tuple[Signals, int]]) -> None:
    modes = [decision.mode for _, decision in live(day)]
    assert (Mode.RELEASE, Mode.HOLD) not in set(itertools.pairwise(modes))


@settings(max_examples=12, deadline=None)
@given(days)
def test_whatever_happened_a_calm_machine_is_used_again(day: list[tuple[Signals, int]]) -> None:
    assert live([*day, (CALM, 62)])[-1][1].mode is Mode.RUN


def test_each_busy_signal_has_its_reason() -> None:
    for name, (value, reason) in BUSY.items():
        assert live([(calm_but(name, value), 1)])[-1][1].reasons == (reason,)


def test_an_unknown_signal_denies_only_where_it_must_and_only_after_a_grace() -> None:
    for name in BUSY:
        grace = int(UNKNOWN_GRACE_S / STEP_S)
        modes = [decision.mode for _, decision in live([(CALM, 10), (calm_but(name, GONE), grace + 2)])]
        assert modes[9 + grace] is Mode.RUN
        assert (modes[-1] is Mode.RUN) == (name not in NEEDED), name


def test_a_pause_longer_than_release_s_or_for_memory_gives_the_memory_back() -> None:
    someone = replace(CALM, user_idle_s=0.0)
    modes = [decision.mode for _, decision in live([(CALM, 10), (someone, 14)])][10:]
    assert modes == [Mode.HOLD] * 12 + [Mode.RELEASE] * 2
    assert live([(CALM, 10), (replace(CALM, memory_free_gib=0.1), 1)])[-1][1].mode is Mode.RELEASE


def test_a_pause_by_hand_ends_at_its_time_without_waiting_for_calm_again() -> None:
    until = START + timedelta(seconds=300)
    seen = live([(CALM, 10), (replace(CALM, operator=OperatorPause(until)), 40)])
    assert [decision.mode is Mode.RUN for _, decision in seen] == [False] * 6 + [True] * 4 + [False] * 20 + [True] * 20


def test_a_pause_after_the_round_lets_the_job_at_hand_end() -> None:
    gate = live([(CALM, 10)])[-1][1].gate
    signals = replace(CALM, operator=OperatorPause(None, after_round=True))
    now = Moment(START + timedelta(seconds=100), 100.0)
    assert decide(signals, POLICY, gate, now, job_at_hand=True).mode is Mode.RUN
    assert decide(signals, POLICY, gate, now, job_at_hand=False).reasons == ("OPERATOR",)


def test_hours_and_blackouts_hold_it_back() -> None:
    gate, now = live([(CALM, 10)])[-1][1].gate, Moment(START + timedelta(seconds=100), 100.0)
    assert decide(CALM, replace(POLICY, windows=("19:00 for 8h",)), gate, now).reasons == ("WINDOW",)
    assert decide(CALM, replace(POLICY, windows=("05:00 for 8h",)), gate, now).reasons == ()
    assert decide(CALM, replace(POLICY, blackout=("2026-11-20..2026-11-23",)), gate, now).reasons == ("BLACKOUT",)
